//! Proof of the path that packets took: the agents' counters before and after.

use lab::{
    Cluster,
    status::{Counters, Status},
};

use crate::testbed::{Error, Result};

/// What BPF is to have carried out of the first node, and into the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// So many packets, not one more or less.
    Exactly(u64),
    /// So many at least: what sockets send has acknowledgments beside it.
    AtLeast(u64),
}

impl Expected {
    fn holds(self, counted: u64) -> bool {
        match self {
            Self::Exactly(number) => counted == number,
            Self::AtLeast(number) => counted >= number,
        }
    }
}

/// What the agents of both nodes say.
pub struct Reading([Status; 2]);

impl Reading {
    /// Asks them now.
    pub fn take(cluster: &Cluster) -> Result<Self> {
        let status = |node| cluster.node(node).agent().status();
        Ok(Self([status(1)?, status(2)?]))
    }

    /// Fails unless BPF carried what was expected since `before`: out of the first node, and into the second.
    pub fn check(&self, before: &Self, expected: [Expected; 2]) -> Result<()> {
        let [first, second] = self.since(before);
        let [out, inward] = expected;
        if out.holds(first.fast_egress) && inward.holds(second.fast_ingress) {
            return Ok(());
        }
        let why = |status: &Status, counted: &Counters| match &status.fast_path.reason {
            Some(reason) => reason.clone(),
            None => format!("declined {:?}", counted.declined),
        };
        Err(Error::Path {
            egress: first.fast_egress,
            ingress: second.fast_ingress,
            expected,
            detail: format!(
                "first node: {}; second node: {}",
                why(&self.0[0], &first),
                why(&self.0[1], &second)
            ),
        })
    }

    /// What each node counted since `before`.
    pub fn since(&self, before: &Self) -> [Counters; 2] {
        [0, 1].map(|node| {
            self.0[node]
                .fast_path
                .counters
                .since(&before.0[node].fast_path.counters)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(egress: u64, ingress: u64) -> Reading {
        let mut status = [Status::default(), Status::default()];
        status[0].fast_path.counters.fast_egress = egress;
        status[1].fast_path.counters.fast_ingress = ingress;
        Reading(status)
    }

    #[test]
    fn one_packet_on_another_path_is_an_error() {
        let before = reading(5, 7);
        let is_ok = |egress, ingress, number| {
            let expected = Expected::Exactly(number);
            reading(egress, ingress)
                .check(&before, [expected; 2])
                .is_ok()
        };
        assert!(is_ok(105, 107, 100));
        assert!(!is_ok(105, 106, 100));
        assert!(!is_ok(104, 107, 100));
        assert!(!is_ok(106, 107, 100));
        assert!(is_ok(5, 7, 0));
        assert!(!is_ok(6, 7, 0));
    }

    #[test]
    fn at_least_is_asked_of_both_nodes() {
        let before = reading(0, 0);
        let expected = Expected::AtLeast(10);
        assert!(reading(10, 11).check(&before, [expected; 2]).is_ok());
        assert!(reading(9, 11).check(&before, [expected; 2]).is_err());
        assert!(reading(11, 9).check(&before, [expected; 2]).is_err());
    }
}
