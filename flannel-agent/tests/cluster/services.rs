//! Services with kube-proxy's rules, host ports by the real plugin, and address translation beside them: all of it works
//! on every path, and exactly those legs are fast that nobody translates.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::{
    ClusterConfig, Netns, Node, NodeConfig, Pod,
    cni::{HostPort, Wishes},
    services::{self, Form, Protocol, Proxy, Service},
    traffic::{
        rtt::Transport,
        whoami::{Questioner, WhoAmI},
    },
    underlay,
};

use crate::legs;
use crate::scenarios::{self, Case, From, PORT, Row, SERVICE_PORT, Sees, TABLE, World};
use crate::support::{Outcome, Path, Setting, Skipped, shell, wait_pods_served, with_cluster};

/// Services beside those under test.
const FILLERS: usize = 20;
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long is waited for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(300);
/// After so long conntrack calls an answered UDP flow assured.
const ASSURED: Duration = Duration::from_millis(2100);
/// How long the client of a service with session affinity keeps its endpoint.
const AFFINITY: Duration = Duration::from_secs(600);
/// Connections that all must go to one of two endpoints.
const CONNECTIONS: usize = 8;

/// Every line of the table, with kube-proxy's rules in this form.
pub(crate) fn work(setting: Setting, form: Form, bridge_netfilter: bool) -> Outcome {
    if let Some(reason) = form.missing() {
        bail!(Skipped(reason));
    }
    let config = ClusterConfig {
        pods: 0,
        bridge_netfilter,
        ..setting.cluster(vec![setting.node(), setting.node(), NodeConfig::default()])
    };
    with_cluster(config, |cluster| {
        let [node1, node2, outside] = cluster.nodes() else {
            bail!("three nodes were asked for");
        };
        let world = World::build(node1, node2, outside)?;
        let _servers = world.serve()?;
        world.install(form)?;
        let expected = cases().filter(|(_, case)| bridge_netfilter || !case.bridged);
        let cases: Vec<_> = expected.collect();
        // Conntrack calls them assured by the time that all TCP connections have been looked at.
        let begun = Instant::now();
        let mut flows = Vec::new();
        for (row, case) in &cases {
            let flow = world.first(case, Transport::Udp);
            flows.push(flow.with_context(|| describe(row, case, "UDP"))?);
        }
        for (row, case) in &cases {
            let measured = world
                .first(case, Transport::Tcp)
                .and_then(|flow| world.measure(setting, row, case, flow));
            measured.with_context(|| describe(row, case, "TCP"))?;
        }
        if setting.path != Path::Kernel {
            std::thread::sleep(ASSURED.saturating_sub(begun.elapsed()));
        }
        for ((row, case), flow) in cases.iter().zip(flows) {
            let measured = world.measure(setting, row, case, flow);
            measured.with_context(|| describe(row, case, "UDP"))?;
        }
        world.clients_keep_their_endpoint()
    })
}

fn cases() -> impl Iterator<Item = (&'static Row, &'static Case)> {
    TABLE
        .iter()
        .flat_map(|row| row.cases.iter().map(move |case| (row, case)))
}

fn describe(row: &Row, case: &Case, transport: &str) -> String {
    format!("{transport}, {}: {}", row.traffic, case.name)
}

