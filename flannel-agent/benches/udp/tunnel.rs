//! Two nodes with a link between them, and a proxy on each.

use std::{
    fmt,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use flannel_agent::udp::{self, Options, Proxy};
use ipnet::Ipv4Net;
use lab::{Netns, underlay};

use crate::baseline::Baseline;

/// MTU of the devices, in bytes: of the link, less IP and UDP headers.
pub(crate) const MTU: usize = 1472;

/// Who carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Ours,
    Upstream,
    Program(PathBuf),
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ours => "ours",
            Self::Upstream => "upstream's way: one thread, one packet",
            Self::Program(path) => path.to_str().unwrap_or("the given program"),
        })
    }
}

/// The two nodes; all that carries ends when this is dropped.
pub(crate) struct Tunnel {
    pub(crate) nodes: [Netns; 2],
    ends: Vec<End>,
}

#[expect(dead_code, reason = "what runs is kept until it is dropped")]
enum End {
    Ours(Proxy),
    Upstream(Baseline),
    Program(Program),
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A node's address on the link.
fn node(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 100, number as u8 + 1)
}

fn subnet(number: usize) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 5, number as u8 + 1, 0), 24)
}

/// A node's address in the flannel network.
pub(crate) fn address(number: usize) -> Ipv4Addr {
    subnet(number).network()
}

impl Tunnel {
    pub(crate) fn start(carrier: &Carrier) -> Result<Self> {
        let name = |number: usize| format!("udp-bench-{}-{number}", std::process::id());
        let nodes = [Netns::create(&name(0))?, Netns::create(&name(1))?];
        let peer = nodes[1].name();
        underlay::ip_batch(
            &nodes[0],
            &format!("link add eth0 type veth peer name eth0 netns {peer}"),
        )?;
        for (number, netns) in nodes.iter().enumerate() {
            let address = node(number);
            let up = format!("link set lo up\naddress add {address}/24 dev eth0\nlink set eth0 up");
            underlay::ip_batch(netns, &up)?;
        }
        let mut tunnel = Self {
            nodes,
            ends: Vec::new(),
        };
        for number in 0..tunnel.nodes.len() {
            let end = tunnel.end(carrier, number)?;
            tunnel.ends.push(end);
        }
        Ok(tunnel)
    }

    fn end(&self, carrier: &Carrier, number: usize) -> Result<End> {
        let netns = &self.nodes[number];
        let bind = SocketAddrV4::new(node(number), udp::DEFAULT_PORT);
        let peer = (subnet(1 - number), node(1 - number));
        let (end, device) = match carrier {
            Carrier::Ours => {
                let options = Options {
                    pattern: udp::DEVICE_PATTERN.into(),
                    address: address(number),
                    bind,
                };
                let proxy = netns.run(|| Proxy::start(&options))??;
                proxy.set_routes([peer].into_iter().collect());
                let device = proxy.device().name.clone();
                (End::Ours(proxy), device)
            }
            Carrier::Upstream => {
                let routes = vec![(peer.0, SocketAddrV4::new(peer.1, bind.port()))];
                let baseline = netns.run(|| Baseline::start(bind, MTU, routes))??;
                let device = baseline.device.clone();
                (End::Upstream(baseline), device)
            }
            Carrier::Program(path) => {
                let mut child = Command::new(path)
                    .args([netns.name(), &address(number).to_string()])
                    .args([
                        bind.ip().to_string(),
                        bind.port().to_string(),
                        MTU.to_string(),
                    ])
                    .arg(format!("{}={}", peer.0, peer.1))
                    .stdout(Stdio::piped())
                    .spawn()
                    .with_context(|| format!("start {}", path.display()))?;
                let stdout = child.stdout.take().context("a pipe was asked for")?;
                let program = Program(child);
                let mut device = String::new();
                BufReader::new(stdout).read_line(&mut device)?;
                (End::Program(program), device.trim().to_owned())
            }
        };
        underlay::ip_batch(
            netns,
            &format!(
                "address add {}/32 dev {device}\nlink set {device} mtu {MTU} up\nroute add 10.5.0.0/16 dev {device}",
                address(number)
            ),
        )?;
        Ok(end)
    }

    /// The processes that carry, and this one, which sends round trips whoever carries them.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let programs = self.ends.iter().filter_map(|end| match end {
            End::Program(program) => Some(program.0.id()),
            End::Ours(_) | End::Upstream(_) => None,
        });
        programs.chain([std::process::id()]).collect()
    }
}
