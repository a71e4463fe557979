//! Brings a tunnel device in line: finds, makes or repairs it.

use flannel_common::addr::Mac;

use crate::{
    kernel::{
        apply,
        diff::{self, LinkOp},
        netlink::{Error, Netlink},
        objects::{Link, Observed, TunnelDevice, TunnelKind},
        observe,
    },
    metrics::{COUNTERS, Kind},
};

/// Looks again after each round of changes; a device that is wrong needs one round to make it and one to set it up.
const ROUNDS: usize = 4;

/// What became of the device.
pub struct Ensured {
    /// The device as it is now.
    pub link: Link,
    /// Whether it was made just now, so that all its entries are missing.
    pub created: bool,
}

/// Why the device is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel refused a change.
    #[error("{what}: {source}")]
    Change {
        /// The change.
        what: String,
        /// What the kernel said.
        source: Error,
    },
    /// The state could not be read.
    #[error("reading links: {0}")]
    Read(#[from] Error),
    /// The kernel has no such devices.
    #[error(
        "backend {backend}: this kernel has no {kind} devices: install and load the module {module} (modprobe {module}), or choose another backend"
    )]
    NoSuchKind {
        /// `Backend.Type`.
        backend: &'static str,
        /// What kind of devices.
        kind: &'static str,
        /// The kernel's module.
        module: &'static str,
    },
    /// Somebody keeps changing it back.
    #[error("{0} does not stay as it should be: does another program manage it?")]
    Contested(String),
}

/// A random unicast address of the locally administered kind (IEEE 802, first octet xxxxxx10).
pub fn random_mac() -> Mac {
    let mut mac = Mac(rand::random());
    mac.0[0] = (mac.0[0] & !1) | 2;
    mac
}

/// Whether the kernel has what is needed to make a device; to be asked before anything on the node is touched.
///
/// # Errors
/// If not, or the kernel cannot be asked.
pub fn check(netlink: &mut Netlink, kind: &TunnelKind) -> Result<(), DeviceError> {
    if apply::has_kind(netlink, kind)? {
        return Ok(());
    }
    let (backend, kind, module) = match kind {
        TunnelKind::Vxlan(_) => ("vxlan", "VXLAN", "vxlan"),
        TunnelKind::Ipip => ("ipip", "IPIP", "ipip"),
        TunnelKind::Tun => ("udp", "TUN", "tun"),
    };
    Err(DeviceError::NoSuchKind {
        backend,
        kind,
        module,
    })
}

/// Reads links and addresses into `observed`.
///
/// # Errors
/// When a dump fails.
pub fn read_links(netlink: &mut Netlink, observed: &mut Observed) -> Result<(), Error> {
    let links = observe::links(netlink)?;
    observed.addresses = observe::addresses(netlink)?;
    observed.links = links;
    Ok(())
}

/// Brings the device in line; `observed` must hold current links and addresses, and does so afterwards.
///
/// # Errors
/// When the kernel refuses; what could be done is done.
pub fn ensure(
    netlink: &mut Netlink,
    desired: &TunnelDevice,
    observed: &mut Observed,
) -> Result<Ensured, DeviceError> {
    let mut created = false;
    for _ in 0..ROUNDS {
        let ops = diff::link(desired, observed);
        if ops.is_empty()
            && let Some(link) = observed.link(&desired.name)
        {
            accept_no_advertisements(&desired.name);
            return Ok(Ensured {
                link: link.clone(),
                created,
            });
        }
        for op in &ops {
            tracing::info!("{}", describe(op));
            let result = apply::link(netlink, op);
            COUNTERS.changes(Kind::Link).count(&result);
            result.map_err(|source| DeviceError::Change {
                what: describe(op),
                source,
            })?;
            created |= matches!(op, LinkOp::Create(_));
        }
        read_links(netlink, observed)?;
    }
    Err(DeviceError::Contested(desired.name.clone()))
}

/// Upstream's only sysctl; without IPv6 in the kernel there is none, and none is needed.
fn accept_no_advertisements(device: &str) {
    let path = format!("net/ipv6/conf/{device}/accept_ra");
    if apply::read_sysctl(&path).is_ok_and(|value| value != "0")
        && let Err(error) = apply::write_sysctl(&path, "0")
    {
        tracing::debug!(path, %error, "sysctl not set");
    }
}

fn describe(op: &LinkOp) -> String {
    match op {
        LinkOp::Delete(_, name, difference) => format!("delete device {name}: {difference}"),
        LinkOp::Create(device) => match &device.kind {
            TunnelKind::Vxlan(options) => {
                format!("create device {} with MAC {}", device.name, options.mac)
            }
            TunnelKind::Ipip | TunnelKind::Tun => format!("create device {}", device.name),
        },
        LinkOp::SetLearning(_, on) => format!("set learning of the tunnel device to {on}"),
        LinkOp::SetMtu(_, mtu) => format!("set MTU of the tunnel device to {mtu}"),
        LinkOp::RemoveAddress(_, net) => format!("remove address {net} from the tunnel device"),
        LinkOp::AddAddress(_, address) => format!("add address {address} to the tunnel device"),
        LinkOp::SetUp(_) => "set the tunnel device up".into(),
    }
}
