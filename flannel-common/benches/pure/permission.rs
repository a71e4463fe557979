//! Whether a packet of a flow may be fast, by what is remembered of the flow: without the rest of a decision.

use divan::{Bencher, black_box};
use flannel_common::decide::L3;
use flannel_common::decide::permit::permit;
use flannel_common::flow::{Flow, Leg};
use flannel_common::outcome::Outcome;
use flannel_common::testing::fixtures::attested;
use flannel_common::testing::frame::Frame;
use flannel_common::testing::memory::NOW;
use flannel_common::testing::node::{NODE_IP, POD, Tables, VXLAN};
use flannel_common::wire::Be32;

use crate::maps::{Arrays, OneFlow, YOUNG, ask_for_flows, headers};

/// Nanoseconds for which a packet has been in a queue that is not worked off yet.
const IN_QUEUE: u64 = 1_000;

/// A segment to the pod of a flow that `ages` are remembered of, or none.
fn asked(bencher: Bencher<'_, '_>, ages: Option<Flow>, expected: Result<(), Outcome>) {
    let frame = Frame::tcp(VXLAN.pod, POD).build();
    let (ip, _, key) = headers(&frame, L3, Leg::In);
    let mut tables = Tables::node();
    ask_for_flows(&mut tables.config);
    let maps = Arrays::new(&tables);
    let flows = ages.map_or(OneFlow::none(), |ages| OneFlow::new(key, &ages));
    let from = u32::from(NODE_IP);
    let run = || {
        permit::<Be32, _, _, _>(
            black_box(&frame[..]),
            L3,
            black_box(&ip),
            Leg::In,
            from,
            || Ok(black_box(0)),
            0,
            true,
            black_box(&maps),
            black_box(&flows),
        )
        .map(|(permit, _)| permit)
    };
    assert_eq!(run().map(|_| ()), expected);
    bencher.bench_local(run);
}

#[divan::bench]
fn attested_lately(bencher: Bencher<'_, '_>) {
    asked(bencher, Some(attested(YOUNG)), Ok(()));
}

#[divan::bench]
fn behind_packets_in_the_veth(bencher: Bencher<'_, '_>) {
    let flow = Flow {
        queued: IN_QUEUE,
        acknowledged: u64::from(u32::MAX),
        ..attested(YOUNG)
    };
    asked(bencher, Some(flow), Ok(()));
}

#[divan::bench]
fn behind_packets_in_the_device(bencher: Bencher<'_, '_>) {
    let flow = Flow {
        queued: IN_QUEUE,
        in_kernel: 1,
        acknowledged: u64::from(u32::MAX),
        ..attested(YOUNG)
    };
    asked(bencher, Some(flow), Err(Outcome::Draining));
}

#[divan::bench]
fn attested_too_long_ago(bencher: Bencher<'_, '_>) {
    asked(bencher, Some(attested(NOW / 2)), Err(Outcome::Stale));
}

#[divan::bench]
fn unknown(bencher: Bencher<'_, '_>) {
    asked(bencher, None, Err(Outcome::NoFlow));
}
