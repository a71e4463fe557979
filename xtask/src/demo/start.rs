//! Building the demo's cluster, with each step told as it is done.

use std::{
    io::{IsTerminal, Write, stderr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use lab::{AgentConfig, Cluster, ClusterConfig, Lifetime, NodeConfig, Step};

use crate::demo::Options;

/// The pod network, flannel's customary one.
const NETWORK: &str = "10.244.0.0/16";
/// Where the times of the steps are aligned.
const COLUMN: usize = 40;

/// Builds the cluster that the options ask for.
pub(super) fn cluster(options: &Options, agent: &Path) -> Result<Cluster> {
    let agent = AgentConfig::new(agent).with_fast_path(options.fast_path.name());
    let mut nodes = vec![NodeConfig::agent(&agent); options.nodes.into()];
    nodes.extend(vec![
        NodeConfig::agent(&agent).routed();
        options.routed.into()
    ]);
    let backend = options.backend.name();
    Cluster::start(ClusterConfig {
        nodes,
        pods: options.pods.into(),
        network: format!(r#"{{"Network":"{NETWORK}","Backend":{{"Type":"{backend}"}}}}"#),
        lifetime: if options.keep {
            Lifetime::Outlives
        } else {
            Lifetime::Bound
        },
        progress: Some(Box::new(progress)),
        ..ClusterConfig::default()
    })
    .inspect_err(|_| {
        // The step that failed has begun a line.
        if stderr().is_terminal() {
            eprintln!();
        }
    })
    .context("the cluster does not start")
}

fn progress(step: Step<'_>) {
    match step {
        Step::Begin(what) if stderr().is_terminal() => {
            eprint!("  {what:COLUMN$}");
            stderr().flush().ok();
        }
        Step::Begin(_) => {}
        Step::Done(what, took) => announce(what, took),
    }
}

/// Tells that a step is done, and how long it took.
pub(super) fn announce(what: &str, took: Duration) {
    // On a terminal the line may have been begun.
    let begin = if stderr().is_terminal() { "\r" } else { "" };
    eprintln!("{begin}  {what:COLUMN$}{:6.2} s", took.as_secs_f64());
}
