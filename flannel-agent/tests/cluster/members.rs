//! A cluster of three etcd servers: with one away nothing fails, with two or all nothing is withdrawn.

use std::{thread, time::Duration};

use anyhow::ensure;
use rustix::process::Signal;

use crate::etcds::{Server, knows_peer, peer_key};
use crate::support::{Outcome, PROMPT, Setting, with_unready_cluster};

/// How long all servers are away: longer than the longest pause between attempts.
const AWAY: Duration = Duration::from_secs(12);

/// Servers are killed one by one, then two, then all.
pub(crate) fn come_and_go(setting: Setting) -> Outcome {
    with_unready_cluster(setting.cluster(vec![setting.node()]), |cluster| {
        let mut servers = Vec::new();
        for number in 1..=3 {
            servers.push(Server::new(cluster, number, "http")?);
        }
        let peers: Vec<_> = servers.iter().map(Server::peer).collect();
        let all = [format!("--initial-cluster={}", peers.join(","))];
        let mut servers: Vec<_> = servers
            .into_iter()
            .map(|server| server.with(&all))
            .collect();
        servers.iter_mut().try_for_each(Server::spawn)?;
        servers.iter().try_for_each(Server::wait_ready)?;
        servers[0].put_config(setting)?;
        let urls: Vec<_> = servers.iter().map(Server::url).collect();
        let agent = cluster.node(1).agent();
        agent.stop()?;
        agent.configure(|config| {
            config
                .arguments
                .push(format!("--etcd-endpoints={}", urls.join(",")));
        });
        agent.start()?;
        agent.wait_ready()?;

        for away in 0..3 {
            servers[away].kill()?;
            let number = 101 + away as u8;
            let other = &servers[(away + 1) % 3];
            other.wait_ready()?;
            other.put_peer(number)?;
            knows_peer(agent, number)?;
            agent.wait_status("no problem", |status| status.problems.is_empty())?;
            if away == 0 {
                // A start with a member away, whichever is asked first.
                agent.restart()?;
                knows_peer(agent, number)?;
            }
            servers[away].start()?;
        }

        // One that hangs closes no connection: pings find that out. The agent goes on to the next one in order, so in the
        // reverse order it meets this once.
        for hangs in (0..3).rev() {
            servers[hangs].signal(Signal::STOP)?;
            let number = 111 + hangs as u8;
            let other = &servers[(hangs + 1) % 3];
            other.wait_ready()?;
            other.put_peer(number)?;
            let known = knows_peer(agent, number);
            servers[hangs].signal(Signal::CONT)?;
            known?;
        }

        // No majority: no leader.
        servers[0].kill()?;
        servers[1].kill()?;
        agent.wait_status("a problem", |status| {
            status.problems.iter().any(|text| text.contains("etcd"))
        })?;
        let status = agent.status()?;
        ensure!(status.ready && status.peers.len() == 6, "{status:?}");
        servers[2].kill()?;
        thread::sleep(AWAY);
        let status = agent.status()?;
        ensure!(status.ready && status.peers.len() == 6, "{status:?}");
        servers.iter_mut().try_for_each(Server::spawn)?;
        servers.iter().try_for_each(Server::wait_ready)?;
        servers[1].ctl(&["del", "--", &peer_key(101)])?;
        agent.wait_status("five peers", |status| status.peers.len() == 5)?;
        agent.wait_status("no problem", |status| status.problems.is_empty())?;
        thread::sleep(PROMPT / 5);
        ensure!(agent.status()?.problems.is_empty(), "{:?}", agent.status()?);
        Ok(())
    })
}
