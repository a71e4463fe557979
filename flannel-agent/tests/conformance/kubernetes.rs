//! Leases as annotations of Node objects: what flannel's manifests run with, against the lab's API server.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{
    Cluster, ClusterConfig, LeaseStore, Node,
    kube::{
        lease::{PREFIX, annotations as annotations_of},
        mock::{self, ApiServer, Kind, Request},
    },
};
use serde_json::Value;

use crate::peers::{host_gw_value, vxlan_value};
use crate::setting::agents;
use crate::support::{Outcome, PROMPT, eventually, link, shell, with_unready_cluster};

const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
const DUAL: &str = r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#;
/// A node that exists only as a Node object.
const PEER: &str = "peer";
const PEER_ADDRESS: &str = "192.168.100.77";
/// How long nothing is to happen where nothing should.
const WHILE: Duration = Duration::from_secs(3);

/// A node with an agent, and the API server.
fn with_agent(network: &str, test: impl FnOnce(&ApiServer, &Node) -> Outcome) -> Outcome {
    let config = ClusterConfig {
        leases: LeaseStore::ApiServer,
        ..agents(1, 0, network)
    };
    with_unready_cluster(config, |cluster: &mut Cluster| {
        test(cluster.api_server(), cluster.node(1))
    })
}

/// A node's annotations below a prefix, without it.
fn below(server: &ApiServer, name: &str, prefix: &str) -> BTreeMap<String, String> {
    let annotations = server.annotations(name).into_iter();
    annotations
        .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value)))
        .collect()
}

/// Waits until a node has exactly these of flannel's annotations.
fn wait_annotations(server: &ApiServer, name: &str, wanted: &[(&str, &str)]) -> Outcome {
    let wanted: BTreeMap<String, String> = wanted
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    eventually("the annotations", PROMPT, || {
        let now = below(server, name, PREFIX);
        let same = now == wanted;
        Ok(same
            .then_some(())
            .ok_or_else(|| format!("{now:?}, not {wanted:?}")))
    })
}

/// The MAC of a device.
fn mac(node: &Node, device: &str) -> anyhow::Result<String> {
    let found = link(node, device)?;
    Ok(found.with_context(|| format!("no {device}"))?.1)
}

fn backend_data(node: &Node, device: &str) -> anyhow::Result<String> {
    Ok(format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(node, device)?))
}

fn patches(server: &ApiServer) -> Vec<Request> {
    let requests = server.requests().into_iter();
    requests
        .filter(|request| request.kind == Kind::Patch)
        .collect()
}

/// A Node object that publishes a lease.
fn peer(pod_cidrs: &[&str], value: &str) -> anyhow::Result<Value> {
    let mut node = mock::node(PEER, &[PEER_ADDRESS.parse()?], pod_cidrs);
    for (name, value) in annotations_of(&serde_json::from_str(value)?) {
        node["metadata"]["annotations"][name] = value.into();
    }
    Ok(node)
}

/// Waits until what a command prints on the node contains this.
fn wait_output(node: &Node, command: &str, part: &str) -> Outcome {
    eventually(part, PROMPT, || {
        let now = shell(node, command)?;
        Ok(now.contains(part).then_some(()).ok_or(now))
    })
}

fn start(node: &Node) -> Outcome {
    node.agent().start()?;
    node.agent().wait_ready()?;
    Ok(())
}

