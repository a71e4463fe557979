//! Canal: Calico's policies (`felix/rules`) beside flannel. Its pods are on no bridge: each has a route of its own to a veth
//! that answers ARP for all. The fast path knows pods by the bridge, so all of it is the kernel's.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::{
    ClusterConfig, Netns, Node, process,
    services::{Form, Proxy, Service},
    traffic::{
        rtt::Transport,
        whoami::{Questioner, WhoAmI},
    },
};

use super::needs;
use crate::legs::{self, NONE};
use crate::support::{Backend, Outcome, Setting, Skipped, shell, with_cluster};

/// The server's port, and one that its policy does not name.
const PORT: u16 = 8080;
const CLOSED_PORT: u16 = 8081;
/// A service in front of it.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 200, 1), 80);
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long is waited for an answer that must not come.
const SILENCE: Duration = Duration::from_millis(200);
/// The host numbers of the pods' addresses.
const POD: u32 = 10;

/// What policies allow works, what they do not gets nowhere, and nothing is fast.
pub(crate) fn policies_hold(setting: Setting) -> Outcome {
    let form = match setting.backend {
        Backend::Vxlan => Form::IptablesNft,
        Backend::HostGw => Form::IptablesLegacy,
    };
    if let Some(reason) = form.missing() {
        bail!(Skipped(reason));
    }
    let raw = "*raw\n-A PREROUTING -j MARK --set-xmark 0x0/0xf0000\nCOMMIT\n";
    needs("table raw", &[&format!("{form}-restore")], raw)?;
    let config = ClusterConfig {
        pods: 0,
        ..setting.pair()
    };
    with_cluster(config, |cluster| {
        let [one, two] = cluster.nodes() else {
            bail!("two nodes were asked for");
        };
        let (client, server) = (Pod::attach(one)?, Pod::attach(two)?);
        let direct = SocketAddrV4::new(server.address, PORT);
        let service = Service::new("echo", SERVICE, vec![direct]);
        for (node, pod) in [(one, &client), (two, &server)] {
            let proxy = Proxy {
                form,
                pods: Some(node.subnet_env()?.network),
                ..Proxy::default()
            };
            proxy.install(node.netns(), &[service.clone(), service.clone().udp()])?;
            let rules = rules(&pod.device, client.address);
            let restore = format!("{form}-restore");
            process::run_with_input(
                Some(node.netns()),
                &restore,
                &["--noflush", "--wait"],
                &rules,
            )?;
        }
        let _server = WhoAmI::start(&server.netns, "server", PORT)?;
        let closed = WhoAmI::start(&server.netns, "closed", CLOSED_PORT)?;
        let open =
            |netns: &Netns, to, transport, limit| Questioner::open(netns, to, transport, 0, limit);
        for to in [direct, SERVICE] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let what = || format!("{transport:?} to {to}");
                let mut flow = open(&client.netns, to, transport, LIMIT).with_context(what)?;
                let answer =
                    legs::measure([one, two], setting.path, NONE, &mut flow).with_context(what)?;
                ensure!(
                    *answer.client.ip() == client.address,
                    "{}: {answer:?}",
                    what()
                );
            }
        }
        let to = SocketAddrV4::new(server.address, CLOSED_PORT);
        for transport in [Transport::Tcp, Transport::Udp] {
            let asked = open(&client.netns, to, transport, SILENCE).and_then(|mut flow| flow.ask());
            ensure!(
                asked.is_err(),
                "{transport:?}: {asked:?} got past the policy"
            );
            // No policy is about what the node itself sends.
            let mut flow = open(two.netns(), to, transport, LIMIT)?;
            ensure!(flow.ask().context("from the node")?.server == "closed");
        }
        ensure!(closed.asked() == 2, "{} came", closed.asked());
        Ok(())
    })
}

/// A pod as Calico's CNI plugin attaches it.
struct Pod {
    netns: Netns,
    address: Ipv4Addr,
    device: String,
}

