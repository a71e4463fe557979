//! The loaded fast path: keeps hooks and maps in line with a topology.
//!
//! A hook is attached before the map entries that rely on it are written, and entries go before their hook does: a pod
//! is fast in both directions or in none, since conntrack must not see half of a connection.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;

use aya::Ebpf;
use flannel_common::addr::Mac;
use flannel_common::maps::{
    CARRIED_BITS, Config, FLAG_ACTIVE, FLAG_ASSIST, FLAG_BOTH_LEGS, FLAG_DECAP, FLAG_FLOWS,
    FLAG_IPV6, FLAG_STRICT, FLAG_TCP, FLAG_XDP, POD_VIA_HOST, pod_number,
};
use flannel_common::outcome::Hook;
use flannel_common::wire::{Be16, Be32, Be128, vxlan};
use ipnet::IpNet;
use tracing::{info, warn};

use super::bypass::{self, Serve};
use super::facts::Facts;
use super::hooks::{Attach, Hooks};
use super::object::Room;
use super::pin::Pins;
use super::tables::{Contents, Tables, monotonic, nanoseconds};
use super::tier::{self, Attest, Egress, Ingress};
use super::xdp::NicXdp;
use super::{AttachBy, Device, Error, Mode, Options, Pod, PodHook, Topology, object};
use crate::family::{Family, PerFamily};
use crate::kernel::conntrack;
use crate::reconcile::device::random_mac;
use crate::status;

const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const DEFAULT_TTL: &str = "/proc/sys/net/ipv4/ip_default_ttl";
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// The kernel's own defaults, for where the files above cannot be read.
const PORTS: (u16, u16) = (32_768, 60_999);
const TTL: u8 = 64;

/// Programs, hooks and maps.
pub struct Engine {
    options: Options,
    facts: Facts,
    /// Flows attested before are not believed: who knows what has happened since.
    since: u64,
    /// What keeps TCP on the kernel path.
    strict: Option<Error>,
    /// Who encapsulates on this kernel.
    egress: Egress,
    /// How the other nodes are reached.
    ways: PerFamily<Ways>,
    bpf: Ebpf,
    hooks: Hooks,
    xdp: NicXdp,
    /// By which the hook behind XDP knows its packets.
    xdp_mac: Mac,
    tables: Tables,
    /// What keeps the whole node on the kernel path.
    failure: Option<Error>,
    /// What keeps single peers or pods there.
    trouble: Option<Error>,
    /// What keeps the node on another receive tier than wanted.
    tier: Option<Error>,
    pods: Vec<status::Pod>,
    /// Whether a pod is not served yet for no reason but that it is new.
    waits: bool,
}

impl Engine {
    /// Loads the programs and adopts what an earlier run left.
    ///
    /// # Errors
    /// Anything that makes the fast path impossible on this node.
    pub fn load(options: Options) -> Result<Self, Error> {
        let object = match &options.object {
            None => Cow::Borrowed(object::bytes().ok_or(Error::NoObject)?),
            Some(path) => Cow::Owned(fs::read(path).map_err(|source| Error::File {
                path: path.clone(),
                source,
            })?),
        };
        let pins = Pins::new(&options.pin_dir);
        pins.create()?;
        let facts = Facts::ask(options.attest);
        if options.attest == Attest::Conntrack && facts.attest() != Attest::Conntrack {
            return Err(Error::NoConntrack);
        }
        let room = Room {
            flows: options.flows,
            ipv6: options.ipv6,
        };
        let new = !object::MAPS
            .iter()
            .any(|name| pins.maps().join(name).exists());
        let mut bpf =
            object::load(&object, &facts, room, Some(&pins.maps())).map_err(|source| {
                Error::Object {
                    source: Box::new(source),
                }
            })?;
        tier::load_programs(&mut bpf)?;
        let egress = tier::egress(&mut bpf, options.egress);
        let tables = Tables::adopt(&mut bpf, new)?;
        let attach = match options.attach {
            AttachBy::Auto | AttachBy::Tcx => Attach::Tcx,
            AttachBy::Clsact => Attach::Clsact,
        };
        let hooks = Hooks::adopt(pins.clone(), attach, &mut bpf);
        let xdp = NicXdp::adopt(pins.clone(), options.ingress == Ingress::Xdp, &mut bpf);
        for pin in pins.remove_other_versions()? {
            info!(pin, "removed a pin of another version");
        }
        Ok(Self {
            options,
            facts,
            since: nanoseconds(monotonic()),
            strict: None,
            egress,
            ways: PerFamily::default(),
            bpf,
            hooks,
            xdp,
            xdp_mac: xdp_mac(),
            tables,
            failure: None,
            trouble: None,
            tier: None,
            pods: Vec::new(),
            waits: false,
        })
    }