/// Four annotations to the byte and the condition, each by one patch of the status; none at a restart.
pub(crate) fn annotations() -> Outcome {
    with_agent(VXLAN, |server, node| {
        let data = backend_data(node, "flannel.1")?;
        let wanted = [
            ("backend-data", data.as_str()),
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.100.1"),
        ];
        wait_annotations(server, node.name(), &wanted)?;
        let others = |annotations: BTreeMap<String, String>| {
            let others = annotations.into_iter();
            others
                .filter(|(name, _)| !name.starts_with(PREFIX))
                .collect::<Vec<_>>()
        };
        let untouched = mock::node(node.name(), &[], &[])["metadata"]["annotations"].clone();
        ensure!(
            others(server.annotations(node.name())) == others(serde_json::from_value(untouched)?),
            "somebody else's annotations: {:?}",
            server.annotations(node.name())
        );
        let condition = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array().cloned();
            let mut conditions = conditions.unwrap_or_default();
            conditions.retain(|condition| condition["type"] == "NetworkUnavailable");
            conditions
        };
        let node_object = server.wait_node("the condition", node.name(), |node| {
            condition(node)
                .iter()
                .any(|condition| condition["reason"] == "FlannelIsUp")
        })?;
        let conditions = condition(&node_object);
        let said = |field: &str| conditions[0][field].as_str().unwrap_or_default();
        ensure!(
            conditions.len() == 1
                && said("status") == "False"
                && said("message") == "Flannel is running on this node",
            "{conditions:?}"
        );
        let patches_now = patches(server);
        let fits = |request: &Request| {
            request.path == "/api/v1/nodes/n1/status"
                && request.content_type == "application/strategic-merge-patch+json"
        };
        ensure!(
            patches_now.len() == 2 && patches_now.iter().all(fits),
            "{patches_now:?}"
        );
        server.forget_requests();
        node.agent().restart()?;
        server.wait_watches(1)?;
        std::thread::sleep(WHILE);
        let asked =
            [Kind::List, Kind::Page, Kind::Watch, Kind::Patch].map(|kind| server.count(kind));
        ensure!(asked == [1, 0, 1, 0], "a restart asks {asked:?}");
        wait_annotations(server, node.name(), &wanted)
    })
}

/// host-gw has no data, which Go writes as `null`.
pub(crate) fn host_gw() -> Outcome {
    with_agent(HOST_GW, |server, node| {
        wait_annotations(
            server,
            node.name(),
            &[
                ("backend-data", "null"),
                ("backend-type", "host-gw"),
                ("kube-subnet-manager", "true"),
                ("public-ip", "192.168.100.1"),
            ],
        )?;
        let value = host_gw_value(PEER_ADDRESS);
        server.put_node(peer(&["10.5.77.0/24"], &value)?);
        wait_output(
            node,
            "ip route show",
            "10.5.77.0/24 via 192.168.100.77 dev eth0",
        )
    })
}

pub(crate) fn dual_stack() -> Outcome {
    with_agent(DUAL, |server, node| {
        let [data, data6] = ["flannel.1", "flannel-v6.1"].map(|device| backend_data(node, device));
        let address6 = node.address6().context("an IPv6 address")?.to_string();
        wait_annotations(
            server,
            node.name(),
            &[
                ("backend-data", &data?),
                ("backend-type", "vxlan"),
                ("backend-v6-data", &data6?),
                ("kube-subnet-manager", "true"),
                ("public-ip", "192.168.100.1"),
                ("public-ipv6", &address6),
            ],
        )
    })
}

/// A prefix is a domain, or a domain with a name behind a slash.
pub(crate) fn prefixes() -> Outcome {
    const GOOD: [(&str, &str); 4] = [
        ("example.com", "example.com/"),
        ("example.com/", "example.com/"),
        ("example.com/flannel", "example.com/flannel-"),
        ("example.com/flannel-", "example.com/flannel-"),
    ];
    const BAD: [&str; 4] = ["example.com/a/b", "flannel", "/flannel", "Example.com"];
    with_agent(VXLAN, |server, node| {
        for (prefix, begin) in GOOD {
            node.agent().stop()?;
            node.agent().configure(|config| {
                config.arguments = vec![format!("--kube-annotation-prefix={prefix}")];
            });
            start(node)?;
            let names: Vec<String> = below(server, node.name(), begin).into_keys().collect();
            let wanted = [
                "backend-data",
                "backend-type",
                "kube-subnet-manager",
                "public-ip",
            ];
            // A prefix may be the beginning of another one.
            ensure!(
                wanted
                    .iter()
                    .all(|name| names.iter().any(|other| other == name)),
                "{prefix}: {names:?}"
            );
        }
        let socket = node.directory().join("refused.sock");
        for prefix in BAD {
            let refused = node.agent().command_output(&[
                "run",
                "--kube-subnet-mgr",
                "--kube-api-url=http://127.0.0.1:1",
                &format!("--status-socket={}", socket.display()),
                &format!("--kube-annotation-prefix={prefix}"),
            ]);
            let error = refused
                .err()
                .with_context(|| format!("{prefix} is taken"))?
                .to_string();
            ensure!(
                error.contains("--kube-annotation-prefix = "),
                "{prefix}: {error}"
            );
        }
        Ok(())
    })
}

