//! What is measured as the report's figures.

use lab::traffic::rtt::RoundTrips;

use super::{
    spent::Spent,
    start::{Loaded, Started},
};
use crate::measure::{Figure, Unit};

/// The figures of so many leases in a store.
pub struct Named(String);

impl Named {
    /// Those of leases in etcd.
    pub fn leases(count: u32) -> Self {
        Self(format!("{} leases", grouped(count)))
    }

    /// Those of Node objects.
    pub fn nodes(count: u32) -> Self {
        Self(format!("{} Nodes", grouped(count)))
    }

    /// What they have in common.
    #[cfg(test)]
    pub fn prefix(&self) -> &str {
        &self.0
    }

    fn figure(&self, what: &str, unit: Unit, value: f64) -> Figure {
        Figure::new(format!("{}: {what}", self.0), unit, value)
    }

    /// What it took until all was in place.
    pub fn spent(&self, spent: &Spent) -> Vec<Figure> {
        let memory = spent
            .memory
            .map(|kibibytes| self.figure("peak memory", Unit::Kibibytes, kibibytes));
        let calls = spent
            .system_calls
            .map(|calls| self.figure("system calls", Unit::Count, calls as f64));
        [
            self.figure("all in place", Unit::Milliseconds, spent.time),
            self.figure("CPU", Unit::Milliseconds, spent.cpu),
        ]
        .into_iter()
        .chain(memory)
        .chain(calls)
        .collect()
    }

    /// What came of a start and of what followed.
    pub fn started(&self, started: &Started) -> Vec<Figure> {
        let beyond = RoundTrips(started.waits.iter().map(|wait| wait.beyond).collect());
        let written = RoundTrips(started.waits.iter().map(|wait| wait.written).collect());
        let percentile = |times: &RoundTrips, percent| {
            const MILLISECOND: f64 = 1e3;
            times.percentile(percent).as_secs_f64() * MILLISECOND
        };
        let mut figures = self.spent(&started.spent);
        figures.extend([
            self.figure("requests", Unit::Count, started.requests as f64),
            self.figure("received", Unit::Kibibytes, started.received),
            self.figure("resting memory", Unit::Kibibytes, started.resting),
        ]);
        figures.extend(started.loaded.iter().flat_map(|loaded| self.loaded(loaded)));
        figures.extend([
            self.figure(
                "change, median",
                Unit::Milliseconds,
                percentile(&beyond, 50.0),
            ),
            self.figure("change, p99", Unit::Milliseconds, percentile(&beyond, 99.0)),
            Figure {
                detail: true,
                ..self.figure(
                    "store's answer",
                    Unit::Milliseconds,
                    percentile(&written, 50.0),
                )
            },
        ]);
        figures
    }

    fn loaded(&self, loaded: &Loaded) -> Vec<Figure> {
        let (rate, sustained) = (grouped(loaded.rate), loaded.sustained);
        let relist = loaded.relist.map(|relist| {
            [
                self.figure("re-list, peak memory", Unit::Kibibytes, relist.memory),
                self.figure("re-list, CPU", Unit::Milliseconds, relist.cpu),
            ]
        });
        let changes = loaded.restart_changes as f64;
        [
            self.figure(
                &format!("{rate} changes/s, CPU"),
                Unit::Percent,
                sustained.cpu,
            ),
            self.figure(
                &format!("{rate} changes/s, behind"),
                Unit::Milliseconds,
                sustained.behind,
            ),
            self.figure("restart, netlink changes", Unit::Count, changes),
        ]
        .into_iter()
        .chain(relist.into_iter().flatten())
        .collect()
    }

    /// What a start took without fast path, and the memory that was kept then.
    pub fn without_fast_path(&self, (spent, resting): &(Spent, f64)) -> Vec<Figure> {
        let named = Self(format!("{}, off", self.0));
        let mut figures = named.spent(spent);
        figures.push(named.figure("resting memory", Unit::Kibibytes, *resting));
        figures
    }
}

/// A number of up to six digits, as the report writes it: `5 000`.
fn grouped(number: u32) -> String {
    match number / 1_000 {
        0 => number.to_string(),
        thousands => format!("{thousands} {:03}", number % 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([7, 5_000, 10_020].map(grouped), ["7", "5 000", "10 020"]);
    }
}