impl Pod {
    fn attach(node: &Node) -> anyhow::Result<Self> {
        let (_, netns) = node.new_pod_namespace()?;
        let address = node.subnet_env()?.subnet.host(POD);
        let device = format!("cali{:011x}", u32::from(address));
        shell(
            node,
            &format!(
                "ip link add {device} address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns {name} && \
                 echo 1 > /proc/sys/net/ipv4/conf/{device}/proxy_arp && \
                 echo 0 > /proc/sys/net/ipv4/neigh/{device}/proxy_delay && \
                 ip link set {device} up && ip route add {address}/32 dev {device} scope link",
                name = netns.name(),
            ),
        )?;
        let inside = format!(
            "ip link set eth0 up && ip address add {address}/32 dev eth0 && \
             ip route add 169.254.1.1 dev eth0 scope link && ip route add default via 169.254.1.1 dev eth0"
        );
        process::run(Some(&netns), "sh", &["-c", &inside])?;
        Ok(Self {
            netns,
            address,
            device,
        })
    }
}

/// The rules of a node whose one pod lets `client` in to one port, and may send what it likes.
fn rules(device: &str, client: Ipv4Addr) -> String {
    let (to, from) = (format!("cali-tw-{device}"), format!("cali-fw-{device}"));
    let established = |chain: &str| {
        format!(
            "-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A {chain} -m conntrack --ctstate INVALID -j DROP\n\
             -A {chain} -j MARK --set-xmark 0x0/0x10000\n"
        )
    };
    let mut rules = String::from("*raw\n:cali-PREROUTING - [0:0]\n");
    rules += "-I PREROUTING 1 -j cali-PREROUTING\n\
              -A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000\n\
              -A cali-PREROUTING -i cali+ -j MARK --set-xmark 0x40000/0x40000\n\
              -A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT\nCOMMIT\n*filter\n";
    for chain in [
        "cali-FORWARD",
        "cali-from-wl-dispatch",
        "cali-to-wl-dispatch",
        "cali-pi-policy",
        "cali-pro-kns.default",
        &to,
        &from,
    ] {
        rules += &format!(":{chain} - [0:0]\n");
    }
    rules += "-I FORWARD 1 -j cali-FORWARD\n\
              -A FORWARD -m comment --comment \"Policy explicitly accepted packet.\" -m mark --mark 0x10000/0x10000 -j ACCEPT\n\
              -A FORWARD -j MARK --set-xmark 0x10000/0x10000\n\
              -A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000\n\
              -A cali-FORWARD -i cali+ -j cali-from-wl-dispatch\n\
              -A cali-FORWARD -o cali+ -j cali-to-wl-dispatch\n";
    rules += &format!(
        "-A cali-from-wl-dispatch -i {device} -g {from}\n-A cali-from-wl-dispatch -j DROP\n"
    );
    rules +=
        &format!("-A cali-to-wl-dispatch -o {device} -g {to}\n-A cali-to-wl-dispatch -j DROP\n");
    rules += &established(&from);
    rules += &format!(
        "-A {from} -p udp -m comment --comment \"Drop VXLAN encapped packets originating in workloads\" -m udp --dport 4789 -j DROP\n\
         -A {from} -j cali-pro-kns.default\n\
         -A {from} -m mark --mark 0x10000/0x10000 -j RETURN\n\
         -A {from} -j DROP\n\
         -A cali-pro-kns.default -j MARK --set-xmark 0x10000/0x10000\n"
    );
    rules += &established(&to);
    rules += &format!(
        "-A {to} -j MARK --set-xmark 0x0/0x20000\n\
         -A {to} -m mark --mark 0x0/0x20000 -j cali-pi-policy\n\
         -A {to} -m mark --mark 0x10000/0x10000 -j RETURN\n\
         -A {to} -m mark --mark 0x0/0x20000 -j DROP\n"
    );
    for protocol in ["tcp", "udp"] {
        rules += &format!(
            "-A cali-pi-policy -s {client} -p {protocol} --dport {PORT} -j MARK --set-xmark 0x10000/0x10000\n"
        );
    }
    rules + "-A cali-pi-policy -m mark --mark 0x10000/0x10000 -j RETURN\nCOMMIT\n"
}
