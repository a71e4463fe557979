//! A real kubelet on a node of a cluster, with containerd, runc and kube-proxy: real pods, of images that are on the
//! machine.
//!
//! Nothing of it leaves the node: it has mount and process namespaces of its own, with memory over the places that are
//! fixed (`kubelet.sh`), and a control group that goes with the handle.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::apiserver::{self, ApiServer};
use crate::{
    daemon::{Daemon, last_lines},
    error::{IoContext, Result},
    node::Node,
    process::Lifetime,
    state::LabId,
};

/// Names the folder of containerd's and runc's packages, unpacked.
pub const CONTAINERD: &str = "FLANNEL_CONTAINERD";
/// Names the archive of the agent's image.
pub const IMAGE: &str = "FLANNEL_IMAGE";
/// The image of all other pods, whose only program is busybox, with a file to serve in `/www`.
pub const POD_IMAGE: &str = "pods:1";

/// Makes the node's own view of the machine and becomes kubelet.
const SCRIPT: &str = include_str!("kubelet.sh");
/// Where control groups are: of version 1 below a folder for each controller.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long the kernel may take to be done with the processes of a control group.
const CGROUP_LIMIT: Duration = Duration::from_secs(5);

/// What kubelets need besides Kubernetes' programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    containerd: PathBuf,
    image: PathBuf,
}

impl Runtime {
    /// What [`CONTAINERD`] and [`IMAGE`] name; none if that is not there.
    pub fn from_environment() -> Option<Self> {
        let path = |name| Some(PathBuf::from(env::var_os(name)?)).filter(|path| path.exists());
        Some(Self {
            containerd: path(CONTAINERD)?,
            image: path(IMAGE)?,
        })
    }
}

/// A node's kubelet, with all that it runs; ended when the handle goes.
#[derive(Debug)]
pub struct Kubelet {
    folder: PathBuf,
    cgroup: String,
    daemon: Option<Daemon>,
}

impl Kubelet {
    /// Starts it; it registers the node by the node's name.
    ///
    /// # Errors
    /// If it cannot be started. What it says later is in [`Kubelet::logs`].
    pub fn start(
        lab: LabId,
        server: &ApiServer,
        programs: &apiserver::Programs,
        runtime: &Runtime,
        node: &Node,
    ) -> Result<Self> {
        let folder = node.directory().join("kubelet");
        fs::create_dir(&folder).context("create", folder.display())?;
        server.write_admin_kubeconfig(&folder.join("admin.conf"))?;
        let script = folder.join("kubelet.sh");
        fs::write(&script, SCRIPT).context("write", script.display())?;
        let cgroup = format!("flannel-lab-{lab}-{}", node.name());
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "sh"])
            .arg(&script)
            .arg(node.name())
            .arg(node.address().to_string())
            .arg(&folder)
            .arg(&runtime.containerd)
            .arg(programs.folder())
            .arg(&runtime.image)
            .arg(&cgroup);
        let daemon = Daemon::spawn(
            lab,
            &format!("kubelet {}", node.name()),
            node.netns(),
            command,
            &folder.join("kubelet.log"),
            Lifetime::Bound,
        )?;
        Ok(Self {
            folder,
            cgroup,
            daemon: Some(daemon),
        })
    }

    /// The ends of its logs and of those beside it.
    pub fn logs(&self) -> String {
        let logs = ["kubelet.log", "containerd.log", "kube-proxy.log"];
        let shown = logs.map(|name| format!("{name}:\n{}\n", last_lines(&self.folder.join(name))));
        shown.concat()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        drop(self.daemon.take());
        // Processes are gone with their namespace, but for what the kernel still has to do.
        let start = Instant::now();
        while !remove_cgroups(&self.cgroup) && start.elapsed() < CGROUP_LIMIT {
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Removes control groups of that name, of every controller; whether none is left.
fn remove_cgroups(name: &str) -> bool {
    let controllers = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    let roots = controllers.map(|entry| entry.path().join(name));
    let roots = roots.chain([Path::new(CGROUPS).join(name)]);
    roots
        .filter(|root| root.is_dir())
        .all(|root| remove_cgroup(&root))
}

/// Removes a control group with those in it.
fn remove_cgroup(group: &Path) -> bool {
    let inside = fs::read_dir(group).into_iter().flatten().flatten();
    let inside = inside.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    inside.into_iter().all(|entry| remove_cgroup(&entry.path())) && fs::remove_dir(group).is_ok()
}
