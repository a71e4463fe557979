//! The MTU rule: a packet, or each segment of an aggregate, fits or is the kernel's to refuse.

use proptest::prelude::*;
use proptest::sample::select;

use super::meta;
use crate::decide::Meta;
use crate::maps::FLAG_ASSIST;
use crate::outcome::{Hook, Outcome};
use crate::testing::frame::Frame;
use crate::testing::model;
use crate::testing::node::{
    BRIDGE, DIRECT, NEIGHBOUR_MAC, POD, POD_MAC, PORT, TUNNEL_MTU, Tables, UPLINK, UPLINK_MTU,
    VTEP, VXLAN,
};
use crate::wire::{ipv4, tcp, udp};

/// A way through the node, by the smallest MTU on it.
#[derive(Clone, Copy, Debug)]
enum Way {
    Encap,
    Assist,
    Direct,
    Decap,
    FromRouted,
    FromVtep,
}

const WAYS: [Way; 6] = [
    Way::Encap,
    Way::Assist,
    Way::Direct,
    Way::Decap,
    Way::FromRouted,
    Way::FromVtep,
];

impl Way {
    fn mtu(self) -> usize {
        usize::from(if matches!(self, Self::Direct) {
            UPLINK_MTU
        } else {
            TUNNEL_MTU
        })
    }

    /// Outcome of a packet whose transport header and payload `build` makes.
    fn outcome(self, tcp: bool, options: usize, payload: usize, gso_size: u32) -> Outcome {
        let mut tables = Tables::node();
        if matches!(self, Self::Assist) {
            tables.config.flags |= FLAG_ASSIST;
        }
        let (hook, device, source, destination) = match self {
            Self::Encap | Self::Assist => (Hook::PodEgress, PORT, POD, VXLAN.pod),
            Self::Direct => (Hook::PodEgress, PORT, POD, DIRECT.pod),
            Self::Decap => (Hook::NicIngress, UPLINK, VXLAN.pod, POD),
            Self::FromRouted => (Hook::NicIngress, UPLINK, DIRECT.pod, POD),
            Self::FromVtep => (Hook::VtepIngress, VTEP, VXLAN.pod, POD),
        };
        let frame = if tcp {
            Frame::tcp(source, destination).tcp_options(&vec![1; options])
        } else {
            Frame::udp(source, destination)
        };
        let frame = frame.payload(payload);
        let frame = match self {
            Self::Encap | Self::Assist | Self::Direct => frame.link(POD_MAC, BRIDGE.mac),
            Self::Decap => frame
                .link(VXLAN.vtep_mac, VTEP.mac)
                .vxlan(&VXLAN.tunnel())
                .link(NEIGHBOUR_MAC, UPLINK.mac),
            Self::FromRouted | Self::FromVtep => frame.link(NEIGHBOUR_MAC, device.mac),
        }
        .build();
        let meta = Meta {
            gso_size,
            ..meta(&frame, device.index)
        };
        model::run(&tables, hook, &frame, &meta)
            .err()
            .unwrap_or(Outcome::Fast)
    }
}

proptest! {
    #[test]
    fn packets_and_segments_fit_or_are_declined(
        way in select(WAYS.to_vec()),
        tcp: bool,
        words in 0usize..=10,
        near in -3isize..=3,
        segments in prop::option::of(2usize..=4),
    ) {
        let options = if tcp { words * 4 } else { 0 };
        let headers = ipv4::LEN + if tcp { tcp::MIN_LEN + options } else { udp::LEN };
        let segment = (way.mtu() - headers).strict_add_signed(near);
        let outcome = match segments {
            None => way.outcome(tcp, options, segment, 0),
            Some(segments) => way.outcome(tcp, options, segment * segments, segment as u32),
        };
        let fits = if matches!(way, Way::Decap) && !tcp && segments.is_some() {
            Outcome::Datagrams
        } else {
            Outcome::Fast
        };
        prop_assert_eq!(outcome, if near <= 0 { fits } else { Outcome::Mtu });
    }
}