    /// Carries other traffic. Nothing is fast until the maps and hooks are in line with it.
    pub fn change(&mut self, mode: Mode) {
        self.options.mode = mode;
        self.since = nanoseconds(monotonic());
        if let Err(error) = self.tables.deactivate() {
            warn!(%error, "the former mode stays until the next change");
        }
    }

    /// The bit of packets' marks that netfilter must set, if flows are attested by it.
    pub fn mark(&self) -> Option<u32> {
        (self.options.mode == Mode::Flow && self.facts.attest() == Attest::Mark)
            .then_some(self.options.mark)
    }

    /// Whether a pod will be served soon, by another [`sync`](Self::sync).
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// What keeps the whole node on the kernel path.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Brings hooks and maps in line.
    pub fn sync(&mut self, topology: &Topology) {
        self.trouble = None;
        self.waits = false;
        self.failure = self.sync_all(topology).err();
        if let Some(error) = &self.failure {
            if matches!(error, Error::NoMark) {
                // For the moment that it takes to write the rule.
                info!(%error, "nothing is fast yet");
            } else {
                warn!(%error, "the fast path gives this node back to the kernel");
            }
            // One direction alone would starve conntrack of half of each connection.
            for result in [
                self.tables.deactivate(),
                self.xdp.detach(),
                self.hooks.detach_all(),
            ] {
                if let Err(error) = result {
                    warn!(%error, "cleaning up after it");
                }
            }
            self.pods.clear();
        }
    }

    /// Brings these peers' map entries in line, or all if that is not enough.
    pub fn change_peers(&mut self, topology: &Topology, subnets: &[IpNet]) {
        let same_hooks = self.ways_of(topology) == self.ways;
        let healthy = self.failure.is_none() && self.trouble.is_none();
        let mut changed = || self.tables.change_peers(&topology.peers, subnets);
        if !(healthy && same_hooks && matches!(changed(), Ok(true))) {
            self.sync(topology);
        }
    }

