//! The table on the terminal, and the same with all samples as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    meter::Unit,
    rounds::{Effort, Row, Table},
    stats::Summary,
    testbed::PAYLOAD,
};

/// All that a run says.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Kernel release.
    pub kernel: String,
    /// Model name of the CPU.
    pub cpu_model: String,
    /// The CPU that carried the packets.
    pub cpu: usize,
    /// Flows that took turns.
    pub flows: u16,
    /// Bytes behind the UDP header.
    pub payload: usize,
    /// How much was measured.
    pub effort: Effort,
    /// What was measured.
    pub tables: Vec<Table>,
}

impl Report {
    /// A report without measurements yet, about this machine.
    pub fn new(cpu: usize, flows: u16, effort: Effort) -> Self {
        let uname = rustix::system::uname();
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim_end() == "model name").then(|| value.trim().to_owned())
        });
        Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            cpu_model: model.unwrap_or_else(|| "unknown CPU".to_owned()),
            cpu,
            flows,
            payload: PAYLOAD,
            effort,
            tables: Vec::new(),
        }
    }

    /// Whether every row has its number.
    pub fn is_complete(&self) -> bool {
        self.rows().all(|row| row.error.is_none())
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.tables.iter().flat_map(|table| &table.rows)
    }

    /// The table for people.
    pub fn text(&self) -> String {
        let unit = self.tables.iter().find_map(|table| table.unit);
        let (counted, short) = match unit {
            Some(Unit::Cycles) => ("hardware cycles (task counter, kernel included)", "cycles"),
            Some(Unit::Nanoseconds) => (
                "ns of CPU time (task clock, kernel included; this machine shows no hardware counters)",
                "ns",
            ),
            None => ("nothing", "-"),
        };
        let with_instructions = self.rows().any(|row| row.instructions.is_some());
        let mut text = format!(
            "Forwarding cost of a UDP packet with {} bytes, one way, pod to pod of two nodes, in {counted}\n\
             {} packets in {} flows, {} rounds, on CPU {} ({}), kernel {}\n\
             MAD: median absolute deviation. RATIO: to the kernel in the same round, median and range; NET: both \
             less the generator\n\n",
            self.payload,
            self.effort.packets,
            self.flows,
            self.effort.rounds,
            self.cpu,
            self.cpu_model,
            self.kernel
        );
        let _ = write!(
            text,
            "{:<8} {:>8}  {:<18}{short:>8}{:>7}{:>8}{:>8}",
            "BACKEND", "SERVICES", "PATH", "MAD", "MIN", "MAX"
        );
        if with_instructions {
            let _ = write!(text, "{:>8}", "INSTR");
        }
        let _ = writeln!(
            text,
            "{:>8}  {:<13}{:>7}  {:>8}",
            "RATIO", "RANGE", "NET", "DEFERRED"
        );
        for row in self.rows() {
            let _ = writeln!(text, "{}", line(row, with_instructions).trim_end());
        }
        text
    }
}

fn line(row: &Row, with_instructions: bool) -> String {
    let mut line = format!(
        "{:<8} {:>8}  {:<18}",
        row.setting.backend.name(),
        row.setting.services,
        row.carrier.name()
    );
    let Some(cost) = row.cost else {
        // The verifier says more than a line; the JSON file has it all.
        let error = row.error.as_deref().and_then(|error| error.lines().next());
        return format!("{line}error: {}", error.unwrap_or("not measured"));
    };
    let _ = write!(
        line,
        "{:>8.0}{:>7.1}{:>8.0}{:>8.0}",
        cost.median, cost.deviation, cost.min, cost.max
    );
    if with_instructions {
        let median = row
            .instructions
            .map(|summary| format!("{:.0}", summary.median));
        let _ = write!(line, "{:>8}", median.unwrap_or_default());
    }
    let (ratio, range) = row.ratio.map(ratio).unwrap_or_default();
    let (net, _) = row.net_ratio.map(self::ratio).unwrap_or_default();
    let samples = row.samples.iter();
    let deferred = samples
        .map(|sample| sample.deferred / sample.cost)
        .fold(0.0, f64::max);
    let _ = write!(
        line,
        "{ratio:>8}  {range:<13}{net:>7}  {:>7.1}%",
        deferred * 100.0
    );
    line
}

fn ratio(ratio: Summary) -> (String, String) {
    (
        format!("{:.3}", ratio.median),
        format!("{:.3}-{:.3}", ratio.min, ratio.max),
    )
}
