//! Policies in the kernel's FORWARD path: no new flow gets past them, and one that they revoke ends on the fast path too,
//! soon. What does not revoke on the kernel's path does not on the fast one.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::{
    ClusterConfig, NodeConfig,
    services::Form,
    traffic::{rtt::Transport, whoami::Questioner},
};

use crate::legs::DIRECT;
use crate::service_pair::{ASSURED, Pair, with_pair};
use crate::support::{Outcome, Path, Setting, shell};

/// How long connecting, and an answer that must come, may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// How long is waited for what must not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(100);
/// Revalidation and grace, together, as they are by default.
const DEFAULT: Duration = Duration::from_millis(2500);
/// Each of the two where they are set.
pub(crate) const SHORT: Duration = Duration::from_millis(200);
/// How much later than allowed a question may be asked that is answered: between looking at the clock and sending.
pub(crate) const MARGIN: Duration = Duration::from_millis(300);

/// Who writes a policy's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    /// One of the iptables.
    Iptables(Form),
    /// nftables, in a table of its own.
    Nftables,
    /// The same by a rule that looks into a set, whose elements change.
    Set,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables(form) => form.fmt(f),
            Self::Nftables => f.write_str("nftables"),
            Self::Set => f.write_str("a set of nftables"),
        }
    }
}

/// A table with a chain in the forwarding path.
const TABLE: &str = "add table ip policies; \
                     add chain ip policies forward { type filter hook forward priority filter; }; ";

impl Tool {
    /// All that there are here.
    fn all() -> Vec<Self> {
        let iptables = [Form::IptablesNft, Form::IptablesLegacy];
        let here = iptables.into_iter().filter(|form| form.missing().is_none());
        here.map(Self::Iptables)
            .chain([Self::Nftables, Self::Set])
            .collect()
    }

    /// The commands that forbid and allow all from one address to another.
    fn deny(self, from: Ipv4Addr, to: Ipv4Addr) -> [String; 2] {
        match self {
            Self::Iptables(form) => ["-I", "-D"].map(|operation| {
                format!("{form} -w {operation} FORWARD -s {from} -d {to} -j DROP")
            }),
            Self::Nftables => [
                format!(
                    "nft '{TABLE}add rule ip policies forward ip saddr {from} ip daddr {to} drop'"
                ),
                "nft delete table ip policies".to_owned(),
            ],
            Self::Set => [
                // The rule is there before, so that only the set changes.
                format!("nft 'add element ip policies denied {{ {from} . {to} }}'"),
                format!("nft 'delete element ip policies denied {{ {from} . {to} }}'"),
            ],
        }
    }

    /// What must be there before [`Tool::deny`], and its end.
    fn frame(self) -> Option<[String; 2]> {
        (self == Self::Set).then(|| {
            [
                format!(
                    "nft '{TABLE}add set ip policies denied {{ type ipv4_addr . ipv4_addr; }}; \
                     add rule ip policies forward ip saddr . ip daddr @denied drop'"
                ),
                "nft delete table ip policies".to_owned(),
            ]
        })
    }
}

/// A cluster whose agents have other times than by default.
pub(crate) fn with_short_times(setting: Setting) -> ClusterConfig {
    let mut agent = setting.agent();
    for option in ["revalidate", "grace"] {
        let argument = format!("--fast-path-{option}={}ms", SHORT.as_millis());
        agent.arguments.push(argument);
    }
    setting.cluster(vec![NodeConfig::agent(&agent), NodeConfig::agent(&agent)])
}

/// A flow that is watched while it may end.
pub(crate) struct Watched {
    pub(crate) flow: Questioner,
    transport: Transport,
    /// A question that was not answered. TCP itself asks it again.
    pending: Option<Instant>,
    /// When the last question was asked that was answered.
    answered: Option<Instant>,
}

impl Watched {
    fn open(pair: &Pair<'_>, transport: Transport) -> anyhow::Result<Self> {
        let mut flow = pair.open(pair.direct(), transport, 0, LIMIT)?;
        flow.ask()?;
        Ok(Self {
            flow,
            transport,
            pending: None,
            answered: None,
        })
    }

