//! Cost of a packet on its whole way, from the veth of a pod into a pod of the other node.

use super::{Context, Effort, Figure, Measure};
use crate::{
    packets::PAYLOAD,
    testbed::Result,
    variants::{Carrier, Setting},
};

/// The figure.
const COST: &str = "UDP packet";

/// See the module.
pub struct Forward;

impl Measure for Forward {
    fn name(&self) -> &'static str {
        "forward"
    }

    fn title(&self, effort: &Effort) -> String {
        format!(
            "Cost of a forwarded UDP packet with {PAYLOAD} bytes, from a pod's veth into a pod of the other node; {} \
             packets in {} flows that are answered",
            effort.packets, effort.flows
        )
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[
            Carrier::Kernel,
            Carrier::KernelAgain,
            Carrier::Subnet,
            Carrier::Flow,
            Carrier::Generator,
        ]
    }

    fn applies(&self, _setting: Setting, _effort: &Effort) -> bool {
        // With rules, too, it is compared with a kernel path that has none.
        true
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let Effort { packets, flows, .. } = context.effort;
        let bed = context.beds.get(carrier)?;
        let run = if carrier == Carrier::Generator {
            bed.send_nowhere(flows, packets)?
        } else {
            bed.send(flows, packets)?
        };
        Ok(Figure::per_packet(COST, &run))
    }
}
