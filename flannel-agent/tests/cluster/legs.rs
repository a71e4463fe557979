//! Which legs of a flow are fast: out and in at the client's node, out and in at the server's.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lab::{
    Node,
    status::Counters,
    traffic::whoami::{Answer, Questioner},
};

use crate::pair::counters;
use crate::support::{Outcome, Path};

/// Out and in at the client's node, out and in at the server's.
pub(crate) type Legs = [bool; 4];

/// A flow between pods that nobody touches.
pub(crate) const DIRECT: Legs = [true, true, true, true];
/// A flow to a service: translated at the client's node, plain at the server's.
pub(crate) const CLUSTER_IP: Legs = [false, false, true, true];

/// No leg at all.
pub(crate) const NONE: Legs = [false; 4];

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Questions of one measurement. Their bytes are more than a TCP window that conntrack knows of.
const QUESTIONS: u64 = 100;
/// So many of them may take the kernel's path on a fast leg: until it is attested, and while events are handled.
const SLOW: u64 = QUESTIONS / 2;
/// How long it may take until a flow is fast: conntrack calls a UDP flow assured after 2 s, and the agent may still be
/// hearing of the pods.
const SETTLED: Duration = Duration::from_secs(5);
/// Between two measurements.
const PAUSE: Duration = Duration::from_millis(300);

/// Asks on and on, until packets are fast on those legs that are to be; none ever is on another. All answers are the
/// same.
pub(crate) fn measure(
    nodes: [&Node; 2],
    path: Path,
    expected: Legs,
    flow: &mut Questioner,
) -> anyhow::Result<Answer> {
    let expected = if path == Path::Kernel { NONE } else { expected };
    let start = Instant::now();
    loop {
        let before = Count::of(nodes)?;
        let (first, asked) = (flow.ask()?, Instant::now());
        for number in 1..QUESTIONS {
            let answer = flow.ask()?;
            ensure!(answer == first, "{answer:?} after {first:?}");
            // What answers only after TCP has asked again and again does not work.
            let time = asked.elapsed();
            ensure!(time < LIMIT, "{number} answers in {time:?}");
        }
        let now = Count::of(nodes)?;
        let packets = now.since(&before);
        let never = packets
            .iter()
            .zip(expected)
            .all(|(n, fast)| fast || *n == 0);
        let legs: Legs = packets.map(|packets| packets >= QUESTIONS - SLOW);
        if never && legs == expected {
            return Ok(first);
        }
        ensure!(
            never && start.elapsed() < SETTLED,
            "fast packets by leg {packets:?}, not {expected:?}: {:?}",
            now.all_since(&before)
        );
        thread::sleep(PAUSE);
    }
}

/// What two nodes have counted until a moment.
pub(crate) struct Count([Counters; 2]);

impl Count {
    /// Now, at the client's node and at the server's.
    pub(crate) fn of(nodes: [&Node; 2]) -> anyhow::Result<Self> {
        Ok(Self([counters(nodes[0])?, counters(nodes[1])?]))
    }

    /// Fast packets by leg since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> [u64; 4] {
        let [client, server] = self.all_since(earlier);
        [
            client.fast_egress,
            client.fast_ingress,
            server.fast_egress,
            server.fast_ingress,
        ]
    }

    /// All that was counted since `earlier`, for whoever must find out why.
    pub(crate) fn all_since(&self, earlier: &Self) -> [Counters; 2] {
        [
            self.0[0].since(&earlier.0[0]),
            self.0[1].since(&earlier.0[1]),
        ]
    }

    /// Asserts that no leg at the node of this place has carried packets from this moment until now.
    pub(crate) fn assert_none_at(&self, nodes: [&Node; 2], place: usize) -> Outcome {
        let now = Self::of(nodes)?;
        let carried = &now.since(self)[2 * place..][..2];
        ensure!(
            carried == [0; 2],
            "fast packets out and in {carried:?}: {:?}",
            now.all_since(self)
        );
        Ok(())
    }

    /// Asserts which legs have carried packets from this moment until now.
    pub(crate) fn assert_legs(&self, nodes: [&Node; 2], path: Path, expected: Legs) -> Outcome {
        let now = Self::of(nodes)?;
        let legs = now.since(self).map(|packets| packets > 0);
        let expected = if path == Path::Kernel { NONE } else { expected };
        ensure!(
            legs == expected,
            "fast legs {legs:?}, not {expected:?}: {:?}",
            now.all_since(self)
        );
        Ok(())
    }
}
