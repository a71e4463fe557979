//! Network policies that a process decides, as kube-network-policies does (`pkg/dataplane`): packets behind routing are
//! queued for it (NFQUEUE) unless they are established, and where a policy changes it takes the connection's entry away, so
//! that it is asked again.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Node;
use nfq::{Queue, Verdict};

use super::needs;
use crate::legs::{self, DIRECT};
use crate::policies::{MARGIN, SHORT, Watched, try_new, with_short_times};
use crate::service_pair::with_pair;
use crate::support::{Outcome, Path, Setting, shell};

/// The queue's number.
const QUEUE: u16 = 100;
/// Where a packet's destination port is, behind an IPv4 header without options.
const PORT_AT: usize = 22;
/// Between two looks into an empty queue.
const PAUSE: Duration = Duration::from_millis(1);

/// What the engine allows is fast, what it does not gets nowhere; it is asked for new connections alone, and one whose entry
/// it has taken away ends as soon as with any other rule.
pub(crate) fn verdicts_hold(setting: Setting) -> Outcome {
    let rule = format!("*mangle\n-A POSTROUTING -j NFQUEUE --queue-num {QUEUE}\nCOMMIT\n");
    needs("NFQUEUE", &["iptables-restore"], &rule)?;
    with_pair(with_short_times(setting), |pair| {
        pair.install_service()?;
        let server = pair.server.address();
        let allowed = pair.direct().port();
        let engines = [
            Engine::start(pair.client_node, server, allowed)?,
            Engine::start(pair.server_node, server, allowed)?,
        ];
        let mut flows = Watched::both(pair)?;
        let asked = |engines: &[Engine; 2]| [engines[0].asked(), engines[1].asked()];
        let before = asked(&engines);
        ensure!(
            before.iter().all(|packets| *packets > 0),
            "nobody was asked: {before:?}"
        );
        for watched in &mut flows {
            legs::measure(pair.nodes(), setting.path, DIRECT, &mut watched.flow)?;
        }
        ensure!(
            asked(&engines) == before,
            "asked for what is established: {:?}, then {:?}",
            before,
            asked(&engines)
        );
        try_new(pair).context("to a port that the policy does not name")?;
        ensure!(pair.second_server.asked() == 0, "something came");

        for (place, (node, engine)) in pair.nodes().into_iter().zip(&engines).enumerate() {
            let revoke = || format!("revoked at {}", node.name());
            engine.allow(0);
            shell(node, &format!("conntrack -D -d {server} >/dev/null 2>&1"))?;
            let start = Instant::now();
            let limit = match setting.path {
                Path::Kernel => Duration::ZERO,
                _ => 2 * SHORT,
            };
            while start.elapsed() < limit + MARGIN {
                for watched in &mut flows {
                    watched.step().with_context(revoke)?;
                }
            }
            let count = pair.count()?;
            for watched in &mut flows {
                watched.step()?;
                ensure!(watched.is_silent(), "{}: still answered", revoke());
            }
            // The other node's kernel goes on passing what its pod sends again and again.
            count
                .assert_none_at(pair.nodes(), place)
                .with_context(revoke)?;
            engine.allow(allowed);
            for watched in &mut flows {
                watched.goes_on().with_context(revoke)?;
            }
        }
        // UDP takes its two seconds until it is assured.
        let [tcp, _] = &mut flows;
        let again = legs::measure(pair.nodes(), setting.path, DIRECT, &mut tcp.flow);
        again.context("allowed again").map(drop)
    })
}

/// The process that decides on one node.
struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    /// The port that new connections may go to; zero for none.
    port: AtomicU16,
    asked: AtomicU64,
    over: AtomicBool,
}

impl Engine {
    /// Decides on what goes to a pod and comes from there.
    fn start(node: &Node, pod: Ipv4Addr, port: u16) -> anyhow::Result<Self> {
        let mut queue = node.netns().run(|| {
            let mut queue = Queue::open()?;
            queue.bind(QUEUE)?;
            queue.set_copy_range(QUEUE, 128)?;
            queue.set_recv_gso(QUEUE, true)?;
            queue.set_nonblocking(true);
            std::io::Result::Ok(queue)
        })??;
        let rule = |end: &str| {
            format!(
                "iptables -w -t mangle -A POSTROUTING {end} {pod} -j NFQUEUE --queue-num {QUEUE}"
            )
        };
        shell(
            node,
            &format!(
                "iptables -w -t mangle -A POSTROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT && {} && {}",
                rule("-s"),
                rule("-d")
            ),
        )?;
        let shared = Arc::new(Shared::default());
        shared.port.store(port, Ordering::Relaxed);
        let state = shared.clone();
        let thread = thread::spawn(move || {
            while !state.over.load(Ordering::Relaxed) {
                let mut packet = match queue.recv() {
                    Ok(packet) => packet,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(PAUSE);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                state.asked.fetch_add(1, Ordering::Relaxed);
                let port = packet.get_payload().get(PORT_AT..PORT_AT + 2);
                let port = port.map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
                let allowed = port != 0 && port == state.port.load(Ordering::Relaxed);
                packet.set_verdict(if allowed {
                    Verdict::Accept
                } else {
                    Verdict::Drop
                });
                queue.verdict(packet)?;
            }
            Ok(())
        });
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// How many packets it was asked for.
    fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// From now on new connections may go to this port; to none if it is zero.
    fn allow(&self, port: u16) {
        self.shared.port.store(port, Ordering::Relaxed);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
