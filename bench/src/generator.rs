//! The in-kernel packet generator: an XDP program that `BPF_PROG_TEST_RUN` feeds with live frames, which the kernel
//! then treats as received by a device of choice (`BPF_F_TEST_XDP_LIVE_FRAMES`, kernel 5.18, commit b530e9e1063e), and
//! a sink that counts them where they are to arrive (TCX, kernel 6.6).
//!
//! All the work of carrying a packet is done in the context of the thread that calls [`Generator::run`].

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfError, TestRun, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, MapError, PerCpuArray},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp,
        tc::{SchedClassifierLinkId, TcAttachOptions},
    },
};
use flannel_common::generator::{Headers, Plan};
use lab::{Netns, error::IoContext};
use rustix::net::{AddressFamily, SocketType};

use crate::{
    meter::{Meter, Spent, Unit},
    packets, sockets,
};

/// Frames that the kernel makes before it lets them go on their way, unless a measure asks for others. Small, so that no
/// backlog queue overflows and the caches hold what they hold under light traffic.
pub const BATCH: u32 = 8;

/// How long the last packets of a run may be under way: `ksoftirqd` may have to get its turn first.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(1);

/// The program that counts in a pod.
const SINK: &str = "sink";
/// The program that counts where the wire reaches a node.
const WIRE_SINK: &str = "wire_sink";

/// What can go wrong with the generator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object cannot be loaded.
    #[error("load BPF object {path}: {cause}")]
    Object {
        /// The object.
        path: PathBuf,
        /// Why.
        cause: Box<EbpfError>,
    },
    /// The object has no such program or map.
    #[error("the BPF object has no {0}")]
    Missing(&'static str),
    /// A program cannot be verified, attached or run.
    #[error("{operation} BPF program {program}: {cause}")]
    Program {
        /// What was attempted.
        operation: &'static str,
        /// The program.
        program: &'static str,
        /// Why.
        cause: Box<ProgramError>,
    },
    /// A map cannot be read or written.
    #[error("BPF map {map}: {cause}")]
    Map {
        /// The map.
        map: &'static str,
        /// Why.
        cause: Box<MapError>,
    },
    /// Anything about namespaces, devices and counters.
    #[error(transparent)]
    Lab(#[from] lab::Error),
}

/// The result of generator operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Which device receives generated packets.
#[derive(Clone, Copy, Debug)]
pub struct Ingress<'a> {
    /// The device's namespace.
    pub netns: &'a Netns,
    /// Its name.
    pub device: &'a str,
}

/// What a run did.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Packets that the sink has seen.
    pub arrived: u64,
    /// What they cost.
    pub spent: Spent,
    /// The unit of cost.
    pub unit: Unit,
}

impl Run {
    /// Both together.
    pub fn add(self, other: Self) -> Self {
        let instructions = self.spent.instructions.zip(other.spent.instructions);
        Self {
            arrived: self.arrived + other.arrived,
            spent: Spent {
                cost: self.spent.cost + other.spent.cost,
                deferred: self.spent.deferred + other.spent.deferred,
                instructions: instructions.map(|(a, b)| a + b),
            },
            unit: self.unit,
        }
    }
}

/// A loaded generator and its sink.
pub struct Generator {
    bpf: Ebpf,
    plan: Plan,
    frame: Vec<u8>,
    batch: u32,
    cpu: usize,
    wire_sink: Option<SchedClassifierLinkId>,
}

impl Generator {
    /// Loads the object for packets as `plan` says, with `payload` bytes behind the UDP header. They will be made on
    /// `cpu`.
    ///
    /// # Errors
    /// If the object is not the generator's, or the kernel refuses it.
    pub fn load(object: &Path, plan: Plan, payload: usize, cpu: usize) -> Result<Self> {
        let bpf = Ebpf::load_file(object).map_err(|cause| Error::Object {
            path: object.to_owned(),
            cause: cause.into(),
        })?;
        let mut generator = Self {
            bpf,
            plan,
            frame: vec![0; size_of::<Headers>() + payload],
            batch: BATCH,
            cpu,
            wire_sink: None,
        };
        generator.change(|_| ())?;
        let refused = |program| move |cause| program_failed("load", program, cause);
        generator.xdp()?.load().map_err(refused("generator"))?;
        generator.classifier(SINK)?.load().map_err(refused(SINK))?;
        Ok(generator)
    }

    /// Makes and counts other packets from now on, of the same size.
    ///
    /// # Errors
    /// If the kernel does not take the plan.
    pub fn change(&mut self, change: impl FnOnce(&mut Plan)) -> Result<()> {
        change(&mut self.plan);
        let plan: [u8; size_of::<Plan>()] = bytemuck::cast(self.plan);
        let map = self.bpf.map_mut("PLAN").ok_or(Error::Missing("PLAN"))?;
        Array::try_from(map)
            .and_then(|mut map: Array<&mut MapData, [u8; size_of::<Plan>()]>| map.set(0, plan, 0))
            .map_err(|cause| map_failed("PLAN", cause))
    }

