//! Blackhole routes of the node's own subnets.

use anyhow::ensure;
use flannel_agent::{
    family::PerFamily,
    kernel::{
        blackhole::{self, METRIC},
        netlink::Netlink,
    },
};
use lab::NodeConfig;

use crate::{
    rule_tools::with_node,
    support::{Outcome, PROMPT, Setting, eventually, shell, udp_arrives, with_cluster},
};

/// A blackhole route is there from the start, hides no pod whether the bridge comes before it or after, takes what no
/// pod has, and goes with the option and with the subnet; upstream's, which hides pods, is replaced.
pub(crate) fn of_the_agent(setting: Setting) -> Outcome {
    let mut with_option = setting.agent();
    with_option
        .arguments
        .push("--ip-blackhole-route".to_owned());
    let nodes = vec![NodeConfig::agent(&with_option), setting.node()];
    let config = lab::ClusterConfig {
        pods: 0,
        ..setting.cluster(nodes)
    };
    with_cluster(config, |cluster| {
        let (node, other) = (cluster.node(1), cluster.node(2));
        let subnet = node.subnet_env()?.subnet.to_string();
        let ours = format!("blackhole {subnet} metric 4294967295");
        let become_these = |wanted: &[&str]| {
            eventually("blackhole routes", PROMPT, || {
                let text = shell(node, "ip route show type blackhole")?;
                let lines: Vec<_> = text.lines().map(str::trim).collect();
                Ok((lines == wanted).then_some(()).ok_or(text))
            })
        };
        become_these(&[&ours])?;
        // The bridge comes after the route.
        let (source, target) = (other.add_pod()?, node.add_pod()?);
        udp_arrives(&source, &target, 200, 64)?;
        // The route comes after the bridge, beside upstream's and that of a former subnet, and somebody else's stays.
        node.agent().stop()?;
        let foreign = "blackhole 10.5.0.0/24";
        shell(
            node,
            &format!(
                "ip route del {ours}; ip route append blackhole {subnet}; ip route add {foreign}; ip route add blackhole 10.77.3.0/24 metric 4294967295"
            ),
        )?;
        node.agent().start()?;
        node.agent().wait_ready()?;
        become_these(&[foreign, &ours])?;
        udp_arrives(&source, &target, 200, 64)?;
        shell(node, &format!("ip route del {ours}"))?;
        become_these(&[foreign, &ours])?;
        node.agent()
            .configure(|agent| agent.arguments.retain(|one| !one.contains("blackhole")));
        node.agent().restart()?;
        become_these(&[foreign])
    })
}

/// In both families the route stands behind the bridge's, whichever came first, and behind every other; what is removed
/// is flannel's alone.
pub(crate) fn behind_all_others(_setting: Setting) -> Outcome {
    with_node(|nodes| {
        let node = &nodes[0];
        let own = PerFamily {
            v4: Some("10.5.9.0/24".parse()?),
            v6: Some("fd00:5:0:9::/64".parse()?),
        };
        let subnets: Vec<_> = own.values().copied().collect();
        let settle = |wanted: PerFamily<_>| {
            node.netns().run(|| -> anyhow::Result<usize> {
                let mut netlink = Netlink::open()?;
                let present = blackhole::read(&mut netlink)?;
                let ops = blackhole::diff(&wanted, &subnets, &present);
                for result in blackhole::apply(&mut netlink, &ops)? {
                    result?;
                }
                Ok(ops.len())
            })?
        };
        let connect = || {
            shell(
                node,
                "ip address add 10.5.9.1/24 dev br0; ip address add fd00:5:0:9::1/64 dev br0 nodad",
            )
        };
        let leads = |wanted: &str| -> Outcome {
            for address in ["10.5.9.7", "fd00:5:0:9::7"] {
                let text = shell(node, &format!("ip route get {address} 2>&1 || true"))?;
                ensure!(text.contains(wanted), "{address}: {text}, not {wanted}");
            }
            Ok(())
        };
        shell(
            node,
            "ip link add br0 type bridge; ip link set br0 up; ip -6 route add default dev eth0",
        )?;
        ensure!(
            settle(own)? == 2 && settle(own)? == 0,
            "not settled at once"
        );
        leads("Invalid argument")?;
        connect()?;
        leads("dev br0")?;
        ensure!(settle(PerFamily::default())? == 2, "not removed");
        ensure!(settle(own)? == 2, "not added beside the bridge's routes");
        leads("dev br0")?;
        shell(node, "ip address flush dev br0")?;
        leads("Invalid argument")?;
        // Upstream's, beside somebody else's of the same prefix and metric.
        shell(
            node,
            "ip route add blackhole 10.5.9.0/24; ip route add blackhole fd00:5:0:9::/64
             ip route append 10.5.9.0/24 dev br0; ip -6 route append fd00:5:0:9::/64 dev br0
             ip route add blackhole 10.5.8.0/24; ip route add blackhole fd00:5:0:8::/64",
        )?;
        ensure!(settle(own)? == 2, "upstream's are replaced");
        leads("dev br0")?;
        settle(PerFamily::default())?;
        let left = shell(
            node,
            "ip route show type blackhole; ip -6 route show type blackhole",
        )?;
        ensure!(
            left.lines().count() == 2 && left.matches(":8::/64").count() == 1,
            "left: {left}"
        );
        ensure!(!left.contains(&METRIC.to_string()), "left: {left}");
        Ok(())
    })
}
