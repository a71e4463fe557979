//! Cost of a packet on its whole way, from the veth of a pod into a pod of the other node.

use super::{Context, Effort, Figure, Measure};
use crate::{
    generator::BATCH,
    packets::PAYLOAD,
    testbed::{Result, Testbed},
    variants::{Backend, Carrier, Setting},
};

/// The figure.
const COST: &str = "UDP packet";
/// The part of it that ends where the wire reaches the other node, and the rest.
const OUT: &str = "UDP packet, out of its node";
const IN: &str = "UDP packet, into the pod";

/// Numbers of flows of a full run, beside the usual one.
const FLOWS: [u32; 3] = [1, 64, 1_024];
/// Payload of a full run, in bytes, beside the usual one and the largest.
const MIDDLE_PAYLOAD: usize = 512;
/// IPv4 and UDP header.
const HEADERS: u16 = 28;
/// Packets at a time of a full run, beside the usual number.
const BATCHES: [u32; 2] = [1, 64];

/// See the module.
pub struct Forward;

impl Measure for Forward {
    fn name(&self) -> &'static str {
        "forward"
    }

    fn title(&self, effort: &Effort) -> String {
        format!(
            "Cost of a forwarded UDP packet with {PAYLOAD} bytes, from a pod's veth into a pod of the other node; {} \
             packets in {} flows that are answered, made {BATCH} at a time",
            effort.packets, effort.flows
        )
    }

    fn carriers(&self) -> &'static [Carrier] {
        &[
            Carrier::Kernel,
            Carrier::KernelAgain,
            Carrier::Subnet,
            Carrier::Flow,
            Carrier::Vtep,
            Carrier::Assist,
            Carrier::Bridge,
            Carrier::Xdp,
            Carrier::Generator,
        ]
    }

    fn applies(&self, _setting: Setting, _effort: &Effort) -> bool {
        // With rules, too, it is compared with a kernel path that has none.
        true
    }

    fn depends_on_rules(&self) -> bool {
        true
    }

    fn run(&mut self, context: &mut Context<'_, '_>, carrier: Carrier) -> Result<Vec<Figure>> {
        let Effort {
            packets,
            flows,
            quick,
            full,
            ..
        } = context.effort;
        let setting = context.setting;
        let bed = context.beds.get(carrier)?;
        if carrier == Carrier::Generator {
            return Ok(Figure::per_packet(COST, &bed.send_nowhere(flows, packets)?));
        }
        let whole = Figure::per_packet(COST, &bed.send(flows, packets)?);
        if quick || !setting.is_usual() || carrier == Carrier::KernelAgain {
            return Ok(whole);
        }
        let out = Figure::per_packet(OUT, &bed.send_out(flows, packets)?);
        // The same figures in the same order, of the same packets. Shares are not to be subtracted.
        let both = whole.iter().zip(&out).filter(|(whole, _)| !whole.detail);
        let rest: Vec<_> = both.map(remainder).collect();
        let mut figures = [whole, out, rest].concat();
        if full && !carrier.is_tier() {
            let more = variations(bed, setting.backend, flows, packets);
            // Also where one failed: others send by this bed too.
            bed.reshape(PAYLOAD, BATCH)?;
            figures.extend(more?);
        }
        Ok(figures)
    }
}

fn remainder((whole, part): (&Figure, &Figure)) -> Figure {
    Figure {
        name: whole.name.replacen(COST, IN, 1),
        value: whole.value - part.value,
        ..whole.clone()
    }
}

/// One thing at a time is other than usual.
fn variations(
    bed: &mut Testbed,
    backend: Backend,
    flows: u32,
    packets: u32,
) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let largest = usize::from(backend.mtu() - HEADERS);
    for (name, payload) in [("512 bytes", MIDDLE_PAYLOAD), ("MTU", largest)] {
        bed.reshape(payload, BATCH)?;
        let run = bed.send(flows, packets)?;
        figures.extend(Figure::per_packet(&format!("{COST}, {name}"), &run));
    }
    for batch in BATCHES {
        bed.reshape(PAYLOAD, batch)?;
        let run = bed.send(flows, packets)?;
        figures.extend(Figure::per_packet(&format!("{COST}, batch {batch}"), &run));
    }
    bed.reshape(PAYLOAD, BATCH)?;
    for flows in FLOWS {
        let run = bed.send(flows, packets)?;
        let plural = if flows == 1 { "flow" } else { "flows" };
        figures.extend(Figure::per_packet(
            &format!("{COST}, {flows} {plural}"),
            &run,
        ));
    }
    Ok(figures)
}
