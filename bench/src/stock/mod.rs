//! A stock flannel node without flanneld: the same lease, device, entries and rules, made with etcdctl and iproute2
//! as they were recorded from flanneld v0.28.9. Our nodes cannot tell the difference; tests use it as their peer.
//!
//! Backends `vxlan` (with `DirectRouting`), `host-gw`, `ipip` and `udp`; IPv4 and dual stack. It follows lease changes
//! when told to, by [`Stock::refresh`].

mod claim;
mod devices;
mod entries;
mod lease_value;
mod netconf;
mod restart;
mod rules;
mod udp;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    cluster::Settings,
    cni::{Env6, SubnetEnv},
    error::{Error, IoContext, Result},
    etcd::PREFIX,
    lease::{self, Lease, Subnet, Subnet6},
    lease_store::Store,
    netns::Netns,
    process,
    stock::{
        devices::Vtep,
        entries::{Commands, Direct, Verb},
        lease_value::Published,
        netconf::{Kind, NetConf, Networks},
    },
    underlay::Segment,
};

/// Whether a network has IPv6 too.
pub fn is_dual_stack(network_config: &str) -> bool {
    Networks::parse(network_config).is_ok_and(|networks| networks.ipv6.is_some())
}

/// Why stock nodes of this network cannot be on this kernel, if so.
///
/// # Errors
/// If the network config is malformed.
pub fn missing(network_config: &str) -> Result<Option<String>> {
    Ok(devices::missing(NetConf::parse(network_config)?.kind))
}

/// The subnets that a node of this number has where nodes do not choose them.
pub(crate) fn subnets_of_number(
    network_config: &str,
    number: u8,
) -> Result<(Subnet, Option<Subnet6>)> {
    claim::by_number(&Networks::parse(network_config)?, number)
}

/// The value of the lease that a node of this number and address has as a stock node.
pub(crate) fn lease_of_number(
    network_config: &str,
    number: u8,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
) -> Result<String> {
    let macs = [vtep_mac(number), vtep_mac6(number)];
    let published = Published {
        address,
        address6,
        macs: [&macs[0], &macs[1]],
    };
    Ok(lease_value::text(
        &NetConf::parse(network_config)?,
        published,
    ))
}

/// The kernel entries for a number of leases, as batches for `ip` and `bridge`. Every peer is tunnelled.
pub struct Entries(Commands);

impl Entries {
    /// Puts the batches together.
    ///
    /// # Errors
    /// If the network config is malformed, or a lease says too little for its backend.
    pub fn new(network_config: &str, leases: &[Lease]) -> Result<Self> {
        let config = NetConf::parse(network_config)?;
        let mut commands = Commands::default();
        for lease in leases {
            commands.peer(Verb::Replace, &config, lease, Direct::default())?;
        }
        Ok(Self(commands))
    }

    /// Runs them in a namespace.
    ///
    /// # Errors
    /// If a command fails.
    pub fn make(&self, netns: &Netns) -> Result<()> {
        self.0.run(netns)
    }
}

/// The stock flannel of one node.
#[derive(Debug)]
pub struct Stock {
    number: u8,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
    netns: Netns,
    store: Arc<dyn Store>,
    subnet_file: PathBuf,
    network_config: String,
    mtu: u32,
    state: Mutex<Option<State>>,
}

/// What is set up.
#[derive(Debug)]
struct State {
    subnet: Subnet,
    subnet6: Option<Subnet6>,
    config: NetConf,
    /// The peers that the kernel has entries for.
    peers: BTreeMap<Subnet, Peer>,
    /// Carries the packets of backend `udp`.
    tunnel: Option<udp::Tunnel>,
}

/// Another node, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    lease: Lease,
    direct: Direct,
}

