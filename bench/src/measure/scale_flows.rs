//! Many flows at the same time, at a fixed rate per flow, over several revalidations of each.
//!
//! What a flow's revalidation costs is shared by the packets between two of them, so the rate per flow decides. With
//! the most flows no single CPU carries that rate, not even by the fast path: there all times are stretched by the
//! same factor, the packets' and the agent's, so that as many packets lie between two revalidations as at the full rate.

use std::time::Duration;

use super::{Context, Effort, Figure, Measure};
use crate::{
    testbed::{Error, Pace, Result, Special, Testbed},
    variants::{Carrier, Setting},
};

/// A pass sends so many packets at least: the few flows' packets come in bursts, or a pass would cost more than they.
const LEAST: u32 = 1_000;
/// The agent's time between two revalidations of a flow, and its grace.
const REVALIDATE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_millis(500);
/// How often each flow is revalidated, at the least.
const REVALIDATIONS: u32 = 5;
/// What is sent, unless the run is a full one the first two.
const LOADS: [Load; 5] = [
    Load::new(1_000, 100),
    Load::new(1_000, 10),
    Load {
        stretch: STRETCH,
        ..Load::new(100_000, 10)
    },
    Load::new(1, 100),
    Load::new(16, 100),
];
const STRETCH: u32 = 4;
/// A pass sends so many packets at the most.
const LARGEST: u32 = 12_500;
/// A kernel path has no revalidation: one of so many passes does.
const KERNEL_SHARE: u32 = 4;
/// Where the kernel says how many flows conntrack may know.
const CONNTRACK_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Flows, and how they send.
#[derive(Clone, Copy, Debug)]
struct Load {
    flows: u32,
    /// Packets per second of each.
    rate: u32,
    /// By how much time is stretched.
    stretch: u32,
}

impl Load {
    const fn new(flows: u32, rate: u32) -> Self {
        Self {
            flows,
            rate,
            stretch: 1,
        }
    }

    fn name(&self) -> String {
        let flows = match self.flows {
            1 => "1 flow".to_owned(),
            flows @ 0..1_000 => format!("{flows} flows"),
            flows => format!("{} 000 flows", flows / 1_000),
        };
        format!("UDP packet, {flows}, {}/s", self.rate)
    }

    fn pace(&self, carrier: Carrier) -> Pace {
        // Few flows' bursts come as often as the packets of many would; of many, a part comes at a time.
        let parts = (self.flows / LARGEST).max(1);
        let window = REVALIDATE * self.stretch;
        let interval = Duration::from_secs(1) * self.stretch / self.rate / parts;
        let passes = (window.as_millis() / interval.as_millis()) as u32;
        let unpaced = self.stretch > 1 && carrier != Carrier::Flow;
        Pace {
            packets: (self.flows / parts).max(LEAST),
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
}

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
            "Cost of a forwarded UDP packet of many flows, so many packets/s each, over {REVALIDATIONS} revalidations, \
             one sample for each ({LEAST} packets per burst if there are fewer flows). For 100 000 flows all times are {STRETCH} \
             times as long, since no CPU carries a million packets/s; the kernel sends them as fast as it can, which \
             changes nothing for it"
        )
    }

    fn is_quick(&self) -> bool {
        false
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
        let loads = if context.effort.full {
            &LOADS[..]
        } else {
            &LOADS[..2]
        };
        let mut figures = Vec::new();
        for load in loads {
            check_conntrack(load.flows)?;
            let bed = if load.stretch > 1 && carrier == Carrier::Flow {
                self.stretched(context, load.stretch)?
            } else {
                context.beds.get(carrier)?
            };
            let runs = bed.send_paced(load.flows, &load.pace(carrier))?;
            let name = load.name();
            figures.extend(runs.iter().flat_map(|run| Figure::per_packet(&name, run)));
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
        for load in LOADS.into_iter().filter(|load| load.flows >= LEAST) {
            let pace = load.pace(Carrier::Flow);
            let each = pace.packets * pace.passes / load.flows;
            assert_eq!(each, load.rate * REVALIDATE.as_secs() as u32);
            assert_eq!(pace.interval * pace.passes, REVALIDATE * load.stretch);
        }
    }
}
