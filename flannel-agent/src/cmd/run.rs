//! `flannel-agent run`: the daemon, from options to the reconcile loop.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context as _, bail};
use flannel_common::addr::Mac;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use super::{
    args::{self, AntiSpoof, RunOptions},
    store::{self, Store},
};
use crate::{
    backend,
    board::Board,
    family::PerFamily,
    fastpath::{self, FastPath},
    health,
    iface::{self, Uplink},
    kernel::{
        apply,
        events::Events,
        netlink::Netlink,
        objects::Observed,
        rules::{Guard, Mode, Rules},
    },
    lease::{Attributes, OwnNode, Request, SubnetManager},
    log, memory, metrics,
    netconf::{self, NetworkConfig},
    notify,
    reconcile::{self, Call, Inputs, Reconciler, Settings, device, extension, rules::Keeper},
    status::{self, Status},
    status_socket::StatusSocket,
    subnet_file, udp,
};

/// Lease events that may wait for the loop.
const LEASE_EVENTS: usize = 1024;
/// Pause before the interface is looked for again.
const WAIT: Duration = Duration::from_secs(1);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When an option cannot be honoured, or the node lacks what the agent needs.
pub fn run(options: RunOptions, warnings: &[String]) -> anyhow::Result<()> {
    memory::give_back();
    log::start(options.log_format, options.v);
    metrics::started();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    for name in options.removed.given() {
        tracing::warn!("{name} was removed from flanneld and has no effect");
    }
    let store = Store::of(&options)?;
    // One thread: nothing here computes for long, and each further one would cost memory on every node.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("tokio runtime")?;
    let result = runtime.block_on(supervise(options, store));
    // A rule tool that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

async fn supervise(options: RunOptions, store: Store) -> anyhow::Result<()> {
    end_on_second_signal().context("signal handlers")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT handler")?;
    let board = Board::new(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        bpf_object: fastpath::embedded(),
        pid: std::process::id(),
        fast_path: status::FastPath {
            mode: format!("{:?}", options.fast_path).to_lowercase(),
            ..status::FastPath::default()
        },
        ..Status::default()
    });
    let (call, calls) = mpsc::channel(1);
    let socket = StatusSocket::bind(&options.status_socket)?;
    let health = match options.healthz_port {
        0 => None,
        port => Some(
            health::bind(&options.healthz_ip, port)
                .await
                .with_context(|| {
                    format!(
                        "--healthz-ip = {}, --healthz-port = {port}: choose an address and port that are free",
                        options.healthz_ip
                    )
                })?,
        ),
    };
    if let Some(listener) = health {
        tokio::spawn(health::serve(listener, board.clone(), call.clone()));
    }
    tracing::info!(
        version = args::version(),
        pid = std::process::id(),
        "starting"
    );
    let agent: Pin<Box<dyn Future<Output = anyhow::Result<()>>>> = match store {
        Store::Etcd => Box::pin(agent(store::etcd(&options)?, options, board.clone(), calls)),
        Store::Kube => {
            let manager = store::kube(&options).await?;
            Box::pin(agent(manager, options, board.clone(), calls))
        }
        Store::File => Box::pin(agent(store::file(&options), options, board.clone(), calls)),
    };
    let result = tokio::select! {
        result = agent => result,
        () = socket.serve(board, call) => Ok(()),
        _ = terminate.recv() => { tracing::info!("SIGTERM: leaving everything in place"); Ok(()) }
        _ = interrupt.recv() => { tracing::info!("SIGINT: leaving everything in place"); Ok(()) }
    };
    notify::stopping();
    result
}

/// From the second on, SIGTERM and SIGINT end the process at once, whatever it is doing: a call into the kernel that
/// does not return must not need SIGKILL.
fn end_on_second_signal() -> std::io::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // In this order: the first signal finds that nobody has asked yet.
        flag::register_conditional_default(signal, asked.clone())?;
        flag::register(signal, asked.clone())?;
    }
    Ok(())
}

