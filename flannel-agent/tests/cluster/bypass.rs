//! The fast path leads no packet past what others have put in its way: shapers, filters, IPsec policies.

use std::sync::Arc;

use anyhow::{Context, ensure};
use aya::{
    Ebpf,
    maps::PerCpuArray,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use flannel_agent::fastpath::{facts::Facts, object};
use flannel_common::outcome::{self, Hook, slot};
use lab::{Agent, Node, NodeConfig, Pod, status::Status};

use crate::meter::Meter;
use crate::support::{Outcome, Path, Setting, shell, udp_arrives, with_cluster};

/// A node's interface to the others.
const UPLINK: &str = "eth0";
/// Packets of each measurement.
const PACKETS: u64 = 1000;
/// Their size in bytes.
const SIZE: usize = 100;

/// A queueing discipline on a pod's veth, as the bandwidth plugin sets it, has all packets to the pod go through it, at
/// the fast path's price otherwise.
pub(crate) fn a_shaper_sees_what_a_pod_receives(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let ends = Ends::of(cluster.nodes())?;
        let veth = &ends.target.attachment().host_device;
        let to = ends.to;
        shell(
            to,
            &format!("tc qdisc add dev {veth} root tbf rate 10gbit burst 1m latency 100ms"),
        )?;
        ends.target_says("a shaper")?;
        ends.carry(Path::Fast)?;
        let shaped = shell(to, &format!("tc -s -j qdisc show dev {veth}"))?;
        let shaped: serde_json::Value = serde_json::from_str(&shaped)?;
        let packets = shaped.as_array().into_iter().flatten();
        let packets = packets.filter(|one| one["kind"] == "tbf");
        let packets: u64 = packets.filter_map(|one| one["packets"].as_u64()).sum();
        ensure!(
            packets >= PACKETS,
            "the shaper has seen {packets} of {PACKETS} packets"
        );
        shell(to, &format!("tc qdisc del dev {veth} root"))?;
        ends.target_serves()?;
        ends.carry(Path::Fast)
    })
}

/// A filter on what a pod sends, such as one that polices it, leaves all of the pod's traffic to the kernel.
pub(crate) fn a_filter_sees_what_a_pod_sends(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let ends = Ends::of(cluster.nodes())?;
        let veth = &ends.target.attachment().host_device;
        shell(
            ends.to,
            &format!("tc qdisc add dev {veth} clsact && tc filter add dev {veth} ingress {ANY}"),
        )?;
        ends.target_says("filter on its veth")?;
        udp_arrives(&ends.source, &ends.target, PACKETS, SIZE)?;
        let before = fast_ingress(ends.to)?;
        udp_arrives(&ends.source, &ends.target, PACKETS, SIZE)?;
        let after = fast_ingress(ends.to)?;
        ensure!(before == after, "{} were fast", after - before);
        shell(ends.to, &format!("tc filter del dev {veth} ingress"))?;
        ends.target_serves()?;
        ends.carry(Path::Fast)
    })
}

/// BPF programs that somebody attaches to a pod's veth after ours see all packets, to the pod and from it.
pub(crate) fn programs_that_come_later(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let ends = Ends::of(cluster.nodes())?;
        let veth = ends.target.attachment().host_device.clone();
        let mut foreign = Foreign::load()?;
        ends.to.netns().run(|| {
            foreign.attach(Hook::PodEgress, &veth, TcAttachType::Ingress)?;
            foreign.attach(Hook::AttestIn, &veth, TcAttachType::Egress)
        })??;
        // Attaching raises no event; whatever happens to the veth does.
        shell(ends.to, &format!("ip link set {veth} alias noticed"))?;
        ends.target_says("a TCX program")?;
        let before = (
            foreign.seen(Hook::PodEgress)?,
            foreign.seen(Hook::AttestIn)?,
        );
        ends.carry(Path::Fast)?;
        let back = Meter::start(ends.to, ends.from)?;
        udp_arrives(&ends.target, &ends.source, PACKETS, SIZE)?;
        back.expect(Path::Fast, PACKETS)?;
        let sent = foreign.seen(Hook::PodEgress)? - before.0;
        let received = foreign.seen(Hook::AttestIn)? - before.1;
        ensure!(
            sent >= PACKETS && received >= PACKETS,
            "of {PACKETS} packets each way the programs saw {sent} and {received}"
        );
        drop(foreign);
        shell(ends.to, &format!("ip link set {veth} alias again"))?;
        ends.target_serves()
    })
}

/// Programs of somebody else: ours with maps of their own, in which nothing is active, so that they count packets and
/// let them pass.
struct Foreign(Ebpf);

impl Foreign {
    fn load() -> anyhow::Result<Self> {
        let bytes = object::bytes().context("no BPF object")?;
        Ok(Self(object::load(
            bytes,
            &Facts::default(),
            object::Room::default(),
            None,
        )?))
    }

    fn attach(&mut self, hook: Hook, device: &str, side: TcAttachType) -> Outcome {
        let program = self.0.program_mut(hook.name()).context("no such program")?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        program.attach_with_options(device, side, options)?;
        Ok(())
    }

