//! TCP streams: what a byte costs, and whether segments are lost or overtaken.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};

use lab::{
    counters::{self, Protocols},
    error::IoContext,
    traffic::Host,
    underlay,
};

use super::{Context, Effort, Figure, Measure, Unit};
use crate::{
    meter::{Meter, Spent},
    path::Expected,
    sockets::{self, LIMIT},
    testbed::{Result, Testbed, WIRE},
    variants::{Carrier, Setting},
};

/// Streams at the same time.
const STREAMS: [usize; 2] = [1, 4];
/// What is on the wire between the nodes, and how many bytes a run sends that way, and a quick run.
const WIRES: [(Wire, u64, u64); 3] = [
    (Wire::Aggregates, 400_000_000, 200_000_000),
    (Wire::Segments, 150_000_000, 80_000_000),
    (Wire::SegmentsOnly, 150_000_000, 80_000_000),
];
/// Bytes per write, and per read at most.
const CHUNK: usize = 128 << 10;
/// A packet on the wire holds so many bytes at most.
const LARGEST_PACKET: u64 = 64 << 10;
/// What counters of TCP are called in the report: at the sender, and at the receiver.
const SENDER: [(&str, &str); 2] = [
    ("retransmits", "Tcp.RetransSegs"),
    ("SACK reordering", "TcpExt.TCPSACKReorder"),
];
const OUT_OF_ORDER: (&str, &str) = ("out of order", "TcpExt.TCPOFOQueue");

/// What is on the wire.
#[derive(Clone, Copy, Debug)]
enum Wire {
    /// What the sender's socket has made: segmentation is left to a device that never does it.
    Aggregates,
    /// Single packets, which the receiving device aggregates, as network cards' drivers do.
    Segments,
    /// Single packets, and nothing aggregates at the device.
    SegmentsOnly,
}

impl Wire {
    fn name(self) -> &'static str {
        match self {
            Self::Aggregates => "GSO",
            Self::Segments => "segmented",
            Self::SegmentsOnly => "no GRO",
        }
    }

    fn set(self, bed: &Testbed) -> Result<()> {
        bed.cluster().nodes().iter().try_for_each(|node| {
            let netns = node.netns();
            match self {
                Self::Aggregates => underlay::restore_offloads(netns, WIRE),
                Self::Segments => underlay::aggregate_only(netns, WIRE),
                Self::SegmentsOnly => underlay::disable_offloads(netns, WIRE),
            }
        })?;
        Ok(())
    }
}

/// See the module.
pub struct Stream;

impl Measure for Stream {
    fn name(&self) -> &'static str {
        "stream"
    }

    fn title(&self, effort: &Effort) -> String {
        let megabytes = WIRES.map(|wire| (bytes(wire, effort) / 1_000_000).to_string());
        format!(
            "TCP streams, CPU time of sender, receiver and software interrupts on one CPU (ns per kB are ms per GB); \
             {} MB with aggregates on the wire (GSO), segmented and aggregated by the receiving device, segmented without \
             that (no GRO)",
            megabytes.join(", ")
        )
    }

    fn applies(&self, setting: Setting, effort: &Effort) -> bool {
        setting.services > 0 || effort.full
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[Carrier::Kernel, Carrier::KernelAgain, Carrier::Flow]
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let cpu = context.means.cpu;
        let wires = WIRES.map(|wire| (wire.0, bytes(wire, &context.effort)));
        let bed = context.beds.get(carrier)?;
        let before = Trouble::read(bed)?;
        let mut figures = Vec::new();
        for (wire, bytes) in wires {
            wire.set(bed)?;
            for streams in STREAMS {
                figures.extend(measure(bed, wire, streams, bytes, cpu)?);
            }
        }
        Wire::Aggregates.set(bed)?;
        figures.extend(Trouble::read(bed)?.since(&before));
        Ok(figures)
    }
}

fn bytes((_, usual, quick): (Wire, u64, u64), effort: &Effort) -> u64 {
    if effort.quick { quick } else { usual }
}

