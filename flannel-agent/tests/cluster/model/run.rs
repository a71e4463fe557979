//! One node with its agent, and the comparison.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use lab::{netns::Netns, process, wait};

use super::{
    agent::{self, Answer, Line},
    kernel::{self, Monitor},
    steps::{self, Fault, Step},
    world::{Host, Lease, Node, OWN, Objects, Route, Shape, Subnets, Value, WIDE, desired},
};
use crate::support::Outcome;

/// How long the agent may take to bring all in line.
const LIMIT: Duration = Duration::from_secs(1);
/// Pause between looks.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long the kernel's own echoes of the last changes may take.
const ECHO: Duration = Duration::from_millis(30);
/// How long nothing may change then.
const QUIET: Duration = Duration::from_millis(60);
/// Leases in the test of restarts.
const LEASES: u8 = 100;

/// The agent's process.
struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn send(&mut self, line: &Line) -> Outcome {
        let text = serde_json::to_string(line)?;
        writeln!(self.stdin, "{text}").context("the agent has ended")
    }

    fn ask(&mut self) -> anyhow::Result<Answer> {
        self.send(&Line::Ask)?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("answer {line:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL, which it can do nothing about.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A node.
pub(crate) struct Run {
    shape: Shape,
    agent: Option<Process>,
    monitor: Monitor,
    leases: BTreeMap<String, Lease>,
    node: Node,
    /// What is of others.
    others: BTreeSet<String>,
    /// Routes that an agent which was killed had made, and of which the next cannot know.
    orphans: BTreeSet<Route>,
    slowest: Duration,
    folder: PathBuf,
    netns: Netns,
}

impl Drop for Run {
    fn drop(&mut self) {
        // First, or it would make the folder anew.
        self.agent = None;
        fs::remove_dir_all(&self.folder).ok();
    }
}

impl Run {
    /// A node with an uplink and an agent that knows of no other node.
    pub(crate) fn start(shape: Shape) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("model-{}-{count}", std::process::id());
        let netns = Netns::create(&name)?;
        let node = Node {
            mtu: 1500,
            number: OWN,
        };
        let (make, configure) = (steps::make(), steps::configure(&node));
        shell(&netns, &format!("ip link set lo up; {make}; {configure}"))?;
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder)?;
        let mut run = Self {
            shape,
            agent: None,
            monitor: Monitor::open(&netns)?,
            leases: BTreeMap::new(),
            others: kernel::read(&netns)?.1,
            orphans: BTreeSet::new(),
            node,
            slowest: Duration::ZERO,
            folder,
            netns,
        };
        run.start_agent()?;
        Ok(run)
    }

    /// The longest time that it took to bring all in line.
    pub(crate) const fn slowest(&self) -> Duration {
        self.slowest
    }

    fn start_agent(&mut self) -> Outcome {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env(agent::CONFIG, self.shape.config())
            .env(agent::OWN, self.shape.own_key())
            .env(agent::FOLDER, &self.folder)
            // There are no rules here, and the tools need not be asked.
            .env("PATH", "")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let netns = self.netns.clone();
        // SAFETY: the closure makes two system calls and touches no memory but its own.
        unsafe {
            command.pre_exec(move || {
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&netns),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )?;
                rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::KILL,
                ))?;
                Ok(())
            });
        }
        let mut child = command.spawn().context("the agent")?;
        let stdin = child.stdin.take().context("a pipe")?;
        let stdout = BufReader::new(child.stdout.take().context("a pipe")?);
        self.agent = Some(Process {
            child,
            stdin,
            stdout,
        });
        self.send_all()
    }

    fn send_all(&mut self) -> Outcome {
        let entry = |(key, lease): (&String, &Lease)| (key.clone(), lease.json(self.shape));
        let mut entries: Vec<_> = self.leases.iter().map(entry).collect();
        // Its own lease is in the list too.
        let own = Lease {
            number: OWN,
            subnets: Subnets::Own,
            host: Host {
                number: OWN,
                far: false,
            },
            value: Value::Right(OWN),
        };
        entries.push((self.shape.own_key(), own.json(self.shape)));
        self.send(&Line::Snapshot(entries))
    }

    fn send(&mut self, line: &Line) -> Outcome {
        match &mut self.agent {
            Some(agent) => agent.send(line),
            None => Ok(()),
        }
    }

    /// Does a step.
    pub(crate) fn step(&mut self, step: &Step) -> Outcome {
        match *step {
            Step::Put(lease) => {
                let key = lease.key(self.shape);
                self.leases.insert(key.clone(), lease);
                self.send(&Line::Put(key, lease.json(self.shape)))
            }
            Step::Remove(place) => {
                let Some(key) = self.leases.keys().nth(place).cloned() else {
                    return Ok(());
                };
                self.leases.remove(&key);
                self.send(&Line::Remove(key))
            }
            Step::List => self.send_all(),
            Step::Kill => {
                self.agent = None;
                let unusual =
                    |route: &Route| route.0.prefix_len() == WIDE && route.2 == super::UPLINK;
                let routes = kernel::read(&self.netns)?.0.routes;
                self.orphans.extend(routes.into_iter().filter(unusual));
                Ok(())
            }
            Step::Start if self.agent.is_some() => Ok(()),
            Step::Start => self.start_agent(),
            Step::Fault(fault) => self.fault(fault),
            Step::Settle => self.settle(),
        }
    }

    fn fault(&mut self, fault: Fault) -> Outcome {
        let foreign = matches!(fault, Fault::ForeignRoute(_) | Fault::ForeignNeighbour(_));
        let before = if foreign {
            self.others()?
        } else {
            BTreeSet::new()
        };
        let commands = fault.commands(self.shape, &mut self.node);
        shell(&self.netns, &commands)?;
        if foreign {
            // Others of the agent's doing cannot be among them: it makes none.
            let new = self.others()?;
            self.others.extend(new.difference(&before).cloned());
        }
        if fault.takes_others_along() {
            let left = self.others()?;
            self.others.retain(|other| left.contains(other));
        }
        Ok(())
    }

    /// What of others is there, but for what the agent is to replace.
    fn others(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(kernel::read(&self.netns)?.1)
    }

    /// Waits until all is as it should be, and makes sure that it stays so.
    fn settle(&mut self) -> Outcome {
        if self.agent.is_none() {
            self.start_agent()?;
        }
        let wanted = desired(self.shape, &self.leases, &self.node);
        let start = Instant::now();
        let limit = wait::patient(LIMIT);
        loop {
            let (present, others) = kernel::read(&self.netns)?;
            let missing: Vec<_> = self.others.difference(&others).collect();
            let mut present = ours(&present);
            let orphaned =
                |route: &Route| self.orphans.contains(route) && !wanted.routes.contains(route);
            present.routes.retain(|route| !orphaned(route));
            if present == wanted && missing.is_empty() {
                break;
            }
            if start.elapsed() > limit {
                let status = self.agent.as_mut().map(Process::ask);
                bail!(
                    "after {:.1} s, {}\nof others, missing {missing:?}\nthe agent says {status:?}",
                    limit.as_secs_f64(),
                    difference(&wanted, &present)
                );
            }
            thread::sleep(INTERVAL);
        }
        self.slowest = self.slowest.max(start.elapsed());
        thread::sleep(ECHO);
        self.monitor.changes()?;
        thread::sleep(QUIET);
        let changes = self.monitor.changes()?;
        ensure!(
            changes.is_empty(),
            "changes although all is well: {changes:#?}"
        );
        self.is_published()
    }

    /// What the lease says of the node is true.
    fn is_published(&mut self) -> Outcome {
        let answer = self.agent.as_mut().context("an agent")?.ask()?;
        ensure!(answer.ready, "not ready: {answer:?}");
        let address = format!("\"PublicIP\":\"{}\"", self.node.v4());
        ensure!(
            answer.published.contains(&address),
            "{address} is not in {answer:?}"
        );
        for mac in kernel::macs(&self.netns)? {
            ensure!(
                answer.published.contains(&mac),
                "{mac} is not in {answer:?}"
            );
        }
        Ok(())
    }

    /// Puts many leases, and starts the agent again.
    pub(crate) fn restart_changes_nothing(mut self) -> Outcome {
        for number in OWN + 1..=OWN + LEASES {
            self.step(&Step::Put(Lease {
                number,
                subnets: Subnets::Own,
                host: Host {
                    number,
                    far: number % 2 == 0 && self.shape.backend != super::world::Backend::HostGw,
                },
                value: Value::Right(number),
            }))?;
        }
        self.settle()?;
        for _ in 0..2 {
            self.step(&Step::Kill)?;
            self.monitor.changes()?;
            self.start_agent()?;
            self.agent.as_mut().context("an agent")?.ask()?;
            thread::sleep(QUIET);
            let changes = self.monitor.changes()?;
            ensure!(
                changes.is_empty(),
                "{:?}: a restart changes {changes:#?}",
                self.shape
            );
            self.settle()?;
        }
        Ok(())
    }
}

