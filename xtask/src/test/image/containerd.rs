//! containerd of Debian's, unpacked and not installed, with an image in it. It runs in namespaces of its own, so that
//! nothing of it outlives the test: no process, no mount, no file.

use std::{
    cell::OnceCell,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use lab::{
    Netns,
    process::{Helper, run_command},
    wait,
};

use crate::{
    debian::{self, Apt, MAIN, SECURITY, Suite},
    image::Arch,
};

/// Where containerd is from: its programs run on this release and all later ones.
const SUITES: [Suite; 2] = [
    Suite {
        name: "bookworm",
        archive: MAIN,
    },
    Suite {
        name: "bookworm-security",
        archive: SECURITY,
    },
];

/// containerd, what runs its containers, and the library that only this asks for.
const PACKAGES: [&str; 3] = ["containerd", "runc", "libseccomp2"];

/// How long containerd may take to answer.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The container of the tests.
const CONTAINER: &str = "agent";

/// Where cgroups of any version are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Starts containerd where `/run`, in which it and its parts leave things in fixed places, is memory of its own. Before
/// that it writes down the process id that others know it by.
const START: &str = r#"read -r pid rest </proc/self/stat && echo "$pid" >"$1" &&
    mount -t proc proc /proc && mount -t tmpfs tmpfs /run && exec containerd --config "$0""#;

/// Fetches the programs into a folder of this folder; what is there is not fetched again.
pub fn fetch(folder: &Path) -> Result<PathBuf> {
    let programs = folder.join("containerd");
    if programs.exists() {
        return Ok(programs);
    }
    eprintln!("fetching containerd and runc (Debian packages) into the target folder");
    let architecture = Arch::host()?.debian();
    let apt = Apt::update(folder.join("apt/containerd"), architecture, &SUITES)?;
    let fetched = folder.join("apt/fetched");
    apt.download(PACKAGES, &fetched)?;
    let part = folder.join("containerd.part");
    debian::make_anew(&part)?;
    debian::unpack_all(&fetched, &part)?;
    fs::rename(&part, &programs).with_context(|| format!("cannot make {}", programs.display()))?;
    Ok(programs)
}

/// A running containerd; it and all that it runs end with the handle.
pub struct Containerd {
    /// Its programs.
    programs: PathBuf,
    /// Socket, logs and what containers share with the test.
    folder: PathBuf,
    /// The name of its containers' namespace, which cgroups have too.
    namespace: String,
    /// The name of the image.
    image: OnceCell<String>,
    server: Option<Helper>,
}

impl Containerd {
    /// Starts it in a network namespace.
    pub fn start(programs: &Path, netns: &Netns) -> Result<Self> {
        let namespace = format!("flannel-image-{}", std::process::id());
        // The path of a socket must be short.
        let folder = std::env::temp_dir().join(&namespace);
        debian::make_anew(&folder)?;
        debian::make_folder(&folder.join("shared"))?;
        let config = folder.join("config.toml");
        let socket = folder.join("socket");
        fs::write(
            &config,
            format!(
                "version = 2\nroot = \"/run/root\"\nstate = \"/run/state\"\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
                 [grpc]\naddress = \"{}\"\n",
                socket.display()
            ),
        )
        .with_context(|| format!("cannot write {}", config.display()))?;
        let log = fs::File::create(folder.join("containerd.log"))
            .context("cannot make containerd's log")?;
        let mut containerd = Self {
            programs: programs.to_owned(),
            folder,
            namespace,
            image: OnceCell::new(),
            server: None,
        };
        let mut command = containerd.command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount"])
            .args(["sh", "-c", START])
            .args([&config, &containerd.pid_file()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share containerd's log")?)
            .stderr(log);
        containerd.server = Some(Helper::spawn(netns, command)?);
        wait::until("containerd", START_LIMIT, || {
            Ok(containerd.ctr(&["version"]).map(drop).map_err(|error| {
                let log = fs::read_to_string(containerd.folder.join("containerd.log"));
                format!("{error:#}\n{}", log.unwrap_or_default())
            }))
        })?;
        Ok(containerd)
    }

    /// A command that finds containerd's programs first.
    fn command(&self, program: &str) -> Command {
        let inside = |paths: &[&str]| -> String {
            let paths = paths.iter().map(|path| self.programs.join(path));
            let paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
            paths.join(":")
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(program);
        command
            .env(
                "PATH",
                format!("{}:{path}", inside(&["usr/bin", "usr/sbin"])),
            )
            .env(
                "LD_LIBRARY_PATH",
                inside(&["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"]),
            );
        command
    }

    /// Runs containerd's client.
    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let pid = fs::read_to_string(self.pid_file()).context("containerd has not started")?;
        // It mounts what containerd has mounted, and names files of its own by its process id.
        let mut command = self.command("nsenter");
        command
            .args(["--mount", "--pid", "--target", pid.trim()])
            .arg(self.programs.join("usr/bin/ctr"))
            .arg("--address")
            .arg(self.folder.join("socket"))
            .args(["--namespace", &self.namespace])
            .args(arguments);
        Ok(run_command(None, &mut command, "")?)
    }

    /// Imports an archive, whose image must have that name then.
    pub fn import(&self, archive: &Path, name: &str) -> Result<()> {
        let archive = archive.to_string_lossy();
        self.ctr(&["images", "import", &archive])?;
        let found = self.ctr(&["images", "list", "--quiet"])?;
        anyhow::ensure!(
            found.lines().any(|found| found == name),
            "the image is imported as {found}, and not as {name}"
        );
        self.image.get_or_init(|| name.to_owned());
        Ok(())
    }

    /// A file that containers see where [`Containerd::mount`] says.
    pub fn shared(&self, name: &str) -> PathBuf {
        self.folder.join("shared").join(name)
    }

    /// The option that mounts the shared folder.
    pub fn mount(&self, at: &str) -> String {
        self.mount_file("", at)
    }

    /// The option that mounts a shared file.
    pub fn mount_file(&self, name: &str, at: &str) -> String {
        let source = self.shared(name);
        format!(
            "--mount=type=bind,src={},dst={at},options=rbind:rw",
            source.display()
        )
    }

    /// Runs a container to its end, with these options of ctr and this command.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Result<String> {
        self.start_container(&["--rm"], options, command)
    }

    /// Runs a container that goes on.
    pub fn keep_running(&self, options: &[&str], command: &[&str]) -> Result<()> {
        let log = format!("--log-uri=file://{}", self.log_path().display());
        self.start_container(&["--detach", &log], options, command)
            .map(drop)
    }

    fn start_container(&self, how: &[&str], options: &[&str], command: &[&str]) -> Result<String> {
        let fifos = format!("--fifo-dir={}", self.folder.join("fifos").display());
        let image = self.image.get().context("no image is imported")?;
        // containerd is the first process of its namespace.
        let network = "--with-ns=network:/proc/1/ns/net";
        let arguments = [
            &["run", network, &fifos],
            how,
            options,
            &[image, CONTAINER],
            command,
        ];
        self.ctr(&arguments.concat())
    }

    /// Runs another program in the container that goes on.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        let fifos = format!("--fifo-dir={}", self.folder.join("fifos").display());
        let exec = ["task", "exec", "--exec-id=1", &fifos, CONTAINER];
        self.ctr(&[&exec, command].concat())
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join("pid")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("container.log")
    }

    /// What the container that goes on has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Its namespace's first process goes, and with it all others and their mounts.
        drop(self.server.take());
        let mut cgroups = vec![PathBuf::from(CGROUPS)];
        let hierarchies = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
        cgroups.extend(hierarchies.map(|entry| entry.path()));
        for cgroup in cgroups.into_iter().map(|path| path.join(&self.namespace)) {
            if cgroup.exists() {
                // The processes leave it a moment after they have been killed.
                let _ = wait::until("an empty cgroup", START_LIMIT, || {
                    let _ = fs::remove_dir(cgroup.join(CONTAINER));
                    Ok(fs::remove_dir(&cgroup).map_err(|error| error.to_string()))
                });
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
