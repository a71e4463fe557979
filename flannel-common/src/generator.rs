//! What the benchmark and its packet generator agree on.
//!
//! The generator's maps live as long as the benchmark that loads them, so this layout has no version.

use bytemuck::{Pod, Zeroable};

use crate::checksum;
use crate::wire::{Be16, Be32, ethernet::Ethernet, ipv4::Ipv4, udp::Udp};

/// The headers of a generated packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Headers {
    /// From the pod to its gateway.
    pub ethernet: Ethernet,
    /// From the pod to the other pod.
    pub ip: Ipv4,
    /// Its ports are those of the first flow. A checksum of zero stays zero.
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
    /// Subnets that packets go to at random, each at the same place in it; zero for no choice.
    pub subnets: u32,
    /// The distance of one subnet from the next, as a power of two.
    pub subnet_shift: u32,
}

const _: () = assert!(size_of::<Plan>() == 56);

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

    /// The UDP header of a flow's packets.
    #[inline(always)]
    pub fn udp(&self, flow: u32) -> Udp {
        let [source, destination] = self.ports(flow);
        let first = &self.headers.udp;
        let mut checksum = first.checksum;
        if checksum.raw() != 0 {
            checksum = checksum::replace(checksum, first.source, source);
            checksum = checksum::replace(checksum, first.destination, destination);
        }
        Udp {
            source,
            destination,
            checksum,
            ..*first
        }
    }

    /// The header of a packet to a subnet that `random` chooses.
    #[inline(always)]
    pub fn ip(&self, random: u32) -> Ipv4 {
        let ip = self.headers.ip;
        let offset = random.checked_rem(self.subnets).unwrap_or(0) << (self.subnet_shift & 31);
        let destination = Be32::new(ip.destination.get().wrapping_add(offset));
        let [old, new] = [{ ip.destination }, destination].map(|address| {
            let address = address.get();
            [(address >> 16) as u16, address as u16].map(Be16::new)
        });
        let checksum = checksum::replace(ip.checksum, old[0], new[0]);
        Ipv4 {
            destination,
            checksum: checksum::replace(checksum, old[1], new[1]),
            ..ip
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
    fn datagrams_keep_their_checksums() {
        let mut plan = plan(0, 10_000, 9);
        plan.headers.ip.source = Be32::new(0x0a05_0102);
        plan.headers.udp.len = Be16::new(72);
        plan.headers.udp.checksum = checksum::udp_of_zeros(&plan.headers.ip, &plan.headers.udp);
        for flow in [0, 1, PORTS - 1, PORTS, FLOWS - 1] {
            let udp = plan.udp(flow);
            assert_eq!(
                udp.checksum,
                checksum::udp_of_zeros(&plan.headers.ip, &udp),
                "{flow}"
            );
        }
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
    fn random_subnets_are_those_of_the_plan_and_checksums_hold() {
        let mut plan = plan(0, 10_000, 9);
        (plan.subnets, plan.subnet_shift) = (100_000, 7);
        plan.headers.ip.destination = Be32::new(0x0a80_0002);
        plan.headers.ip.checksum = checksum::ipv4_header(&plan.headers.ip);
        for (random, destination) in [
            (0, 0x0a80_0002),
            (1, 0x0a80_0082),
            (99_999, 0x0a80_0002 + (99_999 << 7)),
            (100_001, 0x0a80_0082),
        ] {
            let ip = plan.ip(random);
            assert_eq!({ ip.destination }, Be32::new(destination));
            assert_eq!(ip.checksum, checksum::ipv4_header(&ip), "{random}");
        }
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
