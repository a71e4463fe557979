//! The table.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::*;

/// All that is asserted, line by line.
pub(crate) const TABLE: &[Row] = &[
    Row {
        traffic: "pod to pod, straight",
        fast: [When::Always, When::Always],
        cases: &[
            case(
                "a pod that has a hostPort too",
                From::Pod,
                |world| at(world.far.address(), PORT),
                &["far"],
                Sees::Client,
            ),
            case(
                "a pod without",
                From::Pod,
                |world| at(world.other.address(), PORT),
                &["other"],
                Sees::Client,
            ),
        ],
    },
    Row {
        traffic: "pod to a ClusterIP, with or without session affinity",
        fast: [When::Never, When::Always],
        cases: &[
            case(
                "a service",
                From::Pod,
                |_| at(FAR, SERVICE_PORT),
                &["far"],
                Sees::Client,
            ),
            case(
                "a service with session affinity",
                From::Pod,
                |_| at(STICKY, SERVICE_PORT),
                &["far", "other"],
                Sees::Client,
            ),
        ],
    },
    Row {
        traffic: "pod to a NodePort or load balancer with `externalTrafficPolicy: Local`, at its own node",
        fast: [When::Never, When::Always],
        cases: &[
            case(
                "a node port",
                From::Pod,
                |world| at(world.node1.address(), LOCAL_NODE_PORT),
                &["far"],
                Sees::Client,
            ),
            case(
                "a load balancer",
                From::Pod,
                |_| at(BALANCED, SERVICE_PORT),
                &["far"],
                Sees::Client,
            ),
        ],
    },
    Row {
        traffic: "other DNAT at the client's node",
        fast: [When::Never, When::Always],
        cases: &[case(
            "an address",
            From::Pod,
            |_| at(TRANSLATED, SERVICE_PORT),
            &["far"],
            Sees::Client,
        )],
    },
    Row {
        traffic: "DNAT or SNAT at the server's node",
        fast: [When::Always, When::Never],
        cases: &[
            case(
                "DNAT of an address",
                From::Pod,
                |world| at(world.unused, SERVICE_PORT),
                &["far"],
                Sees::Client,
            ),
            case(
                "DNAT of a port alone",
                From::Pod,
                |world| at(world.far.address(), TRANSLATED_PORT),
                &["far"],
                Sees::Client,
            ),
            case(
                "masquerade",
                From::Pod,
                |world| at(world.far.address(), MASQUERADED_AT_SERVER),
                &["far"],
                Sees::Node,
            ),
        ],
    },
    Row {
        traffic: "masqueraded at the client's node: NodePort, externalIPs",
        fast: [When::Never, When::Vxlan],
        cases: &[
            case(
                "pod to a node port",
                From::Pod,
                |world| at(world.node1.address(), FAR_NODE_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "node to its own node port",
                From::Node,
                |world| at(world.node1.address(), FAR_NODE_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "a machine outside to a node port",
                From::Outside,
                |world| at(world.node1.address(), FAR_NODE_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "pod to an external address",
                From::Pod,
                |_| at(EXTERNAL, SERVICE_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "pod to a load balancer that pods may use",
                From::Pod,
                |_| at(RESTRICTED, SERVICE_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "a machine outside to a load balancer that pods may use",
                From::Outside,
                |_| at(RESTRICTED, SERVICE_PORT),
                &[],
                Sees::Node,
            ),
            case(
                "a machine outside to an external address",
                From::Outside,
                |_| at(EXTERNAL, SERVICE_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "pod to pod",
                From::Pod,
                |world| at(world.far.address(), MASQUERADED_AT_CLIENT),
                &["far"],
                Sees::Node,
            ),
        ],
    },
    Row {
        traffic: "node to pod, straight or by a ClusterIP",
        fast: [When::Never, When::Vxlan],
        cases: &[
            case(
                "straight",
                From::Node,
                |world| at(world.far.address(), PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "by a service",
                From::Node,
                |_| at(FAR, SERVICE_PORT),
                &["far"],
                Sees::Node,
            ),
        ],
    },
    Row {
        traffic: "pod to a NodePort of the other node, which leads back to a pod of the client's",
        fast: [When::Vxlan, When::Never],
        cases: &[case(
            "there and back",
            From::Pod,
            |world| at(world.node2.address(), NEAR_NODE_PORT),
            &["near"],
            Sees::Node,
        )],
    },
    Row {
        traffic: "hostPort; NodePort at the server's own node",
        fast: [When::Never, When::Never],
        cases: &[
            case(
                "pod to a hostPort",
                From::Pod,
                |world| at(world.node2.address(), FAR_HOST_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "node to a hostPort",
                From::Node,
                |world| at(world.node2.address(), FAR_HOST_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "a machine outside to a hostPort",
                From::Outside,
                |world| at(world.node2.address(), FAR_HOST_PORT),
                &["far"],
                Sees::Client,
            ),
            case(
                "pod to a node port",
                From::Pod,
                |world| at(world.node2.address(), FAR_NODE_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "a machine outside to a node port",
                From::Outside,
                |world| at(world.node2.address(), FAR_NODE_PORT),
                &["far"],
                Sees::Node,
            ),
            case(
                "a machine outside to a local node port",
                From::Outside,
                |world| at(world.node2.address(), LOCAL_NODE_PORT),
                &["far"],
                Sees::Client,
            ),
            case(
                "a machine outside to a local node port of another node",
                From::Outside,
                |world| at(world.node1.address(), LOCAL_NODE_PORT),
                &[],
                Sees::Client,
            ),
        ],
    },
    Row {
        traffic: "to pods of the same node by any address, and back to the pod itself",
        fast: [When::Never, When::Never],
        cases: &[
            case(
                "straight",
                From::Pod,
                |world| at(world.near.address(), PORT),
                &["near"],
                Sees::Client,
            ),
            Case {
                bridged: true,
                ..case(
                    "by a service",
                    From::Pod,
                    |_| at(NEAR, SERVICE_PORT),
                    &["near"],
                    Sees::Client,
                )
            },
            Case {
                bridged: true,
                ..case(
                    "by a service with `internalTrafficPolicy: Local`",
                    From::Pod,
                    |_| at(INTERNAL, SERVICE_PORT),
                    &["near"],
                    Sees::Client,
                )
            },
            case(
                "by such a service without a pod on the node",
                From::Pod,
                |_| at(INTERNAL_FAR, SERVICE_PORT),
                &[],
                Sees::Client,
            ),
            case(
                "by a node port",
                From::Pod,
                |world| at(world.node1.address(), NEAR_NODE_PORT),
                &["near"],
                Sees::Node,
            ),
            case(
                "by a hostPort",
                From::Pod,
                |world| at(world.node1.address(), NEAR_HOST_PORT),
                &["near"],
                Sees::Node,
            ),
            case(
                "itself by a service",
                From::Pod,
                |_| at(ITSELF, SERVICE_PORT),
                &["client"],
                Sees::Node,
            ),
            case(
                "itself by a hostPort",
                From::Pod,
                |world| at(world.node1.address(), CLIENT_HOST_PORT),
                &["client"],
                Sees::Node,
            ),
        ],
    },
    Row {
        traffic: "pods and nodes to nodes, host-network pods and machines outside",
        fast: [When::Never, When::Never],
        cases: &[
            case(
                "its node",
                From::Pod,
                |world| at(world.client.attachment().gateway, PORT),
                &["node1"],
                Sees::Client,
            ),
            case(
                "the other node",
                From::Pod,
                |world| at(world.node2.address(), PORT),
                &["node2"],
                Sees::Node,
            ),
            case(
                "a service on a node",
                From::Pod,
                |_| at(HOST, SERVICE_PORT),
                &["node2"],
                Sees::Node,
            ),
            case(
                "a node to a service on the other",
                From::Node,
                |_| at(HOST, SERVICE_PORT),
                &["node2"],
                Sees::Node,
            ),
            case(
                "a machine outside",
                From::Pod,
                |world| at(world.outside.address(), PORT),
                &["outside"],
                Sees::Node,
            ),
        ],
    },
];

const fn case(
    name: &'static str,
    from: From,
    to: fn(&World<'_>) -> SocketAddrV4,
    servers: &'static [&'static str],
    sees: Sees,
) -> Case {
    Case {
        name,
        from,
        to,
        servers,
        sees,
        bridged: false,
    }
}

const fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}