/// What an operator wants published is, word for word, and followed when it changes.
pub(crate) fn public_ip_overwrite() -> Outcome {
    let overwrite = format!("{PREFIX}public-ip-overwrite");
    with_agent(VXLAN, |server, node| {
        let data = backend_data(node, "flannel.1")?;
        let published = |address: &str| {
            wait_annotations(
                server,
                node.name(),
                &[
                    ("backend-data", &data),
                    ("backend-type", "vxlan"),
                    ("kube-subnet-manager", "true"),
                    ("public-ip", address),
                    ("public-ip-overwrite", address),
                ],
            )
        };
        node.agent().stop()?;
        server.annotate(node.name(), &[(&overwrite, Some("172.18.0.5"))])?;
        start(node)?;
        published("172.18.0.5")?;
        server.annotate(node.name(), &[(&overwrite, Some("172.18.0.6"))])?;
        published("172.18.0.6")
    })
}

/// The interface is the one with the address that the Node says.
pub(crate) fn node_public_ip() -> Outcome {
    const ADDRESS: &str = "172.16.30.18";
    with_agent(VXLAN, |server, node| {
        node.agent().stop()?;
        shell(
            node,
            &format!(
                "ip link add eth1 type veth peer name other && ip address add {ADDRESS}/24 dev eth1 && \
                 ip link set eth1 up && ip link set other up"
            ),
        )?;
        node.agent()
            .configure(|config| config.interface = String::new());
        let name = format!("{PREFIX}node-public-ip");
        server.annotate(node.name(), &[(&name, Some(ADDRESS))])?;
        start(node)?;
        let device = shell(node, "ip -details link show flannel.1")?;
        ensure!(
            device.contains(&format!("local {ADDRESS} dev eth1 ")),
            "{device}"
        );
        let published = below(server, node.name(), PREFIX);
        ensure!(
            published.get("public-ip").map(String::as_str) == Some(ADDRESS),
            "{published:?}"
        );
        Ok(())
    })
}

/// Nodes without any annotations: the agent's own, which gets them, and another, which is nobody's peer.
pub(crate) fn no_annotations() -> Outcome {
    let bare = |node: &mut Value| {
        node["metadata"]
            .as_object_mut()
            .map(|metadata| metadata.remove("annotations"));
    };
    with_agent(VXLAN, |server, node| {
        node.agent().stop()?;
        server.change_node(node.name(), bare)?;
        let mut other = mock::node(PEER, &[PEER_ADDRESS.parse()?], &["10.5.77.0/24"]);
        bare(&mut other);
        server.put_node(other);
        start(node)?;
        let published = below(server, node.name(), PREFIX);
        ensure!(published.len() == 4, "{published:?}");
        let status = node.agent().status()?;
        ensure!(
            status.peers.is_empty()
                && status.skipped_leases.is_empty()
                && status.problems.is_empty(),
            "{status:?}"
        );
        // As it is when flannel starts there.
        let value = vxlan_value(PEER_ADDRESS, "0e:00:00:00:00:77");
        server.put_node(peer(&["10.5.77.0/24"], &value)?);
        wait_output(
            node,
            "ip route show",
            "10.5.77.0/24 via 10.5.77.0 dev flannel.1",
        )
    })
}

/// What somebody removes from the kernel comes back, whatever the API server has to say.
pub(crate) fn resync() -> Outcome {
    with_agent(VXLAN, |server, node| {
        let value = vxlan_value(PEER_ADDRESS, "0e:00:00:00:00:77");
        server.put_node(peer(&["10.5.77.0/24"], &value)?);
        let entry = "0e:00:00:00:00:77 dst 192.168.100.77";
        let there = || {
            wait_output(
                node,
                "ip route show",
                "10.5.77.0/24 via 10.5.77.0 dev flannel.1",
            )?;
            wait_output(node, "bridge fdb show dev flannel.1", entry)
        };
        there()?;
        server.stop_listening();
        shell(
            node,
            "ip route delete 10.5.77.0/24 && bridge fdb delete 0e:00:00:00:00:77 dev flannel.1 dst 192.168.100.77",
        )?;
        there()?;
        server.listen()?;
        Ok(())
    })
}

