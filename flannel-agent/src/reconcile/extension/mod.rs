//! Runs the extension backend's commands: those of the start, and for each other node the one that adds it and, when its
//! lease has changed or is gone, the one that removes it, with what the lease said then.
//!
//! A task of its own: nothing else waits for commands. Commands for one node are run one after the other, those for
//! different nodes side by side. One that fails is tried again; nothing is known of former runs, so that after a start all
//! nodes are added again, as upstream does.

mod process;
mod slot;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

pub use process::Error;
use slot::{Slot, Step};

use super::Reconciler;
use crate::{
    backend::extension::{Command, Node},
    board::Board,
    family::PerFamily,
    iface::Uplink,
    netconf::{Backend, Extension, NetworkConfig},
};

/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(30);
/// How many commands may run at a time.
const PARALLEL: usize = 4;

/// Whom commands are for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// This node.
    Own,
    /// The node whose lease has this key.
    Other(String),
}

/// All nodes that commands should have been run for.
type Nodes = Arc<BTreeMap<Subject, Node>>;

/// This node, as commands are told of it.
pub fn own_node(subnets: &PerFamily<IpNet>, uplink: &Uplink) -> Node {
    let addresses: PerFamily<IpAddr> = uplink.public;
    Node {
        subnets: *subnets,
        addresses,
        data: String::new(),
    }
}

fn options(config: &NetworkConfig) -> Option<&Extension> {
    match &config.backend {
        Backend::Extension(options) => Some(options),
        _ => None,
    }
}

/// Runs the command that comes before there is a lease, if there is one; what it prints is what the lease says.
///
/// # Errors
/// When it fails.
pub async fn prepare(config: &NetworkConfig) -> Result<Option<String>, Error> {
    const FIELD: &str = "PreStartupCommand";
    let text = options(config).map_or("", |options| &options.pre_startup_command);
    match Command::new(FIELD, text, Vec::new(), "") {
        Some(command) => {
            let output = run(&command).await?;
            Ok(Some(output))
        }
        None => Ok(None),
    }
}

/// Runs the command that comes when there is a lease, if there is one.
///
/// # Errors
/// When it fails.
pub async fn set_up(config: &NetworkConfig, own: &Node) -> Result<(), Error> {
    match own_command(config, own) {
        Some(command) => run(&command).await.map(drop),
        None => Ok(()),
    }
}

fn own_command(config: &NetworkConfig, own: &Node) -> Option<Command> {
    let text = options(config).map_or("", |options| &options.post_startup_command);
    own.own_command("PostStartupCommand", text, config)
}

/// Runs a command; returns what it prints.
async fn run(command: &Command) -> Result<String, Error> {
    let output = process::run(command, LIMIT).await?;
    if output.cut {
        tracing::warn!(
            field = command.field,
            "the command has printed too much: only the end is kept"
        );
    }
    let output = output.text();
    tracing::debug!(
        field = command.field,
        command = ?command.arguments,
        output,
        "command has been run"
    );
    Ok(output)
}

impl Reconciler {
    /// Tells the commands' keeper of all nodes, if there is one.
    pub(super) fn tell_extension(&self) {
        let Some(keeper) = &self.extension else {
            return;
        };
        let own = own_node(&self.own.subnets, &self.uplink);
        let others = self.peers().filter_map(|(key, lease)| {
            let mut families = lease.subnets.iter().map(|(family, _)| family);
            families
                .any(|family| self.plan.problem(key, family).is_none())
                .then(|| Some((Subject::Other(key.to_owned()), Node::of(lease)?)))?
        });
        let nodes: BTreeMap<Subject, Node> = others.chain([(Subject::Own, own)]).collect();
        keeper.wanted.send_if_modified(|wanted| {
            let changed = **wanted != nodes;
            if changed {
                *wanted = Arc::new(nodes);
            }
            changed
        });
    }
}

/// A handle on the task.
pub struct Keeper {
    wanted: watch::Sender<Nodes>,
    failures: watch::Receiver<Failures>,
}

