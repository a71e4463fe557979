//! Many flows at once: what nobody answers leaves nothing behind, and more than the map holds are merely slow.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use lab::Pod;

use crate::pair::{LIMIT, Pair, agent, declined, learned, with_pair};
use crate::support::{Outcome, Setting};

/// After so long conntrack calls an answered flow assured.
const ASSURED: Duration = Duration::from_millis(2200);

/// Thousands of ports that are tried once leave no entry.
pub(crate) fn scans_leave_nothing(setting: Setting) -> Outcome {
    /// How many ports, and the first: far from those that systems hand out.
    const PORTS: u16 = 3000;
    const FIRST: u16 = 20_000;
    with_pair(setting, &[], |pair| {
        let before = pair.counters()?;
        let [scanner, target] = &pair.pods;
        let targets =
            (FIRST..FIRST + PORTS).map(|port| SocketAddr::new(target.address().into(), port));
        let answered = scanner.netns().run(|| -> std::io::Result<usize> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let mut answered = 0;
            for target in targets {
                socket.send_to(b"anybody?", target)?;
                answered += usize::from(TcpStream::connect_timeout(&target, LIMIT).is_ok());
            }
            Ok(answered)
        })??;
        ensure!(answered == 0, "{answered} ports are open");
        let counted = pair.since(&before)?;
        for (node, counted) in pair.nodes.iter().zip(&counted) {
            let flows = agent(node)?.status()?.fast_path.flows;
            ensure!(
                flows == Some(0) && learned(counted, "created") == 0,
                "{}: {flows:?} flows are remembered: {counted:?}",
                node.name()
            );
        }
        let seen = declined(&counted[0], "no-flow") + declined(&counted[0], "tcp-control");
        ensure!(
            seen >= 2 * u64::from(PORTS),
            "of the scan only {seen} packets were seen: {counted:?}"
        );
        Ok(())
    })
}

/// More flows than the map holds, all of them answered: no packet is lost, and the map does not grow.
pub(crate) fn more_flows_than_the_map_holds(setting: Setting) -> Outcome {
    /// What the map holds, and the sockets at both ends, each of which talks to each.
    const HOLDS: u64 = 4096;
    const CLIENTS: usize = 100;
    const SERVERS: usize = 60;
    /// Times that each flow says something: until it is assured, and a few times after.
    const ROUNDS: usize = 4;
    const { assert!((CLIENTS * SERVERS) as u64 > HOLDS) };
    with_pair(setting, &["--fast-path-flows=4096"], |pair| {
        let (clients, servers) = (
            sockets(&pair.pods[0], CLIENTS)?,
            sockets(&pair.pods[1], SERVERS)?,
        );
        let before = pair.counters()?;
        for round in 0..ROUNDS {
            let start = Instant::now();
            for client in &clients {
                for server in &servers {
                    exchange(client, server).with_context(|| format!("round {round}"))?;
                }
            }
            if round == 0 {
                thread::sleep(ASSURED.saturating_sub(start.elapsed()));
            }
        }
        let counted = pair.since(&before)?;
        for (node, counted) in pair.nodes.iter().zip(&counted) {
            let flows = agent(node)?.status()?.fast_path.flows;
            ensure!(
                flows.is_some_and(|flows| flows <= HOLDS),
                "{}: {flows:?} flows are remembered",
                node.name()
            );
            let created = learned(counted, "created");
            ensure!(
                created > HOLDS && declined(counted, "helper") == 0,
                "{}: {created} flows were to be remembered: {counted:?}",
                node.name()
            );
        }
        fits(pair, &clients[0], &servers[0])
    })
}

/// One of the flows alone turns fast as ever.
fn fits(pair: &Pair<'_>, client: &UdpSocket, server: &UdpSocket) -> Outcome {
    crate::pair::until_fast(pair, || exchange(client, server))
}

fn sockets(pod: &Pod, count: usize) -> anyhow::Result<Vec<UdpSocket>> {
    let address = pod.address();
    let open = || (0..count).map(|_| UdpSocket::bind((address, 0))).collect();
    let sockets: Vec<UdpSocket> = pod.netns().run(|| -> std::io::Result<_> { open() })??;
    for socket in &sockets {
        socket.set_read_timeout(Some(LIMIT))?;
    }
    Ok(sockets)
}

fn exchange(client: &UdpSocket, server: &UdpSocket) -> Outcome {
    let mut buffer = [0; 16];
    client.send_to(b"question", server.local_addr()?)?;
    let (_, from) = server.recv_from(&mut buffer).context("question")?;
    ensure!(from == client.local_addr()?, "asked by {from}");
    server.send_to(b"answer", from)?;
    let (length, from) = client.recv_from(&mut buffer).context("answer")?;
    ensure!(
        from == server.local_addr()? && &buffer[..length] == b"answer",
        "answered by {from}"
    );
    Ok(())
}
