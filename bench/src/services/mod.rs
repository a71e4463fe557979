//! Service rules as kube-proxy 1.31 writes them: what pod packets meet on a real node's kernel path.
//!
//! `iptables` has the form of its iptables mode, for both of the kernel's implementations, `nftables` that of its
//! nftables mode. Each is loaded by one call of the tool, as kube-proxy does it.

mod iptables;
mod nftables;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use crate::{error::Result, lease::Subnet, netns::Netns, process};

/// The transport of a service's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, of letters, digits and dashes.
    pub name: String,
    /// The transport.
    pub protocol: Protocol,
    /// The address and port that clients in the cluster use.
    pub cluster: SocketAddrV4,
    /// The port that each node opens for it.
    pub node_port: Option<u16>,
    /// `externalIPs`: addresses that others lead to the nodes.
    pub external: Vec<Ipv4Addr>,
    /// The addresses of a load balancer that leaves them in the packets.
    pub load_balancer: Vec<Ipv4Addr>,
    /// `externalTrafficPolicy: Local`: what comes from outside goes to pods of the node that it reaches, untranslated at
    /// its source.
    pub local: bool,
    /// `internalTrafficPolicy: Local`: what comes to the cluster address goes to pods of the node that it comes from.
    pub internal_local: bool,
    /// `loadBalancerSourceRanges`: who may use the addresses of the load balancer; all may if there is none.
    pub source_ranges: Vec<Subnet>,
    /// `sessionAffinity: ClientIP`: for how long a client keeps its endpoint.
    pub affinity: Option<Duration>,
    /// Where connections are sent, each with the same probability.
    pub endpoints: Vec<SocketAddrV4>,
}

impl Service {
    /// A TCP service with a cluster address alone.
    pub fn new(
        name: impl Into<String>,
        cluster: SocketAddrV4,
        endpoints: Vec<SocketAddrV4>,
    ) -> Self {
        Self {
            name: name.into(),
            protocol: Protocol::Tcp,
            cluster,
            node_port: None,
            external: Vec::new(),
            load_balancer: Vec::new(),
            local: false,
            internal_local: false,
            source_ranges: Vec::new(),
            affinity: None,
            endpoints,
        }
    }

    /// The same for UDP.
    pub fn udp(self) -> Self {
        Self {
            protocol: Protocol::Udp,
            ..self
        }
    }

    /// Whether clients outside of the cluster can reach it.
    fn is_external(&self) -> bool {
        self.node_port.is_some() || !self.external.is_empty() || !self.load_balancer.is_empty()
    }

    /// The addresses that are not the cluster's.
    fn external_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.external.iter().chain(&self.load_balancer).copied()
    }

    /// Those endpoints that are pods of this node.
    fn local_endpoints(&self, proxy: &Proxy) -> Vec<SocketAddrV4> {
        let here = |endpoint: &&SocketAddrV4| {
            let local = proxy.local.as_ref();
            local.is_some_and(|local| local.contains(*endpoint.ip()))
        };
        self.endpoints.iter().filter(here).copied().collect()
    }
}

/// Which rules kube-proxy writes, and for which implementation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `--proxy-mode=iptables`, by the iptables that the system calls so.
    #[default]
    Iptables,
    /// The same by the iptables that writes nftables rules.
    IptablesNft,
    /// The same by the iptables that has its own tables in the kernel.
    IptablesLegacy,
    /// `--proxy-mode=nftables`.
    Nftables,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
        })
    }
}

