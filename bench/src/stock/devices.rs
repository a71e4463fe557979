//! The devices of a stock node, with the properties that were recorded from flanneld's.

use super::netconf::{Backend, Kind};
use crate::{
    error::{Error, Result},
    lease::{Subnet, Subnet6},
    netns::Netns,
    process, underlay,
};

/// Name of the VXLAN device for IPv4.
pub(super) fn vxlan(backend: &Backend) -> String {
    format!("flannel.{}", backend.vni())
}

/// Name of the VXLAN device for IPv6.
pub(super) fn vxlan6(backend: &Backend) -> String {
    format!("flannel-v6.{}", backend.vni())
}

/// Name of the IP-in-IP device.
pub(super) const IPIP: &str = "flannel.ipip";

/// What the VXLAN device of one family is made with.
pub(super) struct Vtep {
    pub(super) name: String,
    pub(super) mac: String,
    /// The node's address.
    pub(super) local: std::net::IpAddr,
    /// The device's own, with the length of a host's prefix.
    pub(super) address: String,
    pub(super) mtu: u32,
}

/// Makes a VXLAN device. The kernel makes the IPv6 device's MTU smaller if the outer header needs it, as it does
/// upstream's.
pub(super) fn make_vxlan(netns: &Netns, backend: &Backend, vtep: &Vtep) -> Result<()> {
    let (vni, port) = (backend.vni(), backend.vxlan_port());
    let Vtep {
        name,
        mac,
        local,
        address,
        mtu,
    } = vtep;
    underlay::ip_batch(
        netns,
        &format!(
            "link add {name} address {mac} mtu {mtu} txqueuelen 0 type vxlan id {vni} local {local} dev eth0 \
             dstport {port} nolearning\n\
             address add {address} dev {name}\n\
             link set {name} up\n"
        ),
    )?;
    // Upstream ignores errors here, too: the kernel may have no IPv6.
    let accept_ra = format!("net/ipv6/conf/{name}/accept_ra");
    netns.sysctl(&[(&accept_ra, "0")]).ok();
    Ok(())
}

/// Makes the IP-in-IP device.
pub(super) fn make_ipip(
    netns: &Netns,
    local: std::net::Ipv4Addr,
    subnet: Subnet,
    mtu: u32,
) -> Result<()> {
    underlay::ip_batch(
        netns,
        &format!(
            "link add {IPIP} mtu {mtu} type ipip local {local}\n\
             address add {}/32 dev {IPIP}\n\
             link set {IPIP} up\n",
            subnet.address
        ),
    )
}

/// Why this kernel cannot carry a backend, if so.
pub(super) fn missing(kind: Kind) -> Option<String> {
    match kind {
        Kind::Vxlan | Kind::HostGw | Kind::Udp => None,
        Kind::Ipip => {
            // In a namespace that ends with the command.
            let words = ["--net", "ip", "link", "add", "probe", "type", "ipip"];
            let local = ["local", "192.0.2.1"];
            let tried = process::run(None, "unshare", &[&words[..], &local].concat());
            tried
                .err()
                .map(|error| format!("this kernel has no ipip devices: {error}"))
        }
    }
}

/// The error for a backend that is missing.
pub(super) fn require(kind: Kind) -> Result<()> {
    missing(kind).map_or(Ok(()), |reason| Err(Error::Unsupported(reason)))
}

/// A device's own address in a subnet: its first, alone.
pub(super) fn own(subnet: Subnet) -> String {
    format!("{}/32", subnet.address)
}

/// The same for IPv6.
pub(super) fn own6(subnet: Subnet6) -> String {
    format!("{}/128", subnet.address)
}
