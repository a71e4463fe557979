//! Every fixture against the decisions, and what the fixtures must cover.

use std::collections::BTreeSet;

use super::ipv6;
use crate::outcome::{Hook, Outcome};
use crate::testing::fixtures::{self, End, Expected, ProgramRun};
use crate::testing::frame::{ip_checksum_is_right, transport_checksum_is_right};
use crate::testing::node::DEVICES;
use crate::wire::{ethernet, vxlan};

#[test]
fn every_fixture_ends_as_expected() {
    let mut wrong = Vec::new();
    for fixture in fixtures::all() {
        let problem = match (&fixture.expected, fixture.on_host()) {
            (Expected::Declined(expected), End::Kernel(outcome))
            | (Expected::Dropped(expected), End::Dropped(outcome))
                if *expected == outcome =>
            {
                None
            }
            (Expected::Fast { to: expected, .. }, End::Sent(to, frame)) if *expected == to => {
                fixture.check_frame(&frame).err()
            }
            // The bytes of a packet would bury what matters.
            (expected, end) => Some(format!(
                "{:?} instead of {:?}",
                match end {
                    End::Sent(to, _) => End::Sent(to, Vec::new()),
                    other => other,
                },
                match expected {
                    Expected::Fast { to, .. } => Expected::Fast {
                        to: *to,
                        frame: Vec::new(),
                    },
                    other => other.clone(),
                }
            )),
        };
        if let Some(problem) = problem {
            wrong.push(format!(
                "{} {}: {problem}",
                fixture.hook.name(),
                fixture.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The outcomes that `hook` can give.
fn possible(hook: Hook) -> BTreeSet<&'static str> {
    use Outcome::*;
    let mut outcomes = vec![Inactive, NotIp, Malformed, Options, Fragment, Protocol];
    if Hook::FORWARDING.contains(&hook) {
        outcomes.extend([
            Fast,
            Vlan,
            NotRouted,
            Ttl,
            Mtu,
            NoHeartbeat,
            NoFlow,
            Stale,
            TcpControl,
            Closing,
            TcpStrict,
            Probe,
        ]);
    }
    outcomes.extend(match hook {
        Hook::PodEgress | Hook::BridgeEgress => vec![
            NoPeer,
            PodSource,
            PodVxlan,
            Helper,
            DropPodSource,
            DropPodVxlan,
        ],
        Hook::NicIngress => vec![
            NoPod,
            PeerSource,
            NotOurVxlan,
            Ecn,
            Checksum,
            Helper,
            Draining,
            DropPeerSource,
            Datagrams,
        ],
        Hook::VtepIngress => vec![NoPod, PeerSource],
        Hook::NicXdp => vec![
            Decapsulated,
            NotRouted,
            Ttl,
            Mtu,
            NoPod,
            PeerSource,
            NotOurVxlan,
            Ecn,
            Checksum,
            Draining,
            DropPeerSource,
        ],
        Hook::AttestIn | Hook::AttestOut => vec![
            Attested, Created, Refused, Killed, NotKept, ProbeDone, Redirected, Elsewhere,
        ],
    });
    outcomes.into_iter().map(Outcome::name).collect()
}

#[test]
fn every_outcome_has_a_fixture() {
    let covered: BTreeSet<_> = Hook::ALL.into_iter().flat_map(possible).collect();
    let all: BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name()).collect();
    assert_eq!(covered, all);
}

#[test]
fn fixtures_cover_every_outcome_of_every_hook() {
    for hook in Hook::ALL {
        let fixtures = fixtures::all();
        let covered: BTreeSet<_> = fixtures
            .iter()
            .filter(|fixture| fixture.hook == hook)
            .flat_map(|fixture| {
                let refused = matches!(fixture.program, ProgramRun::HelperRefuses(_));
                let helper = refused.then_some(Outcome::Helper);
                [Some(fixture.outcome()), helper]
            })
            .flatten()
            .map(Outcome::name)
            .collect();
        assert_eq!(covered, possible(hook), "{}", hook.name());
    }
}

#[test]
fn fixtures_have_names_of_their_own() {
    let fixtures = fixtures::all();
    let names: BTreeSet<_> = fixtures
        .iter()
        .map(|fixture| (fixture.hook.name(), fixture.name))
        .collect();
    assert_eq!(names.len(), fixtures.len());
}

#[test]
fn devices_can_be_told_apart() {
    let indexes: BTreeSet<_> = DEVICES.iter().map(|device| device.index).collect();
    let macs: BTreeSet<_> = DEVICES.iter().map(|device| device.mac).collect();
    assert_eq!((indexes.len(), macs.len()), (DEVICES.len(), DEVICES.len()));
}

#[test]
fn fast_packets_leave_with_right_checksums() {
    let (mut seen, mut seen_ipv6) = (0, 0);
    for fixture in fixtures::all() {
        let End::Sent(_, frame) = fixture.on_host() else {
            continue;
        };
        let mut ip = ethernet::LEN;
        if ipv6::is_ipv6(&frame) {
            assert!(transport_checksum_is_right(&frame, ip), "{}", fixture.name);
            seen_ipv6 += 1;
            continue;
        }
        assert!(ip_checksum_is_right(&frame, ip), "{}", fixture.name);
        if fixture.encapsulates() {
            ip += vxlan::OVERHEAD;
            assert!(ip_checksum_is_right(&frame, ip), "{}", fixture.name);
        }
        assert!(transport_checksum_is_right(&frame, ip), "{}", fixture.name);
        seen += 1;
    }
    assert!(seen > 0 && seen_ipv6 > 0);
}

#[test]
fn a_difference_in_any_byte_is_seen() {
    let fixtures = fixtures::all();
    let encapsulating = fixtures
        .iter()
        .find(|fixture| fixture.encapsulates())
        .unwrap();
    let Expected::Fast { frame, .. } = &encapsulating.expected else {
        unreachable!("it encapsulates")
    };
    let config = &encapsulating.tables.config;
    let mut frame = frame.clone();
    let port = ethernet::LEN + crate::wire::ipv4::LEN;
    frame[port..port + 2].copy_from_slice(&config.source_port_min.to_be_bytes());
    encapsulating.check_frame(&frame).unwrap();
    for index in (0..frame.len()).filter(|index| *index != port + 1) {
        let mut frame = frame.clone();
        frame[index] ^= 0x80;
        assert!(encapsulating.check_frame(&frame).is_err(), "byte {index}");
    }
    assert!(
        encapsulating
            .check_frame(&frame[..frame.len() - 1])
            .is_err()
    );
}