    /// Packets that a program has seen.
    fn seen(&self, hook: Hook) -> anyhow::Result<u64> {
        let counters = self.0.map("COUNTERS").context("no counters")?;
        let counters = PerCpuArray::<_, u64>::try_from(counters)?;
        let of = |outcome: &outcome::Outcome| anyhow::Ok(counters.get(&slot(hook, *outcome), 0)?);
        let mut seen = 0;
        for outcome in outcome::Outcome::ALL {
            seen += of(outcome)?.iter().sum::<u64>();
        }
        Ok(seen)
    }
}

/// A filter where all packets from other nodes arrive gives the whole node back to the kernel, until it is gone.
pub(crate) fn a_filter_on_the_uplink_sees_all(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let ends = Ends::of(cluster.nodes())?;
        let agent = agent(ends.to)?;
        shell(
            ends.to,
            &format!("tc qdisc add dev {UPLINK} clsact; tc filter add dev {UPLINK} ingress {ANY}"),
        )?;
        let says = |status: &Status| {
            let reason = status.fast_path.reason.as_deref().unwrap_or_default();
            !status.fast_path.active && reason.contains(UPLINK)
        };
        agent.wait_status("the filter's device as the reason", says)?;
        udp_arrives(&ends.source, &ends.target, PACKETS, SIZE)?;
        shell(ends.to, &format!("tc filter del dev {UPLINK} ingress"))?;
        ends.target_serves()?;
        ends.carry(Path::Fast)
    })
}

/// A peer whose packets the kernel encrypts, or should, is not reached in plain text past it.
pub(crate) fn ipsec_policies_are_obeyed(setting: Setting) -> Outcome {
    let nodes: Vec<NodeConfig> = vec![setting.node(), setting.node()];
    with_cluster(setting.cluster(nodes), |cluster| {
        let ends = Ends::of(cluster.nodes())?;
        // A template that is used if there is a key for it lets packets pass as they are, since there is none.
        let policy = format!(
            "dir out src {} dst {}",
            ends.from.address(),
            ends.to.address()
        );
        let encrypts = |wanted: bool| {
            let agent = agent(ends.from)?;
            agent.wait_status("what IPsec is seen to do", |status| {
                let mut peers = status.peers.iter();
                peers.any(|peer| peer.kernel_path.is_some() == wanted)
            })?;
            anyhow::Ok(())
        };
        shell(
            ends.from,
            &format!("ip xfrm policy add {policy} tmpl proto esp mode transport level use"),
        )?;
        encrypts(true)?;
        udp_arrives(&ends.source, &ends.target, PACKETS, SIZE)?;
        let agent = agent(ends.from)?;
        let fast = agent.status()?.fast_path.counters.fast_egress;
        udp_arrives(&ends.source, &ends.target, PACKETS, SIZE)?;
        let now = agent.status()?.fast_path.counters.fast_egress;
        ensure!(now == fast, "{} packets were fast", now - fast);
        shell(ends.from, &format!("ip xfrm policy delete {policy}"))?;
        encrypts(false)?;
        ends.carry(Path::Fast)
    })
}

/// A filter that takes every packet and does nothing to it.
const ANY: &str = "u32 match u32 0 0 flowid 1:";

/// A pod on each of two nodes.
struct Ends<'a> {
    from: &'a Node,
    to: &'a Node,
    source: Pod,
    target: Pod,
}

impl<'a> Ends<'a> {
    fn of(nodes: &'a [Arc<Node>]) -> anyhow::Result<Self> {
        let [from, to] = nodes else {
            anyhow::bail!("two nodes were asked for")
        };
        Ok(Self {
            from,
            to,
            source: from.pods().swap_remove(0),
            target: to.pods().swap_remove(0),
        })
    }

    fn carry(&self, path: Path) -> Outcome {
        let meter = Meter::start(self.from, self.to)?;
        udp_arrives(&self.source, &self.target, PACKETS, SIZE)?;
        meter.expect(path, PACKETS)
    }

    /// Waits until the status has a remark on the target.
    fn target_says(&self, text: &str) -> Outcome {
        self.wait(text, |problem| problem.is_some_and(|it| it.contains(text)))
    }

    /// Waits until the target is served as usual.
    fn target_serves(&self) -> Outcome {
        self.wait("the target served again", |problem| problem.is_none())
    }

    fn wait(&self, what: &str, holds: impl Fn(Option<&str>) -> bool) -> Outcome {
        let address = self.target.address().to_string();
        agent(self.to)?.wait_status(what, |status| {
            let mut pods = status.fast_path.pods.iter();
            let target = pods.find(|pod| pod.ip == address);
            target.is_some_and(|pod| holds(pod.problem.as_deref()))
        })?;
        Ok(())
    }
}

fn agent(node: &Node) -> anyhow::Result<&Agent> {
    node.try_agent().context("a node without an agent")
}

fn fast_ingress(node: &Node) -> anyhow::Result<u64> {
    Ok(agent(node)?.status()?.fast_path.counters.fast_ingress)
}
