//! `flannel-agent run`: the daemon, from options to the reconcile loop.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
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

use super::args::{self, AntiSpoof, RunOptions};
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
    lease::{
        Request, SubnetManager,
        etcd::{Etcd, Options as EtcdOptions, TlsError, TlsFiles},
    },
    log, metrics,
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
    log::start(options.log_format, options.v);
    metrics::started();
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    check(&options)?;
    // One thread: nothing here computes for long, and each further one would cost memory on every node.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("tokio runtime")?;
    let result = runtime.block_on(supervise(options));
    // A rule tool that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

/// Options that this agent cannot honour are refused by name; those without effect are said so.
fn check(options: &RunOptions) -> anyhow::Result<()> {
    let switches = &options.switches;
    if switches.kube_subnet_mgr {
        bail!(
            "--kube-subnet-mgr: the Kubernetes subnet manager is not there yet; leave it out and give --etcd-endpoints"
        );
    }
    for name in options.removed.given() {
        tracing::warn!("{name} was removed from flanneld and has no effect");
    }
    let endpoints: Vec<&String> = options
        .etcd_endpoints
        .iter()
        .filter(|url| !url.is_empty())
        .collect();
    if endpoints.is_empty() {
        bail!("--etcd-endpoints is empty: give at least one URL such as http://127.0.0.1:2379");
    }
    if let Some(url) = endpoints.iter().find(|url| !is_endpoint(url)) {
        bail!("--etcd-endpoints: {url:?} is no URL such as http://127.0.0.1:2379");
    }
    Ok(())
}

/// Whether `url` is an address with an optional scheme, as etcd's endpoints are.
fn is_endpoint(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
        .unwrap_or(url);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]%/".contains(&byte);
    rest.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '[')
        && rest.bytes().all(allowed)
        && !rest.contains("//")
}

async fn supervise(options: RunOptions) -> anyhow::Result<()> {
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
    let result = tokio::select! {
        result = agent(options, board.clone(), calls) => result,
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
    options: RunOptions,
    board: Board,
    mut calls: mpsc::Receiver<Call>,
) -> anyhow::Result<()> {
    let mut manager = subnet_manager(&options)?;
    let config = while_answering(&mut calls, manager.network_config(&board)).await;
    tracing::info!(config = %serde_json::to_string(&config)?, "network config");
    board.update(|status| status.config = serde_json::to_value(&config).ok());
    warn_about_host(&config, &options, &board);

    let mut netlink = Netlink::open()?;
    let events = Events::open().context("netlink events")?;
    let wanted = wanted_interface(&options, &config);
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

    let macs = make_devices(&mut netlink, &config, &interface)?;
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

/// The files of TLS, which must be there and fit together at the start as for upstream; later they may change.
fn tls_files(options: &RunOptions) -> Result<TlsFiles, TlsError> {
    let files = TlsFiles::new(
        &options.etcd_certfile,
        &options.etcd_keyfile,
        &options.etcd_cafile,
    )?;
    files.load()?;
    Ok(files)
}

fn subnet_manager(options: &RunOptions) -> anyhow::Result<Etcd> {
    let user = (!options.etcd_username.is_empty()).then(|| {
        (
            options.etcd_username.clone(),
            options.etcd_password.0.clone(),
        )
    });
    let etcd = EtcdOptions {
        endpoints: options
            .etcd_endpoints
            .iter()
            .filter(|url| !url.is_empty())
            .cloned()
            .collect(),
        prefix: options.etcd_prefix.trim_end_matches('/').to_owned(),
        tls: tls_files(options)?,
        user,
    };
    let margin = Duration::from_secs(options.subnet_lease_renew_margin * 60);
    Ok(Etcd::new(etcd, margin))
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
fn wanted_interface(options: &RunOptions, config: &NetworkConfig) -> iface::Options {
    iface::Options {
        iface: options.iface.clone(),
        iface_regex: options.iface_regex.clone(),
        can_reach: options.iface_can_reach.0,
        public: PerFamily {
            v4: options.public_ip.0.map(IpAddr::from),
            v6: options.public_ipv6.0.map(IpAddr::from),
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
/// returned.
///
/// # Errors
/// When the kernel refuses.
pub fn make_devices(
    netlink: &mut Netlink,
    config: &NetworkConfig,
    interface: &Uplink,
) -> anyhow::Result<PerFamily<Mac>> {
    let mut macs = config.pools.map(|_, _| device::random_mac());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_told_from_other_text() {
        for url in [
            "http://127.0.0.1:2379",
            "https://etcd-0.example:2379/",
            "[fd00::1]:2379",
            "etcd:2379",
        ] {
            assert!(is_endpoint(url), "{url}");
        }
        for text in [
            "ht!tp://x",
            "ftp://etcd",
            "http://",
            "etcd 2379",
            "unix:///run/etcd",
        ] {
            assert!(!is_endpoint(text), "{text}");
        }
    }
}
