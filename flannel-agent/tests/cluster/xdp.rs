//! The receive tier in front of the kernel: XDP takes packets out of their tunnel.
//!
//! On a veth, native XDP has the other end send no aggregates, which the status of an interface does not show; a network
//! card is another matter.

use anyhow::{Context, ensure};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use flannel_agent::fastpath::{facts::Facts, object};
use flannel_common::outcome::Hook;
use lab::NodeConfig;

use crate::meter::Meter;
use crate::support::{Outcome, Setting, shell, udp_arrives, wait_pods_served, with_cluster};
use crate::{flow, tiers};

/// The option that asks for it.
const OPTION: &str = "--fast-path-ingress=xdp";
/// A node's interface to the others.
const UPLINK: &str = "eth0";
/// Packets of one check.
const PACKETS: u64 = 1000;

/// It carries what the other tiers carry, also when the agent is killed and comes back.
pub(crate) fn xdp_receives(setting: Setting) -> Outcome {
    tiers::carries(setting, OPTION, true, |status| {
        let attached = status.hooks.iter().any(|hook| hook.program == "nic_xdp");
        status.ingress.as_deref() == Some("xdp") && attached && status.reason.is_none()
    })
}

/// A stream that is asked about every 50 ms stays in order: no packet takes another way than those around it.
pub(crate) fn xdp_keeps_a_stream_in_order(setting: Setting) -> Outcome {
    flow::stays_in_order(setting, OPTION)
}

/// Somebody else's XDP program stays, and the node receives as it would without the option.
pub(crate) fn an_xdp_program_of_others_stays(setting: Setting) -> Outcome {
    with_cluster(setting.pair(), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        let bytes = object::bytes().context("no BPF object")?;
        let mut foreign = object::load(bytes, &Facts::default(), object::Room::default(), None)?;
        to.netns().run(|| attach(&mut foreign))??;
        to.agent()
            .configure(|config| config.arguments.push(OPTION.into()));
        to.agent().restart()?;
        let status = to
            .agent()
            .wait_status("a fast path", |status| status.fast_path.active)?
            .fast_path;
        let reason = status.reason.clone().unwrap_or_default();
        ensure!(
            status.ingress.as_deref() == Some("nic") && reason.contains("xdp"),
            "{status:?}"
        );
        wait_pods_served(to)?;
        let meter = Meter::start(from, to)?;
        udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
        meter.expect(setting.path, PACKETS)?;

        // Once it is gone, the next agent may have the place.
        drop(foreign);
        to.agent().restart()?;
        to.agent().wait_status("reception by XDP", |status| {
            status.fast_path.ingress.as_deref() == Some("xdp")
        })?;
        Ok(())
    })
}

/// Attaches a program that lets everything pass: ours, with maps in which nothing is active.
fn attach(foreign: &mut Ebpf) -> Outcome {
    let program = foreign
        .program_mut(Hook::NicXdp.name())
        .context("no such program")?;
    let program: &mut Xdp = program.try_into()?;
    program.load()?;
    program.attach(UPLINK, XdpMode::Driver)?;
    Ok(())
}

/// Without the option nothing of it is attached; an agent that is started without it takes it away.
pub(crate) fn xdp_goes_with_its_option(setting: Setting) -> Outcome {
    let mut agent = setting.agent();
    agent.arguments.push(OPTION.into());
    let nodes = vec![setting.node(), NodeConfig::agent(&agent)];
    with_cluster(setting.cluster(nodes), |cluster| {
        let (from, to) = (cluster.node(1), cluster.node(2));
        to.agent()
            .configure(|config| config.arguments.retain(|argument| argument != OPTION));
        to.agent().restart()?;
        wait_pods_served(to)?;
        let status = to.agent().status()?.fast_path;
        ensure!(status.ingress.as_deref() == Some("nic"), "{status:?}");
        let links = shell(to, &format!("ip -details link show {UPLINK}"))?;
        ensure!(!links.contains("prog/xdp"), "{links}");
        let meter = Meter::start(from, to)?;
        udp_arrives(&from.pods()[0], &to.pods()[0], PACKETS, 64)?;
        meter.expect(setting.path, PACKETS)
    })
}
