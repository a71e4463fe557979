//! One pass: read what is out of date, compare, repair, tell the fast path.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use flannel_common::addr::Mac;
use ipnet::IpNet;
use tokio::sync::watch;

use super::{Dirty, device, rules};
use crate::{
    backend::{self, Facts, Plan},
    board::Board,
    family::{Family, PerFamily, gateway},
    fastpath::{self, FastPath, Topology},
    iface::{self, Uplink},
    kernel::{
        decode::Neighbour,
        events::Event,
        ipsec,
        netlink::{Error, Netlink},
        objects::{Link, Observed, Route, TunnelDevice, TunnelKind},
        observe::{self, Hop},
        pods::{Pods, Scan},
        traffic_control,
    },
    lease::{self, Attributes, Lease, Leases, OwnLease},
    netconf::NetworkConfig,
    subnet_file::SubnetFile,
    udp::Proxy,
};

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network config.
    pub config: NetworkConfig,
    /// How the interface between nodes was chosen.
    pub iface: iface::Options,
    /// `--subnet-file`.
    pub subnet_file: PathBuf,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// Whether a fast path was asked for, which needs to know next hops.
    pub fast_path: bool,
    /// How long the fast path goes on without a sign of life.
    pub heartbeat: Duration,
    /// `--ip-blackhole-route`.
    pub blackhole: bool,
    /// The subnets that a former run had.
    pub former: PerFamily<IpNet>,
    /// Whether packets with a source that is not their sender's are dropped.
    pub strict: bool,
    /// Whether events from inside pods' namespaces are heard.
    pub hears_pods: bool,
}

/// Everything that is known and everything that acts on it.
pub struct Reconciler {
    pub(super) settings: Settings,
    pub(super) board: Board,
    pub(super) netlink: Netlink,
    pub(super) uplink: Uplink,
    pub(super) own: OwnLease,
    /// The MACs that the lease publishes.
    pub(super) macs: PerFamily<Mac>,
    pub(super) publish: watch::Sender<Attributes>,
    pub(super) leases: Leases,
    /// Leases that have changed since they were planned, by key, as they were then.
    pub(super) changed: BTreeMap<String, Option<Lease>>,
    pub(super) observed: Observed,
    pub(super) hops: BTreeMap<IpAddr, Option<Hop>>,
    pub(super) plan: Plan,
    pub(super) pods: Pods,
    pub(super) scan: Scan,
    pub(super) fast_path: FastPath,
    /// What carries packets for the udp backend, while it runs.
    pub(super) proxy: Option<Proxy>,
    pub(super) topology: Option<Topology>,
    /// The mark that netfilter sets, once its rule is there.
    pub(super) marked: Option<u32>,
    /// Routes that were made and whose form does not show it.
    pub(super) made: BTreeMap<IpNet, Route>,
    /// Operations that failed, by object.
    pub(super) failures: BTreeMap<String, String>,
    /// Whether leases have been reported at all; before, an empty list means nothing.
    pub(super) listed: bool,
}