impl Form {
    /// The program that loads the rules, with its arguments.
    fn loader(self) -> (&'static str, &'static [&'static str]) {
        const RESTORE: &[&str] = &["--noflush", "--wait"];
        match self {
            Self::Iptables => ("iptables-restore", RESTORE),
            Self::IptablesNft => ("iptables-nft-restore", RESTORE),
            Self::IptablesLegacy => ("iptables-legacy-restore", RESTORE),
            Self::Nftables => ("nft", &["-f", "-"]),
        }
    }

    /// Why services cannot be had in this form here, if so: the program or something in the kernel is missing.
    pub fn missing(self) -> Option<String> {
        let features = match self {
            Self::Nftables => nftables::FEATURES,
            _ => iptables::FEATURES,
        };
        let (program, arguments) = self.loader();
        // In a namespace that ends with the command.
        let words = [&["--net", program], arguments].concat();
        features.iter().find_map(|(name, rules)| {
            let tried = process::run_with_input(None, "unshare", &words, rules);
            tried
                .err()
                .map(|error| format!("{self}: no {name} here: {error}"))
        })
    }
}

/// kube-proxy on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// Which rules it writes.
    pub form: Form,
    /// `--cluster-cidr`: what comes from elsewhere to a cluster address is masqueraded.
    pub pods: Option<Subnet>,
    /// The node's own pods.
    pub local: Option<Subnet>,
    /// The node's address, where it opens node ports; iptables opens them at all of the node's addresses.
    pub node: Option<Ipv4Addr>,
}

impl Proxy {
    /// Replaces kube-proxy's chains in a namespace by those for `services`; other chains stay.
    ///
    /// # Errors
    /// If the tool refuses the rules.
    pub fn install(&self, netns: &Netns, services: &[Service]) -> Result<()> {
        let rules = match self.form {
            Form::Nftables => nftables::rules(self, services),
            _ => iptables::rules(self, services),
        };
        let (program, arguments) = self.form.loader();
        process::run_with_input(Some(netns), program, arguments, &rules).map(drop)
    }
}

/// `count` services with two endpoints each that no traffic of a test uses: they are there to be passed by.
pub fn filler(count: usize) -> Vec<Service> {
    /// Kubernetes' usual service network, and a pod network that no lab uses.
    const SERVICES: u32 = u32::from_be_bytes([10, 96, 0, 0]);
    const ENDPOINTS: u32 = u32::from_be_bytes([10, 200, 0, 0]);
    let address =
        |base: u32, n: usize| Ipv4Addr::from(base + 1 + u32::try_from(n).expect("few services"));
    (0..count)
        .map(|n| {
            Service::new(
                format!("filler-{n}"),
                SocketAddrV4::new(address(SERVICES, n), 80),
                [2 * n, 2 * n + 1]
                    .map(|n| SocketAddrV4::new(address(ENDPOINTS, n), 8080))
                    .to_vec(),
            )
        })
        .collect()
}

/// The rules of kube-proxy's iptables mode for `services`, as [`Proxy::install`] loads them. None at all for no service.
///
/// # Errors
/// If `iptables-restore` refuses the rules.
pub fn install(netns: &Netns, services: &[Service]) -> Result<()> {
    if services.is_empty() {
        return Ok(());
    }
    Proxy::default().install(netns, services)
}

/// 16 characters that depend on what a chain is for, as in the names that kube-proxy gives.
fn hash(what: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    format!("{:016X}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 10), 80);
    const NEAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 5, 1, 2), 8080);
    const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 5, 2, 2), 8080);

    /// A service with all there is, on the node that has the first of its endpoints.
    pub(super) fn example(local: bool) -> (Proxy, Service) {
        let proxy = Proxy {
            form: Form::Iptables,
            pods: "10.5.0.0/16".parse().ok(),
            local: "10.5.1.0/24".parse().ok(),
            node: Some(Ipv4Addr::new(192, 168, 100, 1)),
        };
        let service = Service {
            node_port: Some(30080),
            external: vec![Ipv4Addr::new(203, 0, 113, 1)],
            load_balancer: vec![Ipv4Addr::new(203, 0, 113, 2)],
            local,
            internal_local: local,
            source_ranges: "203.0.113.128/25".parse().into_iter().collect(),
            affinity: Some(Duration::from_secs(600)),
            ..Service::new("web", CLUSTER, vec![NEAR, FAR])
        };
        (proxy, service)
    }

    #[test]
    fn endpoints_of_a_node_are_told_by_its_subnet() {
        let (proxy, service) = example(true);
        assert_eq!(service.local_endpoints(&proxy), [NEAR]);
        assert_eq!(service.local_endpoints(&Proxy::default()), []);
    }
}
