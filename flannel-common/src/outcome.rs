//! What became of a packet, numbered: each hook counts every packet that it sees under exactly one of these.
//!
//! Numbers are part of the map layout: new outcomes are added at the end, and a retired number is not used again
//! while [`crate::maps::ABI`] stays the same.

/// The hooks, as rows of the counter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// TC ingress at the host side of a pod's veth.
    PodEgress = 0,
    /// TC ingress at the bridge, for ports without a program of their own.
    BridgeEgress = 1,
    /// TC ingress at the node's interface.
    NicIngress = 2,
    /// TC ingress at the VXLAN device.
    VtepIngress = 3,
    /// TC egress at the host side of a pod's veth: what the kernel has forwarded to a pod.
    AttestIn = 4,
    /// TC egress at the VXLAN device, and at the node's interface for nodes without a tunnel: what the kernel has
    /// forwarded from a pod.
    AttestOut = 5,
    /// XDP at the node's interface.
    NicXdp = 6,
}

impl Hook {
    /// All hooks, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::PodEgress,
        Self::BridgeEgress,
        Self::NicIngress,
        Self::VtepIngress,
        Self::AttestIn,
        Self::AttestOut,
        Self::NicXdp,
    ];

    /// The hooks of traffic control, which may be attached to any interface.
    pub const TRAFFIC_CONTROL: [Self; 6] = [
        Self::PodEgress,
        Self::BridgeEgress,
        Self::NicIngress,
        Self::VtepIngress,
        Self::AttestIn,
        Self::AttestOut,
    ];

    /// The hooks in front of the kernel's forwarding.
    pub const FORWARDING: [Self; 4] = [
        Self::PodEgress,
        Self::BridgeEgress,
        Self::NicIngress,
        Self::VtepIngress,
    ];

    /// The hooks behind it, which learn instead of forwarding.
    pub const ATTESTING: [Self; 2] = [Self::AttestIn, Self::AttestOut];

    /// The name that status and metrics use; also the name of the BPF program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodEgress => "pod_egress",
            Self::BridgeEgress => "bridge_egress",
            Self::NicIngress => "nic_ingress",
            Self::VtepIngress => "vtep_ingress",
            Self::AttestIn => "attest_in",
            Self::AttestOut => "attest_out",
            Self::NicXdp => "nic_xdp",
        }
    }
}

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What became of a packet at a hook.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Outcome {
            $($(#[$doc])* $name = $number,)*
        }

        impl Outcome {
            /// All outcomes.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The name that status and metrics use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

outcomes! {
    /// Forwarded or delivered by the program.
    Fast = 0, "fast";
    /// The fast path is switched off in the config map.
    Inactive = 1, "inactive";
    /// Neither IPv4 nor, where that is served, IPv6.
    NotIp = 2, "not-ip";
    /// Carries a VLAN tag.
    Vlan = 3, "vlan";
    /// Not addressed to this host's link-layer address, so not for it to route.
    NotRouted = 4, "not-routed";
    /// Too short for the headers that it should have, or with lengths that contradict each other.
    Malformed = 5, "malformed";
    /// IPv4 options, or an IPv6 extension header.
    Options = 6, "ip-options";
    /// A fragment.
    Fragment = 7, "fragment";
    /// Neither TCP nor UDP.
    Protocol = 8, "protocol";
    /// Time to live, or hop limit, would expire here.
    Ttl = 9, "ttl";
    /// The destination lies in no other node's subnet.
    NoPeer = 10, "no-peer";
    /// The destination is no pod of this node.
    NoPod = 11, "no-pod";
    /// A pod sent a source address that is not its own.
    PodSource = 12, "pod-source";
    /// The source lies in no other node's subnet, or not in that of the node that sent the packet.
    PeerSource = 13, "peer-source";
    /// Larger than the next link allows.
    Mtu = 14, "mtu";
    /// VXLAN with flags, network identifier or inner destination other than ours.
    NotOurVxlan = 15, "not-our-vxlan";
    /// Congestion mark that must be reported by dropping (RFC 6040).
    Ecn = 16, "ecn";
    /// The kernel has to verify the checksum, because no later one covers the payload.
    Checksum = 17, "checksum";
    /// A helper refused (memory, or a packet that is encapsulated already); the packet was not changed.
    Helper = 18, "helper";
    /// A pod sent VXLAN to an address outside of the pods' network: masqueraded, it would come from a trusted node.
    PodVxlan = 19, "pod-vxlan";
    /// The agent has not shown signs of life for long.
    NoHeartbeat = 20, "no-heartbeat";
    /// The kernel has not attested this leg of the flow, or not since the pod or the peer is what it is.
    NoFlow = 21, "no-flow";
    /// The last attestation is too old.
    Stale = 22, "stale";
    /// SYN, FIN or RST, which conntrack must see.
    TcpControl = 23, "tcp-control";
    /// Behind a FIN.
    Closing = 24, "closing";
    /// Earlier packets of the flow may still be on their way through the kernel.
    Draining = 25, "draining";
    /// Conntrack is strict about TCP windows, so TCP must not leave its sight.
    TcpStrict = 26, "tcp-strict";
    /// Our own probe on its way through the kernel.
    Probe = 27, "probe";
    /// A leg of a flow was attested, and remembered.
    Attested = 28, "attested";
    /// The first leg of a flow was attested: a new entry.
    Created = 29, "created";
    /// Conntrack does not attest the packet, and nothing was remembered of its flow.
    Refused = 30, "refused";
    /// Conntrack does not attest a packet of a remembered flow, which is forgotten.
    Killed = 31, "killed";
    /// Attested, but of a leg that ends or begins: nothing is remembered.
    NotKept = 32, "not-kept";
    /// A probe that has done its duty.
    ProbeDone = 33, "probe-done";
    /// A packet that was fast.
    Redirected = 34, "redirected";
    /// Not forwarded between a pod of this node and another node.
    Elsewhere = 35, "elsewhere";
    /// As [`Self::PodSource`], with strict source checks: dropped.
    DropPodSource = 36, "dropped-pod-source";
    /// As [`Self::PeerSource`], with strict source checks: dropped.
    DropPeerSource = 37, "dropped-peer-source";
    /// As [`Self::PodVxlan`], with strict source checks: dropped.
    DropPodVxlan = 38, "dropped-pod-vxlan";
    /// Decapsulated by XDP, and delivered by the hook behind it, which counts it as fast.
    Decapsulated = 39, "decapsulated";
    /// Several datagrams in one packet, in a tunnel: taken out of it by BPF, the kernel could not tell them apart.
    Datagrams = 42, "datagrams";
}

impl Outcome {
    /// Whether the packet is dropped.
    #[inline(always)]
    pub const fn drops(self) -> bool {
        matches!(
            self,
            Self::DropPodSource | Self::DropPeerSource | Self::DropPodVxlan
        )
    }
}

/// Columns of the counter table: room for new outcomes without a new layout.
pub const COLUMNS: u32 = 64;

/// Slots of the counter table.
pub const SLOTS: u32 = COLUMNS * Hook::ALL.len() as u32;

/// The slot that counts `outcome` at `hook`.
#[inline(always)]
pub const fn slot(hook: Hook, outcome: Outcome) -> u32 {
    hook as u32 * COLUMNS + outcome as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_hook_and_outcome_has_its_own_slot_and_name() {
        let mut slots = BTreeSet::new();
        for (number, hook) in Hook::ALL.into_iter().enumerate() {
            assert_eq!(hook as usize, number);
            for &outcome in Outcome::ALL {
                assert!((outcome as u32) < COLUMNS);
                assert!(slot(hook, outcome) < SLOTS);
                assert!(slots.insert(slot(hook, outcome)));
            }
        }
        let names: BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
    }
}
