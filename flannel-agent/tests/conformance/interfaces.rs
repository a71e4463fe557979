//! Which interface and address the node's agent chooses, by each of the options for it.

use anyhow::{Context as _, ensure};
use lab::Node;

use crate::peers::own_key;
use crate::setting::agents;
use crate::support::{Outcome, shell, with_unready_cluster};

/// Options, and the interface, its address and the published address that they must lead to.
const CASES: [(&[&str], [&str; 2]); 9] = [
    (&[], ["eth0", "192.168.100.1"]),
    (&["-iface=eth1"], ["eth1", "172.16.30.18"]),
    (&["--iface", "172.16.31.200"], ["eth1", "172.16.31.200"]),
    (
        &["-iface=no-such-link", "-iface=eth1"],
        ["eth1", "172.16.30.18"],
    ),
    (
        &[r"-iface-regex=192\.168\.200\.\d+"],
        ["eth1", "192.168.200.128"],
    ),
    (&[r"-iface-regex=^eth[1-9]$"], ["eth1", "172.16.30.18"]),
    (&["-iface-can-reach=172.16.30.99"], ["eth1", "172.16.30.18"]),
    (&["-public-ip=172.16.31.200"], ["eth1", "172.16.31.200"]),
    (
        &[r"-iface-regex=172\.16\.30\.\d+", "-public-ip=172.16.31.200"],
        ["eth1", "172.16.31.200"],
    ),
];

pub(crate) fn are_chosen() -> Outcome {
    let network = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    with_unready_cluster(agents(1, 0, network), |cluster| {
        let node = cluster.node(1);
        shell(
            node,
            "ip link add eth1 type veth peer name other && ip address add 172.16.30.18/24 dev eth1 && \
             ip address add 172.16.31.200/24 dev eth1 && ip address add 192.168.200.128/24 dev eth1 && \
             ip link set eth1 up && ip link set other up",
        )?;
        for (options, expected) in CASES {
            node.agent().stop()?;
            node.agent().configure(|config| {
                config.interface = String::new();
                config.arguments = options.iter().map(|&option| option.to_owned()).collect();
            });
            node.agent().start()?;
            node.agent().wait_ready()?;
            is_chosen(node, expected).with_context(|| format!("{options:?}"))?;
            let key = own_key(node)?;
            let value = crate::peers::value(cluster, &key)?;
            let published = format!(r#""PublicIP":"{}","#, expected[1]);
            ensure!(value.contains(&published), "{options:?}: {value}");
        }
        Ok(())
    })
}

fn is_chosen(node: &Node, [interface, address]: [&str; 2]) -> Outcome {
    let device = shell(node, "ip -details link show flannel.1")?;
    let expected = format!("local {address} dev {interface} ");
    ensure!(device.contains(&expected), "not {expected:?}: {device}");
    Ok(())
}