    /// One of each transport, fast in all its legs if the path is.
    pub(crate) fn both(pair: &Pair<'_>) -> anyhow::Result<[Self; 2]> {
        let mut flows = [
            Self::open(pair, Transport::Tcp)?,
            Self::open(pair, Transport::Udp)?,
        ];
        let start = Instant::now();
        while start.elapsed() < ASSURED {
            for watched in &mut flows {
                watched.flow.ask()?;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(flows)
    }

    /// Asks, or waits for an answer that is due, for a moment.
    pub(crate) fn step(&mut self) -> Outcome {
        self.flow.set_limit(SILENCE)?;
        let (asked, result) = match (self.pending, self.transport) {
            (Some(asked), Transport::Tcp) => (asked, self.flow.answer()),
            _ => (Instant::now(), self.flow.ask()),
        };
        self.pending = result.is_err().then_some(asked);
        if let Ok(answer) = result {
            ensure!(answer.server == "first", "{answer:?}");
            self.answered = Some(asked);
        }
        Ok(())
    }

    /// Whether the last question was not answered.
    pub(crate) fn is_silent(&self) -> bool {
        self.pending.is_some()
    }

    /// Asserts that the flow goes on.
    pub(crate) fn goes_on(&mut self) -> Outcome {
        self.flow.set_limit(LIMIT)?;
        if self.transport == Transport::Tcp && self.pending.is_some() {
            self.flow.answer()?;
        }
        self.pending = None;
        self.flow.ask()?;
        Ok(())
    }
}

/// Legs by node and direction: what the client sends, what it receives, at its own node, and the same at the other.
const LEGS: [[usize; 2]; 2] = [[0, 1], [3, 2]];

/// A flow that a rule in front of all others revokes, at either node, ends within the times that are the default, and
/// goes on without the rule.
pub(crate) fn revoked_flows_end(setting: Setting) -> Outcome {
    with_pair(setting.pair(), |pair| {
        let mut flows = Watched::both(pair)?;
        let tools = [Tool::Iptables(Form::IptablesNft), Tool::Nftables];
        for (node, tool) in tools.into_iter().enumerate() {
            revoke(pair, setting.path, &mut flows, tool, [node, 0], DEFAULT)?;
        }
        Ok(())
    })
}

/// The same sooner where it is so wanted, with rules of every kind, and against either direction.
pub(crate) fn revoked_flows_end_sooner_if_wanted(setting: Setting) -> Outcome {
    /// Node and direction: all of them, two by each tool.
    const PLACES: [[[usize; 2]; 2]; 2] = [[[0, 0], [1, 1]], [[0, 1], [1, 0]]];
    with_pair(with_short_times(setting), |pair| {
        let mut flows = Watched::both(pair)?;
        for (n, tool) in Tool::all().into_iter().enumerate() {
            for place in PLACES[n % PLACES.len()] {
                revoke(pair, setting.path, &mut flows, tool, place, 2 * SHORT)?;
            }
        }
        Ok(())
    })
}

/// Forbids one direction at one node, and asserts that the flows end within `limit`, that nobody gets past meanwhile, and
/// that they go on afterwards.
fn revoke(
    pair: &Pair<'_>,
    path: Path,
    flows: &mut [Watched; 2],
    tool: Tool,
    [node, direction]: [usize; 2],
    limit: Duration,
) -> Outcome {
    let ends = [pair.client.address(), pair.server.address()];
    let (from, to) = (ends[direction], ends[1 - direction]);
    let place = pair.nodes()[node];
    let what = || format!("{tool} at {}, {from} to {to}", place.name());
    let limit = if path == Path::Kernel {
        Duration::ZERO
    } else {
        limit
    };
    if let Some([set_up, _]) = tool.frame() {
        shell(place, &set_up)?;
    }
    for watched in &mut *flows {
        let before = pair.count()?;
        let start = Instant::now();
        while start.elapsed() < SILENCE {
            watched.flow.ask().with_context(what)?;
        }
        pair.assert_legs(path, &before, DIRECT)
            .with_context(|| format!("{}: {:?} before", what(), watched.transport))?;
    }
    let [forbid, allow] = tool.deny(from, to);
    shell(place, &forbid)?;
    let revoked = Instant::now();
    while revoked.elapsed() < limit + MARGIN {
        for watched in &mut *flows {
            watched.step()?;
        }
    }
    let before = pair.count()?;
    for watched in &mut *flows {
        watched.step()?;
        let last = watched.answered.map(|asked| asked - revoked.min(asked));
        ensure!(
            watched.pending.is_some() && last.unwrap_or_default() < limit + MARGIN,
            "{}: {:?} is answered {last:?} after it was forbidden",
            what(),
            watched.transport
        );
    }
    let new = pair.open(pair.direct(), Transport::Tcp, 0, SILENCE);
    ensure!(
        new.and_then(|mut new| Ok(new.ask()?)).is_err(),
        "{}: a new connection got past the policy",
        what()
    );
    let fast = pair.count()?.since(&before)[LEGS[node][direction]];
    ensure!(fast == 0, "{}: {fast} packets are still fast", what());
    shell(place, &allow)?;
    for watched in &mut *flows {
        watched
            .goes_on()
            .with_context(|| format!("{}: {:?} after", what(), watched.transport))?;
    }
    if let Some([_, tear_down]) = tool.frame() {
        shell(place, &tear_down)?;
    }
    Ok(())
}

/// Where flows of one port are forbidden, not one packet of them arrives while others are fast.
pub(crate) fn new_flows_get_past_no_policy(setting: Setting) -> Outcome {
    /// For how long flows are tried.
    const TIME: Duration = Duration::from_millis(500);
    with_pair(setting.pair(), |pair| {
        let [mut tcp, mut udp] = Watched::both(pair)?;
        let (to, port) = (pair.server.address(), pair.second().port());
        for place in pair.nodes() {
            for (forbid, allow) in port_policies(to, port) {
                shell(place, &forbid)?;
                let before = (pair.count()?, pair.second_server.asked());
                let over = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    let others = scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            tcp.flow.ask()?;
                            udp.flow.ask()?;
                        }
                        anyhow::Ok(())
                    });
                    let start = Instant::now();
                    let mut tried = Ok(());
                    while start.elapsed() < TIME && tried.is_ok() {
                        tried = try_new(pair);
                    }
                    over.store(true, Ordering::Relaxed);
                    others.join().expect("no panic").context("beside")?;
                    tried.with_context(|| format!("{forbid} on {}", place.name()))
                })?;
                pair.assert_legs(setting.path, &before.0, DIRECT)?;
                let arrived = pair.second_server.asked() - before.1;
                ensure!(arrived == 0, "{}: {forbid}: {arrived} came", place.name());
                shell(place, &allow)?;
                let mut allowed = pair.open(pair.second(), Transport::Tcp, 0, LIMIT)?;
                ensure!(allowed.ask()?.server == "second");
            }
        }
        Ok(())
    })
}