    /// Makes packets with `payload` bytes behind the UDP header from now on, `batch` at a time.
    ///
    /// # Errors
    /// If the kernel does not take the plan.
    pub fn reshape(&mut self, payload: usize, batch: u32) -> Result<()> {
        self.frame.resize(size_of::<Headers>() + payload, 0);
        self.batch = batch;
        self.change(|plan| packets::set_payload(plan, payload))
    }

    /// What it makes and counts.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Puts the sink at the ingress of a device; it goes with the generator.
    ///
    /// # Errors
    /// If there is no such device, or the kernel has no TCX.
    pub fn attach_sink(&mut self, at: Ingress<'_>) -> Result<()> {
        let sink = self.classifier(SINK)?;
        let attached = at
            .netns
            .run(|| sink.attach(at.device, TcAttachType::Ingress))?;
        attached
            .map(drop)
            .map_err(|cause| program_failed("attach", SINK, cause))
    }

    /// Puts a sink for all IPv4 at the ingress of a device, in front of all other programs, until
    /// [`Self::detach_wire_sink`].
    ///
    /// # Errors
    /// As for the other.
    pub fn attach_wire_sink(&mut self, at: Ingress<'_>) -> Result<()> {
        let sink = self.classifier(WIRE_SINK)?;
        match sink.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(cause) => return Err(program_failed("load", WIRE_SINK, cause)),
        }
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let attached = at
            .netns
            .run(|| sink.attach_with_options(at.device, TcAttachType::Ingress, options))?;
        self.wire_sink =
            Some(attached.map_err(|cause| program_failed("attach", WIRE_SINK, cause))?);
        Ok(())
    }

    /// Lets packets go on where the wire ends.
    ///
    /// # Errors
    /// If the kernel does not let go.
    pub fn detach_wire_sink(&mut self) -> Result<()> {
        match self.wire_sink.take() {
            None => Ok(()),
            Some(link) => self
                .classifier(WIRE_SINK)?
                .detach(link)
                .map_err(|cause| program_failed("detach", WIRE_SINK, cause)),
        }
    }

    /// Makes packets, as if `at` had received them, and waits until they have arrived at the sink.
    ///
    /// # Errors
    /// If the kernel does not run them. That some do not arrive is no error here.
    pub fn run(&mut self, at: Ingress<'_>, packets: u32) -> Result<Run> {
        at.netns.run(|| self.run_here(at.device, packets))?
    }

    /// In the device's namespace, on a thread that ends soon.
    fn run_here(&mut self, device: &str, packets: u32) -> Result<Run> {
        sockets::pin(self.cpu)?;
        let context = XdpMd {
            data_end: self.frame.len() as u32,
            ingress_ifindex: index(device)?,
            ..XdpMd::default()
        };
        let before = self.arrived()?;
        let meter = Meter::open(self.cpu)?;
        let (result, spent) = meter.measure(|| self.run_and_wait(&context, packets, before))?;
        result?;
        Ok(Run {
            arrived: self.arrived()? - before,
            spent,
            unit: meter.unit(),
        })
    }

    fn run_and_wait(&mut self, context: &XdpMd, packets: u32, before: u64) -> Result<()> {
        let frame = self.frame.clone();
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(bytemuck::bytes_of(context)),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(self.batch),
            ..TestRunOptions::new()
        };
        self.xdp()?
            .test_run(options)
            .map_err(|cause| program_failed("run", "generator", cause))?;
        let start = Instant::now();
        while self.arrived()? - before < u64::from(packets) && start.elapsed() < ARRIVAL_LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn arrived(&self) -> Result<u64> {
        let map = self.bpf.map("ARRIVED").ok_or(Error::Missing("ARRIVED"))?;
        PerCpuArray::try_from(map)
            .and_then(|map: PerCpuArray<&MapData, u64>| map.get(&0, 0))
            .map(|counts| counts.iter().sum())
            .map_err(|cause| map_failed("ARRIVED", cause))
    }

    fn xdp(&mut self) -> Result<&mut Xdp> {
        let program = self.bpf.program_mut("generator");
        program
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::Missing("generator"))
    }

    fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier> {
        let program = self.bpf.program_mut(name);
        program
            .and_then(|program| program.try_into().ok())
            .ok_or(Error::Missing(name))
    }
}

fn program_failed(operation: &'static str, program: &'static str, cause: ProgramError) -> Error {
    Error::Program {
        operation,
        program,
        cause: cause.into(),
    }
}

fn map_failed(map: &'static str, cause: MapError) -> Error {
    Error::Map {
        map,
        cause: cause.into(),
    }
}

/// `struct xdp_md` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// Index of a device in the calling thread's namespace.
fn index(device: &str) -> lab::Result<u32> {
    rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .and_then(|socket| rustix::net::netdevice::name_to_index(socket, device))
        .context("find device", device)
}