    fn sync_all(&mut self, topology: &Topology) -> Result<(), Error> {
        bypass::node(&self.hooks, topology)?;
        if self.mark() != topology.mark && self.mark().is_some() {
            return Err(Error::NoMark);
        }
        let ways = self.ways_of(topology);
        self.ways = ways;
        let tunnel = |family: Family| ways.get(family).is_some_and(|ways| ways.tunnel);
        let vtep = |family: Family| {
            let vtep = topology.vtep.get(family).filter(|_| tunnel(family));
            vtep.map(|vtep| &vtep.device)
        };
        let direct = ways.values().any(|ways| ways.direct);
        let at_vtep = self.options.ingress == Ingress::Vtep;
        let at_nic = direct || (tunnel(Family::V4) && !at_vtep);
        // Out of IPv6's tunnel the kernel takes packets itself.
        let vteps = vtep(Family::V4).filter(|_| at_vtep).into_iter();
        let receivers: [(Hook, Vec<&Device>); 2] = [
            (
                Hook::NicIngress,
                at_nic.then_some(&topology.uplink).into_iter().collect(),
            ),
            (Hook::VtepIngress, vteps.chain(vtep(Family::V6)).collect()),
        ];
        for (hook, devices) in &receivers {
            for device in devices {
                self.attach_first(*hook, device)?;
            }
        }
        // What it takes out of the tunnel needs the hook behind it.
        self.tier = None;
        if tunnel(Family::V4) && self.options.ingress == Ingress::Xdp {
            self.tier = self.xdp.attach(&mut self.bpf, &topology.uplink).err();
        } else {
            self.xdp.detach()?;
        }
        let learns = self.options.mode == Mode::Flow;
        let attesters: Vec<&Device> = Family::ALL
            .into_iter()
            .filter_map(vtep)
            .chain(direct.then_some(&topology.uplink))
            .filter(|_| learns)
            .collect();
        for device in &attesters {
            self.hooks
                .attach(&mut self.bpf, Hook::AttestOut, device.index, &device.name)?;
        }
        self.strict = if learns {
            conntrack::be_liberal(&self.options.state_file)
                .err()
                .map(|source| Error::Strict { source })
        } else {
            None
        };
        let mut contents = Contents {
            config: self.config(topology),
            ..Contents::default()
        };
        let length = |family| prefix_len(topology, family);
        let peers = || topology.peers.iter();
        contents.v4.set_peers(peers(), length(Family::V4));
        if self.options.ipv6 {
            contents.v6.set_peers(peers(), length(Family::V6));
        }
        let ports = self.attach_pods(topology, &mut contents);
        self.tables.beat(monotonic() + self.options.heartbeat)?;
        if let Err(error) = self.tables.sync(contents) {
            self.trouble = Some(error);
        }
        let attesters: Vec<u32> = attesters.iter().map(|device| device.index).collect();
        if !learns {
            self.hooks.let_probes_pass();
        }
        self.hooks.prune(Hook::AttestOut, &attesters)?;
        for (hook, devices) in receivers {
            let wanted: Vec<u32> = devices.iter().map(|device| device.index).collect();
            self.hooks.prune(hook, &wanted)?;
        }
        self.hooks
            .prune(Hook::AttestIn, if learns { &ports } else { &[] })?;
        let on_bridge = self.options.pod_hook == PodHook::Bridge;
        self.hooks
            .prune(Hook::PodEgress, if on_bridge { &[] } else { &ports })
    }

    /// Attaches a receiving hook. The first tells how this kernel attaches.
    fn attach_first(&mut self, hook: Hook, device: &Device) -> Result<(), Error> {
        let may_change = self.options.attach == AttachBy::Auto;
        self.hooks
            .attach_first(&mut self.bpf, hook, device.index, &device.name, may_change)
    }