/// Commands that forbid and allow what goes to one port, by either tool.
fn port_policies(to: Ipv4Addr, port: u16) -> [(String, String); 2] {
    let iptables = |operation: &str| {
        let one = |protocol: &str| {
            format!("iptables -w {operation} FORWARD -d {to} -p {protocol} --dport {port} -j DROP")
        };
        format!("{} && {}", one("tcp"), one("udp"))
    };
    let rule = format!("ip daddr {to} meta l4proto {{ tcp, udp }} th dport {port} drop");
    [
        (iptables("-I"), iptables("-D")),
        (
            format!("nft '{TABLE}add rule ip policies forward {rule}'"),
            "nft delete table ip policies".to_owned(),
        ),
    ]
}

/// Asks the second server by new flows, and wants no answer.
pub(crate) fn try_new(pair: &Pair<'_>) -> Outcome {
    const MOMENT: Duration = Duration::from_millis(20);
    for transport in [Transport::Tcp, Transport::Udp] {
        let answer = pair
            .open(pair.second(), transport, 0, MOMENT)
            .and_then(|mut flow| Ok(flow.ask()?));
        ensure!(answer.is_err(), "{transport:?}: {answer:?} got past");
    }
    Ok(())
}

/// Policies that accept established connections first forbid new ones and end none: the fast path goes on as the kernel
/// does, for longer than any revalidation.
pub(crate) fn policies_for_new_flows_end_none(setting: Setting) -> Outcome {
    with_pair(with_short_times(setting), |pair| {
        let mut flows = Watched::both(pair)?;
        let (from, to) = (pair.client.address(), pair.server.address());
        for place in pair.nodes() {
            for (forbid, allow) in stateful_policies(from, to) {
                shell(place, &forbid)?;
                let start = Instant::now();
                let mut before = pair.count()?;
                while start.elapsed() < 6 * SHORT {
                    if start.elapsed() < 3 * SHORT {
                        before = pair.count()?;
                    }
                    for watched in &mut flows {
                        let asked = watched.flow.ask();
                        asked.with_context(|| format!("{forbid} on {}", place.name()))?;
                    }
                }
                // They were revalidated since.
                pair.assert_legs(setting.path, &before, DIRECT)?;
                let new = pair.open(pair.direct(), Transport::Tcp, 0, SILENCE);
                ensure!(new.is_err(), "a new connection got past {forbid}");
                shell(place, &allow)?;
            }
        }
        Ok(())
    })
}

/// Commands that forbid all but what is established from one address to another, and allow it again, by either tool.
fn stateful_policies(from: Ipv4Addr, to: Ipv4Addr) -> [(String, String); 2] {
    let iptables = |operations: [&str; 2]| {
        let [first, second] = operations;
        format!(
            "iptables -w {first} FORWARD -s {from} -d {to} -j DROP && \
             iptables -w {second} FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        )
    };
    [
        (iptables(["-I", "-I"]), iptables(["-D", "-D"])),
        (
            format!(
                "nft '{TABLE}add rule ip policies forward ct state established,related accept; \
                 add rule ip policies forward ip saddr {from} ip daddr {to} drop'"
            ),
            "nft delete table ip policies".to_owned(),
        ),
    ]
}