/// A node without a podCIDR says what to do, and goes on when it has one.
pub(crate) fn pod_cidr_is_missing() -> Outcome {
    with_agent(VXLAN, |server, node| {
        node.agent().stop()?;
        fs::remove_file(node.agent().subnet_file())?;
        server.set_pod_cidrs(node.name(), &[])?;
        node.agent().start()?;
        eventually("the problem", PROMPT, || {
            let problems = match node.agent().status() {
                Ok(status) => status.problems.join("; "),
                Err(error) => error.to_string(),
            };
            let says = [
                "node n1",
                "podCIDR",
                "--allocate-node-cidrs=true",
                "--cluster-cidr=10.5.0.0/16",
            ]
            .iter()
            .all(|part| problems.contains(part));
            Ok(says.then_some(()).ok_or(problems))
        })?;
        ensure!(!node.agent().status()?.ready, "ready without a subnet");
        server.set_pod_cidrs(node.name(), &["10.5.66.0/24"])?;
        let status = node.agent().wait_ready()?;
        ensure!(status.problems.is_empty(), "{status:?}");
        let subnet = node.subnet_env()?.subnet.to_string();
        ensure!(subnet == "10.5.66.0/24", "{subnet}");
        Ok(())
    })
}

/// Of a peer with both families, only what belongs to IPv4 changes.
pub(crate) fn ipv4_data_alone_changes() -> Outcome {
    const CIDRS: [&str; 2] = ["10.5.77.0/24", "fd00:5:0:77::/64"];
    let value = |mac: &str| {
        format!(
            r#"{{"PublicIP":"{PEER_ADDRESS}","PublicIPv6":"fd00:100::77","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"BackendV6Data":{{"VNI":1,"VtepMAC":"0e:00:00:00:06:77"}}}}"#
        )
    };
    with_agent(DUAL, |server, node| {
        for mac in ["0e:00:00:00:00:77", "0e:00:00:00:00:78"] {
            server.put_node(peer(&CIDRS, &value(mac))?);
            let entry = format!("{mac} dst {PEER_ADDRESS}");
            wait_output(node, "bridge fdb show dev flannel.1", &entry)?;
            let entry = "0e:00:00:00:06:77 dst fd00:100::77";
            wait_output(node, "bridge fdb show dev flannel-v6.1", entry)?;
        }
        let left = shell(node, "bridge fdb show dev flannel.1")?;
        ensure!(!left.contains("0e:00:00:00:00:77"), "{left}");
        Ok(())
    })
}

/// A podCIDR that changes is followed, a peer's and the node's own.
pub(crate) fn pod_cidr_changes() -> Outcome {
    with_agent(VXLAN, |server, node| {
        let value = vxlan_value(PEER_ADDRESS, "0e:00:00:00:00:77");
        server.put_node(peer(&["10.5.77.0/24"], &value)?);
        let route = |subnet: &str| format!("10.5.{subnet}.0/24 via 10.5.{subnet}.0 dev flannel.1");
        wait_output(node, "ip route show", &route("77"))?;
        server.set_pod_cidrs(PEER, &["10.5.78.0/24"])?;
        wait_output(node, "ip route show", &route("78"))?;
        let routes = shell(node, "ip route show")?;
        ensure!(!routes.contains(&route("77")), "{routes}");

        server.set_pod_cidrs(node.name(), &["10.5.66.0/24"])?;
        let file = format!("cat {}", node.agent().subnet_file().display());
        wait_output(node, &file, "FLANNEL_SUBNET=10.5.66.1/24")?;
        wait_output(
            node,
            "ip -4 address show dev flannel.1",
            "inet 10.5.66.0/32",
        )?;
        wait_output(node, "ip route show", &route("78"))
    })
}
