//! A service with a cluster address in front of another node's pods, by kube-proxy's rules on every node, and a client
//! that keeps asking who is there.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::{
    Cluster, Netns, Pod, Result,
    cluster::in_parallel,
    error::IoContext,
    services::{self, Service},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::demo::{ends::Ends, flows::FlowView};

/// The service's address and port, in Kubernetes' usual service network.
pub(super) const ADDRESS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 100), 80);
/// The port that the pods behind it listen on.
const PORT: u16 = 8080;
/// Bytes of an answer: the pod's name, and spaces.
const ANSWER: usize = 16;
/// How long connecting, and an answer, may take.
const LIMIT: Duration = Duration::from_millis(700);
/// Pause between two requests of the live client, and requests on one connection: another pod answers every few seconds.
const PAUSE: Duration = Duration::from_millis(20);
const REQUESTS: u32 = 150;
/// How long the live client rests after a failure.
const REST: Duration = Duration::from_millis(200);
/// How often servers look whether they are to end, in milliseconds.
const LOOK_MS: i64 = 50;

/// The pods that answer, each with its own name.
pub(super) struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Starts a server in each pod of the server's node, and loads the service's rules on all nodes.
    pub(super) fn start(cluster: &Cluster, ends: &Ends) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut servers = Self {
            stop: stop.clone(),
            threads: Vec::new(),
        };
        for pod in ends.servers() {
            let listener = pod
                .netns()
                .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                .context("listen in", pod.netns().name())?;
            let (name, stop) = (pod.name().to_owned(), stop.clone());
            servers
                .threads
                .push(thread::spawn(move || serve(&listener, &name, &stop)));
        }
        let endpoints = ends.servers();
        let endpoints = endpoints
            .iter()
            .map(|pod| SocketAddrV4::new(pod.address(), PORT));
        let service = Service::new("demo", ADDRESS, endpoints.collect());
        in_parallel(cluster.nodes(), |node| {
            services::install(node.netns(), std::slice::from_ref(&service))
        })?;
        Ok(servers)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn serve(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    let look = Timespec {
        tv_sec: 0,
        tv_nsec: LOOK_MS * 1_000_000,
    };
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        // An error means: look again whether this is the end.
        poll(&mut ready, Some(&look)).ok();
        if let Ok((stream, _)) = listener.accept() {
            let name = name.to_owned();
            // Ends with the connection, or after the limit.
            thread::spawn(move || answer(stream, &name));
        }
    }
}

fn answer(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let text = format!("{name:ANSWER$}");
    let mut request = [0];
    while stream.read(&mut request)? > 0 {
        stream.write_all(&text.as_bytes()[..ANSWER])?;
    }
    Ok(())
}

/// A connection to the service.
pub(super) struct Client(TcpStream);

impl Client {
    pub(super) fn connect(from: &Netns) -> io::Result<Self> {
        let stream = from
            .run(|| TcpStream::connect_timeout(&SocketAddr::V4(ADDRESS), LIMIT))
            .map_err(|error| io::Error::other(error.to_string()))?
            .map_err(in_words)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(stream))
    }

    /// The port that the client has chosen.
    pub(super) fn port(&self) -> u16 {
        self.0.local_addr().map_or(0, |address| address.port())
    }

    /// Who answers, and after what time.
    pub(super) fn ask(&mut self) -> io::Result<(String, Duration)> {
        let mut text = [0; ANSWER];
        let start = Instant::now();
        self.0.write_all(b"?").map_err(in_words)?;
        self.0.read_exact(&mut text).map_err(in_words)?;
        let took = start.elapsed();
        Ok((String::from_utf8_lossy(&text).trim_end().to_owned(), took))
    }
}

/// What the kernel calls a timeout of a socket, in words.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            io::Error::new(ErrorKind::TimedOut, "no answer")
        }
        _ => error,
    }
}

