//! The udp backend's data path: bare IPv4 packets between a TUN device and a UDP socket, as upstream's proxy carries
//! them (`pkg/backend/udp/proxy_amd64.c`), so that either end of a tunnel can be either program.
//!
//! ```text
//!             routes: subnet ─► node          (changed by the agent at any time)
//!                  │
//!   TUN ──► outbound thread ──► UDP socket    one packet, one datagram; TTL−1; no route: ICMP to the sender
//!   TUN ◄── inbound thread  ◄── UDP socket    TTL−1
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`packet`] | one packet: is it one, its next hop's TTL, the ICMP answer; pure |
//! | [`routes`] | which node has an address; pure |
//! | [`runs`] | which packets of a batch the kernel can send by one call; pure |
//! | [`tun`] | the device |
//! | `outbound`, `inbound` | the threads |
//! | `sys` | the calls that neither the standard library nor rustix has: all that is unsafe here |
//!
//! The device goes with the process. Its address, MTU and route are kernel objects like any: `backend` says what they are,
//! and nothing here sets them. No packet is ever changed but for its TTL and the checksum over it.

mod counters;
mod inbound;
mod outbound;
pub mod packet;
pub mod routes;
pub mod runs;
mod sys;
pub mod tun;

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, OnceLock, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ipnet::Ipv4Net;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

pub use counters::{Counters, Traffic};
pub use routes::Routes;
pub use tun::Device;

/// Upstream's default for `Port` of the udp backend (`pkg/backend/udp/udp_amd64.go`).
pub const DEFAULT_PORT: u16 = 8285;

/// Upstream's pattern for the device's name: the kernel puts in the first free number.
pub const DEVICE_PATTERN: &str = "flannel%d";

/// How long a send may wait for room in the socket's buffer, so that the end of the proxy never waits longer.
const SEND_LIMIT: Duration = Duration::from_secs(1);

/// What a proxy is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the device, or a pattern with `%d` for its number.
    pub pattern: String,
    /// The node's address in the flannel network, which ICMP answers come from: the first of its subnet.
    pub address: Ipv4Addr,
    /// Address of the node's interface, and the UDP port of all nodes.
    pub bind: SocketAddrV4,
}

/// Why a proxy cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are no TUN devices here, or not for this process.
    #[error(transparent)]
    Tun(#[from] tun::Error),
    /// The socket cannot be had.
    #[error(
        "cannot receive on UDP {address}: {source}; the udp backend needs this address and port for itself: end what \
         else listens there, or set \"Port\" in the network config of all nodes"
    )]
    Bind {
        /// Address and port.
        address: SocketAddrV4,
        /// What the kernel said.
        source: io::Error,
    },
    /// Some other call has failed.
    #[error("udp backend: {call}: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    fn system<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            call,
            source: source.into(),
        }
    }
}

/// A running proxy. It ends, and its device with it, when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    options: Options,
    device: Device,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads have in common.
#[derive(Debug)]
struct Shared {
    tun: OwnedFd,
    socket: UdpSocket,
    /// The nodes' port.
    port: u16,
    /// Where ICMP answers come from.
    address: Ipv4Addr,
    routes: RwLock<Routes>,
    tally: counters::Tally,
    stop: AtomicBool,
    /// Readable once `stop` is set, for threads that sleep.
    stopped: OwnedFd,
    failure: OnceLock<String>,
}

impl Proxy {
    /// Makes the device and the socket, in the network namespace of the calling thread, and starts to carry packets.
    ///
    /// # Errors
    /// If either cannot be had; then there is neither.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let (tun, name) = tun::open(&options.pattern)?;
        let socket = UdpSocket::bind(options.bind).map_err(|source| Error::Bind {
            address: options.bind,
            source,
        })?;
        let index = rustix::net::netdevice::name_to_index(&socket, &name)
            .map_err(Error::system("index of the TUN device"))?;
        socket
            .set_write_timeout(Some(SEND_LIMIT))
            .map_err(Error::system("SO_SNDTIMEO"))?;
        // Kernels before 5.0 have none: then datagrams come one by one.
        if let Err(error) = sys::receive_aggregates(socket.as_fd()) {
            tracing::debug!(%error, "no UDP_GRO");
        }
        let shared = Arc::new(Shared {
            tun,
            socket,
            port: options.bind.port(),
            address: options.address,
            routes: RwLock::default(),
            tally: counters::Tally::default(),
            stop: AtomicBool::new(false),
            stopped: eventfd(0, EventfdFlags::CLOEXEC).map_err(Error::system("eventfd"))?,
            failure: OnceLock::new(),
        });
        // From here on an error ends what was started.
        let mut proxy = Self {
            options: options.clone(),
            device: Device { name, index },
            shared,
            threads: Vec::new(),
        };
        proxy.spawn("udp-out", outbound::run)?;
        proxy.spawn("udp-in", inbound::run)?;
        Ok(proxy)
    }

    fn spawn(&mut self, name: &str, work: fn(&Shared) -> io::Result<()>) -> Result<(), Error> {
        let shared = self.shared.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            if let Err(error) = work(&shared) {
                shared.fail(&error);
            }
        });
        self.threads.push(thread.map_err(Error::system("thread"))?);
        Ok(())
    }

    /// What it was started with.
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// The TUN device.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Replaces all routes by these, from one packet to the next.
    pub fn set_routes(&self, routes: Routes) {
        // What was there is freed when nobody waits for the lock any more.
        drop(std::mem::replace(&mut *self.routes(), routes));
    }

    /// Sends packets for `subnet` to `node` from now on, or nowhere.
    pub fn change(&self, subnet: Ipv4Net, node: Option<Ipv4Addr>) {
        self.routes().set(subnet, node);
    }

    fn routes(&self) -> RwLockWriteGuard<'_, Routes> {
        let routes = self.shared.routes.write();
        routes.unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been carried, and what not and why.
    pub fn counters(&self) -> Counters {
        self.shared.tally.read()
    }

    /// Why nothing is carried any more, if so: somebody has deleted the device. The remedy is to start another proxy.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.end();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread itself.
            thread.join().ok();
        }
    }
}

impl Shared {
    fn end(&self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&self.stopped, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot wake the udp backend's threads");
        }
    }

    fn fail(&self, error: &io::Error) {
        if self.failure.set(error.to_string()).is_ok() {
            tracing::error!(%error, "the udp backend's device is gone");
        }
        self.end();
    }

    fn is_ended(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sleeps until `source` has something, the time is over, or the proxy ends.
    fn wait(&self, source: Option<BorrowedFd<'_>>, limit: Option<&Timespec>) -> io::Result<()> {
        let stopped = PollFd::new(&self.stopped, PollFlags::IN);
        let result = match &source {
            Some(source) => poll(&mut [stopped, PollFd::new(source, PollFlags::IN)], limit),
            None => poll(&mut [stopped], limit),
        };
        match result {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
