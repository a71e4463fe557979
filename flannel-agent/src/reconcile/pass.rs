//! One pass: read what is out of date, compare, repair, tell the fast path.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use flannel_common::addr::Mac;
use tokio::sync::watch;

use super::{Dirty, device, rules};
use crate::{
    backend::{self, Plan},
    board::Board,
    fastpath::{self, FastPath, Topology},
    iface::Uplink,
    kernel::{
        decode::Neighbour,
        events::Event,
        ipsec,
        netlink::{Error, Netlink},
        objects::Observed,
        observe::{self, Hop},
        pods::{Pods, Scan},
        traffic_control,
    },
    lease::{self, Attributes, Leases, OwnLease},
    netconf::NetworkConfig,
    subnet_file::{self, SubnetFile},
};

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network config.
    pub config: NetworkConfig,
    /// `--subnet-file`.
    pub subnet_file: PathBuf,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// Whether a fast path was asked for, which needs to know next hops.
    pub fast_path: bool,
    /// How long the fast path goes on without a sign of life.
    pub heartbeat: Duration,
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
    /// The MAC that the lease publishes.
    pub(super) mac: Mac,
    pub(super) publish: watch::Sender<Attributes>,
    pub(super) leases: Leases,
    pub(super) observed: Observed,
    pub(super) hops: BTreeMap<Ipv4Addr, Option<Hop>>,
    pub(super) plan: Plan,
    pub(super) pods: Pods,
    pub(super) scan: Scan,
    pub(super) fast_path: FastPath,
    pub(super) topology: Option<Topology>,
    /// The mark that netfilter sets, once its rule is there.
    pub(super) marked: Option<u32>,
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
        mac: Mac,
        publish: watch::Sender<Attributes>,
        fast_path: FastPath,
    ) -> Self {
        Self {
            settings,
            board,
            netlink,
            uplink,
            own,
            mac,
            publish,
            leases: Leases::default(),
            observed: Observed::default(),
            hops: BTreeMap::new(),
            plan: Plan::default(),
            pods: Pods::default(),
            scan: Scan::default(),
            fast_path,
            topology: None,
            marked: None,
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

    /// This node's subnet.
    pub fn subnet(&self) -> ipnet::Ipv4Net {
        self.own.subnet
    }

    /// Takes note of a change in the kernel.
    pub fn note(&mut self, event: Event, dirty: &mut Dirty) {
        match event {
            Event::Link(index) => {
                (dirty.links, dirty.pods) = (true, true);
                // A link that goes down takes its IPv4 routes with it, and no event says so.
                if index == self.uplink.index || Some(index) == self.vtep_index() {
                    (dirty.routes, dirty.neighbours, dirty.hops) = (true, true, true);
                }
            }
            Event::Route(net, route, gone) => {
                let known = self.observed.routes.get(&net) == Some(&route);
                if known == gone {
                    dirty.routes = true;
                    dirty.hops |= !self.settings.config.network.contains(&net);
                }
            }
            Event::OtherRoute => dirty.hops = true,
            Event::Neighbour(index, neighbour, gone) => {
                let known = match neighbour {
                    Neighbour::Address(address, entry) => {
                        self.observed.neighbours.get(&address) == Some(&entry)
                    }
                    Neighbour::Fdb(mac, entry) => self.observed.fdb.get(&mac) == Some(&entry),
                };
                dirty.neighbours |= Some(index) == self.vtep_index() && known == gone;
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
        self.listed |= matches!(event, lease::Event::Snapshot(_));
        if let lease::Event::Own(own) = &event {
            if own.subnet != self.own.subnet {
                tracing::error!(
                    old = %self.own.subnet, new = %own.subnet,
                    "this node's subnet has changed: pods with addresses of the old one must be made anew"
                );
                *dirty = Dirty::all();
            }
            self.own = own.clone();
            return;
        }
        self.leases.apply(event);
        dirty.leases = true;
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
            base = self.ensure_device(&mut dirty);
        }
        if dirty.routes {
            observe::routes(&mut self.netlink, &mut self.observed)?;
        }
        if dirty.neighbours
            && let Some(vtep) = self.vtep_index()
        {
            observe::neighbours(&mut self.netlink, vtep, &mut self.observed)?;
        }
        if (dirty.leases || dirty.links || dirty.hops) && self.listed {
            self.look_up_hops(dirty.hops)?;
            self.make_plan();
        }
        if (dirty.leases || dirty.links || dirty.hops || dirty.routes || dirty.neighbours)
            && self.listed
        {
            peers = self.repair()?;
        }
        if dirty.pods {
            self.scan_pods()?;
        }
        if self.settings.fast_path {
            self.read_bypassed(&dirty)?;
        }
        if self.listed {
            // Programs of others come and go without an event of their own.
            self.sync_fast_path(dirty.status || dirty.pods);
        }
        Ok((base, peers))
    }

    /// Follows the uplink by name: it may have been made anew. Whether it is there.
    fn find_uplink(&mut self, dirty: &mut Dirty) -> bool {
        let Some(link) = self.observed.link(&self.uplink.name) else {
            let name = &self.uplink.name;
            self.board.problem(
                "uplink",
                Some(format!("interface {name} is gone: waiting for it")),
            );
            return false;
        };
        if link.index != self.uplink.index {
            tracing::warn!(name = link.name, "the interface was made anew");
            self.uplink.index = link.index;
            *dirty = Dirty::all();
        }
        self.uplink.mtu = link.mtu;
        let addresses = self.observed.addresses.get(&link.index);
        let present =
            addresses.is_some_and(|list| list.iter().any(|net| net.addr() == self.uplink.address));
        let problem = (!present).then(|| {
            format!(
                "{} has lost its address {}: restart the agent once it has its new one",
                self.uplink.name, self.uplink.address
            )
        });
        self.board.problem("uplink", problem);
        true
    }

    fn ensure_device(&mut self, dirty: &mut Dirty) -> bool {
        let config = &self.settings.config;
        let Some(desired) = backend::device(config, &self.uplink, Some(self.own.subnet), self.mac)
        else {
            return true;
        };
        match device::ensure(
            &mut self.netlink,
            &desired,
            config.network,
            &mut self.observed,
        ) {
            Ok(ensured) => {
                self.board.problem("device", None);
                if ensured.created {
                    (dirty.routes, dirty.neighbours, dirty.hops) = (true, true, true);
                }
                if let Some(mac) = ensured.link.mac.filter(|mac| *mac != self.mac) {
                    tracing::warn!(%mac, old = %self.mac, "the device's MAC has changed; publishing the new one");
                    self.mac = mac;
                    let attributes = backend::attributes(config, &self.uplink, mac);
                    self.publish.send_replace(attributes);
                }
                true
            }
            Err(error) => {
                self.board.problem("device", Some(error.to_string()));
                false
            }
        }
    }

    pub(super) fn vtep_index(&self) -> Option<u32> {
        let device = backend::device(
            &self.settings.config,
            &self.uplink,
            Some(self.own.subnet),
            self.mac,
        )?;
        self.observed.link(&device.name).map(|link| link.index)
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

    fn scan_pods(&mut self) -> Result<(), Error> {
        let subnet = self.own.subnet;
        let bridge = self.observed.holder(subnet_file::gateway(subnet)).cloned();
        let scan = self
            .pods
            .scan(&mut self.netlink, &self.observed, bridge.as_ref(), subnet)?;
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
            network: self.settings.config.network,
            subnet: self.own.subnet,
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
                        crate::health::notify_ready();
                    }
                    status.ready = true;
                });
            }
            Err(error) => self.board.problem("subnet file", Some(error.to_string())),
        }
    }
}
