//! The static-file subnet manager: leases from a file that somebody else keeps, for labs and fixed fleets.
//!
//! The file is read and never written: there is nothing to acquire and nowhere to publish. So this node's lease must be
//! in the file, and what it says of this node must be so; what is not becomes a problem that says what to correct. The
//! file is read again when it changes. One that cannot be used changes nothing.

mod document;
mod own;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

pub use document::{Document, Error as DocumentError};

use super::{
    Attributes, Entry, Event, Lease, OwnLease, OwnNode, Request, SubnetManager, changes::Changes,
};
use crate::{
    board::Board,
    family::{Family, PerFamily},
    kernel::{
        netlink::{Error as NetlinkError, Netlink},
        observe,
    },
    netconf::NetworkConfig,
};

/// Pause before a file that cannot be used, or lacks something, is read again.
const WAIT: Duration = Duration::from_secs(1);
/// Name of this module's problem on the status board.
const PROBLEM: &str = "lease file";

/// Why there is nothing to go by yet.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The file cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// This node's lease cannot be used.
    #[error(transparent)]
    Own(#[from] own::Error),
    /// This node's addresses cannot be read.
    #[error("this node's addresses: {0}")]
    Addresses(#[from] NetlinkError),
    /// The network config is another one than at the start.
    #[error("config has changed: start the agent again to take it up")]
    ConfigChanged,
}

/// What the options say about this node.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--lease-file`.
    pub path: PathBuf,
    /// `--public-ip` and `--public-ipv6`: addresses that tell this node's lease; without them, all that it has.
    pub public: PerFamily<IpAddr>,
    /// Whether an option chooses the interface between nodes; if none does, this node's lease does.
    pub interface_chosen: bool,
}

/// The static-file subnet manager.
pub struct File {
    options: Options,
    changes: Changes,
    /// The config that was read first.
    config: Option<NetworkConfig>,
    /// What this node is and what it holds; set by `acquire`.
    held: Option<(Attributes, PerFamily<IpNet>)>,
}

impl File {
    /// A manager that has not read the file yet. Must be called where tasks can be started.
    pub fn new(options: Options) -> Self {
        Self {
            changes: Changes::of(vec![options.path.clone()]),
            options,
            config: None,
            held: None,
        }
    }

    /// What `look` finds in the file; looks again until it finds something, telling `board` what is wrong.
    async fn wait_for<T>(
        &self,
        board: &Board,
        mut look: impl FnMut(Document) -> Result<T, Error>,
    ) -> T {
        loop {
            match self.read().and_then(&mut look) {
                Ok(found) => {
                    board.problem(PROBLEM, None);
                    return found;
                }
                Err(error) => board.problem(PROBLEM, Some(complaint(&self.options.path, &error))),
            }
            // By the clock and not only when the file changes: this node's addresses may.
            sleep(WAIT).await;
        }
    }

    fn read(&self) -> Result<Document, Error> {
        Ok(Document::read(&self.options.path)?)
    }

    /// Addresses by which other nodes may know this one.
    fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let local: Vec<IpAddr> = observe::addresses(&mut Netlink::open()?)?
            .into_values()
            .flatten()
            .map(|net| net.addr())
            .filter(|address| !address.is_loopback())
            .collect();
        let of = |family: Family| match self.options.public.get(family) {
            Some(address) => vec![*address],
            None => {
                let of_family = |address: &&IpAddr| Family::of(**address) == family;
                local.iter().filter(of_family).copied().collect()
            }
        };
        Ok(Family::ALL.into_iter().flat_map(of).collect())
    }

    /// What this node's lease says, for the choice of the interface and the making of devices.
    fn node_in(&self, document: &Document) -> Result<OwnNode, Error> {
        let addresses = self.addresses()?;
        let (_, lease) = own::find(&document.config, &document.leases, &addresses)?;
        let public = lease.attributes.addresses;
        let is_local = |_, address: &IpAddr| addresses.contains(address).then_some(*address);
        Ok(OwnNode {
            public: match self.options.interface_chosen || !self.options.public.is_empty() {
                true => PerFamily::default(),
                false => public.filter_map(is_local),
            },
            published: Some(lease.attributes.clone()),
        })
    }
}

