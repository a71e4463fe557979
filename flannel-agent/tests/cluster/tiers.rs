//! Each way of carrying packets that the fast path has, forced on its own: all but the first choice of this kernel
//! would otherwise never run here.

use anyhow::{Context, ensure};
use lab::{
    ClusterConfig, NodeConfig,
    status::FastPath,
    traffic::tcp::{self, TcpPlan},
};

use crate::{
    meter::Meter,
    support::{Outcome, Setting, udp_arrives, with_cluster},
};

/// How many sequenced packets one check sends.
const PACKETS: u64 = 1000;
/// How many bytes one stream sends.
const STREAM: u64 = 10_000_000;
/// The largest aggregate, in bytes.
const AGGREGATE: u64 = 64 << 10;

/// After decapsulation by the kernel's device.
pub(crate) fn received_at_the_device(setting: Setting) -> Outcome {
    carries(setting, "--fast-path-ingress=vtep", true, |status| {
        status.ingress.as_deref() == Some("vtep")
    })
}

/// Encapsulation by the kernel's device.
pub(crate) fn sent_by_the_device(setting: Setting) -> Outcome {
    carries(setting, "--fast-path-egress=assist", true, |status| {
        status.egress.as_deref() == Some("assist")
    })
}

/// Filters instead of links, as before kernel 6.6.
pub(crate) fn attached_by_clsact(setting: Setting) -> Outcome {
    carries(setting, "--fast-path-attach=clsact", true, |status| {
        status.attach.as_deref() == Some("clsact")
    })
}

/// One hook for all pods. Only where bridge netfilter is off is that cheaper than the kernel.
pub(crate) fn taken_up_at_the_bridge(setting: Setting) -> Outcome {
    carries(setting, "--fast-path-pods=bridge", false, |status| {
        status
            .hooks
            .iter()
            .any(|hook| hook.program == "bridge_egress")
    })
}

/// Asserts that nodes whose agents have `argument` are so, and carry packets and streams, also across a kill.
pub(crate) fn carries(
    setting: Setting,
    argument: &str,
    bridge_netfilter: bool,
    is_so: impl Fn(&FastPath) -> bool,
) -> Outcome {
    let mut agent = setting.agent();
    agent.arguments.push(argument.to_owned());
    let nodes = vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent)];
    let config = ClusterConfig {
        bridge_netfilter,
        ..setting.cluster(nodes)
    };
    with_cluster(config, |cluster| {
        let (first, second) = (cluster.node(1), cluster.node(2));
        for node in [first, second] {
            let status = node.agent().status()?.fast_path;
            ensure!(is_so(&status), "{argument}: {status:?}");
        }
        let (source, target) = (&first.pods()[0], &second.pods()[0]);
        let arrives = || -> Outcome {
            udp_arrives(source, target, PACKETS, 64).context("small packets")?;
            let plan = TcpPlan {
                bytes: STREAM,
                rate: None,
            };
            let report = tcp::run(source, target, plan)?;
            ensure!(
                report.is_intact() && report.received == STREAM,
                "{report:?}"
            );
            Ok(())
        };
        let carried = || -> Outcome {
            let meter = Meter::start(first, second)?;
            arrives()?;
            meter.expect(setting.path, PACKETS + STREAM / AGGREGATE)
        };
        carried()?;
        // What a killed agent leaves attached is taken over by the next.
        first.agent().kill()?;
        arrives().context("without the agent")?;
        first.agent().start()?;
        first.agent().wait_ready()?;
        carried().context("after the agent has come back")
    })
}
