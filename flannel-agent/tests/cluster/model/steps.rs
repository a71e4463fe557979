//! What happens to the node: leases that come, change and go, and what others do to its kernel.

use rand::{Rng, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    UPLINK, WIRE,
    world::{
        Backend, Host, Lease, Node, OWN, ROUTER, Shape, Subnets, Value, mac, v4_subnet, v6_subnet,
    },
};

/// Numbers of the other nodes.
const PEERS: std::ops::RangeInclusive<u8> = 2..=9;
/// The number of a subnet that no lease has.
const NOBODY: u8 = 77;
/// The uplink's other address.
const OTHER: u8 = 66;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// A lease is put, whatever was there.
    Put(Lease),
    /// The lease of this place in the order of keys goes.
    Remove(usize),
    /// A list of all leases, as after a reconnect.
    List,
    /// The agent is killed.
    Kill,
    /// The agent is started, unless it runs.
    Start,
    /// Others change the kernel.
    Fault(Fault),
    /// All is looked at.
    Settle,
}

/// What others do to the kernel. Numbers are those of nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    RouteDeleted(u8),
    RouteTaken(u8),
    RouteBent(u8),
    NeighbourDeleted(u8),
    NeighbourBent(u8),
    NeighbourTurnsDynamic(u8),
    FdbDeleted(u8),
    FdbBent(u8),
    Leftovers,
    TunnelDeleted,
    TunnelReplaced,
    TunnelOfAnotherKind,
    TunnelDown,
    TunnelFlaps,
    TunnelMtu,
    TunnelMac(u8),
    TunnelAddressDeleted,
    TunnelAddressAdded,
    TunnelLearns,
    UplinkFlaps,
    UplinkMadeAnew,
    UplinkAddress(bool),
    UplinkMtu(bool),
    ForeignRoute(u8),
    ForeignNeighbour(u8),
}

fn lease(random: &mut StdRng) -> Lease {
    let number = random.random_range(PEERS);
    let host = Host {
        number: if random.random_ratio(1, 8) {
            random.random_range(PEERS)
        } else {
            number
        },
        far: random.random_ratio(1, 3),
    };
    let subnets = match random.random_range(0..20) {
        0 => Subnets::Again,
        1 => Subnets::Wide,
        2 => Subnets::AroundOurs,
        3 => Subnets::AroundNodes,
        4 => Subnets::Malformed,
        _ => Subnets::Own,
    };
    let value = match random.random_range(0..20) {
        0 => Value::OfUs,
        1 => Value::OtherBackend,
        2 => Value::OnlyV4,
        3 => Value::Malformed,
        4 => Value::BadMac,
        5..8 => Value::Right(random.random_range(PEERS)),
        _ => Value::Right(number),
    };
    Lease {
        number,
        subnets,
        host,
        value,
    }
}

fn fault(random: &mut StdRng, shape: Shape) -> Fault {
    let number = random.random_range(PEERS);
    let on = random.random();
    let mut faults = vec![
        Fault::RouteDeleted(number),
        Fault::RouteTaken(number),
        Fault::RouteBent(number),
        Fault::Leftovers,
        Fault::UplinkFlaps,
        Fault::UplinkMadeAnew,
        Fault::UplinkAddress(on),
        Fault::UplinkMtu(on),
        Fault::ForeignRoute(number),
        Fault::ForeignNeighbour(number),
    ];
    if shape.backend != Backend::HostGw {
        faults.extend([
            Fault::NeighbourDeleted(number),
            Fault::NeighbourBent(number),
            Fault::NeighbourTurnsDynamic(number),
            Fault::FdbDeleted(number),
            Fault::FdbBent(number),
            Fault::TunnelDeleted,
            Fault::TunnelReplaced,
            Fault::TunnelOfAnotherKind,
            Fault::TunnelDown,
            Fault::TunnelFlaps,
            Fault::TunnelMtu,
            Fault::TunnelMac(number),
            Fault::TunnelAddressDeleted,
            Fault::TunnelAddressAdded,
            Fault::TunnelLearns,
        ]);
    }
    *faults.choose(random).expect("some")
}

