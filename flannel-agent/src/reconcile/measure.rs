//! What a scrape of the metrics shows of leases, kernel objects and fast path: counts, no text.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::{Reconciler, rules};
use crate::{
    kernel::diff::permanent,
    metrics::{Gauges, Kind, Objects},
};

impl Reconciler {
    /// Brings the numbers of a scrape up to date.
    pub fn measure(&self, rules: &rules::State) {
        let (desired, observed) = (&self.plan.desired, &self.observed);
        let wrong_rules = rules.objects.iter().filter(|object| object.state != "ok");
        let objects = vec![
            count(Kind::Neighbour, &desired.neighbours, |key, mac| {
                observed.neighbours.get(key) == Some(&permanent(*mac))
            }),
            count(Kind::Fdb, &desired.fdb, |key, node| {
                observed.fdb.get(key) == Some(&permanent(*node))
            }),
            count(Kind::Route, &desired.routes, |net, route| {
                observed.routes.get(net) == Some(route)
            }),
            Objects {
                kind: Kind::Rules,
                wanted: rules.objects.len(),
                wrong: wrong_rules.count(),
            },
        ];
        let unreached: BTreeSet<&str> = self.plan.problems.keys().map(|(key, _)| &**key).collect();
        let expires = self.own.expires;
        self.board.measured(Gauges {
            peers: self.peers().count(),
            unreached_peers: unreached.len(),
            skipped_leases: self.leases.skipped().count(),
            lease_expires_s: expires
                .map(|expires| expires.saturating_duration_since(Instant::now()).as_secs()),
            objects,
            fast_path: self.fast_path.status(),
        });
    }
}

fn count<K, V>(kind: Kind, desired: &BTreeMap<K, V>, in_place: impl Fn(&K, &V) -> bool) -> Objects {
    let wrong = desired.iter().filter(|(key, value)| !in_place(key, value));
    Objects {
        kind,
        wanted: desired.len(),
        wrong: wrong.count(),
    }
}