async fn agent(
    mut manager: impl SubnetManager,
    options: RunOptions,
    board: Board,
    mut calls: mpsc::Receiver<Call>,
) -> anyhow::Result<()> {
    let config = while_answering(&mut calls, manager.network_config(&board)).await;
    tracing::info!(config = %serde_json::to_string(&config)?, "network config");
    board.update(|status| status.config = serde_json::to_value(&config).ok());
    warn_about_host(&config, &options, &board);
    let own_node = while_answering(&mut calls, manager.own_node(&board)).await;

    let mut netlink = Netlink::open()?;
    let events = Events::open().context("netlink events, which need CAP_NET_ADMIN")?;
    let wanted = wanted_interface(&options, &config, &own_node);
    let interface =
        while_answering(&mut calls, find_interface(&mut netlink, &wanted, &board)).await?;
    if let Some(objection) = backend::objection(&config, &interface) {
        bail!(objection);
    }
    if let netconf::Backend::Udp(_) = config.backend {
        // Before anything is touched.
        udp::tun::check()?;
    }
    tracing::info!(
        name = interface.name,
        address = interface.addresses.join(),
        public = interface.public.join(),
        "interface between nodes"
    );
    board.update(|status| {
        status.interface = Some(interface.name.clone());
        status.public_ip = Some(interface.public.join());
    });

    let macs = make_devices(
        &mut netlink,
        &config,
        &interface,
        own_node.published.as_ref(),
    )?;
    let output = while_answering(&mut calls, extension::prepare(&config)).await?;
    let attributes = backend::attributes(&config, &interface, &macs, output.as_deref());
    let former = subnet_file::previous(&options.subnet_file).subnets;
    let request = Request {
        config: config.clone(),
        attributes: attributes.clone(),
        previous: former,
    };
    let own = while_answering(&mut calls, manager.acquire(request, &board)).await;
    let node = extension::own_node(&own.subnets, &interface);
    while_answering(&mut calls, extension::set_up(&config, &node)).await?;

    let switches = &options.switches;
    let rules = Rules {
        networks: config.networks(),
        subnets: own.subnets,
        masquerade: switches.ip_masq,
        random_fully: !switches.ip_masq_fully_random_disable,
        forward: switches.iptables_forward_rules,
        mode: Mode {
            enable_nftables: config.enable_nftables.unwrap_or(false),
            choice: options.traffic_rules,
        },
        guard: Guard::default(),
    };
    let rules = Keeper::start(
        rules,
        Duration::from_secs(options.iptables_resync),
        board.clone(),
    );
    let ipv6 = config.networks().v6.is_some();
    let settings = Settings {
        config,
        output,
        iface: wanted,
        subnet_file: options.subnet_file.clone(),
        ip_masq: switches.ip_masq,
        blackhole: switches.ip_blackhole_route,
        former,
        fast_path: fastpath::Mode::from(options.fast_path) != fastpath::Mode::Off,
        heartbeat: options.fast_path_heartbeat,
        strict: options.anti_spoof == AntiSpoof::Strict,
        hears_pods: events.hears_pods(),
    };
    let fast_path = FastPath::start(fastpath::Options {
        mode: options.fast_path.into(),
        pin_dir: options.pin_dir.clone(),
        egress: options.fast_path_egress,
        ingress: options.fast_path_ingress,
        attach: options.fast_path_attach,
        pod_hook: options.fast_path_pods,
        object: options.bpf_object.clone(),
        attest: options.fast_path_attest,
        mark: options.fast_path_mark,
        flows: options.fast_path_flows,
        ipv6,
        revalidate: options.fast_path_revalidate,
        grace: options.fast_path_grace,
        heartbeat: options.fast_path_heartbeat,
        strict: options.anti_spoof == AntiSpoof::Strict,
        state_file: liberal_state(&options.subnet_file),
    });
    let (publish, to_publish) = watch::channel(attributes);
    let (lease_events, leases) = mpsc::channel(LEASE_EVENTS);
    tokio::spawn(manager.run(lease_events, to_publish, board.clone()));
    let reconciler = Reconciler::new(
        settings, board, netlink, interface, own, macs, publish, fast_path,
    );
    reconcile::run(
        reconciler,
        Inputs {
            leases,
            events,
            rules,
            calls,
        },
    )
    .await
    .context("netlink events")
}

/// Where the former value of a host setting is noted that the fast path changes: beside the subnet file, which is a
/// node's own as well.
pub fn liberal_state(subnet_file: &Path) -> PathBuf {
    subnet_file.with_file_name("tcp_be_liberal")
}