impl Reconciler {
    /// A reconciler that knows nothing but its own lease yet.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a different thing that start-up has made"
    )]
    pub fn new(
        settings: Settings,
        board: Board,
        netlink: Netlink,
        uplink: Uplink,
        own: OwnLease,
        macs: PerFamily<Mac>,
        publish: watch::Sender<Attributes>,
        fast_path: FastPath,
    ) -> Self {
        Self {
            settings,
            board,
            netlink,
            uplink,
            own,
            macs,
            publish,
            leases: Leases::default(),
            changed: BTreeMap::new(),
            observed: Observed::default(),
            hops: BTreeMap::new(),
            plan: Plan::default(),
            pods: Pods::default(),
            scan: Scan::default(),
            fast_path,
            proxy: None,
            topology: None,
            marked: None,
            made: BTreeMap::new(),
            failures: BTreeMap::new(),
            listed: false,
        }
    }

    /// Lets BPF carry other traffic from now on. The next pass, which must read all, brings it about.
    pub fn change_fast_path(&mut self, mode: fastpath::Mode) {
        tracing::info!(mode = mode.name(), "fast path");
        self.fast_path.change(mode);
        self.settings.fast_path = mode != fastpath::Mode::Off;
        self.topology = None;
    }

    /// How long the fast path goes on without a pass.
    pub fn heartbeat(&self) -> Duration {
        self.settings.heartbeat
    }

    /// This node's subnets.
    pub fn subnets(&self) -> PerFamily<IpNet> {
        self.own.subnets
    }

    /// The families that are enabled.
    pub(super) fn families(&self) -> Vec<Family> {
        let pools = self.settings.config.pools.iter();
        pools.map(|(family, _)| family).collect()
    }

    /// Takes note of a change in the kernel.
    pub fn note(&mut self, event: Event, dirty: &mut Dirty) {
        match event {
            Event::Link(index) => {
                (dirty.links, dirty.pods) = (true, true);
                // A link that goes down takes its IPv4 routes with it, and no event says so.
                if index == self.uplink.index || self.is_tunnel(index) {
                    (dirty.routes, dirty.neighbours, dirty.hops) = (true, true, true);
                }
            }
            Event::Route(net, route, gone) => {
                let known = self.observed.routes.get(&net) == Some(&route);
                if known == gone {
                    let networks = self.settings.config.networks();
                    dirty.routes = true;
                    dirty.hops |= !networks.values().any(|network| network.contains(&net));
                }
            }
            Event::OtherRoute => dirty.hops = true,
            Event::Neighbour(index, neighbour, gone) => {
                let known = match neighbour {
                    Neighbour::Address(address, entry) => {
                        self.observed.neighbours.get(&(index, address)) == Some(&entry)
                    }
                    Neighbour::Fdb(mac, entry) => {
                        self.observed.fdb.get(&(index, mac)) == Some(&entry)
                    }
                };
                dirty.neighbours |= self.is_tunnel(index) && known == gone;
            }
            // Only the fast path goes past it.
            Event::TrafficControl => dirty.pods |= self.settings.fast_path,
            Event::Ipsec => dirty.ipsec |= self.settings.fast_path,
            Event::Pod(namespace) => {
                self.pods.forget_namespace(namespace);
                dirty.pods = true;
            }
            Event::Lost => *dirty = Dirty::all(),
        }
    }

    /// Takes note of what the subnet manager says.
    pub fn lease_event(&mut self, event: lease::Event, dirty: &mut Dirty) {
        match &event {
            lease::Event::Own(own) => {
                if own.subnets != self.own.subnets {
                    tracing::error!(
                        old = self.own.subnets.join(),
                        new = own.subnets.join(),
                        "this node's subnet has changed: pods with addresses of the old one must be made anew"
                    );
                    *dirty = Dirty::all();
                }
                self.own = own.clone();
                return;
            }
            lease::Event::Snapshot(_) => {
                self.listed = true;
                dirty.leases = true;
            }
            lease::Event::Put(key, _) | lease::Event::Removed(key) => {
                dirty.changes = true;
                let before = self.peer(key).cloned();
                self.changed.entry(key.clone()).or_insert(before);
            }
        }
        self.leases.apply(event);
    }

    /// The lease under `key`, if it is another node's.
    pub(super) fn peer(&self, key: &str) -> Option<&Lease> {
        self.leases
            .peer(key, &self.own.subnets, &self.uplink.public)
    }

    /// The leases of other nodes, with their keys.
    pub(super) fn peers(&self) -> impl Iterator<Item = (&str, &Lease)> {
        self.leases.peers(&self.own.subnets, &self.uplink.public)
    }

    /// Reads, compares, repairs. Returns whether all is as it should be; if not, it is tried again.
    pub fn pass(&mut self, dirty: Dirty, rules: &rules::State) -> bool {
        self.marked = rules.marked;
        let (base, peers) = match self.try_pass(dirty) {
            Ok(outcome) => {
                self.board.problem("kernel", None);
                outcome
            }
            Err(error) => {
                self.board.problem("kernel", Some(error.to_string()));
                // Answers of a failed exchange may still be under way: start afresh.
                if let Ok(netlink) = Netlink::open() {
                    self.netlink = netlink;
                }
                (false, false)
            }
        };
        // A peer that cannot be reached does not keep the node's pods from starting.
        if base && self.listed {
            self.finish(rules);
        }
        // Where changes inside pods' namespaces are not heard, an address that is still to come must be looked for.
        base && peers && (self.settings.hears_pods || !self.scan.waiting)
    }

    /// Whether the node's own objects are as they should be, and whether the peers' are.
    fn try_pass(&mut self, mut dirty: Dirty) -> Result<(bool, bool), Error> {
        let (mut base, mut peers) = (true, true);
        if dirty.links {
            device::read_links(&mut self.netlink, &mut self.observed)?;
            if !self.find_uplink(&mut dirty) {
                return Ok((false, false));
            }
            base = self.ensure_proxy(&mut dirty)? && self.ensure_devices(&mut dirty);
        }
        if dirty.routes {
            let families = self.families();
            observe::routes(&mut self.netlink, families, &mut self.observed)?;
        }
        if dirty.neighbours {
            let tunnels: Vec<(Family, u32)> = self.tunnels().iter().map(|(f, i)| (f, *i)).collect();
            observe::neighbours(&mut self.netlink, tunnels, &mut self.observed)?;
        }
        let mut concerned = None;
        if self.listed {
            if dirty.all_peers() {
                if dirty.leases || dirty.changes || dirty.links || dirty.hops {
                    self.plan_all(dirty.hops)?;
                }
                peers = self.repair_all()?;
                self.set_proxy_routes();
            } else if dirty.changes {
                (peers, concerned) = self.repair_changed()?;
                match &concerned {
                    Some(concerned) => self.change_proxy_routes(concerned),
                    None => self.set_proxy_routes(),
                }
            }
        }
        peers &= self.keep_blackholes(&dirty)?;
        if dirty.pods {
            self.scan_pods()?;
        }
        if self.settings.fast_path {
            self.read_bypassed(&dirty)?;
        }
        if self.listed {
            let only_changes = dirty.is_changes_only();
            match concerned {
                Some(concerned) if only_changes => self.change_fast_path_peers(&concerned),
                // Programs of others come and go without an event of their own.
                _ => self.sync_fast_path(dirty.status || dirty.pods),
            }
        }
        Ok((base, peers))
    }

    /// Brings the tunnel devices in line. Whether they are.
    fn ensure_devices(&mut self, dirty: &mut Dirty) -> bool {
        let mut problem = None;
        let before = self.macs;
        for (family, desired) in self.devices().iter() {
            match device::ensure(&mut self.netlink, desired, &mut self.observed) {
                Ok(ensured) => {
                    if ensured.created {
                        (dirty.routes, dirty.neighbours, dirty.hops) = (true, true, true);
                    }
                    // No other kind of device has one that is published.
                    if let TunnelKind::Vxlan(_) = desired.kind {
                        *self.macs.get_mut(family) = ensured.link.mac;
                    }
                }
                Err(error) => problem = Some(error.to_string()),
            }
        }
        if self.macs != before {
            tracing::warn!(
                new = self.macs.join(),
                old = before.join(),
                "a tunnel device's MAC has changed; publishing it"
            );
            self.publish_attributes();
        }
        let complete = problem.is_none();
        self.board.problem("device", problem);
        complete
    }

    /// Publishes what this node's lease should say.
    pub(super) fn publish_attributes(&self) {
        let attributes = backend::attributes(&self.settings.config, &self.uplink, &self.macs);
        self.publish.send_if_modified(|published| {
            let changed = *published != attributes;
            *published = attributes;
            changed
        });
    }

    /// The tunnel devices that should be there.
    pub(super) fn devices(&self) -> PerFamily<TunnelDevice> {
        backend::devices(
            &self.settings.config,
            &self.uplink,
            &self.own.subnets,
            &self.macs,
            self.proxy
                .as_ref()
                .map(|proxy| proxy.device().name.as_str()),
        )
    }

    /// The tunnel devices that are there.
    pub(super) fn tunnel_links(&self) -> PerFamily<&Link> {
        self.devices()
            .filter_map(|_, device| self.observed.link(&device.name))
    }

    /// Their indices.
    pub(super) fn tunnels(&self) -> PerFamily<u32> {
        self.tunnel_links().map(|_, link| link.index)
    }

    fn is_tunnel(&self, index: u32) -> bool {
        self.tunnels().values().any(|tunnel| *tunnel == index)
    }

    /// What plans depend on.
    pub(super) fn facts(&self) -> Facts<'_> {
        Facts {
            config: &self.settings.config,
            subnets: self.own.subnets,
            uplink: &self.uplink,
            tunnels: self.tunnels(),
            hops: &self.hops,
        }
    }

    /// Reads what the fast path must not lead packets past.
    fn read_bypassed(&mut self, dirty: &Dirty) -> Result<(), Error> {
        let failed = |source| Error::Transfer {
            operation: "dump",
            source,
        };
        if dirty.pods || dirty.links {
            self.observed.traffic_control = traffic_control::read().map_err(failed)?;
        }
        if dirty.ipsec {
            self.observed.ipsec = ipsec::remotes().map_err(failed)?;
        }
        Ok(())
    }

    /// The pods' bridge: the one that holds the gateway address of a subnet.
    pub(super) fn bridge(&self) -> Option<&Link> {
        self.own
            .subnets
            .values()
            .find_map(|subnet| self.observed.holder(gateway(*subnet)))
    }

    fn scan_pods(&mut self) -> Result<(), Error> {
        let bridge = self.bridge().cloned();
        let scan = self.pods.scan(
            &mut self.netlink,
            &self.observed,
            bridge.as_ref(),
            &self.own.subnets,
        )?;
        if scan.pods != self.scan.pods {
            let pods: Vec<String> = scan
                .pods
                .iter()
                .map(|pod| format!("{} at {}", pod.ip, pod.host_name))
                .collect();
            tracing::debug!(?pods, "pods of this node");
        }
        self.scan = scan;
        let problem = (!self.scan.problems.is_empty()).then(|| self.scan.problems.join("; "));
        self.board.problem("pods", problem);
        Ok(())
    }

    fn finish(&mut self, rules: &rules::State) {
        let file = SubnetFile {
            networks: self.settings.config.networks(),
            subnets: self.own.subnets,
            mtu: backend::pod_mtu(&self.settings.config, &self.uplink),
            ip_masq: self.settings.ip_masq,
        };
        if !rules.installed {
            return;
        }
        match file.write(&self.settings.subnet_file) {
            Ok(written) => {
                if written {
                    tracing::info!(path = %self.settings.subnet_file.display(), "subnet file written");
                }
                self.board.problem("subnet file", None);
                self.board.update(|status| {
                    if !status.ready {
                        tracing::info!("ready");
                        crate::notify::ready();
                    }
                    status.ready = true;
                });
            }
            Err(error) => self.board.problem("subnet file", Some(error.to_string())),
        }
    }
}
