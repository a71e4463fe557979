//! `bench client`: rounds against a server on another node, by the kernel's path and by the fast path in turn.

use std::{
    fs::File,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, builder::RangedU64ValueParser};

use super::{
    agent::{self, Agent, Restoring},
    control::Control,
    load::{Done, Kind, Target},
    order,
    proof::{self, Path, Proof, Reading},
    protocol::{LONGEST_MEASUREMENT, Mode, Node},
    report::{Report, Rounds},
};

/// Shortest measurement: below, CPU time's ticks say nothing.
const SHORTEST: Duration = Duration::from_millis(100);
/// Bytes of a datagram: its kind and number at the least; one packet without fragments on any pod network at the most.
const SIZES: std::ops::RangeInclusive<u64> = 9..=1400;
/// Datagrams per second.
const RATES: std::ops::RangeInclusive<i64> = 1..=10_000_000;

/// Whom to measure with, and how much.
#[derive(Debug, Args)]
pub struct Options {
    /// The server's address or name, and its port.
    #[arg(long, value_name = "ADDR:PORT")]
    server: String,
    /// How long to wait for the server to be there.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// How long each measurement takes.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    duration: Duration,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// The --status-socket of this node's agent, to switch its fast path; the server takes that of its own node
    /// [default: none: the path is measured as it is]
    #[arg(long, value_name = "PATH")]
    agent_socket: Option<PathBuf>,
    /// The mode that is compared with the kernel's path.
    #[arg(long, default_value = "flow", value_name = "MODE", value_parser = fast_mode)]
    fast_path: Mode,
    /// Datagrams per second of the UDP flood.
    #[arg(long, default_value_t = 50_000, value_name = "N", value_parser = clap::value_parser!(u32).range(RATES))]
    udp_rate: u32,
    /// Bytes of each.
    #[arg(long, default_value_t = 64, value_name = "BYTES", value_parser = RangedU64ValueParser::<usize>::new().range(SIZES))]
    udp_size: usize,
    /// Also write everything that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (SHORTEST..=LONGEST_MEASUREMENT).contains(&duration) {
        return Ok(duration);
    }
    Err(format!(
        "give {} to {}",
        humantime::format_duration(SHORTEST),
        humantime::format_duration(LONGEST_MEASUREMENT)
    ))
}

fn fast_mode(name: &str) -> Result<Mode, String> {
    Mode::of(name)
        .filter(|mode| *mode != Mode::Off)
        .ok_or_else(|| "give flow or subnet: off is what it is compared with".to_owned())
}

/// Measures and reports; whether everything has its number, and every path its proof.
///
/// # Errors
/// If nothing can be measured, an agent does not do what it is asked for, or the report cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    let agent = options
        .agent_socket
        .as_deref()
        .map(|path| Arc::new(Agent::new(path)));
    let mode = agent.as_deref().map(Agent::mode).transpose()?;
    // Before the measurements, which take minutes.
    let json = match &options.json {
        Some(path) => Some(File::create(path).with_context(|| {
            format!(
                "--json = {}: cannot be created: choose another path",
                path.display()
            )
        })?),
        None => None,
    };
    let ending = agent.clone();
    super::on_signals(move || {
        if let Some(agent) = ending {
            agent.restore_and_end();
        }
    })?;
    let (address, control, server) = connect(options)?;
    let target = Target {
        address,
        rate: options.udp_rate,
        size: options.udp_size,
    };
    let client = Node::this(mode);
    let compared = client.agent.is_some() && server.agent.is_some();
    let mut report = Report::new(
        [client, server],
        target,
        compared.then_some(options.fast_path),
        options.duration,
        options.rounds.into(),
    );
    println!("{}", report.heading());
    let session = Session {
        agent: agent.as_deref(),
        control,
        target,
        options,
    };
    let (rounds, outcome) = session.run(report.paths());
    // What has been measured is shown whatever failed after it: it took minutes.
    report.add(rounds);
    print!("{}", report.text());
    let written = json.map_or(Ok(()), |file| {
        serde_json::to_writer_pretty(file, &report).context("cannot write the JSON file")
    });
    outcome.and(written)?;
    Ok(report.is_complete())
}