/// An error with the file that it concerns, and the option that names it.
fn complaint(path: &Path, error: &Error) -> String {
    format!("--lease-file = {}: {error}", path.display())
}

/// This node's lease among `leases`, if it can be used and says what is so.
fn judge<'a>(
    config: &NetworkConfig,
    leases: &'a BTreeMap<String, Entry>,
    node: &Attributes,
) -> Result<&'a Lease, own::Error> {
    let addresses: Vec<IpAddr> = node.addresses.values().copied().collect();
    let (name, lease) = own::find(config, leases, &addresses)?;
    own::fits(config, name, &lease.subnets)?;
    own::agrees(name, &lease.attributes, node)?;
    Ok(lease)
}

impl SubnetManager for File {
    async fn network_config(&mut self, board: &Board) -> NetworkConfig {
        let config = self.wait_for(board, |document| Ok(document.config)).await;
        self.config = Some(config.clone());
        config
    }

    async fn own_node(&mut self, board: &Board) -> OwnNode {
        self.wait_for(board, |document| self.node_in(&document))
            .await
    }

    async fn acquire(&mut self, request: Request, board: &Board) -> OwnLease {
        let node = request.attributes;
        let subnets = self
            .wait_for(board, |document| {
                Ok(judge(&request.config, &document.leases, &node)?.subnets)
            })
            .await;
        self.config = Some(request.config);
        self.held = Some((node, subnets));
        own_lease(subnets)
    }

    async fn run(
        mut self,
        events: mpsc::Sender<Event>,
        mut publish: watch::Receiver<Attributes>,
        board: Board,
    ) {
        let (Some(config), Some((node, subnets))) = (self.config.take(), self.held.take()) else {
            return;
        };
        let mut changed = self.changes.receiver();
        let mut keeper = Keeper {
            path: self.options.path,
            config,
            node,
            subnets,
            events,
            board,
        };
        let mut usable = keeper.look().await;
        loop {
            tokio::select! {
                // An error means that the agent ends.
                Ok(()) = changed.changed() => usable = keeper.look().await,
                // Not every reason for which a file cannot be read goes by a change of it.
                () = sleep(WAIT), if !usable => usable = keeper.look().await,
                Ok(()) = publish.changed() => {
                    keeper.node = publish.borrow_and_update().clone();
                    usable = keeper.look().await;
                }
                () = keeper.events.closed() => return,
            }
        }
    }
}

/// A lease of the file, which has no end.
fn own_lease(subnets: PerFamily<IpNet>) -> OwnLease {
    OwnLease {
        subnets,
        expires: None,
    }
}

/// Follows the file.
struct Keeper {
    path: PathBuf,
    /// The config that the agent works with.
    config: NetworkConfig,
    /// What this node is.
    node: Attributes,
    /// The subnets that it holds.
    subnets: PerFamily<IpNet>,
    events: mpsc::Sender<Event>,
    board: Board,
}

impl Keeper {
    /// Reads the file and reports what it says. Whether it could be used.
    async fn look(&mut self) -> bool {
        let document = match Document::read(&self.path) {
            Ok(document) => document,
            Err(error) => {
                self.complain(&error.into());
                return false;
            }
        };
        let own = judge(&self.config, &document.leases, &self.node).map(|lease| lease.subnets);
        // A receiver that is gone ends the loop in `run`.
        let _ = self.events.send(Event::Snapshot(document.leases)).await;
        match own {
            Err(error) => self.complain(&error.into()),
            Ok(_) if document.config != self.config => self.complain(&Error::ConfigChanged),
            Ok(subnets) => {
                self.board.problem(PROBLEM, None);
                if subnets != self.subnets {
                    tracing::warn!(
                        old = self.subnets.join(),
                        new = subnets.join(),
                        "the lease file gives this node another subnet"
                    );
                    self.subnets = subnets;
                    let _ = self.events.send(Event::Own(own_lease(subnets))).await;
                }
            }
        }
        true
    }

    fn complain(&self, error: &Error) {
        self.board
            .problem(PROBLEM, Some(complaint(&self.path, error)));
    }
}
