//! Services balanced by IPVS, which rewrites packets behind conntrack's back: without NAT in conntrack's status.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::process;
use lab::traffic::rtt::Transport;
use lab::traffic::whoami::Questioner;
use lab::wait::patient;

use crate::kernels::{LIMIT, is_absent};
use crate::legs::{CLUSTER_IP, Count, Legs};
use crate::service_pair::{ASSURED, Pair, with_pair};
use crate::support::{Backend, Outcome, Setting, shell};

/// There once the kernel has IPVS.
const TABLE: &str = "/proc/net/ip_vs";
/// Round trips of one connection, for longer than a flow takes to turn fast.
const TRIPS: usize = 1000;
/// How many datagrams are answered at least.
const FEW: usize = 50;
/// Between two datagrams.
const PAUSE: Duration = Duration::from_millis(10);
/// What leaves the client's node with masquerade carries the address of the device that it leaves by: that of the VXLAN
/// device lies in the node's subnet, so that the server's node sees a flow like any.
const MASKED: Legs = CLUSTER_IP;
/// That of the node's own interface is no pod's.
const MASKED_DIRECT: Legs = [false; 4];

/// What is missing.
pub(crate) fn is_lacking() -> Option<&'static str> {
    if is_absent(TABLE, "ip_vs") {
        return Some("the kernel has no IPVS (CONFIG_IP_VS)");
    }
    process::run(None, "ipvsadm", &["--version"])
        .is_err()
        .then_some("ipvsadm is not installed: `cargo xtask vm` installs it")
}

/// Answers come from the service's address, and no leg of what the client's node rewrites is ever fast there, with and
/// without masquerade.
pub(crate) fn what_it_rewrites_is_never_fast(setting: Setting) -> Outcome {
    with_pair(setting.pair(), |pair| {
        install(pair)?;
        let plain = use_service(pair)?;
        pair.assert_legs(setting.path, &plain, CLUSTER_IP)
            .context("without masquerade")?;

        let (client, server) = (pair.client.address(), pair.server.address());
        // What kube-proxy does to clients that it does not know as pods.
        shell(
            pair.client_node,
            &format!("iptables -w -t nat -I POSTROUTING -s {client} -d {server} -j MASQUERADE"),
        )?;
        let masked = use_service(pair)?;
        let legs = match setting.backend {
            Backend::Vxlan => MASKED,
            Backend::HostGw => MASKED_DIRECT,
        };
        pair.assert_legs(setting.path, &masked, legs)
            .context("with masquerade")
    })
}

/// One virtual service for each transport, as kube-proxy makes them: the address is local, packets are translated
/// (`-m`), and conntrack learns of it.
fn install(pair: &Pair<'_>) -> Outcome {
    let (service, endpoint) = (pair.service(), pair.direct());
    shell(
        pair.client_node,
        &format!(
            "ip address add {address}/32 dev lo && \
             echo 1 > /proc/sys/net/ipv4/vs/conntrack && \
             for transport in t u; do \
               ipvsadm -A -$transport {service} -s rr && \
               ipvsadm -a -$transport {service} -r {endpoint} -m || exit 1; \
             done",
            address = service.ip(),
        ),
    )
    .map(drop)
}

/// Uses the service by TCP and by UDP; returns the counters of before.
fn use_service(pair: &Pair<'_>) -> anyhow::Result<Count> {
    let before = pair.count()?;
    let mut stream = pair.open(pair.service(), Transport::Tcp, 0, patient(LIMIT))?;
    for number in 0..TRIPS {
        ask(&mut stream).with_context(|| format!("TCP, {number} answers"))?;
    }
    stream.close()?;
    let mut socket = pair.open(pair.service(), Transport::Udp, 0, patient(LIMIT))?;
    let start = Instant::now();
    let mut answers = 0;
    while start.elapsed() < 2 * ASSURED || answers < FEW {
        ask(&mut socket).with_context(|| format!("UDP, {answers} answers"))?;
        answers += 1;
        thread::sleep(PAUSE);
    }
    Ok(before)
}

/// The answer has to come from the service's address, or the socket does not get it.
fn ask(flow: &mut Questioner) -> Outcome {
    let answer = flow.ask()?;
    ensure!(answer.server == "first", "{answer:?}");
    Ok(())
}
