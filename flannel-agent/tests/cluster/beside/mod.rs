//! Beside others on a node: what else a Kubernetes node runs works on both paths, and exactly those legs are fast that the
//! README's table says. kube-proxy's rules and `hostPort` are in [`crate::services`], single rules of policies in
//! [`crate::policies`].

mod bandwidth;
mod canal;
mod host_ports;
mod kube_router;
mod node_local_dns;
mod queue;

use anyhow::bail;
use lab::process;

use crate::suites::Test;
use crate::support::{Outcome, Skipped};

/// Tests on the kernel's path, and where flows need its permission, whatever attests them.
pub(crate) const RULED: &[(&str, Test)] = &[
    ("policies_of_kube_router_hold", kube_router::policies_hold),
    ("verdicts_of_a_process_hold", queue::verdicts_hold),
    (
        "untracked_flows_are_the_kernels",
        node_local_dns::untracked_flows_are_the_kernels,
    ),
];

/// Tests on both paths that do not depend on what attests.
pub(crate) const TRAFFIC: &[(&str, Test)] = &[
    (
        "limits_of_the_bandwidth_plugin_hold",
        bandwidth::limits_hold,
    ),
    ("policies_of_canal_hold", canal::policies_hold),
    (
        "host_ports_go_with_their_pod",
        host_ports::go_with_their_pod,
    ),
    (
        "a_dns_cache_on_the_node_answers",
        node_local_dns::answers_by_both_addresses,
    ),
];

/// Tests of flow permission that depend neither on who attests nor on the backend.
pub(crate) const FLOW_ALONE: &[(&str, Test)] = &[(
    "limits_of_the_bandwidth_plugin_hold_beside_clsact",
    bandwidth::limits_hold_beside_clsact,
)];

/// Skips the test where a command fails in a namespace of its own. `input` is what it reads.
fn needs(what: &str, command: &[&str], input: &str) -> Outcome {
    let words = [&["--net"], command].concat();
    match process::run_with_input(None, "unshare", &words, input) {
        Ok(_) => Ok(()),
        Err(error) => bail!(Skipped(format!("no {what} here: {error}"))),
    }
}
