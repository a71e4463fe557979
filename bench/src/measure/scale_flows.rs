//! Many flows at the same time, at a fixed rate per flow, over several revalidations of each.
//!
//! What a flow's revalidation costs is shared by the packets between two of them, so the rate per flow decides. With
//! the most flows no single CPU carries that rate, not even by the fast path: there all times are stretched by the
//! same factor, the packets' and the agent's, so that as many packets lie between two revalidations as at the full rate.

use std::time::Duration;

use super::{Context, Effort, Figure, Measure};
use crate::{
    generator::Run,
    testbed::{Error, Pace, Result, Special, Testbed},
    variants::{Carrier, Setting},
};

/// Packets per second of each flow.
const RATE: u32 = 10;
/// A pass sends so many packets at least: the few flows' packets come in bursts, or a pass would cost more than they.
const LEAST: u32 = 1_000;
/// The agent's time between two revalidations of a flow, and its grace.
const REVALIDATE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_millis(500);
/// How often each flow is revalidated, at the least.
const REVALIDATIONS: u32 = 5;
/// Numbers of flows, and by how much time is stretched for them.
const LOADS: [(u32, u32); 4] = [(1, 1), (16, 1), (1_000, 1), (100_000, STRETCH)];
/// The quick ones: no stretch takes too long.
const QUICK_LOADS: [(u32, u32); 1] = [(1_000, 1)];
const STRETCH: u32 = 4;
/// A pass sends so many packets at the most.
const LARGEST: u32 = 12_500;
/// A kernel path has no revalidation: one of so many passes does.
const KERNEL_SHARE: u32 = 4;
/// Where the kernel says how many flows conntrack may know.
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// See the module.
#[derive(Default)]
pub struct ScaleFlows {
    /// The fast path's cluster with stretched times.
    stretched: Option<Testbed>,
}

impl Measure for ScaleFlows {
    fn name(&self) -> &'static str {
        "scale-flows"
    }

    fn title(&self, _effort: &Effort) -> String {
        format!(
            "Cost of a forwarded UDP packet of many flows, {RATE} packets/s each, over {REVALIDATIONS} revalidations, one \
             sample for each ({LEAST} packets per burst if there are fewer flows). For 100 000 flows all times are {STRETCH} \
             times as long, since no CPU carries a million packets/s; the kernel sends them as fast as it can, which \
             changes nothing for it"
        )
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[Carrier::Kernel, Carrier::Flow]
    }

    fn applies(&self, setting: Setting, _effort: &Effort) -> bool {
        setting.services > 0
    }

    /// The samples are those of one round.
    fn rounds(&self, _effort: &Effort) -> usize {
        1
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let loads: &[_] = if context.effort.quick {
            &QUICK_LOADS
        } else {
            &LOADS
        };
        let mut figures = Vec::new();
        for &(flows, stretch) in loads {
            check_conntrack(flows)?;
            let bed = if stretch > 1 && carrier == Carrier::Flow {
                self.stretched(context, stretch)?
            } else {
                context.beds.get(carrier)?
            };
            let runs = bed.send_paced(flows, &pace(flows, stretch, carrier))?;
            figures.extend(named(flows, &runs));
        }
        self.stretched = None;
        Ok(figures)
    }
}

impl ScaleFlows {
    fn stretched(&mut self, context: &Context<'_, '_>, stretch: u32) -> Result<&mut Testbed> {
        let seconds = |time: Duration| format!("{}ms", (time * stretch).as_millis());
        let revalidate = format!("--fast-path-revalidate={}", seconds(REVALIDATE));
        let grace = format!("--fast-path-grace={}", seconds(GRACE));
        let special = Special {
            arguments: &[&revalidate, &grace],
            ..Special::default()
        };
        let bed = Testbed::start_as(&context.means, context.setting, Carrier::Flow, &special)?;
        Ok(self.stretched.insert(bed))
    }
}

fn pace(flows: u32, stretch: u32, carrier: Carrier) -> Pace {
    // Few flows' bursts come as often as the packets of many would; of many, a part comes at a time.
    let parts = (flows / LARGEST).max(1);
    let window = REVALIDATE * stretch;
    let interval = Duration::from_secs(1) * stretch / RATE / parts;
    let passes = (window.as_millis() / interval.as_millis()) as u32;
    let unpaced = stretch > 1 && carrier != Carrier::Flow;
    Pace {
        packets: (flows / parts).max(LEAST),
        interval: if unpaced { Duration::ZERO } else { interval },
        passes: if carrier == Carrier::Flow {
            passes
        } else {
            passes / KERNEL_SHARE
        },
        windows: REVALIDATIONS,
        spread: window,
    }
}

fn named(flows: u32, runs: &[Run]) -> Vec<Figure> {
    let name = match flows {
        1 => "UDP packet, 1 flow".to_owned(),
        0..1_000 => format!("UDP packet, {flows} flows"),
        _ => format!("UDP packet, {} 000 flows", flows / 1_000),
    };
    runs.iter()
        .flat_map(|run| Figure::per_packet(&name, run))
        .collect()
}

fn check_conntrack(flows: u32) -> Result<()> {
    let text = std::fs::read_to_string(CONNTRACK_MAX).unwrap_or_default();
    match text.trim().parse::<u32>() {
        Ok(most) if most < flows => Err(Error::Unexpected {
            what: CONNTRACK_MAX,
            value: text,
            expected: "enough for all flows",
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_packets_lie_between_revalidations_however_time_is_stretched() {
        for (flows, stretch) in [(1_000, 1), (1_000, 4), (100_000, 4)] {
            let pace = pace(flows, stretch, Carrier::Flow);
            let each = pace.packets * pace.passes / flows;
            assert_eq!(each, RATE * REVALIDATE.as_secs() as u32);
            assert_eq!(pace.interval * pace.passes, REVALIDATE * stretch);
        }
    }
}