/// Why what was run last for a node has failed; only those for which it has.
type Failures = BTreeMap<Subject, String>;

impl Keeper {
    /// Starts the task, if the backend is extension; the commands for `own`, this node, have been run.
    pub fn start(config: &NetworkConfig, own: Node, board: &Board) -> Option<Self> {
        options(config)?;
        let nodes = BTreeMap::from([(Subject::Own, own.clone())]);
        let (wanted, receiver) = watch::channel(Arc::new(nodes));
        let slots = BTreeMap::from([(Subject::Own, Slot::done(own))]);
        let (sender, failures) = watch::channel(Failures::new());
        tokio::spawn(keep(config.clone(), slots, receiver, sender, board.clone()));
        Some(Self { wanted, failures })
    }

    /// Why the last command for the node whose lease has this key has failed, if it has.
    pub(super) fn failure(&self, key: &str) -> Option<String> {
        let failures = self.failures.borrow();
        failures.get(&Subject::Other(key.to_owned())).cloned()
    }
}

async fn keep(
    config: NetworkConfig,
    mut slots: BTreeMap<Subject, Slot>,
    mut wanted: watch::Receiver<Nodes>,
    failures: watch::Sender<Failures>,
    board: Board,
) {
    let mut running = JoinSet::new();
    loop {
        let nodes = wanted.borrow_and_update().clone();
        for subject in nodes.keys() {
            if !slots.contains_key(subject) {
                slots.insert(subject.clone(), Slot::default());
            }
        }
        let now = Instant::now();
        let mut wake: Option<Instant> = None;
        for (subject, slot) in &mut slots {
            let node = nodes.get(subject);
            while let Some(step) = slot.due(node, now) {
                let Some(command) = command_of(&config, subject, &step) else {
                    slot.end(step, None, node, now);
                    continue;
                };
                if running.len() >= PARALLEL {
                    break;
                }
                slot.begin();
                let subject = subject.clone();
                running.spawn(async move { (subject, step, run(&command).await) });
            }
            wake = [wake, slot.wake(node)].into_iter().flatten().min();
        }
        slots.retain(|subject, slot| nodes.contains_key(subject) || !slot.is_empty());
        let failed: Failures = slots
            .iter()
            .filter_map(|(subject, slot)| Some((subject.clone(), slot.failure()?.to_owned())))
            .collect();
        board.problem("extension", problem(&slots, &failed));
        failures.send_replace(failed);
        let wake = async {
            match wake {
                // What is due waits for another command's end.
                Some(time) if time > now => sleep_until(time).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(ended) = running.join_next() => {
                let Ok((subject, step, result)) = ended else { return };
                if let Some(slot) = slots.get_mut(&subject) {
                    let failure = result.err().map(|error| error.to_string());
                    if let Some(failure) = &failure {
                        tracing::debug!(subnet = step.node().subnets.join(), "{failure}");
                    }
                    slot.end(step, failure, nodes.get(&subject), Instant::now());
                }
            }
            () = wake => {}
        }
    }
}

/// The command of a step; none if the operator has given none.
fn command_of(config: &NetworkConfig, subject: &Subject, step: &Step) -> Option<Command> {
    let options = options(config)?;
    match (subject, step) {
        (Subject::Own, Step::Add(node)) => own_command(config, node),
        (Subject::Own, Step::Remove(_)) => None,
        (Subject::Other(_), Step::Add(node)) => {
            node.command("SubnetAddCommand", &options.subnet_add_command)
        }
        (Subject::Other(_), Step::Remove(node)) => {
            node.command("SubnetRemoveCommand", &options.subnet_remove_command)
        }
    }
}

fn problem(slots: &BTreeMap<Subject, Slot>, failures: &Failures) -> Option<String> {
    let (subject, why) = failures.first_key_value()?;
    let subnet = slots
        .get(subject)
        .and_then(Slot::subnets)
        .unwrap_or_default();
    Some(match failures.len() - 1 {
        0 => format!("{subnet}: {why}"),
        more => format!("{subnet}: {why} (and {more} more)"),
    })
}
