//! What the benchmark and its packet generator agree on.
//!
//! The generator's maps live as long as the benchmark that loads them, so this layout has no version.

use bytemuck::{Pod, Zeroable};

use crate::wire::{Be16, ethernet::Ethernet, ipv4::Ipv4, udp::Udp};

/// The headers of a generated packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Headers {
    /// From the pod to its gateway.
    pub ethernet: Ethernet,
    /// From the pod to the other pod.
    pub ip: Ipv4,
    /// Its ports are those of the first flow. Without checksum, since the ports vary.
    pub udp: Udp,
}

/// Ports that flows differ by at the end that starts them: so many of them, from that of [`Headers::udp`] on. Flows beyond
/// differ by the other end's port too.
pub const PORTS: u32 = 1 << 14;

/// What to generate, and what to count where it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Plan {
    /// Flows that take turns. Not zero.
    pub flows: u32,
    /// Not zero if these packets are the answers: the end that starts the flows is the destination.
    pub answers: u16,
    /// Written over each packet.
    pub headers: Headers,
}

const _: () = assert!(size_of::<Plan>() == 48);

impl Plan {
    /// Source and destination port of a flow.
    #[inline(always)]
    pub fn ports(&self, flow: u32) -> [Be16; 2] {
        let (near, far) = ((flow % PORTS) as u16, (flow / PORTS) as u16);
        let add = |port: Be16, offset: u16| Be16::new(port.get().wrapping_add(offset));
        let udp = &self.headers.udp;
        if self.answers == 0 {
            [add(udp.source, near), add(udp.destination, far)]
        } else {
            [add(udp.source, far), add(udp.destination, near)]
        }
    }

    /// Whether a packet with these ports may be of one of the flows.
    #[inline(always)]
    pub fn has_ports(&self, source: Be16, destination: Be16) -> bool {
        let udp = &self.headers.udp;
        let offset = if self.answers == 0 {
            source.get().wrapping_sub(udp.source.get())
        } else {
            destination.get().wrapping_sub(udp.destination.get())
        };
        (offset as u32) < PORTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOWS: u32 = 100_000;

    fn plan(answers: u16, source: u16, destination: u16) -> Plan {
        let mut plan = Plan {
            flows: FLOWS,
            answers,
            ..Plan::default()
        };
        plan.headers.udp.source = Be16::new(source);
        plan.headers.udp.destination = Be16::new(destination);
        plan
    }

    #[test]
    fn no_two_flows_have_the_same_ports() {
        let plan = plan(0, 10_000, 9);
        let mut all: Vec<_> = (0..FLOWS)
            .map(|flow| plan.ports(flow).map(Be16::get))
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), FLOWS as usize);
    }

    #[test]
    fn answers_have_the_ports_the_other_way_round() {
        let (requests, answers) = (plan(0, 10_000, 9), plan(1, 9, 10_000));
        for flow in [0, 1, PORTS - 1, PORTS, FLOWS - 1] {
            let [source, destination] = requests.ports(flow);
            assert_eq!(answers.ports(flow), [destination, source]);
            assert!(requests.has_ports(source, destination));
            assert!(answers.has_ports(destination, source));
            assert!(!requests.has_ports(destination, source));
        }
    }
}