    /// Attaches the pods' hooks; those whose packets a hook sees become contents of the pod map. Returns the ports of
    /// pods that may be served.
    fn attach_pods(&mut self, topology: &Topology, contents: &mut Contents) -> Vec<u32> {
        self.pods.clear();
        let mut ports = Vec::new();
        let mut without_hook = Vec::new();
        let served = |pod: &&Pod| pod.ip.is_ipv4() || self.options.ipv6;
        let served: Vec<&Pod> = topology.pods.iter().filter(served).collect();
        let crowded_out = crowded_out(&served);
        self.hooks
            .forget_others(&served.iter().map(|pod| pod.host_index).collect());
        for pod in served {
            if crowded_out.contains(&pod.host_index) {
                let why = "the kernel carries its traffic: another pod's address has the number of one of its own";
                self.list(pod, Some(why.into()));
                continue;
            }
            let note = match bypass::pod(&self.hooks, topology, pod) {
                Ok(Serve::Straight) => Note::default(),
                Ok(Serve::ViaHost(why)) => Note {
                    flags: POD_VIA_HOST,
                    text: Some(format!("{why}, so they go through it")),
                },
                Ok(Serve::Kernel(why)) => {
                    self.list(pod, Some(format!("the kernel carries its traffic: {why}")));
                    continue;
                }
                Err(error) => {
                    self.list(
                        pod,
                        Some(format!("what is on its veth is unknown: {error}")),
                    );
                    continue;
                }
            };
            if self.hooks.is_too_early(pod.host_index) {
                let why = "the kernel carries its traffic for some seconds: the CNI plugins of its start may not be done";
                self.list(pod, Some(why.into()));
                self.waits = true;
                continue;
            }
            ports.push(pod.host_index);
            if self.options.mode == Mode::Flow
                && let Err(error) = self.attach(Hook::AttestIn, pod)
            {
                self.list(pod, Some(error.to_string()));
                continue;
            }
            let result = match self.options.pod_hook {
                PodHook::Bridge => Err(None),
                PodHook::Auto => self.attach(Hook::PodEgress, pod).map_err(Some),
            };
            match result {
                Ok(()) => self.serve(pod, contents, note),
                Err(error) => without_hook.push((pod, note.and(error))),
            }
        }
        let bridge = topology
            .bridge
            .as_ref()
            .filter(|_| !without_hook.is_empty());
        let covered = match bridge {
            Some(bridge) => self.attach_bridge(bridge),
            None => Err("no bridge".into()),
        };
        for (pod, note) in without_hook {
            match &covered {
                Ok(()) => self.serve(pod, contents, note),
                Err(reason) => self.list(pod, note.and(Some(reason)).text),
            }
        }
        let wanted: Vec<u32> = bridge
            .filter(|_| covered.is_ok())
            .iter()
            .map(|bridge| bridge.index)
            .collect();
        if let Err(error) = self.hooks.prune(Hook::BridgeEgress, &wanted) {
            self.trouble = Some(error);
        }
        ports
    }

    fn attach(&mut self, hook: Hook, pod: &Pod) -> Result<(), Error> {
        self.hooks
            .attach(&mut self.bpf, hook, pod.host_index, &pod.host_name)
    }

    /// Attaches the hook at the bridge, where that is cheaper than the kernel's path.
    fn attach_bridge(&mut self, bridge: &Device) -> Result<(), String> {
        // A flow that is permitted has its connection confirmed, so that nothing is thrown away at the bridge.
        let forced = self.options.pod_hook == PodHook::Bridge || self.options.mode == Mode::Flow;
        if !forced && fs::read_to_string(BRIDGE_NETFILTER).is_ok_and(|value| value.trim() != "0") {
            return Err(
                "not at the bridge either: net.bridge.bridge-nf-call-iptables makes that slower"
                    .into(),
            );
        }
        self.hooks
            .attach(
                &mut self.bpf,
                Hook::BridgeEgress,
                bridge.index,
                &bridge.name,
            )
            .map_err(|error| error.to_string())
    }

    fn serve(&mut self, pod: &Pod, contents: &mut Contents, note: Note) {
        contents.v4.add_pod(pod, note.flags);
        contents.v6.add_pod(pod, note.flags);
        self.list(pod, note.text);
    }

    fn list(&mut self, pod: &Pod, problem: Option<String>) {
        self.pods.push(status::Pod {
            ip: pod.ip.to_string(),
            device: pod.host_name.clone(),
            problem,
        });
    }

