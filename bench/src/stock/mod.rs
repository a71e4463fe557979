//! A stock flannel node without flanneld: the same lease, device, entries and rules, made with etcdctl and iproute2
//! as they were recorded from flanneld v0.28.9. Our nodes cannot tell the difference; tests use it as their peer.
//!
//! Backends `vxlan` and `host-gw`, IPv4. It follows lease changes when told to, by [`Stock::refresh`].

mod entries;
mod netconf;

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    cluster::Settings,
    cni::SubnetEnv,
    error::{Error, IoContext, Result},
    etcd::{Etcd, PREFIX},
    lease::{Lease, Subnet},
    netns::Netns,
    process,
    stock::{
        entries::{Commands, Verb},
        netconf::{Backend, NetConf},
    },
    underlay::{self, Underlay},
};

/// Time to live of flannel's leases, in seconds.
const LEASE_TTL: &str = "86400";
/// What VXLAN over IPv4 adds to a packet: outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14.
const VXLAN_OVERHEAD: u32 = 50;

/// The kernel entries for a number of leases, as batches for `ip` and `bridge`.
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
            commands.peer(Verb::Replace, &config.backend, lease.subnet, lease)?;
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
    netns: Netns,
    etcd: Arc<Etcd>,
    subnet_file: PathBuf,
    network_config: String,
    underlay: Underlay,
    state: Mutex<Option<State>>,
}

/// What is set up.
#[derive(Debug)]
struct State {
    subnet: Subnet,
    config: NetConf,
    /// The peers that the kernel has entries for.
    peers: BTreeMap<Subnet, Lease>,
}

impl Stock {
    pub(crate) fn new(
        settings: &Settings,
        number: u8,
        address: Ipv4Addr,
        netns: &Netns,
        directory: &Path,
    ) -> Self {
        Self {
            number,
            address,
            netns: netns.clone(),
            etcd: settings.etcd.clone(),
            subnet_file: directory.join("subnet.env"),
            network_config: settings.network.clone(),
            underlay: settings.underlay,
            state: Mutex::new(None),
        }
    }

