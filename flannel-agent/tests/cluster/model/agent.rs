//! The agent of the model test: its reconcile loop on the real kernel, in a process of its own that can be killed. Leases
//! come on standard input, a line each, instead of from etcd.

use std::{env, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use flannel_agent::{
    backend,
    board::Board,
    cmd::run::make_devices,
    family::PerFamily,
    fastpath::{self, FastPath},
    iface,
    kernel::{
        events::Events,
        netlink::Netlink,
        rules::{Guard, Mode, Rules},
    },
    lease::{self, OwnLease, key},
    netconf::NetworkConfig,
    reconcile::{self, Call, Inputs, Reconciler, Settings, Wanted, rules::Keeper},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::UPLINK;

/// Names the network config to the process, and makes it one.
pub(crate) const CONFIG: &str = "FLANNEL_MODEL_CONFIG";
/// Names the key of its own lease.
pub(crate) const OWN: &str = "FLANNEL_MODEL_OWN";
/// Names a folder for its files.
pub(crate) const FOLDER: &str = "FLANNEL_MODEL_FOLDER";

/// A line on standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// All leases: keys and values.
    Snapshot(Vec<(String, String)>),
    /// A lease is new or has changed.
    Put(String, String),
    /// A lease is gone.
    Remove(String),
    /// Wants an [`Answer`].
    Ask,
}

/// A line on standard output.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// What the lease says.
    pub(crate) published: String,
    /// Whether it has told systemd that it is ready.
    pub(crate) ready: bool,
    /// What is wrong.
    pub(crate) problems: Vec<String>,
}

/// Pause before the interface is looked for again.
const WAIT: Duration = Duration::from_millis(20);

/// Runs it, if this process is to be one.
pub(crate) fn main() -> Option<ExitCode> {
    let config = env::var(CONFIG).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let result = runtime.block_on(agent(&config));
    runtime.shutdown_background();
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

async fn agent(config: &str) -> anyhow::Result<()> {
    let config = NetworkConfig::parse(config.as_bytes())?;
    let own = OwnLease {
        subnets: key::parse(&env::var(OWN)?)?,
        expires: None,
    };
    let folder = PathBuf::from(env::var_os(FOLDER).context(FOLDER)?);
    let board = Board::default();
    let mut netlink = Netlink::open()?;
    let events = Events::open()?;
    let iface = iface::Options {
        iface: vec![UPLINK.into()],
        families: config.pools.map(|_, _| ()),
        ..iface::Options::default()
    };
    // The real one ends here and is started again.
    let (uplink, macs) = loop {
        let uplink = iface::candidates(&mut netlink, &iface)?.choose(&iface);
        let made = uplink.map_err(anyhow::Error::from).and_then(|uplink| {
            let macs = make_devices(&mut netlink, &config, &uplink, None)?;
            Ok((uplink, macs))
        });
        match made {
            Ok(made) => break made,
            Err(_) => tokio::time::sleep(WAIT).await,
        }
    };
    let attributes = backend::attributes(&config, &uplink, &macs, None);
    let (publish, published) = watch::channel(attributes);
    let rules = Rules {
        networks: config.networks(),
        subnets: own.subnets,
        masquerade: false,
        random_fully: false,
        forward: false,
        mode: Mode::default(),
        guard: Guard::default(),
    };
    let settings = Settings {
        config,
        iface,
        subnet_file: folder.join("subnet.env"),
        ip_masq: false,
        output: None,
        fast_path: false,
        heartbeat: Duration::from_secs(60),
        blackhole: false,
        former: PerFamily::default(),
        strict: false,
        hears_pods: events.hears_pods(),
    };
    let fast_path = FastPath::start(fastpath::Options {
        mode: fastpath::Mode::Off,
        pin_dir: folder.join("pins"),
        ..fastpath::Options::default()
    });
    let rules = Keeper::start(rules, Duration::from_secs(60), board.clone());
    let (lease_events, leases) = mpsc::channel(64);
    let (call, calls) = mpsc::channel(1);
    let reconciler = Reconciler::new(
        settings,
        board.clone(),
        netlink,
        uplink,
        own,
        macs,
        publish,
        fast_path,
    );
    let inputs = Inputs {
        leases,
        events,
        rules,
        calls,
    };
    tokio::select! {
        result = reconcile::run(reconciler, inputs) => Ok(result?),
        result = listen(lease_events, call, board, published) => result,
    }
}

async fn listen(
    leases: mpsc::Sender<lease::Event>,
    calls: mpsc::Sender<Call>,
    board: Board,
    published: watch::Receiver<lease::Attributes>,
) -> anyhow::Result<()> {
    let (sender, mut lines) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        let entry = |key: String, value: String| {
            let entry = lease::entry(&key, value.as_bytes());
            (key, entry)
        };
        let event = match serde_json::from_str(&line)? {
            Line::Snapshot(entries) => {
                let entries = entries.into_iter().map(|(key, value)| entry(key, value));
                lease::Event::Snapshot(entries.collect())
            }
            Line::Put(key, value) => {
                let (key, entry) = entry(key, value);
                lease::Event::Put(key, entry)
            }
            Line::Remove(key) => lease::Event::Removed(key),
            Line::Ask => {
                let (done, is_done) = oneshot::channel();
                let wanted = Wanted::Status;
                calls.send(Call { wanted, done }).await?;
                is_done.await?;
                let status = board.status();
                let answer = Answer {
                    published: published.borrow().to_json(),
                    ready: status.ready,
                    problems: status.problems,
                };
                println!("{}", serde_json::to_string(&answer)?);
                continue;
            }
        };
        leases.send(event).await?;
    }
    Ok(())
}