/// Connects to the server, again and again for as long as it is to be waited for.
fn connect(options: &Options) -> Result<(SocketAddr, Control, Node)> {
    const PAUSE: Duration = Duration::from_secs(1);
    let start = Instant::now();
    loop {
        let connected = resolve(&options.server).and_then(|address| {
            let (control, node) = Control::connect(address)?;
            Ok((address, control, node))
        });
        if connected.is_ok() || start.elapsed() >= options.wait {
            return connected;
        }
        thread::sleep(PAUSE);
    }
}

/// The first address of the server's name.
fn resolve(server: &str) -> Result<SocketAddr> {
    let found = server
        .to_socket_addrs()
        .with_context(|| format!("--server = {server}: give ADDR:PORT or NAME:PORT"))?
        .next();
    found.with_context(|| format!("--server = {server}: the name has no address"))
}

struct Session<'a> {
    agent: Option<&'a Agent>,
    control: Control,
    target: Target,
    options: &'a Options,
}

impl Session<'_> {
    /// Measures all rounds, and gives both agents their modes back; what was measured until something failed, and that.
    fn run(mut self, paths: &[Path]) -> (Rounds, Result<()>) {
        // Once more, if it fails below, and after a panic.
        let _restoring = self.agent.map(Restoring);
        let mut rounds = Rounds::default();
        let measured = self.rounds(paths, &mut rounds);
        if let Err(error) = &measured
            && matches!(error.downcast_ref(), Some(agent::Error::Ending))
        {
            // The signal's thread restores, and ends the process.
            loop {
                thread::park();
            }
        }
        let outcome = match (measured, self.restore()) {
            (Err(error), Err(also)) => Err(anyhow!("{error:#}; {also:#}")),
            (measured, restored) => measured.and(restored),
        };
        (rounds, outcome)
    }

    fn rounds(&mut self, paths: &[Path], rounds: &mut Rounds) -> Result<()> {
        let start = Instant::now();
        for round in 0..usize::from(self.options.rounds) {
            for (kind, path) in order::of(round, paths) {
                if rounds.is_spoiled(kind, path) {
                    continue;
                }
                eprintln!(
                    "{:4} s, round {} of {}, {}, {}",
                    start.elapsed().as_secs(),
                    round + 1,
                    self.options.rounds,
                    kind.name(),
                    path.name()
                );
                self.switch(path)?;
                match self.measure(kind, path) {
                    Ok((done, proof)) => rounds.add(kind, path, done, proof),
                    // One bad round spoils it: a number must not hide that packets were lost.
                    Err(error) => {
                        rounds.spoil(kind, path, format!("round {}: {error:#}", round + 1))
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives both agents their modes back: the failure of one is no reason to leave the other.
    fn restore(&mut self) -> Result<()> {
        let here = self.agent.map_or(Ok(None), Agent::restore);
        let here = here.context("the agent of this node has not got its mode back");
        let there = self.control.restore();
        let there = there.context("the agent of the server's node has not got its mode back");
        match (here, there) {
            (Err(here), Err(there)) => Err(anyhow!("{here:#}; {there:#}")),
            (here, there) => here.and(there).map(drop),
        }
    }

    /// Has both agents take a path.
    fn switch(&mut self, path: Path) -> Result<()> {
        let (Some(mode), Some(agent)) = (path.mode(self.options.fast_path), self.agent) else {
            return Ok(());
        };
        agent.set(mode)?;
        Ok(self.control.mode(mode)?)
    }

    fn measure(&mut self, kind: Kind, path: Path) -> Result<(Done, Proof)> {
        let mut load = kind.open(self.target)?;
        let agent = self.agent;
        let probed = proof::probe(&mut *load, path, || Reading::take(agent, &mut self.control))?;
        let start = Reading::take(agent, &mut self.control)?;
        let done = load.run(self.options.duration, &mut self.control)?;
        let end = Reading::take(agent, &mut self.control)?;
        if let Some(figure) = done.figures.iter().find(|figure| !figure.value.is_finite()) {
            bail!("{} is no number", figure.name);
        }
        let proof = proof::conclude(path, probed, [&start, &end], done.least);
        Ok((done, proof))
    }
}

#[cfg(test)]
#[path = "tests/client.rs"]
mod tests;