    fn config(&self, topology: &Topology) -> Config {
        let uplink_mtu = limit(topology.uplink.mtu);
        let bridge = topology.bridge.as_ref();
        let (source_port_min, source_port_max) = port_range();
        let host_bits = u32::BITS - u32::from(prefix_len(topology, Family::V4));
        let mut config = Config {
            flags: FLAG_ACTIVE,
            uplink_index: topology.uplink.index,
            node_ip: match topology.node_ip.v4 {
                Some(IpAddr::V4(address)) => address.into(),
                _ => Be32::default(),
            },
            subnet_mask: Be32::new(u32::MAX.checked_shl(host_bits).unwrap_or(0)),
            host_bits,
            source_port_min,
            source_port_max,
            direct_mtu: uplink_mtu,
            pod_mtu: bridge.map_or(0, |bridge| limit(bridge.mtu)),
            bridge_mac: bridge.map(|bridge| bridge.mac).unwrap_or_default(),
            outer_ttl: number(DEFAULT_TTL).unwrap_or(TTL),
            ..Config::default()
        };
        if self.options.mode == Mode::Flow {
            let revalidate = conntrack::revalidation(self.options.revalidate);
            config.flags |= FLAG_FLOWS;
            config.since = self.since;
            config.revalidate_after = nanoseconds(revalidate);
            config.stale_after = nanoseconds(revalidate + self.options.grace);
            config.bridge_index = bridge.map_or(0, |bridge| bridge.index);
            if self.strict.is_none() {
                config.flags |= FLAG_TCP;
            }
            if let Some(mark) = self.mark() {
                config.mark = mark;
                // IPVS rewrites addresses without telling conntrack's status.
                config.flags |= FLAG_BOTH_LEGS;
            }
        }
        if self.options.strict {
            config.flags |= FLAG_STRICT;
        }
        if let Some(vtep) = &topology.vtep.v4 {
            config.vtep_index = vtep.device.index;
            config.vtep_mac = vtep.device.mac;
            config.vni = vtep.vni;
            config.vxlan_port = Be16::new(vtep.port);
            config.tunnel_mtu =
                limit(vtep.device.mtu).min(uplink_mtu.saturating_sub(vxlan::OVERHEAD as u16));
            if self.egress == Egress::Assist {
                config.flags |= FLAG_ASSIST;
            }
            config.uplink_mac = topology.uplink.mac;
            if self.options.ingress == Ingress::Xdp {
                config.xdp_mac = self.xdp_mac;
            }
            config.flags |= match self.options.ingress {
                Ingress::Vtep => 0,
                Ingress::Xdp if self.xdp.device().is_some() => FLAG_XDP,
                Ingress::Nic | Ingress::Xdp => FLAG_DECAP,
            };
        }
        if self.options.ipv6 {
            self.add_ipv6(topology, &mut config);
        }
        config
    }

    /// What concerns IPv6 alone.
    fn add_ipv6(&self, topology: &Topology, config: &mut Config) {
        let host_bits = u128::BITS - u32::from(prefix_len(topology, Family::V6));
        config.flags |= FLAG_IPV6;
        config.subnet6_mask = Be128::new(u128::MAX.checked_shl(host_bits).unwrap_or(0));
        config.host6_bits = host_bits;
        if let Some(vtep) = &topology.vtep.v6 {
            config.vtep6_index = vtep.device.index;
            config.vtep6_mac = vtep.device.mac;
            config.tunnel6_mtu = limit(vtep.device.mtu)
                .min(config.direct_mtu.saturating_sub(vxlan::OVERHEAD_V6 as u16));
        }
    }

    /// How the other nodes of each family that is served are reached.
    fn ways_of(&self, topology: &Topology) -> PerFamily<Ways> {
        topology
            .subnet
            .filter_map(|family, _| (family == Family::V4 || self.options.ipv6).then_some(()))
            .map(|family, ()| Ways {
                tunnel: topology.vtep.get(family).is_some() && topology.peers.any(family, true),
                direct: topology.peers.any(family, false),
            })
    }

