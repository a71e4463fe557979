//! Network policies as kube-router (`pkg/controllers/netpol`) enforces them in iptables and ipset: chains for each pod in
//! FORWARD, marks on what a policy has accepted, and what is established goes on.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use lab::{
    Node, process,
    services::Form,
    traffic::{rtt::Transport, whoami::Questioner},
};

use super::needs;
use crate::legs::{self, DIRECT};
use crate::policies::{LIMIT, SHORT, SILENCE, try_new, with_short_times};
use crate::service_pair::{Pair, with_pair};
use crate::support::{Backend, Outcome, Setting, Skipped, shell};

/// Whom policies let in, and whom they let out to.
const INGRESS_SET: &str = "KUBE-SRC-FLANNELTESTINGRS";
const EGRESS_SET: &str = "KUBE-DST-FLANNELTESTEGRSS";

/// A policy at each node, for what a pod receives and for what a pod sends. What they allow is fast, what they do not
/// gets nowhere, and what they allow no longer goes on and stays fast if it is established, as in the kernel.
pub(crate) fn policies_hold(setting: Setting) -> Outcome {
    let form = match setting.backend {
        Backend::Vxlan => Form::IptablesNft,
        Backend::HostGw => Form::IptablesLegacy,
    };
    if let Some(reason) = form.missing() {
        bail!(Skipped(reason));
    }
    needs("ipset", &["ipset", "create", "try", "hash:ip"], "")?;
    let restore = format!("{form}-restore");
    let bridged = "*filter\n-A FORWARD -m physdev --physdev-is-bridged -j NFLOG\nCOMMIT\n";
    needs("match physdev and NFLOG", &[&restore], bridged)?;
    with_pair(with_short_times(setting), |pair| {
        let (client, server) = (pair.client.address(), pair.server.address());
        let port = pair.direct().port();
        let beside = pair.server_node.add_pod()?;
        pair.install_service()?;
        let ingress = [INGRESS_SET, "src"];
        install(
            pair.server_node,
            form,
            server,
            Rule {
                set: ingress,
                allowed: client,
                port: Some(port),
            },
        )?;
        let egress = [EGRESS_SET, "dst"];
        install(
            pair.client_node,
            form,
            client,
            Rule {
                set: egress,
                allowed: server,
                port: None,
            },
        )?;

        let mut flows = Vec::new();
        for transport in [Transport::Tcp, Transport::Udp] {
            let mut flow = pair.open(pair.direct(), transport, 0, LIMIT)?;
            legs::measure(pair.nodes(), setting.path, DIRECT, &mut flow)
                .with_context(|| format!("{transport:?}"))?;
            flows.push(flow);
        }
        try_new(pair).context("to a port that the policy does not name")?;
        ensure!(pair.second_server.asked() == 0, "something came");
        // Bridged packets meet the rules too.
        let near =
            |transport| Questioner::open(beside.netns(), pair.direct(), transport, 0, SILENCE);
        for transport in [Transport::Tcp, Transport::Udp] {
            let asked = near(transport).and_then(|mut flow| flow.ask());
            ensure!(asked.is_err(), "{transport:?} from beside: {asked:?}");
        }

        shell(
            pair.server_node,
            &format!("ipset del {INGRESS_SET} {client}"),
        )?;
        let start = Instant::now();
        while start.elapsed() < 3 * SHORT {
            for flow in &mut flows {
                flow.ask()?;
            }
        }
        for flow in &mut flows {
            // Revalidated since.
            legs::measure(pair.nodes(), setting.path, DIRECT, flow).context("established")?;
        }
        ensure!(is_refused(pair)?, "a new connection got past");
        shell(
            pair.server_node,
            &format!("ipset add {INGRESS_SET} {client}"),
        )?;
        ensure!(!is_refused(pair)?, "refused what is allowed again");
        Ok(())
    })
}

fn is_refused(pair: &Pair<'_>) -> anyhow::Result<bool> {
    let mut refused = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        let asked = pair
            .open(pair.direct(), transport, 0, SILENCE)
            .and_then(|mut flow| Ok(flow.ask()?));
        refused.push(asked.is_err());
    }
    ensure!(refused[0] == refused[1], "by TCP and by UDP: {refused:?}");
    Ok(refused[0])
}

