//! The model: which leases there are, and what the kernel should have for them. Written from upstream's documentation and
//! the agent's README alone; it shares no code with the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

/// How the node is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) backend: Backend,
    pub(crate) dual: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Vxlan,
    /// With `DirectRouting`.
    Direct,
    HostGw,
}

/// All set-ups.
pub(crate) const SHAPES: [Shape; 6] = {
    const fn shape(backend: Backend, dual: bool) -> Shape {
        Shape { backend, dual }
    }
    [
        shape(Backend::Vxlan, false),
        shape(Backend::Vxlan, true),
        shape(Backend::Direct, false),
        shape(Backend::Direct, true),
        shape(Backend::HostGw, false),
        shape(Backend::HostGw, true),
    ]
};

impl Shape {
    pub(crate) fn config(self) -> String {
        let v6 = if self.dual {
            r#","EnableIPv6":true,"IPv6Network":"fd00:5::/48""#
        } else {
            ""
        };
        let backend = match self.backend {
            Backend::Vxlan => r#"{"Type":"vxlan"}"#,
            Backend::Direct => r#"{"Type":"vxlan","DirectRouting":true}"#,
            Backend::HostGw => r#"{"Type":"host-gw"}"#,
        };
        format!(r#"{{"Network":"10.5.0.0/16"{v6},"Backend":{backend}}}"#)
    }

    pub(crate) fn own_key(self) -> String {
        subnet_key(OWN, self.dual)
    }

    /// The tunnel devices: name, address, MTU's distance from the uplink's.
    pub(crate) fn devices(self) -> Vec<(&'static str, IpNet, u32)> {
        if self.backend == Backend::HostGw {
            return Vec::new();
        }
        let mut devices = vec![("flannel.1", IpNet::from(v4_subnet(OWN).network()), 50)];
        if self.dual {
            devices.push(("flannel-v6.1", IpNet::from(v6_subnet(OWN).network()), 70));
        }
        devices
    }
}

/// This node's number.
pub(crate) const OWN: u8 = 1;
/// Length of a subnet of which the config's length makes two.
pub(crate) const WIDE: u8 = 23;
/// The number of the router.
pub(crate) const ROUTER: u8 = 254;

pub(crate) fn v4_subnet(number: u8) -> IpNet {
    IpNet::new(Ipv4Addr::new(10, 5, number, 0).into(), 24).expect("a prefix")
}

pub(crate) fn v6_subnet(number: u8) -> IpNet {
    IpNet::new(
        Ipv6Addr::new(0xfd00, 5, 0, number.into(), 0, 0, 0, 0).into(),
        64,
    )
    .expect("a prefix")
}

fn subnet_key(number: u8, dual: bool) -> String {
    let v6 = if dual {
        format!("&fd00:5:0:{number:x}::-64")
    } else {
        String::new()
    };
    format!("10.5.{number}.0-24{v6}")
}

/// A node: on the link, or behind the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) number: u8,
    pub(crate) far: bool,
}

impl Host {
    pub(crate) fn v4(self) -> IpAddr {
        Ipv4Addr::new(192, 168, if self.far { 200 } else { 100 }, self.number).into()
    }

    pub(crate) fn v6(self) -> IpAddr {
        let net = if self.far { 0x200 } else { 0x100 };
        Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, self.number.into()).into()
    }
}

/// This node at first.
const US: Host = Host {
    number: OWN,
    far: false,
};

/// Which subnets a lease names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subnets {
    /// One of its own.
    Own,
    /// The same by another key: the length with a zero before it.
    Again,
    /// One that holds that of the next number as well.
    Wide,
    /// The one around this node's.
    AroundOurs,
    /// One around the nodes' addresses.
    AroundNodes,
    /// None: the key is malformed.
    Malformed,
}

/// What a lease says of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// What a node of this cluster writes, with the MAC of this number.
    Right(u8),
    /// The address that this node has at first, as an earlier run left it.
    OfUs,
    /// Another backend.
    OtherBackend,
    /// No address or MAC of IPv6.
    OnlyV4,
    /// No JSON.
    Malformed,
    /// A MAC that is none.
    BadMac,
}

/// A lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) number: u8,
    pub(crate) subnets: Subnets,
    pub(crate) host: Host,
    pub(crate) value: Value,
}

pub(crate) fn mac(number: u8) -> String {
    format!("0a:00:00:00:00:{number:02x}")
}

impl Lease {
    pub(crate) fn key(&self, shape: Shape) -> String {
        let n = self.number;
        match self.subnets {
            Subnets::Own => subnet_key(n, shape.dual),
            Subnets::Again => format!("10.5.{n}.0-024"),
            Subnets::Wide => format!("10.5.{}.0-{WIDE}", n & !1),
            Subnets::AroundOurs => "10.5.0.0-20".into(),
            Subnets::AroundNodes => "192.168.0.0-16".into(),
            Subnets::Malformed => format!("10.5.{n}.0"),
        }
    }