impl<'a> World<'a> {
    fn build(node1: &'a Node, node2: &'a Node, outside: &'a Node) -> anyhow::Result<Self> {
        /// A host number that the plugin does not come to.
        const UNUSED: u32 = 200;
        let pod = |node: &Node, host_port: u16| {
            let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| HostPort {
                host: host_port,
                pod: PORT,
                protocol,
            });
            node.add_pod_with(Wishes {
                ports: if host_port == 0 {
                    Vec::new()
                } else {
                    ports.to_vec()
                },
                bandwidth: None,
            })
        };
        let world = Self {
            client: pod(node1, scenarios::CLIENT_HOST_PORT)?,
            near: pod(node1, scenarios::NEAR_HOST_PORT)?,
            far: pod(node2, scenarios::FAR_HOST_PORT)?,
            other: pod(node2, 0)?,
            unused: node2.subnet_env()?.subnet.host(UNUSED),
            node1,
            node2,
            outside,
        };
        // As whoever announces such addresses has it.
        let external = format!("route add 203.0.113.0/24 via {}\n", node1.address());
        underlay::ip_batch(outside.netns(), &external)?;
        for node in [node1, node2] {
            wait_pods_served(node)?;
        }
        Ok(world)
    }

    /// A server in every namespace.
    fn serve(&self) -> anyhow::Result<Vec<WhoAmI>> {
        let servers = [
            ("client", self.client.netns(), PORT),
            ("near", self.near.netns(), PORT),
            ("far", self.far.netns(), PORT),
            ("far", self.far.netns(), scenarios::MASQUERADED_AT_CLIENT),
            ("far", self.far.netns(), scenarios::MASQUERADED_AT_SERVER),
            ("other", self.other.netns(), PORT),
            ("node1", self.node1.netns(), PORT),
            ("node2", self.node2.netns(), PORT),
            ("outside", self.outside.netns(), PORT),
        ];
        let start = |(name, netns, port)| Ok(WhoAmI::start(netns, name, port)?);
        servers.into_iter().map(start).collect()
    }

    /// kube-proxy's rules on both nodes, and what is translated without it.
    fn install(&self, form: Form) -> Outcome {
        let to = |pod: &Pod| SocketAddrV4::new(pod.address(), PORT);
        let service = |name: &str, address: Ipv4Addr, endpoints: Vec<SocketAddrV4>| {
            Service::new(name, SocketAddrV4::new(address, SERVICE_PORT), endpoints)
        };
        let services = [
            Service {
                node_port: Some(scenarios::FAR_NODE_PORT),
                external: vec![scenarios::EXTERNAL],
                ..service("far", scenarios::FAR, vec![to(&self.far)])
            },
            Service {
                node_port: Some(scenarios::NEAR_NODE_PORT),
                ..service("near", scenarios::NEAR, vec![to(&self.near)])
            },
            service("itself", scenarios::ITSELF, vec![to(&self.client)]),
            Service {
                node_port: Some(scenarios::LOCAL_NODE_PORT),
                load_balancer: vec![scenarios::BALANCED],
                local: true,
                ..service("local", scenarios::LOCAL, vec![to(&self.far)])
            },
            Service {
                affinity: Some(AFFINITY),
                ..service(
                    "sticky",
                    scenarios::STICKY,
                    vec![to(&self.far), to(&self.other)],
                )
            },
            service(
                "host",
                scenarios::HOST,
                vec![SocketAddrV4::new(self.node2.address(), PORT)],
            ),
            Service {
                internal_local: true,
                ..service(
                    "internal",
                    scenarios::INTERNAL,
                    vec![to(&self.near), to(&self.far)],
                )
            },
            Service {
                internal_local: true,
                ..service("internal-far", scenarios::INTERNAL_FAR, vec![to(&self.far)])
            },
            Service {
                load_balancer: vec![scenarios::RESTRICTED],
                source_ranges: vec![self.node1.subnet_env()?.network],
                ..service(
                    "restricted",
                    scenarios::RESTRICTED_CLUSTER,
                    vec![to(&self.far)],
                )
            },
        ];
        let mut all = services::filler(FILLERS);
        for service in services {
            all.push(service.clone().udp());
            all.push(service);
        }
        for node in [self.node1, self.node2] {
            let env = node.subnet_env()?;
            let proxy = Proxy {
                form,
                pods: Some(env.network),
                local: Some(env.subnet),
                node: Some(node.address()),
            };
            proxy.install(node.netns(), &all)?;
        }
        self.translate(form)
    }

    /// Translation without services: of an address at the client's node, of an address and of a port at the server's,
    /// and masquerade at either.
    fn translate(&self, form: Form) -> Outcome {
        let far = self.far.address();
        let target = SocketAddrV4::new(far, PORT);
        let dnat = |to: Ipv4Addr, port: u16| (to, port, format!("DNAT --to-destination {target}"));
        let masquerade = |port: u16| (far, port, "MASQUERADE".to_owned());
        let rules = [
            (self.node1, dnat(scenarios::TRANSLATED, SERVICE_PORT)),
            (self.node2, dnat(self.unused, SERVICE_PORT)),
            (self.node2, dnat(far, scenarios::TRANSLATED_PORT)),
            (self.node1, masquerade(scenarios::MASQUERADED_AT_CLIENT)),
            (self.node2, masquerade(scenarios::MASQUERADED_AT_SERVER)),
        ];
        for (node, (to, port, action)) in rules {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                shell(node, &translation(form, to, port, protocol, &action))?;
            }
        }
        Ok(())
    }

    fn netns(&self, from: From) -> &Netns {
        match from {
            From::Pod => self.client.netns(),
            From::Node => self.node1.netns(),
            From::Outside => self.outside.netns(),
        }
    }

    /// Asks the first question of a flow, and looks at the answer. None if nobody was to answer.
    fn first(&self, case: &Case, transport: Transport) -> anyhow::Result<Option<Questioner>> {
        let to = (case.to)(self);
        let limit = if case.servers.is_empty() {
            SILENCE
        } else {
            LIMIT
        };
        let flow = Questioner::open(self.netns(case.from), to, transport, 0, limit);
        let first = flow.and_then(|mut flow| Ok((flow.ask()?, flow)));
        if case.servers.is_empty() {
            ensure!(first.is_err(), "{:?} answered, nobody was to", first?.0);
            return Ok(None);
        }
        let (answer, flow) = first?;
        ensure!(
            case.servers.contains(&&*answer.server),
            "{answer:?}, where {:?} was to answer",
            case.servers
        );
        let client = match case.from {
            From::Pod => Some(self.client.address()),
            From::Outside => Some(self.outside.address()),
            // It has several, and may take any.
            From::Node => None,
        };
        let sees = match client {
            Some(client) if client == *answer.client.ip() => Sees::Client,
            _ => Sees::Node,
        };
        ensure!(sees == case.sees, "the server sees {:?}", answer.client);
        Ok(Some(flow))
    }

    /// Asks on, and asserts where that is fast.
    fn measure(
        &self,
        setting: Setting,
        row: &Row,
        case: &Case,
        flow: Option<Questioner>,
    ) -> Outcome {
        let Some(mut flow) = flow else {
            return Ok(());
        };
        let fast = row.fast.map(|when| when.holds(setting.backend));
        let expected = [fast[0], fast[0], fast[1], fast[1]];
        let nodes = [self.node1, self.node2];
        let answer = legs::measure(nodes, setting.path, expected, &mut flow)?;
        ensure!(case.servers.contains(&&*answer.server), "{answer:?}");
        Ok(flow.close()?)
    }

    /// All of a client's connections go to the same endpoint.
    fn clients_keep_their_endpoint(&self) -> Outcome {
        let to = SocketAddrV4::new(scenarios::STICKY, SERVICE_PORT);
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut servers = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut flow = Questioner::open(self.client.netns(), to, transport, 0, LIMIT)?;
                servers.push(flow.ask()?.server);
            }
            servers.dedup();
            ensure!(servers.len() == 1, "{transport:?}: {servers:?}");
        }
        Ok(())
    }
}

/// A shell command that adds a rule for what goes to an address and port.
fn translation(form: Form, to: Ipv4Addr, port: u16, protocol: Protocol, action: &str) -> String {
    let prerouting = action.starts_with("DNAT");
    if form == Form::Nftables {
        let (chain, hook, action) = match action.strip_prefix("DNAT --to-destination ") {
            Some(target) => (
                "before",
                "prerouting priority -101",
                format!("dnat to {target}"),
            ),
            None => ("behind", "postrouting priority 99", "masquerade".to_owned()),
        };
        return format!(
            "nft 'add table ip translation; add chain ip translation {chain} {{ type nat hook {hook}; }}; \
             add rule ip translation {chain} ip daddr {to} {protocol} dport {port} {action}'"
        );
    }
    let chain = if prerouting {
        "PREROUTING"
    } else {
        "POSTROUTING"
    };
    format!("{form} -w -t nat -I {chain} -d {to}/32 -p {protocol} --dport {port} -j {action}")
}
