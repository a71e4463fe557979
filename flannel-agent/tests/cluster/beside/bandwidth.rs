//! The real `bandwidth` plugin: a pod receives and sends no faster than it may, on either path. What the plugin sets up (TBF
//! on the veth for what the pod receives; for what it sends a redirection to an `ifb` device with TBF) sees all packets.

use anyhow::{Context, bail, ensure};
use lab::{
    ClusterConfig, Node, NodeConfig, Pod,
    cni::{Bandwidth, Wishes},
    traffic::tcp::{self, TcpPlan},
};

use super::needs;
use crate::legs::{Count, DIRECT, Legs};
use crate::pair::agent;
use crate::support::{Outcome, Path, Setting, shell, wait_pods_served, with_cluster};

/// The limit, in bits per second: no machine is so slow that it does not reach it.
const LIMIT: u64 = 50_000_000;
/// What may pass at once, in bits.
const BURST: u64 = 1_000_000;
/// Bytes of a stream: half a second's worth.
const BYTES: u64 = LIMIT / 8 / 2;
/// How much more than the limit a stream may seem to have, in percent: TBF counts no headers of segments that it gets as
/// one packet.
const SLACK: u64 = 10;
/// With a filter on what a pod sends the kernel carries all of the pod's traffic; the other node need not know.
const OTHER_NODE: Legs = [true, true, false, false];

/// Limits hold in both directions.
pub(crate) fn limits_hold(setting: Setting) -> Outcome {
    limits_hold_with(setting, &[])
}

/// The same where our programs are filters of a clsact qdisc, which takes the place of the plugin's ingress qdisc.
pub(crate) fn limits_hold_beside_clsact(setting: Setting) -> Outcome {
    limits_hold_with(setting, &["--fast-path-attach=clsact"])
}

fn limits_hold_with(setting: Setting, arguments: &[&str]) -> Outcome {
    needs(
        "ifb device",
        &["ip", "link", "add", "try", "type", "ifb"],
        "",
    )?;
    let shaper = "tc qdisc add dev lo root tbf rate 1mbit burst 10k latency 1ms";
    let shaper: Vec<_> = shaper.split(' ').collect();
    needs("TBF", &shaper, "")?;
    let mut agent = setting.agent();
    let further = arguments.iter().map(|&argument| argument.into());
    agent.arguments.extend(further);
    let config = ClusterConfig {
        pods: 0,
        ..setting.cluster(vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent)])
    };
    with_cluster(config, |cluster| {
        let [one, two] = cluster.nodes() else {
            bail!("two nodes were asked for");
        };
        let other = one.add_pod()?;
        let limited = |ingress, egress| {
            let limits = Bandwidth {
                ingress,
                egress,
                burst: BURST,
            };
            two.add_pod_with(Wishes {
                bandwidth: Some(limits),
                ..Wishes::default()
            })
        };
        let receiver = limited(Some(LIMIT), None).context("a limit on what a pod receives")?;
        let sender = limited(None, Some(LIMIT)).context("a limit on what a pod sends")?;
        let both = limited(Some(LIMIT), Some(LIMIT)).context("both limits")?;
        if setting.path != Path::Kernel {
            says(two, &receiver, "a shaper")?;
            says(two, &sender, "filter on its veth")?;
            says(two, &both, "filter on its veth")?;
        }
        wait_pods_served(one)?;
        let test = Test {
            path: setting.path,
            nodes: [one, two],
        };
        test.stream(&other, &receiver, true, DIRECT)?;
        test.stream(&receiver, &other, false, DIRECT)?;
        test.stream(&sender, &other, true, OTHER_NODE)?;
        test.stream(&other, &both, true, OTHER_NODE)?;
        test.stream(&both, &other, true, OTHER_NODE)?;
        for pod in [receiver, sender, both] {
            two.delete_pod(pod)?;
        }
        let left = shell(two, "ip -oneline link show type ifb")?;
        ensure!(left.is_empty(), "left behind: {left}");
        // A pod that comes later has no limit of theirs.
        let free = two.add_pod()?;
        wait_pods_served(two)?;
        test.stream(&other, &free, false, DIRECT)?;
        test.stream(&free, &other, false, DIRECT)
    })
}

struct Test<'a> {
    path: Path,
    nodes: [&'a Node; 2],
}

impl Test<'_> {
    /// Sends, and asserts how fast and where it was fast.
    fn stream(&self, from: &Pod, to: &Pod, limited: bool, legs: Legs) -> Outcome {
        let plan = TcpPlan {
            bytes: BYTES,
            rate: None,
        };
        let what = || format!("{} to {}", from.name(), to.name());
        let before = Count::of(self.nodes)?;
        let report = tcp::run(from, to, plan).with_context(what)?;
        ensure!(report.is_intact(), "{}: {report:?}", what());
        before
            .assert_legs(self.nodes, self.path, legs)
            .with_context(what)?;
        // The burst is on top of what the limit lets pass.
        let millis = report.duration.as_millis().max(1);
        let rate =
            u64::try_from(u128::from((report.received * 8).saturating_sub(BURST)) * 1000 / millis)?;
        let most = LIMIT + LIMIT * SLACK / 100;
        ensure!(
            (rate <= most) == limited,
            "{}: {rate} bit/s, where the limit {} {LIMIT}: {report:?}",
            what(),
            if limited { "is" } else { "is not" }
        );
        Ok(())
    }
}

/// Waits until the status has this remark on a pod.
fn says(node: &Node, pod: &Pod, text: &str) -> Outcome {
    let address = pod.address().to_string();
    agent(node)?.wait_status(text, |status| {
        let mut pods = status.fast_path.pods.iter();
        pods.find(|known| known.ip == address)
            .and_then(|known| known.problem.as_deref())
            .is_some_and(|problem| problem.contains(text))
    })?;
    Ok(())
}