impl Stock {
    pub(crate) fn new(
        settings: &Settings,
        number: u8,
        segment: Segment,
        netns: &Netns,
        directory: &Path,
    ) -> Self {
        Self {
            number,
            address: segment.address(number),
            address6: settings.ipv6.then(|| segment.address6(number)),
            netns: netns.clone(),
            store: settings.store.clone(),
            subnet_file: directory.join("subnet.env"),
            network_config: settings.network.clone(),
            mtu: settings.underlay.mtu,
            state: Mutex::new(None),
        }
    }

    /// Takes a subnet, publishes the lease, and sets up device, rules and `subnet.env`. Peers come with the first
    /// [`Stock::refresh`].
    ///
    /// # Errors
    /// For a backend that stock nodes or this kernel do not know, or if a command fails.
    pub fn start(&self) -> Result<()> {
        let config = NetConf::parse(&self.network_config)?;
        devices::require(config.kind)?;
        let (subnet, subnet6) = self.claim(&config)?;
        let mtu = self.mtu - config.kind.overhead();
        let tunnel = self.make_devices(&config, subnet, subnet6, mtu)?;
        rules::install(&self.netns, &config, subnet, subnet6)?;
        self.write_subnet_file(&config, subnet, subnet6)?;
        *self.state() = Some(State {
            subnet,
            subnet6,
            config,
            peers: BTreeMap::new(),
            tunnel,
        });
        Ok(())
    }

    fn write_subnet_file(
        &self,
        config: &NetConf,
        subnet: Subnet,
        subnet6: Option<Subnet6>,
    ) -> Result<()> {
        let ipv6 = config.networks.ipv6.zip(subnet6);
        let env = SubnetEnv {
            network: config.networks.network,
            subnet,
            ipv6: ipv6.map(|((network, _), subnet)| Env6 { network, subnet }),
            mtu: self.mtu - config.kind.overhead(),
            ip_masq: true,
        };
        fs::write(&self.subnet_file, env.to_string()).context("write", self.subnet_file.display())
    }

    /// Reads all leases and makes the kernel's entries follow them, as flanneld does on lease events.
    ///
    /// # Errors
    /// If the node is not started, or a command fails.
    pub fn refresh(&self) -> Result<()> {
        let leases = self.store.leases()?;
        let mut state = self.state();
        let State {
            subnet,
            config,
            peers,
            tunnel,
            ..
        } = state.as_mut().ok_or_else(not_started)?;
        let mut wanted = BTreeMap::new();
        for lease in leases {
            let is_ours = config.kind.lease_type();
            // Upstream's udp looks at nobody's type.
            let is_known = is_ours.is_none() || lease.value.backend_type.as_deref() == is_ours;
            if lease.subnet != *subnet && is_known {
                let direct = self.direct(config, &lease)?;
                wanted.insert(lease.subnet, Peer { lease, direct });
            }
        }
        let mut commands = Commands::default();
        let mut collect = |verb, from: &BTreeMap<Subnet, Peer>, other: &BTreeMap<Subnet, Peer>| {
            from.iter()
                .filter(|(subnet, peer)| other.get(subnet) != Some(peer))
                .try_for_each(|(_, peer)| commands.peer(verb, config, &peer.lease, peer.direct))
        };
        collect(Verb::Delete, peers, &wanted)?;
        collect(Verb::Replace, &wanted, peers)?;
        commands.run(&self.netns)?;
        if let Some(tunnel) = tunnel {
            let peers = wanted.values().map(|peer| &peer.lease);
            tunnel.set_peers(peers.map(|lease| (lease.subnet, lease.value.public_ip)));
        }
        *peers = wanted;
        Ok(())
    }

    /// Whether a peer is reached by a plain route: if that is asked for and no gateway is on the way.
    fn direct(&self, config: &NetConf, lease: &Lease) -> Result<Direct> {
        if !config.backend.direct_routing {
            return Ok(Direct::default());
        }
        let public6 = config.networks.ipv6.and(lease.value.public_ipv6);
        Ok(Direct {
            ipv4: self.is_on_link(lease.value.public_ip.into())?,
            ipv6: match public6 {
                Some(address) => self.is_on_link(address.into())?,
                None => false,
            },
        })
    }