/// What a policy allows.
struct Rule<'a> {
    /// The set of the other ends, and which end they are.
    set: [&'a str; 2],
    /// The one in the set.
    allowed: Ipv4Addr,
    /// The port, if not all are.
    port: Option<u16>,
}

/// Chains for one pod with one policy, on the pod's node.
fn install(node: &Node, form: Form, pod: Ipv4Addr, rule: Rule<'_>) -> Outcome {
    const FIREWALL: &str = "KUBE-POD-FW-FLANNELTESTPODFW";
    const POLICY: &str = "KUBE-NWPLCY-FLANNELTESTPOLCY";
    const DEFAULT: &str = "KUBE-NWPLCY-DEFAULT";
    let Rule {
        set: [set, end],
        allowed,
        port,
    } = rule;
    shell(
        node,
        &format!(
            "ipset create {set} hash:ip family inet hashsize 1024 maxelem 65536 timeout 0 && ipset add {set} {allowed}"
        ),
    )?;
    let mut rules = String::from("*filter\n");
    for chain in [
        "KUBE-ROUTER-FORWARD",
        "KUBE-ROUTER-INPUT",
        "KUBE-ROUTER-OUTPUT",
        FIREWALL,
        POLICY,
        DEFAULT,
    ] {
        rules += &format!(":{chain} - [0:0]\n");
    }
    for chain in ["FORWARD", "INPUT", "OUTPUT"] {
        rules += &format!(
            "-I {chain} 1 -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-{chain}\n"
        );
    }
    // Whichever way the policy is about, the pod's chain sees both.
    for (side, chains) in [
        ("-d", &["FORWARD", "OUTPUT"][..]),
        ("-s", &["FORWARD", "OUTPUT", "INPUT"][..]),
    ] {
        for chain in chains {
            rules += &format!("-A KUBE-ROUTER-{chain} {side} {pod} -j {FIREWALL}\n");
        }
        rules += &format!(
            "-I KUBE-ROUTER-FORWARD 1 -m physdev --physdev-is-bridged {side} {pod} -j {FIREWALL}\n"
        );
    }
    for chain in ["FORWARD", "INPUT", "OUTPUT"] {
        rules += &format!(
            "-A KUBE-ROUTER-{chain} -m comment --comment \"rule to explicitly ACCEPT traffic that comply to network policies\" \
             -m mark --mark 0x20000/0x20000 -j ACCEPT\n"
        );
    }
    let about = match end {
        "src" => "-d",
        _ => "-s",
    };
    let free = if about == "-d" { "-s" } else { "-d" };
    rules += &format!(
        "-A {FIREWALL} -m conntrack --ctstate INVALID -j DROP\n\
         -A {FIREWALL} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A {FIREWALL} -m addrtype --src-type LOCAL -d {pod} -j ACCEPT\n\
         -A {FIREWALL} {about} {pod} -j {POLICY}\n\
         -A {FIREWALL} {free} {pod} -j {DEFAULT}\n\
         -A {FIREWALL} -m mark ! --mark 0x10000/0x10000 -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100\n\
         -A {FIREWALL} -m mark ! --mark 0x10000/0x10000 -j REJECT\n\
         -A {FIREWALL} -j MARK --set-mark 0/0x10000\n\
         -A {FIREWALL} -j MARK --set-mark 0x20000/0x20000\n\
         -A {DEFAULT} -j MARK --set-xmark 0x10000/0x10000\n"
    );
    for protocol in ["tcp", "udp"] {
        let port = port
            .map(|port| format!(" --dport {port}"))
            .unwrap_or_default();
        let matches = format!("-A {POLICY} -m set --match-set {set} {end} -p {protocol}{port}");
        rules += &format!(
            "{matches} -j MARK --set-xmark 0x10000/0x10000\n\
             {matches} -m mark --mark 0x10000/0x10000 -j RETURN\n"
        );
    }
    rules += "COMMIT\n";
    let restore = format!("{form}-restore");
    process::run_with_input(
        Some(node.netns()),
        &restore,
        &["--noflush", "--wait"],
        &rules,
    )?;
    Ok(())
}
