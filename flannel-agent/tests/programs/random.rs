//! Changed packets, on the host and in the kernel: both must come to the same end, whatever it is.

use std::cell::RefCell;

use flannel_common::decide::L3;
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::testing::fixtures::{self, End, Expected, Fixture, ProgramRun};
use flannel_common::wire::{ipv4, tcp, vxlan};
use lab::programs::Kernel;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;

use crate::ends_as_expected;

/// Bytes that a decision may look at.
const HEADERS: usize = L3 + vxlan::OVERHEAD + ipv4::LEN + tcp::MIN_LEN;

/// Shortest frame that a test run takes, whatever its EtherType turns out to be: with a whole IPv6 header.
const SHORTEST: usize = L3 + 40;

/// Runs fixtures of `hook` with some bytes changed and the end cut off.
pub fn ends_as_on_the_host(kernel: &mut Kernel, hook: Hook) -> Result<(), String> {
    let fixtures: Vec<_> = fixtures::all()
        .into_iter()
        .filter(|fixture| fixture.hook == hook && fixture.frame.len() >= SHORTEST)
        .filter(|fixture| !matches!(fixture.program, ProgramRun::Impossible(_)))
        .collect();
    let change = prop_oneof![
        any::<u8>(),                        // anything
        (0u32..8).prop_map(|bit| 1 << bit), // one bit
    ];
    let changes = (
        select((0..fixtures.len()).collect::<Vec<_>>()),
        vec((any::<Index>(), change), 0..3),
        prop::option::weighted(0.1, any::<Index>()),
    );
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let kernel = RefCell::new(kernel);
    let result = TestRunner::new(config).run(&changes, |(row, changes, cut)| {
        let mut fixture = fixtures[row].clone();
        for (index, mask) in changes {
            let headers = fixture.frame.len().min(HEADERS);
            fixture.frame[index.index(headers)] ^= mask;
        }
        if let Some(cut) = cut {
            let removable = fixture.frame.len() - SHORTEST;
            fixture.frame.truncate(SHORTEST + cut.index(removable + 1));
        }
        as_on_the_host(&mut fixture);
        ends_as_expected(&mut kernel.borrow_mut(), &fixture)
            .map_err(|error| TestCaseError::fail(format!("{}: {error}", fixture.name)))
    });
    result.map_err(|error| error.to_string())
}

/// Expects what the same decision, compiled for the host, makes of the packet.
fn as_on_the_host(fixture: &mut Fixture) {
    fixture.program = ProgramRun::AsExpected;
    fixture.expected = match fixture.on_host() {
        End::Kernel(outcome) => Expected::Declined(outcome),
        End::Dropped(outcome) => Expected::Dropped(outcome),
        // Aggregates in a test run have no type, so the kernel does not change their size.
        End::Sent(_, frame) if fixture.gso_size > 0 && frame.len() != fixture.frame.len() => {
            Expected::Declined(Outcome::Helper)
        }
        End::Sent(to, frame) => Expected::Fast { to, frame },
    };
}
