//! Our nodes and stock flannel nodes in one cluster: neither can tell what the other is.

use anyhow::{Context, ensure};
use lab::{
    NodeConfig,
    traffic::{
        tcp::{self, TcpPlan},
        tools::{self, PingPlan},
    },
};

use crate::meter::Meter;
use crate::support::{Outcome, Setting, udp_arrives, with_cluster};

/// Packets of one check.
const PACKETS: u64 = 2000;
/// Bytes of one stream.
const STREAM: u64 = 10_000_000;

pub(crate) fn with_stock_node(setting: Setting) -> Outcome {
    let nodes = vec![setting.node(), NodeConfig::stock()];
    with_cluster(setting.cluster(nodes), |cluster| {
        let (ours, stock) = (cluster.node(1), cluster.node(2));
        let lease = ours.agent().status()?.peers;
        ensure!(
            lease.len() == 1 && lease[0].subnet == stock.stock().subnet()?.to_string(),
            "the stock node's lease: {lease:?}"
        );
        for (from, to) in [(ours, stock), (stock, ours)] {
            let way = format!("from {} to {}", from.name(), to.name());
            let (source, target) = (&from.pods()[0], &to.pods()[0]);
            let plan = PingPlan::default();
            let report = tools::ping(source.netns(), target.address(), plan)?;
            ensure!(report.received == 1, "ping {way}: {report:?}");
            let report = tools::ping(from.netns(), target.address(), plan)?;
            ensure!(
                report.received == 1,
                "ping {way}, from the node: {report:?}"
            );
            let meter = Meter::start(from, to)?;
            udp_arrives(source, target, PACKETS, 64).with_context(|| way.clone())?;
            meter.expect(setting.path, PACKETS)?;
            let plan = TcpPlan {
                bytes: STREAM,
                rate: None,
            };
            let report = tcp::run(source, target, plan)?;
            ensure!(
                report.is_intact() && report.received == STREAM,
                "{way}: {report:?}"
            );
        }
        Ok(())
    })
}