    pub(crate) fn json(&self, shape: Shape) -> String {
        let (v4, v6) = (self.host.v4(), self.host.v6());
        let public = match self.value {
            Value::OfUs => US.v4(),
            _ => v4,
        };
        let v6 = match (shape.dual, self.value) {
            (true, Value::OnlyV4) | (false, _) => "null".to_owned(),
            _ => format!("\"{v6}\""),
        };
        let number = match self.value {
            Value::Right(number) => number,
            _ => self.number,
        };
        let vxlan = shape.backend != Backend::HostGw;
        let backend = match self.value {
            Value::Malformed => return format!("{{\"PublicIP\":\"{public}\""),
            Value::BadMac => {
                r#""vxlan","BackendData":{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#.into()
            }
            Value::OtherBackend if vxlan => r#""host-gw""#.to_owned(),
            Value::OtherBackend => r#""ipip""#.into(),
            _ if !vxlan => r#""host-gw""#.into(),
            Value::OnlyV4 => format!(
                r#""vxlan","BackendData":{{"VNI":1,"VtepMAC":"{}"}}"#,
                mac(number)
            ),
            _ => {
                let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(number));
                let v6 = if shape.dual {
                    format!(r#","BackendV6Data":{data}"#)
                } else {
                    String::new()
                };
                format!(r#""vxlan","BackendData":{data}{v6}"#)
            }
        };
        format!(r#"{{"PublicIP":"{public}","PublicIPv6":{v6},"BackendType":{backend}}}"#)
    }

    /// Its subnets, with the node's address in the same family, and whether that is behind the router.
    fn claims(&self, shape: Shape) -> Vec<(IpNet, IpAddr, bool)> {
        let n = self.number;
        let v4 = match self.subnets {
            Subnets::Own | Subnets::Again => v4_subnet(n),
            Subnets::Wide => {
                IpNet::new(Ipv4Addr::new(10, 5, n & !1, 0).into(), WIDE).expect("a prefix")
            }
            // Around this node's subnet, or nodes' addresses, or malformed.
            _ => return Vec::new(),
        };
        let host = match self.value {
            Value::OfUs => US,
            _ => self.host,
        };
        let mut claims = vec![(v4, host.v4(), host.far)];
        if shape.dual && self.subnets == Subnets::Own && self.value != Value::OnlyV4 {
            claims.push((v6_subnet(n), self.host.v6(), self.host.far));
        }
        claims
    }
}

/// A route: destination, next hop, device, whether `onlink`.
pub(crate) type Route = (IpNet, IpAddr, String, bool);

/// What the kernel has, or should have, of flannel's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) routes: BTreeSet<Route>,
    /// Device, address and MAC.
    pub(crate) neighbours: BTreeSet<(String, IpAddr, String)>,
    /// Device, MAC and node.
    pub(crate) fdb: BTreeSet<(String, String, IpAddr)>,
    /// What is to be said about each tunnel device, but for its MAC.
    pub(crate) devices: BTreeSet<String>,
}

/// What should be there for these leases, by key. The first of those that clash has its way.
pub(crate) fn desired(shape: Shape, leases: &BTreeMap<String, Lease>, node: &Node) -> Objects {
    let mut objects = Objects::default();
    let mut taken: BTreeSet<IpNet> = BTreeSet::new();
    for lease in leases.values() {
        if matches!(
            lease.value,
            Value::OtherBackend | Value::Malformed | Value::BadMac
        ) || lease.value == Value::OfUs && node.v4() == US.v4()
        {
            continue;
        }
        for (subnet, host, far) in lease.claims(shape) {
            let v6 = host.is_ipv6();
            let direct = shape.backend != Backend::Vxlan && !far;
            if shape.backend == Backend::HostGw && far {
                continue;
            }
            if direct {
                if taken.insert(subnet) {
                    objects
                        .routes
                        .insert((subnet, host, super::UPLINK.into(), false));
                }
                continue;
            }
            let device = if v6 { "flannel-v6.1" } else { "flannel.1" }.to_owned();
            let mac = match lease.value {
                Value::Right(number) => mac(number),
                _ => mac(lease.number),
            };
            let other = objects
                .fdb
                .iter()
                .any(|(of, known, to)| *of == device && *known == mac && *to != host);
            let first = subnet.network();
            // There is one neighbour for an address, also where subnets of two lengths begin at it.
            let begins = objects
                .neighbours
                .iter()
                .any(|(of, known, to)| *of == device && *known == first && *to != mac);
            if other || begins || !taken.insert(subnet) {
                continue;
            }
            objects.routes.insert((subnet, first, device.clone(), true));
            objects
                .neighbours
                .insert((device.clone(), first, mac.clone()));
            objects.fdb.insert((device, mac, host));
        }
    }
    for (name, address, overhead) in shape.devices() {
        objects.devices.insert(device(
            name,
            node.mtu - overhead,
            node.local(name),
            &[address],
        ));
    }
    objects
}

/// What the test has made of the node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The uplink's MTU in bytes.
    pub(crate) mtu: u32,
    /// Last number of the uplink's IPv4 address.
    pub(crate) number: u8,
}

impl Node {
    pub(crate) fn v4(&self) -> IpAddr {
        Host {
            number: self.number,
            far: false,
        }
        .v4()
    }

    fn local(&self, device: &str) -> IpAddr {
        if device == "flannel.1" {
            return self.v4();
        }
        US.v6()
    }
}

/// What is to be said about a device.
pub(crate) fn device(name: &str, mtu: u32, local: IpAddr, addresses: &[IpNet]) -> String {
    format!(
        "{name} up mtu {mtu} id 1 dev {} local {local} nolearning {addresses:?}",
        super::UPLINK
    )
}