/// The service, as the live screen shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct ServiceView {
    pub(super) from: String,
    /// Who answered last.
    pub(super) by: String,
    /// Median of the last round-trip times in milliseconds; none if nobody has answered yet.
    pub(super) round_trip_ms: Option<f64>,
    /// Answers of each pod.
    pub(super) answers: BTreeMap<String, u64>,
    /// Why nobody answers at the moment.
    pub(super) failure: Option<String>,
    /// At the client's node and at the server's: its name, and whether it remembers the connection, as a state.
    pub(super) legs: [(String, Option<String>); 2],
}

/// A client that keeps asking.
pub(super) struct Asking {
    ends: Ends,
    client: Pod,
    current: Arc<Mutex<Current>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _servers: Servers,
}

#[derive(Default)]
struct Current {
    /// Round-trip times since the last look.
    times: Vec<Duration>,
    /// The last median of them, in milliseconds.
    median: Option<f64>,
    by: String,
    port: u16,
    answers: BTreeMap<String, u64>,
    failure: Option<String>,
}

impl Asking {
    /// Sets the service up and begins to ask.
    pub(super) fn start(cluster: &Cluster, ends: &Ends) -> Result<Self> {
        let servers = Servers::start(cluster, ends)?;
        let (client, _) = ends.first();
        let current = Arc::new(Mutex::new(Current::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped, from) = (current.clone(), stop.clone(), client.netns().clone());
        let thread = thread::spawn(move || keep_asking(&from, &shared, &stopped));
        Ok(Self {
            ends: ends.clone(),
            client,
            current,
            stop,
            thread: Some(thread),
            _servers: servers,
        })
    }

    /// What has become of it since the last look; `flows` are what the two nodes remember.
    pub(super) fn view(&self, flows: [&[FlowView]; 2]) -> ServiceView {
        let mut current = lock(&self.current);
        let mut times = std::mem::take(&mut current.times);
        times.sort();
        let median = times.get(times.len() / 2);
        let median = median.map(|time| time.as_secs_f64() * 1e3);
        current.median = median.or(current.median);
        let legs = self.legs(current.port, flows);
        ServiceView {
            from: self.client.name().to_owned(),
            by: current.by.clone(),
            round_trip_ms: current.median,
            answers: current.answers.clone(),
            failure: current.failure.clone(),
            legs,
        }
    }

    fn legs(&self, port: u16, flows: [&[FlowView]; 2]) -> [(String, Option<String>); 2] {
        let found = states(&self.client, port, flows);
        let [client, server] = found;
        [
            (self.ends.client_node.name().to_owned(), client),
            (self.ends.server_node.name().to_owned(), server),
        ]
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

/// What the client's node and the server's node remember of the connection from this port, by state.
pub(super) fn states(client: &Pod, port: u16, flows: [&[FlowView]; 2]) -> [Option<String>; 2] {
    let address = client.address().to_string();
    let [at_client, at_server] = flows;
    let state = |flow: Option<&FlowView>| flow.map(|flow| flow.state.clone());
    [
        state(at_client.iter().find(|flow| {
            flow.protocol == "tcp"
                && (&flow.pod, flow.pod_port, flow.remote_port) == (&address, port, PORT)
        })),
        state(at_server.iter().find(|flow| {
            flow.protocol == "tcp"
                && (&flow.remote, flow.remote_port, flow.pod_port) == (&address, port, PORT)
        })),
    ]
}

fn keep_asking(from: &Netns, shared: &Mutex<Current>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = ask_for_a_while(from, shared, stop) {
            lock(shared).failure = Some(error.to_string());
            thread::sleep(REST);
        }
    }
}

fn ask_for_a_while(from: &Netns, shared: &Mutex<Current>, stop: &AtomicBool) -> io::Result<()> {
    let mut client = Client::connect(from)?;
    for _ in 0..REQUESTS {
        let (by, time) = client.ask()?;
        {
            let mut current = lock(shared);
            current.failure = None;
            current.port = client.port();
            current.times.push(time);
            *current.answers.entry(by.clone()).or_default() += 1;
            current.by = by;
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn lock(current: &Mutex<Current>) -> MutexGuard<'_, Current> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}