    /// Takes a subnet, publishes the lease, and sets up device, rules and `subnet.env`. Peers come with the first
    /// [`Stock::refresh`].
    ///
    /// # Errors
    /// For backends other than `vxlan` and `host-gw`, or if a command fails.
    pub fn start(&self) -> Result<()> {
        let config = NetConf::parse(&self.network_config)?;
        let network: Subnet = config.network.parse()?;
        let (value, mtu) = match config.backend.r#type.as_str() {
            "vxlan" => {
                let (vni, mac) = (config.backend.vni(), self.vtep_mac());
                let data = format!(r#","BackendData":{{"VNI":{vni},"VtepMAC":"{mac}"}}"#);
                (
                    self.lease_value("vxlan", &data),
                    self.underlay.mtu - VXLAN_OVERHEAD,
                )
            }
            "host-gw" => (self.lease_value("host-gw", ""), self.underlay.mtu),
            other => {
                return Err(Error::Unsupported(format!(
                    "stock nodes cannot do backend {other:?}"
                )));
            }
        };
        let subnet = self.claim(network, config.subnet_len, &value)?;
        if config.backend.r#type == "vxlan" {
            self.make_device(&config.backend, subnet, mtu)?;
        }
        self.install_rules(network, subnet)?;
        let env = SubnetEnv {
            network,
            subnet,
            mtu,
            ip_masq: true,
        };
        fs::write(&self.subnet_file, env.to_string())
            .context("write", self.subnet_file.display())?;
        *self.state() = Some(State {
            subnet,
            config,
            peers: BTreeMap::new(),
        });
        Ok(())
    }

    /// Reads all leases and makes the kernel's entries follow them, as flanneld does on lease events.
    ///
    /// # Errors
    /// If the node is not started, or a command fails.
    pub fn refresh(&self) -> Result<()> {
        let leases = self.etcd.leases()?;
        let mut state = self.state();
        let State {
            subnet,
            config,
            peers,
        } = state
            .as_mut()
            .ok_or_else(|| Error::Unsupported("the stock node is not started".to_owned()))?;
        let wanted: BTreeMap<_, _> = leases
            .into_iter()
            .filter(|lease| lease.subnet != *subnet)
            .filter(|lease| lease.value.backend_type.as_deref() == Some(&config.backend.r#type))
            .map(|lease| (lease.subnet, lease))
            .collect();
        let mut commands = Commands::default();
        for (subnet, lease) in peers
            .iter()
            .filter(|(subnet, lease)| wanted.get(subnet) != Some(lease))
        {
            commands.peer(Verb::Delete, &config.backend, *subnet, lease)?;
        }
        for (subnet, lease) in wanted
            .iter()
            .filter(|(subnet, lease)| peers.get(subnet) != Some(lease))
        {
            commands.peer(Verb::Replace, &config.backend, *subnet, lease)?;
        }
        commands.run(&self.netns)?;
        *peers = wanted;
        Ok(())
    }

    /// Deletes the node's lease, as if it had expired. The kernel's state stays, as on a node whose flanneld is dead.
    ///
    /// # Errors
    /// If the command fails.
    pub fn expire(&self) -> Result<()> {
        let subnet = self.subnet()?;
        self.etcd
            .delete(&format!("{PREFIX}/subnets/{}", subnet.key()))
    }

    /// The node's subnet.
    ///
    /// # Errors
    /// If the node is not started.
    pub fn subnet(&self) -> Result<Subnet> {
        let state = self.state();
        state
            .as_ref()
            .map(|state| state.subnet)
            .ok_or_else(|| Error::Unsupported("the stock node is not started".to_owned()))
    }

    /// MAC address of its VXLAN device: locally administered, unicast, made from the node's number.
    pub fn vtep_mac(&self) -> String {
        format!("0e:de:d4:9c:3c:{:02x}", self.number)
    }

    fn lease_value(&self, backend: &str, data: &str) -> String {
        format!(
            r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"{backend}"{data}}}"#,
            self.address
        )
    }

    /// Publishes the lease for the first free subnet from the end of the network; agents choose at random, so the
    /// compare-and-swap may have to be tried again.
    fn claim(&self, network: Subnet, length: u8, value: &str) -> Result<Subnet> {
        let granted = self.etcd.ctl(&["lease", "grant", LEASE_TTL])?;
        let lease = granted
            .split_ascii_whitespace()
            .nth(1)
            .ok_or_else(|| Error::Parse {
                what: "answer of `etcdctl lease grant`".to_owned(),
                reason: "no lease id".to_owned(),
                text: granted.clone(),
            })?;
        let step = 1_usize << (u32::BITS - u32::from(length));
        let (first, size) = (
            network.address.to_bits(),
            u32::try_from(network.size()).unwrap_or(u32::MAX),
        );
        // The first subnet of the network is never given out, as in upstream's default of SubnetMin.
        for first in (first..first + size).step_by(step).skip(1).rev() {
            let subnet = Subnet {
                address: Ipv4Addr::from(first),
                length,
            };
            let key = format!("{PREFIX}/subnets/{}", subnet.key());
            let quoted = value.replace('"', "\\\"");
            let transaction =
                format!("ver(\"{key}\") = \"0\"\n\nput {key} \"{quoted}\" --lease={lease}\n\n\n");
            if self
                .etcd
                .ctl_with_input(&["txn"], &transaction)?
                .starts_with("SUCCESS")
            {
                return Ok(subnet);
            }
        }
        Err(Error::Unsupported(format!("no free subnet in {network}")))
    }

    fn make_device(&self, backend: &Backend, subnet: Subnet, mtu: u32) -> Result<()> {
        let (vni, port, mac, local, address) = (
            backend.vni(),
            backend.port(),
            self.vtep_mac(),
            self.address,
            subnet.address,
        );
        underlay::ip_batch(
            &self.netns,
            &format!(
                "link add flannel.{vni} address {mac} mtu {mtu} txqueuelen 0 type vxlan id {vni} local {local} dev eth0 \
                 dstport {port} nolearning\n\
                 address add {address}/32 dev flannel.{vni}\n\
                 link set flannel.{vni} up\n"
            ),
        )?;
        // Upstream ignores errors here, too: the kernel may have no IPv6.
        let accept_ra = format!("net/ipv6/conf/flannel.{vni}/accept_ra");
        self.netns.sysctl(&[(&accept_ra, "0")]).ok();
        Ok(())
    }

    fn install_rules(&self, network: Subnet, subnet: Subnet) -> Result<()> {
        const MASQ: &str = r#"-m comment --comment "flanneld masq""#;
        const FORWARD: &str = r#"-m comment --comment "flanneld forward""#;
        let rules = format!(
            "*filter\n\
             :FLANNEL-FWD - [0:0]\n\
             -A FORWARD {FORWARD} -j FLANNEL-FWD\n\
             -A FLANNEL-FWD -s {network} {FORWARD} -j ACCEPT\n\
             -A FLANNEL-FWD -d {network} {FORWARD} -j ACCEPT\n\
             COMMIT\n\
             *nat\n\
             :FLANNEL-POSTRTG - [0:0]\n\
             -A POSTROUTING {MASQ} -j FLANNEL-POSTRTG\n\
             -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {MASQ} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {subnet} -d {network} {MASQ} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {network} -d {subnet} {MASQ} -j RETURN\n\
             -A FLANNEL-POSTRTG ! -s {network} -d {subnet} {MASQ} -j RETURN\n\
             -A FLANNEL-POSTRTG -s {network} ! -d 224.0.0.0/4 {MASQ} -j MASQUERADE --random-fully\n\
             -A FLANNEL-POSTRTG ! -s {network} -d {network} {MASQ} -j MASQUERADE --random-fully\n\
             COMMIT\n"
        );
        process::run_with_input(
            Some(&self.netns),
            "iptables-restore",
            &["--noflush", "--wait"],
            &rules,
        )
        .map(drop)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Option<State>> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
