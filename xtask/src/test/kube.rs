//! Clusters whose leases a real Kubernetes API server keeps. The server is built from source once for each user and
//! machine; where that cannot be done, the suite is skipped, loudly.

use anyhow::Result;

use super::{
    Options, Suite, manifests,
    runner::Runners,
    tally::{Skip, Tally},
};
use crate::{command, setup, workspace::Workspace};

/// Whether the suite is among those that run if none is named, although building the server takes minutes of two cores
/// on a machine that has not got it yet.
pub const ALWAYS: bool = true;

/// Builds the server if need be, and runs the tests.
pub fn run(workspace: &Workspace, runners: &Runners<'_>, options: &Options) -> Result<Tally> {
    if let Err(error) = setup::ensure_kubernetes(workspace) {
        command::check_interrupt()?;
        let reason = format!("{error:#}");
        println!("  SKIPPED: {reason}");
        return Ok(Tally {
            skipped: vec![Skip {
                test: "a real API server".into(),
                reason,
            }],
            ..Tally::default()
        });
    }
    // The chart is put to the server, too.
    manifests::ensure_helm(workspace)?;
    runners.run(Suite::Kube, options)
}
