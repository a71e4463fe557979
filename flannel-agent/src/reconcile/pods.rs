//! The pods' part of a pass: which there are, and what of others stands in their way.

use super::{Dirty, Reconciler};
use crate::{
    family::gateway,
    kernel::{ipsec, netlink::Error, objects::Link, traffic_control},
};

impl Reconciler {
    /// Reads what the fast path must not lead packets past.
    pub(super) fn read_bypassed(&mut self, dirty: &Dirty) -> Result<(), Error> {
        let failed = |source| Error::Transfer {
            operation: "dump",
            source,
        };
        if dirty.pods || dirty.links {
            self.observed.traffic_control = traffic_control::read().map_err(failed)?;
        }
        if dirty.ipsec {
            self.observed.ipsec = ipsec::remotes().map_err(failed)?;
        }
        Ok(())
    }

    /// The pods' bridge: the one that holds the gateway address of a subnet.
    pub(super) fn bridge(&self) -> Option<&Link> {
        self.own
            .subnets
            .values()
            .find_map(|subnet| self.observed.holder(gateway(*subnet)))
    }

    pub(super) fn scan_pods(&mut self) -> Result<(), Error> {
        if !self.settings.hears_pods {
            self.pods.forget();
        }
        let bridge = self.bridge().cloned();
        let scan = self.pods.scan(
            &mut self.netlink,
            &self.observed,
            bridge.as_ref(),
            &self.own.subnets,
        )?;
        if scan.pods != self.scan.pods {
            let pods: Vec<String> = scan
                .pods
                .iter()
                .map(|pod| format!("{} at {}", pod.ip, pod.host_name))
                .collect();
            tracing::debug!(?pods, "pods of this node");
        }
        self.scan = scan;
        let problem = (!self.scan.problems.is_empty()).then(|| self.scan.problems.join("; "));
        self.board.problem("pods", problem);
        Ok(())
    }
}
