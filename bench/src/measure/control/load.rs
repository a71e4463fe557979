//! What leases cost an agent that has all in place: many changes in a row, a restart, and what it asks of etcd.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, TcpStream},
    time::{Duration, Instant},
};

use flannel_agent::kernel::events::{Event, Events};
use lab::lease::Subnet;
use tokio::time::{MissedTickBehavior, interval};

use super::{peers::Peer, store::Store};
use crate::testbed::{Error, Result};

/// Changes in a second.
pub const RATE: u32 = 2_000;
/// For so long.
const DURATION: Duration = Duration::from_secs(3);
/// So often a batch is written: changes come one by one, the writer must not be what is measured.
const BATCH: Duration = Duration::from_millis(10);
/// What is left to do when the last change is written may take so long.
const SETTLE: Duration = Duration::from_secs(5);
/// Nanoseconds in a second.
const SECOND: f64 = 1e9;

/// What many changes in a row cost.
#[derive(Clone, Copy, Debug)]
pub struct Sustained {
    /// CPU time of the agent in percent of one processor.
    pub cpu: f64,
    /// Until the last change was in the maps, from etcd's answer on, in milliseconds.
    pub behind: f64,
}

/// Changes leases at [`RATE`], over all nodes; `in_place` says whether a change has arrived.
///
/// # Errors
/// If the agent does not follow.
pub async fn sustain(
    store: &mut Store,
    pid: u32,
    leases: u32,
    changed: impl Fn(u32) -> u32,
    in_place: impl Fn(Peer) -> Result<bool>,
) -> Result<Sustained> {
    let per_batch = RATE * BATCH.as_millis() as u32 / 1_000;
    let batches = DURATION.as_millis() / BATCH.as_millis();
    let mut ticks = interval(BATCH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (start, before) = (Instant::now(), cpu_time(pid)?);
    let mut last = None;
    let mut number = 0;
    for batch in 0..batches as u32 {
        ticks.tick().await;
        let peers: Vec<Peer> = (0..per_batch)
            .map(|offset| Peer {
                number: (number + offset) % leases,
                changed: changed(batch),
            })
            .collect();
        number += per_batch;
        store.put_all(&peers).await?;
        last = peers.last().copied();
    }
    let written = Instant::now();
    let last = last.ok_or_else(|| Error::Control("no change was made".into()))?;
    while !in_place(last)? {
        if written.elapsed() > SETTLE {
            return Err(Error::Control(format!(
                "{RATE} changes in a second: the last one is not in place after {} s",
                SETTLE.as_secs()
            )));
        }
        tokio::task::yield_now().await;
    }
    let spent = cpu_time(pid)? - before;
    Ok(Sustained {
        cpu: 100.0 * spent as f64 / SECOND / start.elapsed().as_secs_f64(),
        behind: written.elapsed().as_secs_f64() * 1e3,
    })
}

/// CPU time of a process and its threads so far, in nanoseconds (`/proc/PID/task/*/schedstat`, first field).
fn cpu_time(pid: u32) -> Result<u64> {
    let failed = |error| Error::Control(format!("CPU time of {pid}: {error}"));
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).map_err(failed)? {
        let path = thread.map_err(failed)?.path().join("schedstat");
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(path).unwrap_or_default();
        let first = text.split_whitespace().next();
        sum += first.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

/// Netlink changes of what is flannel's that are heard while `action` runs.
///
/// # Errors
/// That of the action, or if events cannot be heard.
pub async fn changes_during(
    network: &Subnet,
    action: impl AsyncFnOnce() -> Result<()>,
) -> Result<usize> {
    let failed = |error| Error::Control(format!("netlink events: {error}"));
    let mut events = Events::open().map_err(failed)?;
    action().await?;
    let mut count = 0;
    // All that there is has come before the action was over: what the kernel changes it tells at once.
    while let Ok(heard) = tokio::time::timeout(BATCH, events.next()).await {
        let heard = heard.map_err(failed)?;
        count += heard
            .iter()
            .filter(|event| match event {
                Event::Route(net, ..) => match net.addr() {
                    IpAddr::V4(address) => network.contains(address),
                    IpAddr::V6(_) => false,
                },
                Event::Neighbour(..) | Event::Lost => true,
                _ => false,
            })
            .count();
    }
    Ok(count)
}

/// Requests that etcd has answered so far, and watches that it has been asked for, by its own count.
///
/// # Errors
/// If it does not tell.
pub fn requests(endpoint: &str) -> Result<u64> {
    let failed = |error: std::io::Error| Error::Control(format!("metrics of etcd: {error}"));
    let address = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).map_err(failed)?;
    stream
        .write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
        .map_err(failed)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    Ok(count_requests(&text))
}

/// The sum of `grpc_server_started_total` of etcd's key-value, lease and watch services.
fn count_requests(metrics: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| line.starts_with("grpc_server_started_total{"))
        .filter(|line| {
            [
                "etcdserverpb.KV",
                "etcdserverpb.Lease",
                "etcdserverpb.Watch",
            ]
            .iter()
            .any(|service| line.contains(&format!("grpc_service=\"{service}\"")))
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_three_services_count() {
        let metrics = "\
# TYPE grpc_server_started_total counter
grpc_server_started_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 7
grpc_server_started_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 1
grpc_server_started_total{grpc_method=\"MemberList\",grpc_service=\"etcdserverpb.Cluster\",grpc_type=\"unary\"} 9
grpc_server_handled_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 7
";
        assert_eq!(count_requests(metrics), 8);
    }

    #[test]
    fn this_process_has_spent_time() {
        assert!(cpu_time(std::process::id()).unwrap() > 0);
    }
}
