//! One trait, the same tests over every store of leases: etcd, the Kubernetes API and a file.
//!
//! [`store`] says what a test does to a store, `etcd`, `kube` and `file` do it, `session` runs the store's subnet manager
//! inside this process in a node's namespace, `contract` has the tests of what it reports and publishes, and `kernel` those
//! of the agent that runs with it (`agent`). What a store cannot do by its nature is in this table, and tests assert it as it is
//! there:
//!
//! | | etcd | kube | file |
//! |---|---|---|---|
//! | this node's subnet | chosen by the node, kept | the Node's podCIDR | what the file says |
//! | this node's entry | published | published | must be there: the node never writes |
//! | the entry is changed or deleted by somebody | published again | published again | a problem that says what to correct |
//! | the node has become another | published | published | a problem that says what to correct |
//! | a peer's entry is garbage | skipped | skipped | skipped; where the whole file is, nothing changes |
//! | a change is seen | at once | at once | when the file has rested for a second |

mod agent;
mod contract;
mod etcd;
mod file;
mod kernel;
mod kube;
mod session;
mod store;

use libtest_mimic::{Completion, Failed, Trial};

use crate::support::{self, Outcome, Path, Skipped};
use store::TestStore;

/// A test of any store with its name.
type Test = (&'static str, fn() -> Outcome);

/// The tests over all stores.
pub(crate) fn trials() -> Vec<Trial> {
    let file = trial::<file::File>(
        "own_lease_chooses_interface_and_mac_and_must_be_true",
        kernel::file_rules,
    );
    [
        over::<etcd::Etcd>(),
        over::<kube::Kube>(),
        over::<file::File>(),
        vec![file],
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn over<S: TestStore>() -> Vec<Trial> {
    contract::tests::<S>()
        .into_iter()
        .chain(kernel::tests::<S>())
        .map(|(name, test)| trial::<S>(name, test))
        .collect()
}

fn trial<S: TestStore>(name: &str, test: fn() -> Outcome) -> Trial {
    Trial::ignorable_test(format!("stores::{}::{name}", S::NAME), move || {
        if let Some(reason) = support::missing(Path::Kernel) {
            return Ok(Completion::ignored_with(reason));
        }
        match test() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => match error.downcast::<Skipped>() {
                Ok(Skipped(reason)) => Ok(Completion::ignored_with(reason)),
                Err(error) => Err(Failed::from(format!("{error:#}"))),
            },
        }
    })
}
