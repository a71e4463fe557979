//! A real kube-apiserver beside a cluster's etcd, and kubectl to speak with it.
//!
//! It is what clusters have: TLS, RBAC, signed tokens of service accounts. There is no controller manager, no scheduler
//! and no kubelet unless asked for: what these would make, the caller makes with [`ApiServer::apply`].
//! What is asked of it is in `objects`.

use std::{
    fmt, fs,
    io::Write as _,
    net::{Ipv4Addr, TcpStream},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use serde_json::json;

use super::audit::{self, Request};
use crate::{
    cluster::Cluster,
    daemon::Daemon,
    error::{Error, IoContext, Result},
    netns::Netns,
    process::{self, Lifetime},
    state::LabId,
    underlay::Segment,
    wait,
};

/// The port that clients use.
pub const PORT: u16 = 6443;
/// Names the folder of `kube-apiserver` and `kubectl`; `cargo xtask test --kube` builds them and sets it.
pub const PROGRAMS: &str = "FLANNEL_KUBERNETES";

/// Whom the server takes for the issuer of service accounts' tokens: what kubeadm says, too.
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The administrator's token. The server is reached from the lab's namespaces alone.
const ADMIN_TOKEN: &str = "lab-admin";
/// How long the server may take to serve; it needs 3 s on an idle machine.
const READY_LIMIT: Duration = Duration::from_secs(90);

/// The programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Those in the folder that [`PROGRAMS`] names; none if it names none.
    pub fn from_environment() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os(PROGRAMS)?);
        let programs = Self { folder };
        [programs.server(), programs.kubectl()]
            .iter()
            .all(|program| program.is_file())
            .then_some(programs)
    }

    fn server(&self) -> PathBuf {
        self.folder.join("kube-apiserver")
    }

    /// The path of `kubectl`.
    pub fn kubectl(&self) -> PathBuf {
        self.folder.join("kubectl")
    }

    /// The folder that they are in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The server; ended when the handle goes.
pub struct ApiServer {
    lab: LabId,
    netns: Netns,
    address: Ipv4Addr,
    store: String,
    directory: PathBuf,
    programs: Programs,
    daemon: Mutex<Option<Daemon>>,
    controllers: Mutex<Vec<Daemon>>,
}

impl ApiServer {
    /// Prepares a server in the switch's namespace of a cluster, which keeps its objects in the cluster's etcd.
    ///
    /// # Errors
    /// If its files cannot be made; `openssl` makes the key.
    pub fn beside(cluster: &Cluster, programs: Programs) -> Result<Self> {
        let directory = cluster.id().directory().join("apiserver");
        fs::create_dir(&directory).context("create", directory.display())?;
        let server = Self {
            lab: cluster.id(),
            netns: cluster.switch().clone(),
            address: Segment::First.gateway(),
            store: cluster.etcd().endpoint(),
            directory,
            programs,
            daemon: Mutex::new(None),
            controllers: Mutex::default(),
        };
        let key = server.path("token.key");
        process::run_command(
            None,
            Command::new("openssl")
                .args([
                    "ecparam",
                    "-name",
                    "prime256v1",
                    "-genkey",
                    "-noout",
                    "-out",
                ])
                .arg(&key),
            "",
        )?;
        let users = format!("{ADMIN_TOKEN},admin,1,system:masters\n");
        write_private(&server.path("tokens.csv"), &users)?;
        write_private(&server.path("audit-policy.json"), audit::POLICY)?;
        server.write_admin_kubeconfig(&server.admin())?;
        Ok(server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn admin(&self) -> PathBuf {
        self.path("admin.conf")
    }

    /// The URL.
    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.address)
    }

    /// Starts the server, with the objects that etcd has, and waits until it serves.
    ///
    /// # Errors
    /// If it runs already, ends, or does not serve within 90 s.
    pub fn start(&self) -> Result<()> {
        {
            let mut daemon = self.daemon();
            if daemon.is_some() {
                return Err(Error::Unsupported("the API server runs already".to_owned()));
            }
            *daemon = Some(Daemon::spawn(
                self.lab,
                "kube-apiserver",
                &self.netns,
                self.command(),
                &self.path("log"),
                Lifetime::Bound,
            )?);
        }
        wait::until("the API server", READY_LIMIT, || {
            if let Some(daemon) = &*self.daemon() {
                daemon.check_running()?;
            }
            // Cheap, while nobody listens.
            let listens = self
                .netns
                .run(|| TcpStream::connect((self.address, PORT)))?
                .map(drop);
            Ok(match listens {
                Ok(()) => self
                    .kubectl(&["get", "--raw", "/readyz"])
                    .map(drop)
                    .map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            })
        })
    }

