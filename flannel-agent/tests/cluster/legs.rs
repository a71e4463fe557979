//! Which legs of a flow are fast: out and in at the client's node, out and in at the server's.

use anyhow::ensure;
use lab::{Node, status::Counters};

use crate::pair::counters;
use crate::support::{Outcome, Path};

/// Out and in at the client's node, out and in at the server's.
pub(crate) type Legs = [bool; 4];

/// A flow between pods that nobody touches.
pub(crate) const DIRECT: Legs = [true, true, true, true];
/// A flow to a service: translated at the client's node, plain at the server's.
pub(crate) const CLUSTER_IP: Legs = [false, false, true, true];

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

    /// Asserts which legs have carried packets from this moment until now.
    pub(crate) fn assert_legs(&self, nodes: [&Node; 2], path: Path, expected: Legs) -> Outcome {
        let now = Self::of(nodes)?;
        let legs = now.since(self).map(|packets| packets > 0);
        let expected = if path == Path::Kernel {
            [false; 4]
        } else {
            expected
        };
        ensure!(
            legs == expected,
            "fast legs {legs:?}, not {expected:?}: {:?}",
            now.all_since(self)
        );
        Ok(())
    }
}
