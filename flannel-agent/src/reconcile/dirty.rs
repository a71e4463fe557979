//! What may be out of date.

/// Parts of the agent's knowledge that have to be made anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Leases: what is desired.
    pub leases: bool,
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
            links: true,
            routes: true,
            neighbours: true,
            hops: true,
            pods: true,
            ipsec: true,
            status: true,
        }
    }

    /// Whether anything is.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Whether the kernel's state has to be read.
    pub fn reads(&self) -> bool {
        self.links || self.routes || self.neighbours || self.hops || self.pods || self.ipsec
    }
}
