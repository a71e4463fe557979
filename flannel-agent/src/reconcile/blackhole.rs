//! Keeps the blackhole routes of the node's subnets, or removes what a former run has left of them.

use ipnet::IpNet;

use super::{Dirty, Reconciler};
use crate::{
    family::PerFamily,
    kernel::{blackhole, netlink::Error},
};

impl Reconciler {
    /// Brings the blackhole routes in line with `--ip-blackhole-route` and the node's subnets. Whether they are.
    pub(super) fn keep_blackholes(&mut self, dirty: &Dirty) -> Result<bool, Error> {
        if !dirty.routes && !dirty.hops {
            return Ok(true);
        }
        let wanted = if self.settings.blackhole {
            self.own.subnets
        } else {
            PerFamily::default()
        };
        let own: Vec<IpNet> = self
            .own
            .subnets
            .values()
            .chain(self.settings.former.values())
            .copied()
            .collect();
        let present = blackhole::read(&mut self.netlink)?;
        let ops = blackhole::diff(&wanted, &own, &present);
        let results = blackhole::apply(&mut self.netlink, &ops)?;
        let mut problem = None;
        for (op, result) in ops.iter().zip(results) {
            match result {
                Ok(()) => tracing::info!("{op}"),
                Err(error) => problem = Some(format!("{op}: {error}")),
            }
        }
        let complete = problem.is_none();
        self.board.problem("blackhole routes", problem);
        Ok(complete)
    }
}
