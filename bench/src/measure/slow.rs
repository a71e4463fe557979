//! Traffic that never becomes fast: what the fast path costs those who have nothing from it.

use super::{Context, Effort, Figure, Measure};
use crate::{
    packets::{echo_request, one_way},
    testbed::{Result, WARM_UP},
    variants::{Carrier, Setting},
};

/// See the module.
pub struct Slow;

impl Measure for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn title(&self, effort: &Effort) -> String {
        format!(
            "Cost of a forwarded packet that the kernel carries in any case: UDP that nobody answers, in {} flows, and \
             ICMP; {} packets each",
            effort.flows,
            packets(effort)
        )
    }

    fn applies(&self, setting: Setting, effort: &Effort) -> bool {
        setting.services > 0 || effort.full
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[Carrier::Kernel, Carrier::KernelAgain, Carrier::Flow]
    }

    fn depends_on_rules(&self) -> bool {
        true
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let packets = packets(&context.effort);
        let flows = context.effort.flows;
        let bed = context.beds.get(carrier)?;
        let udp = bed.send_slow(flows, packets, one_way)?;
        // One, since the ports that tell flows apart are ICMP's type.
        let icmp = bed.send_slow(1, packets, echo_request)?;
        let mut figures = Figure::per_packet("one-way UDP", &udp);
        figures.extend(Figure::per_packet("ICMP echo request", &icmp));
        Ok(figures)
    }
}

/// Fewer than where there are fast ones: these take longer each.
fn packets(effort: &Effort) -> u32 {
    (effort.packets / 2).max(WARM_UP)
}
