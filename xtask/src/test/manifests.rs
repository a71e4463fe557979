//! Manifests, overlays and chart: the tests are the agent's, and set-up brings what renders the chart.

use anyhow::Result;

use super::{Options, Suite, runner::Runners, tally::Tally};
use crate::{command, setup::helm, workspace::Workspace};

/// Runs them; without Helm, those of the chart are skipped.
pub fn run(workspace: &Workspace, runners: &Runners<'_>, options: &Options) -> Result<Tally> {
    ensure_helm(workspace)?;
    runners.run(Suite::Manifests, options)
}

/// Brings Helm, or says why it cannot be had.
pub fn ensure_helm(workspace: &Workspace) -> Result<()> {
    if let Err(error) = helm::ensure(workspace) {
        command::check_interrupt()?;
        println!("  no Helm: {error:#}");
    }
    Ok(())
}
