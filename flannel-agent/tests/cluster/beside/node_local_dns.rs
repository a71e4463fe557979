//! NodeLocal DNSCache (`kubernetes/dns`, `cmd/node-cache`): the node itself holds the address of the cluster's DNS service,
//! and conntrack does not see what goes there. What conntrack does not see is the kernel's, on any path.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{
    Node,
    services::{Form, Proxy, Service},
    traffic::{
        relay::Relay,
        rtt::Transport,
        whoami::{Questioner, WhoAmI},
    },
};

use super::needs;
use crate::legs::{self, CLUSTER_IP, DIRECT, Legs, NONE};
use crate::policies::{MARGIN, SHORT, with_short_times};
use crate::service_pair::{Pair, with_pair};
use crate::support::{Backend, Outcome, Setting, shell};

const PORT: u16 = 53;
/// Where the cache listens on every node, beside the address of the service.
const LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
/// The service `kube-dns`.
const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The service `kube-dns-upstream`, which the cache asks.
const UPSTREAM: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
/// A rule that is refused where netfilter cannot leave packets untracked.
const NOTRACK: &str = "*raw\n-A PREROUTING -j NOTRACK\nCOMMIT\n";
/// The name of the pod with the answers.
const SERVER: &str = "coredns";
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Pods and host-network pods get answers by both addresses, from a pod of the other node; when the cache goes, by that of
/// the service as without it.
pub(crate) fn answers_by_both_addresses(setting: Setting) -> Outcome {
    needs("NOTRACK", &["iptables-restore"], NOTRACK)?;
    with_pair(setting.pair(), |pair| {
        let _server = WhoAmI::start(pair.server.netns(), SERVER, PORT)?;
        install_services(setting, pair)?;
        let node = pair.client_node;
        let cache = Cache::start(node)?;
        // What the node asks by a ClusterIP.
        let legs: Legs = match setting.backend {
            Backend::Vxlan => CLUSTER_IP,
            Backend::HostGw => NONE,
        };
        for netns in [pair.client.netns(), node.netns()] {
            for address in [LOCAL, DNS] {
                let to = SocketAddrV4::new(address, PORT);
                for transport in [Transport::Tcp, Transport::Udp] {
                    let mut flow = Questioner::open(netns, to, transport, 0, LIMIT)?;
                    let what = || format!("{transport:?} from {} to {to}", netns.name());
                    let answer = legs::measure(pair.nodes(), setting.path, legs, &mut flow);
                    let answer = answer.with_context(what)?;
                    ensure!(answer.server == SERVER, "{}: {answer:?}", what());
                    ensure!(
                        *answer.client.ip() != pair.client.address(),
                        "not by the cache"
                    );
                }
            }
        }
        let known = shell(
            node,
            &format!("conntrack -L -d {LOCAL} 2>/dev/null; conntrack -L -d {DNS} 2>/dev/null"),
        )?;
        ensure!(known.is_empty(), "conntrack has seen it: {known}");

        cache.stop()?;
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut flow = pair.open(SocketAddrV4::new(DNS, PORT), transport, 0, LIMIT)?;
            let answer = legs::measure(pair.nodes(), setting.path, CLUSTER_IP, &mut flow);
            let answer = answer.with_context(|| format!("{transport:?} without the cache"))?;
            ensure!(*answer.client.ip() == pair.client.address(), "{answer:?}");
        }
        Ok(())
    })
}