/// A sequence of steps, with looks in between and at the end.
pub(crate) fn sequence(random: &mut StdRng, shape: Shape, length: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..length {
        steps.push(match random.random_range(0..20) {
            0..8 => Step::Put(lease(random)),
            8..10 => Step::Remove(random.random_range(0..8)),
            10 => Step::List,
            11 => Step::Kill,
            12 => Step::Start,
            _ => Step::Fault(fault(random, shape)),
        });
        if random.random_ratio(1, 4) {
            steps.push(Step::Settle);
        }
    }
    steps.push(Step::Settle);
    steps
}

/// Commands that set the uplink up, as an operating system does at boot and when a link comes back.
pub(crate) fn configure(node: &Node) -> String {
    let (number, mtu) = (node.number, node.mtu);
    let routes = routes();
    format!(
        "ip link set {UPLINK} mtu {mtu} up; ip link set {WIRE} up; \
         ip addr add 192.168.100.{number}/24 dev {UPLINK}; ip addr add fd00:100::{OWN}/64 dev {UPLINK} nodad; {routes}"
    )
}

fn routes() -> String {
    format!(
        "ip route replace default via 192.168.100.{ROUTER}; ip -6 route replace default via fd00:100::{ROUTER:x}"
    )
}

/// Commands that make the uplink.
pub(crate) fn make() -> String {
    format!("ip link add {UPLINK} type veth peer name {WIRE}")
}

