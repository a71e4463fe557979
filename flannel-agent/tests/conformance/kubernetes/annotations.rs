//! What a node publishes, under which names, and what an operator can say about it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{
    Node,
    kube::{
        lease::PREFIX,
        mock::{self, ApiServer, Kind, Request},
    },
};
use serde_json::Value;

use super::{DUAL, PEER_ADDRESS, VXLAN, below, peer, start, wait_output, with_agent};
use crate::peers::host_gw_value;
use crate::support::{Outcome, PROMPT, eventually, link, shell};

const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
/// How long nothing is to happen where nothing should.
const WHILE: Duration = Duration::from_secs(3);

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

/// Four annotations to the byte and the condition, each by one patch of the status; none at a restart.
pub(crate) fn vxlan() -> Outcome {
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
