//! What may be out of date.

/// Parts of the agent's knowledge that have to be made anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// All leases: what is desired.
    pub leases: bool,
    /// Single leases, which the reconciler has noted.
    pub changes: bool,
    /// Links and addresses.
    pub links: bool,
    /// Routes of the main table.
    pub routes: bool,
    /// Neighbours and FDB entries of the VXLAN device.
    pub neighbours: bool,
    /// How the kernel reaches the peers.
    pub hops: bool,
    /// Pods of this node, and what stands in the way to them.
    pub pods: bool,
    /// Policies of IPsec.
    pub ipsec: bool,
    /// Only what the status says.
    pub status: bool,
}

impl Dirty {
    /// Everything.
    pub fn all() -> Self {
        Self {
            leases: true,
            changes: true,
            links: true,
            routes: true,
            neighbours: true,
            hops: true,
            pods: true,
            ipsec: true,
            status: true,
        }
    }

    /// Everything that a lost event may have been about, but for how the kernel reaches the peers: to ask that of each is
    /// the most costly of all, and `hops` says whether it is due.
    pub fn resync(hops: bool) -> Self {
        Self {
            hops,
            ..Self::all()
        }
    }

    /// What either says.
    pub fn or(self, other: Self) -> Self {
        Self {
            leases: self.leases | other.leases,
            changes: self.changes | other.changes,
            links: self.links | other.links,
            routes: self.routes | other.routes,
            neighbours: self.neighbours | other.neighbours,
            hops: self.hops | other.hops,
            pods: self.pods | other.pods,
            ipsec: self.ipsec | other.ipsec,
            status: self.status | other.status,
        }
    }

    /// Whether anything is.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether single leases are all that is.
    pub fn is_changes_only(&self) -> bool {
        let changes_only = Self {
            changes: true,
            ..Self::default()
        };
        *self == changes_only
    }

    /// Whether all peers have to be looked at.
    pub fn all_peers(&self) -> bool {
        self.leases || self.links || self.hops || self.routes || self.neighbours
    }

    /// Whether the kernel's state has to be read.
    pub fn reads(&self) -> bool {
        self.links || self.routes || self.neighbours || self.hops || self.pods || self.ipsec
    }
}