impl Fault {
    /// The commands of shells that bring it about; what is not there to be changed is left. `node` is changed with it.
    pub(crate) fn commands(self, shape: Shape, node: &mut Node) -> String {
        let per_family = |v4: &dyn Fn(&str) -> String, v6: &dyn Fn(&str) -> String| {
            let second = if shape.dual {
                v6("flannel-v6.1")
            } else {
                String::new()
            };
            format!("{}; {second}", v4("flannel.1"))
        };
        let (v4, v6) = (|n: u8| v4_subnet(n), |n: u8| v6_subnet(n));
        let each = |command: &str| {
            let of = |device: &str| command.replace("DEV", device);
            per_family(&of, &of)
        };
        match self {
            Self::RouteDeleted(n) => format!("ip route del {}; ip -6 route del {}", v4(n), v6(n)),
            Self::RouteTaken(n) => format!(
                "ip route replace {} via 192.168.100.{ROUTER} proto static; ip -6 route replace {} via fd00:100::{ROUTER:x} proto static",
                v4(n),
                v6(n)
            ),
            Self::RouteBent(n) => {
                format!("ip route change {} via 192.168.100.{ROUTER}", v4(n))
            }
            Self::NeighbourDeleted(n) => per_family(
                &|device| format!("ip neigh del {} dev {device}", v4(n).network()),
                &|device| format!("ip neigh del {} dev {device}", v6(n).network()),
            ),
            Self::NeighbourBent(n) => per_family(
                &|device| format!("ip neigh change {} lladdr {} dev {device}", v4(n).network(), mac(NOBODY)),
                &|device| format!("ip neigh change {} lladdr {} dev {device}", v6(n).network(), mac(NOBODY)),
            ),
            Self::NeighbourTurnsDynamic(n) => per_family(
                &|device| format!("ip neigh change {} lladdr {} nud stale dev {device}", v4(n).network(), mac(n)),
                &|device| format!("ip neigh change {} lladdr {} nud stale dev {device}", v6(n).network(), mac(n)),
            ),
            Self::FdbDeleted(n) => each(&format!("bridge fdb del {} dev DEV", mac(n))),
            Self::FdbBent(n) => per_family(
                &|device| format!("bridge fdb replace {} dev {device} dst 192.168.100.{ROUTER}", mac(n)),
                &|device| format!("bridge fdb replace {} dev {device} dst fd00:100::{ROUTER:x}", mac(n)),
            ),
            Self::Leftovers if shape.backend == Backend::HostGw => {
                format!("ip route add {} via 192.168.100.{NOBODY}", v4(NOBODY))
            }
            Self::Leftovers => {
                let mac = mac(NOBODY);
                per_family(
                    &|device| {
                        let (net, first) = (v4(NOBODY), v4(NOBODY).network());
                        format!(
                            "ip route add {net} via {first} dev {device} onlink; ip neigh add {first} lladdr {mac} dev {device}; bridge fdb add {mac} dev {device} dst 192.168.100.{NOBODY}"
                        )
                    },
                    &|device| {
                        let (net, first) = (v6(NOBODY), v6(NOBODY).network());
                        format!(
                            "ip -6 route add {net} via {first} dev {device} onlink; ip neigh add {first} lladdr {mac} dev {device}; bridge fdb add {mac} dev {device} dst fd00:100::{NOBODY}"
                        )
                    },
                )
            }
            Self::TunnelDeleted => each("ip link del DEV"),
            Self::TunnelReplaced => {
                let local = node.v4();
                format!(
                    "ip link del flannel.1; ip link add flannel.1 type vxlan id 7 dev {UPLINK} local {local} dstport 8472 nolearning; ip link set flannel.1 up"
                )
            }
            Self::TunnelOfAnotherKind => {
                "ip link del flannel.1; ip link add flannel.1 type veth peer name other; ip link set flannel.1 up".into()
            }
            Self::TunnelDown => each("ip link set DEV down"),
            Self::TunnelFlaps => each("ip link set DEV down; ip link set DEV up"),
            Self::TunnelMtu => each("ip link set DEV mtu 1300"),
            Self::TunnelMac(n) => each(&format!("ip link set DEV address {}", mac(0x80 + n))),
            Self::TunnelAddressDeleted => per_family(
                &|device| format!("ip addr flush dev {device} scope global"),
                &|device| format!("ip addr flush dev {device} scope global"),
            ),
            Self::TunnelAddressAdded => per_family(
                &|device| format!("ip addr add 10.5.{NOBODY}.0/32 dev {device}"),
                &|device| format!("ip addr add fd00:5:0:{NOBODY:x}::/128 dev {device} nodad"),
            ),
            Self::TunnelLearns => each("ip link set DEV type vxlan learning"),
            Self::UplinkFlaps => {
                let configure = configure(node);
                format!("ip link set {UPLINK} down; {configure}")
            }
            Self::UplinkMadeAnew => {
                let (make, configure) = (make(), configure(node));
                format!("ip link del {UPLINK}; {make}; {configure}")
            }
            Self::UplinkAddress(other) => {
                let old = node.number;
                node.number = if other { OTHER } else { OWN };
                let new = node.number;
                if old == new {
                    return String::new();
                }
                let routes = routes();
                format!(
                    "ip addr add 192.168.100.{new}/24 dev {UPLINK}; ip addr del 192.168.100.{old}/24 dev {UPLINK}; ip addr add 192.168.100.{new}/24 dev {UPLINK}; {routes}"
                )
            }
            Self::UplinkMtu(small) => {
                node.mtu = if small { 1400 } else { 1500 };
                format!("ip link set {UPLINK} mtu {}", node.mtu)
            }
            Self::ForeignRoute(n) => format!(
                "ip route add 10.9.{n}.0/24 via 192.168.100.{n}; ip route add 10.5.{NOBODY}.{n}/32 via 192.168.100.{n}; ip route add 10.5.{n}.0/24 via 192.168.100.{ROUTER} metric 50 proto static; ip -6 route add fd00:9:{n}::/64 via fd00:100::{n}"
            ),
            Self::ForeignNeighbour(n) => {
                format!("ip neigh replace 192.168.100.{n} lladdr {} dev {UPLINK}", mac(n))
            }
        }
    }

    /// Whether objects of others may go by it.
    pub(crate) const fn takes_others_along(self) -> bool {
        matches!(
            self,
            Self::UplinkFlaps
                | Self::UplinkMadeAnew
                | Self::UplinkAddress(_)
                | Self::RouteDeleted(_)
                | Self::RouteTaken(_)
                | Self::RouteBent(_)
        )
    }
}
