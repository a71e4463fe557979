//! `cargo xtask run`: a cluster of the real agent on this machine, and what it does, live: pings, a stream, a service, a
//! policy, flows.
//!
//! Start-up steps go to standard error; the result goes to standard output, as a screen that is redrawn each second,
//! as text, or as one JSON document. Nothing is left behind, however the demo ends, unless `--keep` asks for it.

mod check;
mod controls;
mod ends;
mod flows;
mod matrix;
mod observe;
mod packets;
mod policy;
mod report;
mod screen;
mod service;
mod start;
mod stream;
mod style;
mod traffic;
mod trial;
mod view;

use std::{
    io::{IsTerminal, stderr, stdout},
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lab::{Cluster, signals, state};

use crate::demo::{
    controls::{Controls, Event},
    ends::Ends,
    observe::Observer,
    policy::Policy,
    report::Report,
    screen::Screen,
};

/// How often the screen is redrawn.
const REFRESH: Duration = Duration::from_secs(1);

/// Options of `cargo xtask run`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Nodes that share a network segment.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=50))]
    nodes: u8,
    /// Pods on each node.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=50))]
    pods: u8,
    /// Further nodes behind a router: VXLAN reaches them, host-gw cannot.
    #[arg(long, value_name = "NODES", num_args = 0..=1, require_equals = true, default_value_t = 0,
          default_missing_value = "1", value_parser = clap::value_parser!(u8).range(0..=50))]
    routed: u8,
    /// How packets travel between nodes.
    #[arg(long, value_enum, default_value_t = Backend::Vxlan)]
    backend: Backend,
    /// Which packets between pods BPF carries: flows that the kernel has passed, all, or none.
    #[arg(long, value_enum, default_value_t = FastPath::Flow)]
    fast_path: FastPath,
    /// Leave the cluster up, and say how to enter its namespaces and how to remove it.
    #[arg(long)]
    keep: bool,
    /// Check every pair of pods, a service and a policy once, print the result and end; the status tells whether all was
    /// as it should be. The default without a terminal.
    #[arg(long)]
    once: bool,
    /// As --once, as a JSON document.
    #[arg(long)]
    json: bool,
    /// Only remove clusters that were kept, and leftovers of demos and tests that were killed.
    #[arg(long, exclusive = true)]
    pub clean: bool,
}

/// Backends that the demo offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    Vxlan,
    HostGw,
}

impl Backend {
    /// Its name in the network config.
    fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }
}

/// Fast path modes that the demo offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FastPath {
    Flow,
    Subnet,
    Off,
}

impl FastPath {
    /// The value of the agent's `--fast-path`.
    fn name(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Subnet => "subnet",
            Self::Off => "off",
        }
    }
}

/// How the demo ends when a signal ends it.
#[derive(Default)]
struct Ending {
    /// Whether the live screen is up, which a signal is a regular end of.
    live: AtomicBool,
    /// What to say of a cluster that stays.
    kept: Mutex<Option<String>>,
}

/// Runs the demo with the given agent binary.
///
/// # Errors
/// If the cluster cannot be built or observed. Pods that do not reach each other are not an error but a result, told
/// by the exit status.
pub fn run(options: &Options, agent: &Path) -> Result<ExitCode> {
    require_root()?;
    let ending = Arc::new(Ending::default());
    let end = ending.clone();
    signals::tear_down_on_signals(move |signal| end.on_signal(signal))
        .context("cannot install signal handlers")?;

    let begin = Instant::now();
    let mut cluster = start::cluster(options, agent)?;
    let ready = begin.elapsed();
    if options.keep {
        cluster.keep()?;
        ending.set_kept(report::keeping(&cluster, agent));
    }
    let once = options.once || options.json || !stdout().is_terminal();
    let status = if once {
        check_once(options, &cluster, ready)?
    } else {
        live(options, &cluster, &ending)?
    };
    if let Some(kept) = ending.kept() {
        eprint!("{kept}");
    } else {
        let begin = Instant::now();
        drop(cluster);
        start::announce("cluster removed", begin.elapsed());
    }
    Ok(status)
}

/// Removes clusters that were kept, and what killed processes have left. Needs no agent.
///
/// # Errors
/// If something cannot be removed.
pub fn clean() -> Result<ExitCode> {
    require_root()?;
    let removed = state::clean()?;
    for id in &removed {
        println!("lab {id} removed");
    }
    if removed.is_empty() {
        println!("nothing to remove");
    }
    Ok(ExitCode::SUCCESS)
}

fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("network namespaces and BPF need root: run `sudo -E cargo xtask run`");
}

fn check_once(options: &Options, cluster: &Cluster, ready: Duration) -> Result<ExitCode> {
    let report = Report::make(options, cluster, ready)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn live(options: &Options, cluster: &Cluster, ending: &Ending) -> Result<ExitCode> {
    let ends = Ends::of(cluster);
    let policy = ends.as_ref().map(Policy::start).transpose()?;
    let mut observer = Observer::new(options, cluster, ends.as_ref(), policy.as_ref())?;
    let controls = Controls::new(cluster, policy.as_ref(), options.fast_path);
    let screen = Screen::open().context("cannot set up the terminal")?;
    ending.live.store(true, Ordering::SeqCst);
    thread::scope(|scope| {
        let (sender, events) = mpsc::channel();
        let (controls, screen) = (&controls, &screen);
        scope.spawn(move || controls.obey(screen, &sender));
        let _end = AtEnd(|| controls.end());
        let mut next = Instant::now();
        loop {
            let observation = observer.observe(controls.message());
            screen.draw(|size| view::screen(&observation, size));
            next = (next + REFRESH).max(Instant::now());
            match events.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Timeout) | Ok(Event::Changed) => {}
                Ok(Event::Quit) | Err(RecvTimeoutError::Disconnected) => {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    })
}

/// Does something when it goes, also in a panic.
struct AtEnd<F: Fn()>(F);

impl<F: Fn()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        self.0();
    }
}

impl Ending {
    fn set_kept(&self, text: String) {
        *self
            .kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(text);
    }

    fn kept(&self) -> Option<String> {
        self.kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// Runs before the teardown; returns the exit status.
    fn on_signal(&self, signal: i32) -> i32 {
        screen::restore();
        match self.kept() {
            Some(kept) => eprint!("{kept}"),
            None if stderr().is_terminal() => eprintln!("\rremoving the cluster"),
            None => {}
        }
        if self.live.load(Ordering::SeqCst) {
            0
        } else {
            signals::exit_code(signal)
        }
    }
}
