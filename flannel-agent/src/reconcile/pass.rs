//! One pass: read what is out of date, compare, repair, tell the fast path.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use flannel_common::addr::Mac;
use ipnet::IpNet;
use tokio::sync::watch;

use super::{Dirty, device, extension, rules};
use crate::{
    backend::{self, Facts, Plan},
    board::Board,
    family::{Family, PerFamily},
    fastpath::{self, FastPath, Topology},
    iface::{self, Uplink},
    kernel::{
        netlink::{Error, Netlink},
        objects::{Observed, Route},
        observe::{self, Hop},
        pods::{Pods, Scan},
    },
    lease::{Attributes, Lease, Leases, OwnLease},
    netconf::NetworkConfig,
    subnet_file::SubnetFile,
    udp::Proxy,
};

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network config.
    pub config: NetworkConfig,
    /// What the extension backend's first command has printed, if there is one.
    pub output: Option<String>,
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
    /// What runs the extension backend's commands, if that is the backend.
    pub(super) extension: Option<extension::Keeper>,
    pub(super) topology: Option<Topology>,
    /// The mark that netfilter sets, once its rule is there.
    pub(super) marked: Option<u32>,
    /// Routes that were made and whose form does not show it.
    pub(super) made: BTreeMap<IpNet, Route>,
    /// Operations that failed, by object.
    pub(super) failures: BTreeMap<String, String>,
    /// Whether leases have been reported at all; before, an empty list means nothing.
    pub(super) listed: bool,
    /// Whether the node's own objects were as they should be when they were last looked at.
    pub(super) base: bool,
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
        let node = extension::own_node(&own.subnets, &uplink);
        let extension = extension::Keeper::start(&settings.config, node, &board);
        Self {
            extension,
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
            base: false,
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
        let comes = self.scan.waiting && !self.settings.hears_pods;
        base && peers && !comes && !self.fast_path.waits()
    }

    /// Whether the node's own objects are as they should be, and whether the peers' are.
    fn try_pass(&mut self, mut dirty: Dirty) -> Result<(bool, bool), Error> {
        let mut peers = true;
        if dirty.links {
            self.base = false;
            device::read_links(&mut self.netlink, &mut self.observed)?;
            if !self.find_uplink(&mut dirty) {
                return Ok((false, false));
            }
            self.base = self.ensure_proxy(&mut dirty)? && self.ensure_devices(&mut dirty);
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
            if dirty.all_peers() || dirty.changes {
                self.tell_extension();
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
        Ok((self.base, peers))
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