fn measure(
    bed: &mut Testbed,
    wire: Wire,
    streams: usize,
    bytes: u64,
    cpu: usize,
) -> Result<Vec<Figure>> {
    let expected = if bed.carrier().is_fast() {
        // More than half of what goes there at the least.
        Expected::AtLeast(bytes / LARGEST_PACKET / 2)
    } else {
        Expected::Exactly(0)
    };
    let (spent, unit) = bed.watch(expected, |bed| {
        let connections = (0..streams).map(|_| connect(bed));
        let connections = connections.collect::<Result<Vec<_>>>()?;
        // A thread of its own: its counters count those that it starts.
        let measured = thread::scope(|scope| {
            scope
                .spawn(|| transfer(connections, bytes, cpu))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        Ok(measured?)
    })?;
    let plural = if streams == 1 { "stream" } else { "streams" };
    let name = format!("{streams} {plural}, {}, CPU per kB", wire.name());
    let per_kilobyte = |count: u64| 1e3 * count as f64 / bytes as f64;
    let cost = Figure::new(&name, unit, per_kilobyte(spent.cost));
    let instructions = spent.instructions.map(|count| {
        let name = format!("{name}, instructions");
        Figure::detail(name, Unit::Instructions, per_kilobyte(count))
    });
    Ok([cost].into_iter().chain(instructions).collect())
}

/// Sends all bytes, in equal parts by all streams.
fn transfer(
    connections: Vec<(TcpStream, TcpStream)>,
    bytes: u64,
    cpu: usize,
) -> lab::Result<(Spent, Unit)> {
    sockets::pin(cpu)?;
    let meter = Meter::open(cpu)?;
    let each = bytes / connections.len() as u64;
    let (done, spent) = meter.measure(|| {
        thread::scope(|scope| {
            let threads: Vec<_> = connections
                .into_iter()
                .flat_map(|(from, to)| {
                    [
                        scope.spawn(move || write(from, each)),
                        scope.spawn(move || read(to, each)),
                    ]
                })
                .collect();
            threads.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    })?;
    done.context("stream", "bytes")?;
    Ok((spent, meter.unit().into()))
}

fn write(mut stream: TcpStream, bytes: u64) -> io::Result<()> {
    let chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(CHUNK as u64);
        stream.write_all(&chunk[..length as usize])?;
        left -= length;
    }
    stream.shutdown(Shutdown::Write)?;
    // Until the receiver has it all and closes.
    stream.read(&mut [0]).map(drop)
}

fn read(mut stream: TcpStream, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => left = left.saturating_sub(length as u64),
        }
    }
    Ok(())
}

fn connect(bed: &Testbed) -> Result<(TcpStream, TcpStream)> {
    let [near, far] = bed.ends();
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let listener = far
        .netns()
        .run(|| TcpListener::bind(any))?
        .context("open port in", far.netns().name())?;
    let port = listener.local_addr().context("query", "socket")?.port();
    let to = SocketAddr::from((far.address(), port));
    let client = near
        .netns()
        .run(|| TcpStream::connect_timeout(&to, LIMIT))?
        .context("connect to", to)?;
    let (server, _) = listener.accept().context("accept at", to)?;
    for stream in [&client, &server] {
        stream
            .set_read_timeout(Some(LIMIT))
            .and_then(|()| stream.set_write_timeout(Some(LIMIT)))
            .context("set up connection to", to)?;
    }
    Ok((client, server))
}

/// What must not become more: segments lost, sent again, out of order.
struct Trouble {
    sender: Protocols,
    receiver: Protocols,
    drops: u64,
}

impl Trouble {
    fn read(bed: &Testbed) -> Result<Self> {
        let [near, far] = bed.ends();
        let nodes = bed.cluster().nodes().iter();
        let namespaces = nodes.map(|node| node.netns());
        let mut drops = 0;
        for netns in namespaces.chain([near.netns(), far.netns()]) {
            let links = counters::links(netns)?;
            drops += links
                .values()
                .map(|link| link.rx_dropped + link.tx_dropped)
                .sum::<u64>();
        }
        Ok(Self {
            sender: Protocols::read(near.netns())?,
            receiver: Protocols::read(far.netns())?,
            drops,
        })
    }

    fn since(&self, before: &Self) -> Vec<Figure> {
        let change = |now: &Protocols, before: &Protocols, (name, counter): (&str, &str)| {
            let value = now.get(counter) - before.get(counter);
            Figure::new(name, Unit::Count, value as f64)
        };
        let sender = SENDER.map(|which| change(&self.sender, &before.sender, which));
        let receiver = change(&self.receiver, &before.receiver, OUT_OF_ORDER);
        let drops = (self.drops - before.drops) as f64;
        let drops = Figure::new("drops", Unit::Count, drops);
        sender.into_iter().chain([receiver, drops]).collect()
    }
}