/// Answers status requests, from what is on the board, while start-up waits for something.
async fn while_answering<T>(calls: &mut mpsc::Receiver<Call>, phase: impl Future<Output = T>) -> T {
    let mut phase = std::pin::pin!(phase);
    loop {
        tokio::select! {
            result = &mut phase => return result,
            // What is on the board is all that there is; who wanted something else sees there that it is not done.
            Some(call) = calls.recv() => { let _ = call.done.send(()); }
        }
    }
}

/// What the host must provide and the agent does not change, as upstream does not.
fn warn_about_host(config: &NetworkConfig, options: &RunOptions, board: &Board) {
    if apply::read_sysctl("net/ipv4/ip_forward").is_ok_and(|value| value == "0") {
        board.problem(
            "ip_forward",
            Some("net.ipv4.ip_forward = 0: this node forwards no pod traffic; set it to 1".into()),
        );
    }
    let rules = options.switches.ip_masq || options.switches.iptables_forward_rules;
    if rules
        && config.enable_nftables != Some(true)
        && apply::read_sysctl("net/bridge/bridge-nf-call-iptables").is_err()
    {
        board.problem(
            "br_netfilter",
            Some("the module br_netfilter is not loaded: services do not work between pods of one node; modprobe br_netfilter".into()),
        );
    }
    // When the fast path was asked for, its own status says this.
    if options.fast_path == args::FastPathMode::Off && !fastpath::embedded() {
        tracing::warn!(
            "this binary carries no BPF object, only the kernel path: build it with `cargo xtask build`"
        );
    }
}

/// What the options say about the interface between nodes.
fn wanted_interface(
    options: &RunOptions,
    config: &NetworkConfig,
    own_node: &OwnNode,
) -> iface::Options {
    iface::Options {
        iface: options.iface.clone(),
        iface_regex: options.iface_regex.clone(),
        can_reach: options.iface_can_reach.0,
        public: PerFamily {
            v4: own_node.public.v4.or(options.public_ip.0.map(IpAddr::from)),
            v6: own_node
                .public
                .v6
                .or(options.public_ipv6.0.map(IpAddr::from)),
        },
        families: config.pools.map(|_, _| ()),
    }
}

/// Chooses the interface; an interface that is named but not there yet is waited for, a wrong option is not.
async fn find_interface(
    netlink: &mut Netlink,
    wanted: &iface::Options,
    board: &Board,
) -> Result<Uplink, iface::Error> {
    let chosen = iface::candidates(netlink, wanted)?.choose(wanted);
    if let Err(error @ (iface::Error::NoDefaultRoute | iface::Error::NoAddress(..))) = &chosen {
        // At boot the agent may be faster than the network's configuration: look once more, then give up as upstream.
        board.problem("uplink", Some(error.to_string()));
        tokio::time::sleep(WAIT).await;
        let chosen = iface::candidates(netlink, wanted)?.choose(wanted)?;
        board.problem("uplink", None);
        return Ok(chosen);
    }
    chosen
}

/// Makes the tunnel devices, if the backend has some, before there is a lease: the lease publishes their MACs, which are
/// returned. Those that were `published` before are taken again.
///
/// # Errors
/// When the kernel refuses.
pub fn make_devices(
    netlink: &mut Netlink,
    config: &NetworkConfig,
    interface: &Uplink,
    published: Option<&Attributes>,
) -> anyhow::Result<PerFamily<Mac>> {
    let mut macs = config.pools.map(|family, _| {
        published
            .and_then(|attributes| attributes.backend.vtep(family))
            .unwrap_or_else(device::random_mac)
    });
    let devices = backend::devices(config, interface, &PerFamily::default(), &macs, None);
    if devices.is_empty() {
        return Ok(macs);
    }
    for desired in devices.values() {
        device::check(netlink, &desired.kind)?;
    }
    let mut observed = Observed::default();
    device::read_links(netlink, &mut observed)?;
    for (family, desired) in devices.iter() {
        let ensured = device::ensure(netlink, desired, &mut observed)?;
        *macs.get_mut(family) = ensured.link.mac;
    }
    Ok(macs)
}