    fn command(&self) -> Command {
        let key = self.path("token.key");
        let mut command = Command::new(self.programs.server());
        command
            .arg(format!("--etcd-servers={}", self.store))
            .arg(format!("--bind-address={}", self.address))
            .arg(format!("--secure-port={PORT}"))
            // It makes itself a certificate, with its own authority's behind it.
            .arg(format!("--cert-dir={}", self.directory.display()))
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            .arg(format!("--service-account-issuer={ISSUER}"))
            .arg(format!(
                "--service-account-signing-key-file={}",
                key.display()
            ))
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!(
                "--token-auth-file={}",
                self.path("tokens.csv").display()
            ))
            .arg("--authorization-mode=Node,RBAC")
            .arg(format!(
                "--audit-policy-file={}",
                self.path("audit-policy.json").display()
            ))
            .arg(format!("--audit-log-path={}", self.path("audit").display()))
            // It takes the second podCIDR away otherwise.
            .arg("--feature-gates=IPv6DualStack=true")
            // As in any cluster that has kube-proxy as pods.
            .arg("--allow-privileged=true")
            // Nobody resolves the nodes' names.
            .arg("--kubelet-preferred-address-types=InternalIP");
        command
    }

    /// Starts the controller manager, which gives nodes subnets of 10.244.0.0/16 and makes the pods of DaemonSets, and the
    /// scheduler. They end with the server's handle.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn start_controllers(&self) -> Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.admin().display());
        let of = |name: &str, flags: &[String]| {
            let mut command = Command::new(self.programs.folder.join(name));
            // Ports that nobody asks.
            command
                .args([
                    &kubeconfig,
                    "--leader-elect=false",
                    "--port=0",
                    "--secure-port=0",
                ])
                .args(flags);
            let log = self.path(&format!("{name}.log"));
            Daemon::spawn(self.lab, name, &self.netns, command, &log, Lifetime::Bound)
        };
        let manager = [
            format!(
                "--service-account-private-key-file={}",
                self.path("token.key").display()
            ),
            format!("--root-ca-file={}", self.path("apiserver.crt").display()),
            "--allocate-node-cidrs=true".to_owned(),
            "--cluster-cidr=10.244.0.0/16".to_owned(),
        ];
        let started = [
            of("kube-controller-manager", &manager)?,
            of("kube-scheduler", &[])?,
        ];
        self.controllers
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .extend(started);
        Ok(())
    }

    /// Kills the server with SIGKILL; its objects stay. Asked to end, it would wait for its watches to end first.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&self) -> Result<()> {
        let daemon = self.daemon().take();
        daemon
            .ok_or_else(|| Error::Unsupported("the API server does not run".to_owned()))?
            .kill()
    }

    /// Runs `kubectl` as the administrator and returns what it prints.
    ///
    /// # Errors
    /// If the command fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with_input(arguments, "")
    }

    /// As [`ApiServer::kubectl`], with text for standard input (`-f -`).
    ///
    /// # Errors
    /// If the command fails.
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(self.programs.kubectl());
        command
            .arg(format!("--kubeconfig={}", self.admin().display()))
            .arg(format!("--cache-dir={}", self.path("kubectl").display()))
            .args(arguments);
        process::run_command(Some(&self.netns), &mut command, input)
    }

    /// Writes a kubeconfig that reaches this server as whoever has the token.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, token: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": self.url(), "certificate-authority": self.path("apiserver.crt")
            }}],
            "users": [{"name": "lab", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}]
        });
        write_private(path, &config.to_string())
    }

    /// Writes the administrator's kubeconfig.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_admin_kubeconfig(&self, path: &Path) -> Result<()> {
        self.write_kubeconfig(path, ADMIN_TOKEN)
    }

    /// All requests of service accounts until now.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn requests(&self) -> Result<Vec<Request>> {
        let path = self.path("audit");
        let log = fs::read_to_string(&path).context("read", path.display())?;
        audit::parse(&log)
    }

    fn daemon(&self) -> std::sync::MutexGuard<'_, Option<Daemon>> {
        self.daemon
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServer")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

/// Writes a file that only root reads, as files with tokens are.
fn write_private(path: &Path, text: &str) -> Result<()> {
    const OWNER_ONLY: u32 = 0o600;
    fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(OWNER_ONLY)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .context("write", path.display())
}