/// What conntrack is told not to see is the kernel's at that node, also when it was fast before.
pub(crate) fn untracked_flows_are_the_kernels(setting: Setting) -> Outcome {
    needs("NOTRACK", &["iptables-restore"], NOTRACK)?;
    with_pair(with_short_times(setting), |pair| {
        pair.install_service()?;
        let mut flows = Vec::new();
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut flow = pair.open(pair.direct(), transport, 0, LIMIT)?;
            legs::measure(pair.nodes(), setting.path, DIRECT, &mut flow).context("tracked")?;
            flows.push((transport, flow));
        }
        let (client, server) = (pair.client.address(), pair.server.address());
        for (from, to) in [(client, server), (server, client)] {
            shell(
                pair.client_node,
                &format!("iptables -w -t raw -I PREROUTING -s {from} -d {to} -j CT --notrack"),
            )?;
        }
        let start = Instant::now();
        while start.elapsed() < 2 * SHORT + MARGIN {
            for (_, flow) in &mut flows {
                flow.ask()?;
            }
        }
        for (transport, mut flow) in flows {
            let asked = legs::measure(pair.nodes(), setting.path, CLUSTER_IP, &mut flow);
            asked.with_context(|| format!("{transport:?}, fast before"))?;
        }
        let mut new = pair.open(pair.direct(), Transport::Tcp, 0, LIMIT)?;
        legs::measure(pair.nodes(), setting.path, CLUSTER_IP, &mut new).context("a new flow")?;
        Ok(())
    })
}

/// kube-proxy's rules on both nodes, in another form for each backend.
fn install_services(setting: Setting, pair: &Pair<'_>) -> Outcome {
    let endpoint = SocketAddrV4::new(pair.server.address(), PORT);
    let mut all = Vec::new();
    for (name, address) in [("kube-dns", DNS), ("kube-dns-upstream", UPSTREAM)] {
        let service = Service::new(name, SocketAddrV4::new(address, PORT), vec![endpoint]);
        all.extend([service.clone(), service.udp()]);
    }
    for node in pair.nodes() {
        let proxy = Proxy {
            form: match setting.backend {
                Backend::Vxlan => Form::Iptables,
                Backend::HostGw => Form::Nftables,
            },
            pods: Some(node.subnet_env()?.network),
            ..Proxy::default()
        };
        proxy.install(node.netns(), &all)?;
    }
    Ok(())
}

/// The cache on a node.
struct Cache<'a> {
    node: &'a Node,
    relays: Vec<Relay>,
}

impl<'a> Cache<'a> {
    /// Sets up device, addresses and rules as node-cache does, and answers.
    fn start(node: &'a Node) -> anyhow::Result<Self> {
        // A dummy device; not every kernel has one, and a bridge without ports is as good.
        shell(
            node,
            &format!(
                "{{ ip link add nodelocaldns type dummy 2>/dev/null || ip link add nodelocaldns type bridge; }} && \
                 ip address add {LOCAL}/32 dev nodelocaldns && ip address add {DNS}/32 dev nodelocaldns"
            ),
        )?;
        let relay = |address| {
            let (at, to) = (
                SocketAddrV4::new(address, PORT),
                SocketAddrV4::new(UPSTREAM, PORT),
            );
            Relay::start(node.netns(), at, to)
        };
        let cache = Self {
            node,
            relays: vec![relay(LOCAL)?, relay(DNS)?],
        };
        cache.rules("-I")?;
        Ok(cache)
    }

    /// Takes all of it away.
    fn stop(self) -> Outcome {
        self.rules("-D")?;
        drop(self.relays);
        shell(self.node, "ip link delete nodelocaldns").map(drop)
    }

    fn rules(&self, operation: &str) -> Outcome {
        let mut commands = Vec::new();
        for address in [LOCAL, DNS] {
            for protocol in ["tcp", "udp"] {
                let to = format!("-p {protocol} -d {address} --dport {PORT}");
                let from = format!("-p {protocol} -s {address} --sport {PORT}");
                for (table, chain, what, target) in [
                    ("raw", "PREROUTING", &to, "NOTRACK"),
                    ("raw", "OUTPUT", &from, "NOTRACK"),
                    ("raw", "OUTPUT", &to, "NOTRACK"),
                    ("filter", "INPUT", &to, "ACCEPT"),
                    ("filter", "OUTPUT", &from, "ACCEPT"),
                ] {
                    commands.push(format!(
                        "iptables -w -t {table} {operation} {chain} {what} -j {target}"
                    ));
                }
            }
        }
        shell(self.node, &commands.join(" && ")).map(drop)
    }
}
