//! Services balanced by IPVS, which rewrites packets behind conntrack's back: without NAT in conntrack's status.

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::process;
use lab::traffic::rtt::{Transport, round_trips};
use lab::wait::patient;

use crate::kernels::is_absent;
use crate::permission::{
    ANSWER, ASSURED, CLUSTER_IP, LIMIT, Legs, Pair, SERVICE, SERVICE_PORT, answered, assert_legs,
    with_pair,
};
use crate::support::{Backend, Outcome, Setting, shell};

/// There once the kernel has IPVS.
const TABLE: &str = "/proc/net/ip_vs";
/// Round trips of one connection, for longer than a flow takes to turn fast.
const TRIPS: usize = 1000;
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
    with_pair(setting, |pair| {
        install(pair)?;
        let plain = use_service(pair)?;
        assert_legs(pair, setting.path, &plain, CLUSTER_IP).context("without masquerade")?;

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
        assert_legs(pair, setting.path, &masked, legs).context("with masquerade")
    })
}

/// One virtual service for each transport, as kube-proxy makes them: the address is local, packets are translated
/// (`-m`), and conntrack learns of it.
fn install(pair: &Pair<'_>) -> Outcome {
    let service = format!("{SERVICE}:{SERVICE_PORT}");
    let endpoint = pair.direct();
    shell(
        pair.client_node,
        &format!(
            "ip address add {SERVICE}/32 dev lo && \
             echo 1 > /proc/sys/net/ipv4/vs/conntrack && \
             for transport in t u; do \
               ipvsadm -A -$transport {service} -s rr && \
               ipvsadm -a -$transport {service} -r {endpoint} -m || exit 1; \
             done"
        ),
    )
    .map(drop)
}

/// Uses the service by TCP and by UDP; returns the counters of before.
fn use_service(pair: &Pair<'_>) -> anyhow::Result<[lab::status::Counters; 2]> {
    let before = pair.counters()?;
    let size = 64;
    round_trips(
        &pair.client,
        pair.service(),
        Transport::Tcp,
        TRIPS,
        size,
        patient(LIMIT),
    )
    .context("TCP")?;
    let socket = pair
        .client
        .netns()
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.set_read_timeout(Some(patient(ANSWER)))?;
    let start = Instant::now();
    let mut answers = 0;
    while start.elapsed() < 2 * ASSURED {
        answered(&socket, pair.service()).with_context(|| format!("UDP, {answers} answers"))?;
        answers += 1;
        thread::sleep(PAUSE);
    }
    let after_first = answers > 1;
    ensure!(after_first, "{answers} answers in {:?}", start.elapsed());
    Ok(before)
}
