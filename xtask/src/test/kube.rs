//! Clusters whose leases a real Kubernetes API server keeps, and one whose pods kubelets run. The programs are built from
//! source once for each user and machine; where that cannot be done, the suite is skipped, loudly.

use anyhow::Result;

use super::{
    Options, Suite, image, manifests,
    runner::Runners,
    tally::{Skip, Tally},
};
use crate::{
    build::Objects,
    command,
    setup::{self, kubernetes},
    workspace::Workspace,
};

/// Names the folder of containerd's programs to the tests.
const CONTAINERD_VARIABLE: &str = "FLANNEL_CONTAINERD";
/// Names the archive of the image to them.
const IMAGE_VARIABLE: &str = "FLANNEL_IMAGE";

/// Whether the suite is among those that run if none is named, although building the programs takes minutes of two cores
/// on a machine that has not got them yet.
pub const ALWAYS: bool = true;

/// Builds the programs if need be, and runs the tests.
pub fn run(
    workspace: &Workspace,
    objects: &Objects,
    runners: &mut Runners<'_>,
    options: &Options,
) -> Result<Tally> {
    let programs = match setup::ensure_kubernetes(workspace) {
        Ok(programs) => programs,
        Err(error) => {
            command::check_interrupt()?;
            let reason = format!("{error:#}");
            println!("  SKIPPED: {reason}");
            return Ok(Tally {
                skipped: vec![Skip {
                    test: "a real API server".into(),
                    reason,
                }],
                ..Tally::default()
            });
        }
    };
    runners.tell(kubernetes::VARIABLE, programs);
    // The chart is put to the server, too.
    manifests::ensure_helm(workspace)?;
    match image::for_kubelets(workspace, objects) {
        Ok((containerd, image)) => {
            runners.tell(CONTAINERD_VARIABLE, containerd);
            runners.tell(IMAGE_VARIABLE, image);
        }
        Err(error) => {
            command::check_interrupt()?;
            println!("  no kubelets: {error:#}");
        }
    }
    runners.run(Suite::Kube, options)
}