/// What is of the agent's form: routes that others have made look otherwise or lie elsewhere.
fn ours(present: &Objects) -> Objects {
    let mut ours = present.clone();
    ours.routes.retain(|(destination, gateway, device, _)| {
        let direct = device == super::UPLINK;
        let of_nodes = destination.prefix_len() == if gateway.is_ipv6() { 64 } else { 24 }
            || destination.prefix_len() == WIDE;
        let pods = destination.to_string().starts_with("10.5.")
            || destination.to_string().starts_with("fd00:5:");
        !direct || of_nodes && pods
    });
    ours
}

fn difference(wanted: &Objects, present: &Objects) -> String {
    fn of<T: Ord + std::fmt::Debug>(
        what: &str,
        wanted: &BTreeSet<T>,
        present: &BTreeSet<T>,
    ) -> String {
        let missing: Vec<_> = wanted.difference(present).collect();
        let extra: Vec<_> = present.difference(wanted).collect();
        if missing.is_empty() && extra.is_empty() {
            return String::new();
        }
        format!("\n{what}: missing {missing:?}, too many {extra:?}")
    }
    of("devices", &wanted.devices, &present.devices)
        + &of("routes", &wanted.routes, &present.routes)
        + &of("neighbours", &wanted.neighbours, &present.neighbours)
        + &of("FDB", &wanted.fdb, &present.fdb)
}

/// Runs commands of which some may fail.
fn shell(netns: &Netns, commands: &str) -> Outcome {
    let commands = format!("exec 2>/dev/null\n{commands}\ntrue");
    process::run(Some(netns), "sh", &["-c", &commands])?;
    Ok(())
}