    fn is_on_link(&self, address: IpAddr) -> Result<bool> {
        let address = address.to_string();
        let route = process::run(Some(&self.netns), "ip", &["route", "get", &address])?;
        Ok(!route.contains(" via "))
    }

    /// Deletes the node's lease, as if it had expired; from the API server, the node itself. The kernel's state stays, as
    /// on a node whose flanneld is dead.
    ///
    /// # Errors
    /// If the node is not started, or a command fails.
    pub fn expire(&self) -> Result<()> {
        self.store.withdraw(&self.name(), &self.lease_key()?)
    }

    /// The key of the node's lease in etcd.
    ///
    /// # Errors
    /// If the node is not started.
    pub fn key(&self) -> Result<String> {
        Ok(format!("{PREFIX}/subnets/{}", self.lease_key()?))
    }

    fn lease_key(&self) -> Result<String> {
        let state = self.state();
        let state = state.as_ref().ok_or_else(not_started)?;
        Ok(lease::key(state.subnet, state.subnet6))
    }

    fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// The node's subnet.
    ///
    /// # Errors
    /// If the node is not started.
    pub fn subnet(&self) -> Result<Subnet> {
        let state = self.state();
        Ok(state.as_ref().ok_or_else(not_started)?.subnet)
    }

    /// MAC address of its VXLAN device: locally administered, unicast, made from the node's number.
    pub fn vtep_mac(&self) -> String {
        vtep_mac(self.number)
    }

    /// MAC address of its VXLAN device for IPv6.
    pub fn vtep_mac6(&self) -> String {
        vtep_mac6(self.number)
    }

    /// Comes to subnets, and publishes the lease.
    fn claim(&self, config: &NetConf) -> Result<(Subnet, Option<Subnet6>)> {
        let value = lease_of_number(
            &self.network_config,
            self.number,
            self.address,
            self.address6,
        )?;
        if let Some(etcd) = self.store.etcd() {
            return claim::in_etcd(etcd, &config.networks, &value);
        }
        self.store.publish(&self.name(), &value)?;
        claim::by_number(&config.networks, self.number)
    }

    fn make_devices(
        &self,
        config: &NetConf,
        subnet: Subnet,
        subnet6: Option<Subnet6>,
        mtu: u32,
    ) -> Result<Option<udp::Tunnel>> {
        let backend = &config.backend;
        match config.kind {
            Kind::HostGw => Ok(None),
            Kind::Ipip => {
                devices::make_ipip(&self.netns, self.address, subnet, mtu)?;
                Ok(None)
            }
            Kind::Udp => {
                let local = SocketAddrV4::new(self.address, backend.udp_port());
                udp::Tunnel::start(&self.netns, config.networks.network, subnet, local, mtu)
                    .map(Some)
            }
            Kind::Vxlan => {
                let vtep = Vtep {
                    name: devices::vxlan(backend),
                    mac: self.vtep_mac(),
                    local: self.address.into(),
                    address: devices::own(subnet),
                    mtu,
                };
                devices::make_vxlan(&self.netns, backend, &vtep)?;
                if let (Some(subnet6), Some(address6)) = (subnet6, self.address6) {
                    let vtep = Vtep {
                        name: devices::vxlan6(backend),
                        mac: self.vtep_mac6(),
                        local: address6.into(),
                        address: devices::own6(subnet6),
                        mtu,
                    };
                    devices::make_vxlan(&self.netns, backend, &vtep)?;
                }
                Ok(None)
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Option<State>> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn vtep_mac(number: u8) -> String {
    format!("0e:de:d4:9c:3c:{number:02x}")
}

fn vtep_mac6(number: u8) -> String {
    format!("0e:de:d4:9c:3d:{number:02x}")
}

fn not_started() -> Error {
    Error::Unsupported("the stock node is not started".to_owned())
}
