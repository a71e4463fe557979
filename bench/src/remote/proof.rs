//! Which path packets took, by what both nodes' agents counted meanwhile.

use std::{
    fmt,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use lab::status::Counters;
use serde::Serialize;

use super::{
    agent::Agent,
    control::Control,
    load::{Least, Load},
    protocol::{FastPath, Mode},
};

/// How long a flow may take to be fast: datagrams have to be answered for more than two seconds before.
const LIMIT: Duration = Duration::from_secs(10);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// How packets are to travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// As they did before; nothing is switched.
    AsIs,
    /// By the kernel, the fast path off at both nodes.
    Kernel,
    /// By BPF at both nodes.
    Fast,
}

impl Path {
    /// What the agents are asked for; nothing if they are left alone.
    pub fn mode(self, fast: Mode) -> Option<Mode> {
        match self {
            Self::AsIs => None,
            Self::Kernel => Some(Mode::Off),
            Self::Fast => Some(fast),
        }
    }

    /// What the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AsIs => "as it is",
            Self::Kernel => "kernel",
            Self::Fast => "fast path",
        }
    }
}

/// What both agents say, as far as there are any.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    client: Option<FastPath>,
    server: Option<FastPath>,
}

impl Reading {
    /// Asks them now.
    ///
    /// # Errors
    /// If one does not answer.
    pub fn take(agent: Option<&Agent>, control: &mut Control) -> Result<Self> {
        Ok(Self {
            client: agent.map(Agent::fast_path).transpose()?,
            server: control.fast_path()?,
        })
    }

    fn since(&self, before: &Self) -> Counted {
        let since = |now: &Option<FastPath>, before: &Option<FastPath>| {
            let (now, before) = (now.as_ref()?, before.as_ref()?);
            Some(now.counters.since(&before.counters))
        };
        Counted {
            client: since(&self.client, &before.client),
            server: since(&self.server, &before.server),
        }
    }

    /// Why BPF carries nothing, by what an agent says.
    fn reason(&self) -> Option<&str> {
        let mut sides = [&self.client, &self.server].into_iter().flatten();
        sides.find_map(|side| side.reason.as_deref())
    }
}

/// What both nodes have counted for a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// The client's node, if its agent was asked.
    pub client: Option<Counters>,
    /// The server's.
    pub server: Option<Counters>,
}

impl Counted {
    /// Whether packets took a path, or what is missing to that.
    fn judge(&self, path: Path, least: Least) -> Result<(), String> {
        let (Some(client), Some(server)) = (&self.client, &self.server) else {
            return Err("no counters of both agents".to_owned());
        };
        let counted = [
            ("client out", client.fast_egress, least.sent),
            ("server in", server.fast_ingress, least.received),
            ("server out", server.fast_egress, least.back),
            ("client in", client.fast_ingress, least.back),
        ];
        let wrong: Vec<String> = counted
            .into_iter()
            .filter_map(|(place, fast, least)| match path {
                Path::Kernel => (fast > 0).then(|| format!("{place} {fast} by BPF")),
                Path::Fast | Path::AsIs => {
                    (fast < least).then(|| format!("{place} {fast} by BPF instead of {least}"))
                }
            })
            .collect();
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join(", "))
        }
    }

    /// Reasons for which hooks left packets to the kernel, the most frequent first.
    fn declined(&self) -> String {
        const SHOWN: usize = 3;
        let sides = [("client", &self.client), ("server", &self.server)];
        let mut reasons: Vec<(u64, String)> = sides
            .into_iter()
            .filter_map(|(side, counters)| Some((side, counters.as_ref()?)))
            .flat_map(|(side, counters)| {
                let named = counters.declined.iter();
                named.map(move |(reason, count)| (*count, format!("{side} {reason} {count}")))
            })
            .filter(|(count, _)| *count > 0)
            .collect();
        reasons.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let shown = reasons.into_iter().take(SHOWN).map(|(_, reason)| reason);
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// What is known of the path of one measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is the one that the row names, before and during the measurement.
    Proven,
    /// It may not be, and why.
    Lacking(String),
    /// None was asked for; BPF carried it at both nodes, or the kernel, or nobody knows.
    Seen(Seen),
}

/// What is seen of packets whose path nobody has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// By BPF at both nodes, both ways.
    Fast,
    /// By the kernel at both nodes.
    Kernel,
    /// By BPF in part.
    Mixed,
    /// Not both agents were asked.
    Unknown,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "BPF carried it at both nodes",
            Self::Kernel => "the kernel carried it at both nodes",
            Self::Mixed => "BPF carried a part of it",
            Self::Unknown => "path unknown: counters of both agents were not to be had",
        })
    }
}

/// The proof of one measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Proof {
    /// What was counted for the last probe before it.
    pub before: Counted,
    /// What was counted during it.
    pub during: Counted,
    /// What that means.
    pub verdict: Verdict,
}

impl Proof {
    /// Whether packets may not have taken the path that was chosen.
    pub fn is_lacking(&self) -> bool {
        matches!(self.verdict, Verdict::Lacking(_))
    }
}

/// Sends probes until all but a few of a probe's packets take the path, or it has taken too long; what was counted for
/// the last one, and what was missing.
///
/// # Errors
/// If a probe is not answered.
pub fn probe(
    load: &mut dyn Load,
    path: Path,
    mut read: impl FnMut() -> Result<Reading>,
) -> Result<(Counted, Result<(), String>)> {
    let start = Instant::now();
    loop {
        let before = read()?;
        let least = load.probe()?;
        let now = read()?;
        let counted = now.since(&before);
        let judged = counted.judge(path, least);
        let over = path == Path::AsIs || start.elapsed() > LIMIT;
        match judged {
            Err(lack) if over => {
                let explained = [Some(lack), now.reason().map(str::to_owned)];
                let declined = Some(counted.declined()).filter(|text| !text.is_empty());
                let declined = declined.map(|reasons| format!("left to the kernel: {reasons}"));
                let parts = explained.into_iter().chain([declined]).flatten();
                let lack = parts.collect::<Vec<_>>().join("; ");
                return Ok((counted, Err(lack)));
            }
            Err(_) => sleep(PAUSE),
            Ok(()) => return Ok((counted, Ok(()))),
        }
    }
}

/// What is known of a measurement, by its probe and by what was counted during it.
pub fn conclude(
    path: Path,
    (before, probed): (Counted, Result<(), String>),
    [start, end]: [&Reading; 2],
    least: Least,
) -> Proof {
    let during = end.since(start);
    let verdict = if path == Path::AsIs {
        Verdict::Seen(seen(&during, least))
    } else {
        let during = during
            .judge(path, least)
            .map_err(|lack| format!("during the measurement {lack}"));
        match probed.and(during) {
            Ok(()) => Verdict::Proven,
            Err(lack) => Verdict::Lacking(lack),
        }
    };
    Proof {
        before,
        during,
        verdict,
    }
}

fn seen(counted: &Counted, least: Least) -> Seen {
    if counted.client.is_none() || counted.server.is_none() {
        Seen::Unknown
    } else if counted.judge(Path::Fast, least).is_ok() {
        Seen::Fast
    } else if counted.judge(Path::Kernel, least).is_ok() {
        Seen::Kernel
    } else {
        Seen::Mixed
    }
}

#[cfg(test)]
#[path = "tests/proof.rs"]
mod tests;
