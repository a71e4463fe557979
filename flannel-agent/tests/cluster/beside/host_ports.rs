//! `hostPort` by the real `portmap` plugin, over the life of pods: a port goes with its pod, and a pod that comes after it
//! gets all of its clients, those too that conntrack remembers. Which legs are fast is in [`crate::scenarios`].

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::{
    ClusterConfig, Netns, NodeConfig,
    cni::{HostPort, Wishes},
    services::Protocol,
    traffic::{
        rtt::Transport,
        whoami::{Questioner, WhoAmI},
    },
};

use crate::support::{Outcome, Setting, wait_pods_served, with_cluster};

/// The port of the node, and that of the pod.
const HOST_PORT: u16 = 31080;
const PORT: u16 = 8080;
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long is waited for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(200);

/// Ports go with their pods.
pub(crate) fn go_with_their_pod(setting: Setting) -> Outcome {
    let config = ClusterConfig {
        pods: 0,
        ..setting.cluster(vec![setting.node(), setting.node(), NodeConfig::default()])
    };
    with_cluster(config, |cluster| {
        let [one, two, outside] = cluster.nodes() else {
            bail!("three nodes were asked for");
        };
        let (near, far) = (two.add_pod()?, one.add_pod()?);
        let opened = || {
            let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| HostPort {
                host: HOST_PORT,
                pod: PORT,
                protocol,
            });
            let pod = two.add_pod_with(Wishes {
                ports: ports.to_vec(),
                bandwidth: None,
            })?;
            wait_pods_served(two)?;
            anyhow::Ok(pod)
        };
        let to = SocketAddrV4::new(two.address(), HOST_PORT);
        let clients = [
            ("a machine outside", outside.netns()),
            ("a pod of the other node", far.netns()),
            ("a pod of the node", near.netns()),
            ("the other node", one.netns()),
        ];
        let tcp = |netns: &Netns, limit| Questioner::open(netns, to, Transport::Tcp, 0, limit);

        let first = opened()?;
        let server = WhoAmI::start(first.netns(), "first", PORT)?;
        let mut sockets = Vec::new();
        for (who, netns) in clients {
            let mut flow = tcp(netns, LIMIT).context(who)?;
            ensure!(flow.ask().context(who)?.server == "first");
            flow.close().context(who)?;
            let mut socket = Questioner::open(netns, to, Transport::Udp, 0, LIMIT)?;
            ensure!(socket.ask().context(who)?.server == "first");
            sockets.push(socket);
        }
        drop(server);
        two.delete_pod(first)?;
        for ((who, netns), socket) in clients.into_iter().zip(&mut sockets) {
            socket.set_limit(SILENCE)?;
            let answers = [
                tcp(netns, SILENCE).and_then(|mut flow| flow.ask()),
                socket.ask(),
            ];
            ensure!(
                answers.iter().all(Result::is_err),
                "{who}: {answers:?} of nobody"
            );
        }

        let second = opened()?;
        let _server = WhoAmI::start(second.netns(), "second", PORT)?;
        for ((who, netns), socket) in clients.into_iter().zip(&mut sockets) {
            ensure!(tcp(netns, LIMIT).context(who)?.ask().context(who)?.server == "second");
            socket.set_limit(LIMIT)?;
            ensure!(
                socket.ask().context(who)?.server == "second",
                "{who}, an old socket"
            );
        }
        Ok(())
    })
}