    /// Fills in what the status shows of a loaded fast path.
    pub fn report(&self, status: &mut status::FastPath) {
        status.active = self.failure.is_none();
        let problem = self
            .failure
            .as_ref()
            .or(self.trouble.as_ref())
            .or(self.tier.as_ref())
            .or(self.strict.as_ref());
        if self.options.mode == Mode::Flow {
            status.attestation = Some(self.facts.attest().name().into());
            status.flows = self.tables.flows().ok();
            status.revalidate_ms = Some(self.tables.revalidation().as_millis() as u64);
        }
        status.reason = problem.map(ToString::to_string);
        status.remedy = problem.map(|error| error.remedy().to_owned());
        status.attach = Some(self.hooks.kind().name().into());
        let xdp = self
            .xdp
            .device()
            .map(|device| (Hook::NicXdp.name(), device));
        status.hooks = self
            .hooks
            .list()
            .chain(xdp)
            .map(|(program, device)| status::Hook {
                device: device.into(),
                program: program.into(),
            })
            .collect();
        let attached = |hook: Hook| {
            status
                .hooks
                .iter()
                .any(|attached| attached.program == hook.name())
        };
        let at_nic = attached(Hook::NicIngress);
        let at_vtep = attached(Hook::VtepIngress);
        let by_xdp = self.xdp.device().is_some();
        status.ingress = match self.ways.v4 {
            None => None,
            Some(ways) if ways.tunnel && self.options.ingress == Ingress::Vtep && at_vtep => {
                Some("vtep".into())
            }
            Some(_) if at_nic && by_xdp => Some("xdp".into()),
            Some(_) if at_nic => Some("nic".into()),
            Some(_) => None,
        };
        status.egress = self.ways.v4.map(|ways| {
            match (ways.tunnel, self.egress) {
                (false, _) => "direct",
                (true, Egress::Assist) => "assist",
                (true, _) => "encap",
            }
            .into()
        });
        let ways = self.ways.v6.filter(|_| at_nic || at_vtep);
        status.ingress_v6 = ways.map(|ways| if ways.tunnel { "vtep" } else { "nic" }.into());
        status.egress_v6 = ways.map(|ways| if ways.tunnel { "assist" } else { "direct" }.into());
        status.pods.clone_from(&self.pods);
        match self.tables.counters() {
            Ok(counters) => status.counters = counters,
            Err(error) => status.reason = Some(error.to_string()),
        }
    }
}

/// How other nodes are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ways {
    /// Some through the tunnel.
    tunnel: bool,
    /// Some without it.
    direct: bool,
}

/// Length of the subnets that are told apart by number.
fn prefix_len(topology: &Topology, family: Family) -> u8 {
    let subnet = topology.subnet.get(family);
    subnet.map_or(0, |subnet| subnet.prefix_len())
}

/// Ports with an address whose number another pod's has already: the maps have no place for it, and a program at a port
/// takes an address that is not there for a false one.
fn crowded_out(pods: &[&Pod]) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    pods.iter()
        .filter(|pod| {
            let number = match pod.ip {
                IpAddr::V4(address) => pod_number(Be32::from(address)),
                IpAddr::V6(address) => pod_number(Be128::from(address)),
            };
            !numbers.insert((pod.ip.is_ipv6(), number))
        })
        .map(|pod| pod.host_index)
        .collect()
}

/// What is special about serving a pod.
#[derive(Debug, Default)]
struct Note {
    /// Combination of the `POD_` constants.
    flags: u16,
    /// For the status.
    text: Option<String>,
}

impl Note {
    /// With one more remark, if there is one.
    fn and(mut self, remark: Option<impl std::fmt::Display>) -> Self {
        self.text = match (self.text, remark) {
            (Some(text), Some(remark)) => Some(format!("{text}; {remark}")),
            (text, remark) => text.or(remark.map(|remark| remark.to_string())),
        };
        self
    }
}

/// An address that nobody can guess, of the locally administered kind; its last bits are XDP's to set.
fn xdp_mac() -> Mac {
    let mut mac = random_mac();
    mac.0[5] &= !CARRIED_BITS;
    mac
}

/// An MTU as the maps hold it; no IPv4 packet is larger than the limit.
fn limit(mtu: u32) -> u16 {
    u16::try_from(mtu).unwrap_or(u16::MAX)
}

fn number<T: std::str::FromStr>(path: &str) -> Option<T> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The range from which the kernel's VXLAN device takes source ports, since flannel configures none for it.
fn port_range() -> (u16, u16) {
    let read = || {
        let text = fs::read_to_string(PORT_RANGE).ok()?;
        let mut ports = text.split_whitespace().map(str::parse);
        Some((ports.next()?.ok()?, ports.next()?.ok()?))
    };
    read().unwrap_or(PORTS)
}
