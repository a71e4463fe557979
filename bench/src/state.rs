//! What labs leave on the machine, and its removal.
//!
//! Each lab has a number and a directory `/run/flannel-lab/<number>/`. All else that it makes carries the number in
//! its name (namespaces `/run/netns/lab-<number>-…`, pins below `/sys/fs/bpf/flannel-lab-<number>`, control groups
//! `flannel-lab-<number>-…`) or is listed in the directory (processes, by pid and start time). So whoever finds the directory can remove the lab, and the directory
//! goes last. A lab is *stale* when the process that owns it is dead, unless that process meant it to stay
//! ([`keep`]). Never is a process killed by name, nor one whose start time is not the recorded one.

pub(crate) mod cgroups;

use std::{
    fmt, fs,
    hash::{BuildHasher, RandomState},
    io::{ErrorKind, Write},
    num::ParseIntError,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Mutex,
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    error::{Error, IoContext, Result},
    mounts, netns,
    proc::ProcessId,
    signals,
};

/// Where labs keep their directories.
pub const DIRECTORY: &str = "/run/flannel-lab";

/// The labs of this process, for teardown on a signal.
static OWN: Mutex<Vec<LabId>> = Mutex::new(Vec::new());

/// A lab's number and what follows from it. It is chosen at random: one that was just freed must not come to mean
/// another lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabId(u16);

impl fmt::Display for LabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl FromStr for LabId {
    type Err = ParseIntError;

    /// Reads what `Display` wrote.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u16::from_str_radix(text, 16).map(Self)
    }
}

impl LabId {
    fn random() -> Self {
        // Every `RandomState` hashes with keys of its own.
        let [low, high, ..] = RandomState::new().hash_one(()).to_ne_bytes();
        Self(u16::from_ne_bytes([low, high]))
    }

    /// The lab's directory.
    pub fn directory(self) -> PathBuf {
        Path::new(DIRECTORY).join(self.to_string())
    }

    /// The directory in the BPF file system below which the lab's agents pin.
    pub fn pin_directory(self) -> PathBuf {
        Path::new(mounts::BPFFS).join(format!("flannel-lab-{self}"))
    }

    /// The name of one of the lab's namespaces.
    pub fn namespace(self, role: &str) -> String {
        format!("lab-{self}-{role}")
    }

    /// The name of the control group of one of the lab's nodes.
    pub fn cgroup(self, node: &str) -> String {
        format!("flannel-lab-{self}-{node}")
    }
}

/// Takes a free number and makes its directory, with the calling process as owner.
///
/// # Errors
/// Without root, or if the BPF file system cannot be mounted.
pub fn create() -> Result<LabId> {
    let _permit = signals::permit();
    let _lock = lock()?;
    mounts::acquire()?;
    let id = std::iter::repeat_with(LabId::random)
        .find(|id| !id.directory().exists())
        .expect("the numbers do not end");
    let directory = id.directory();
    fs::create_dir(&directory).context("create", directory.display())?;
    mounts::memory(&directory)?;
    let owner = ProcessId::own()?;
    fs::write(directory.join("owner"), format!("{owner}\n"))
        .context("write owner of", directory.display())?;
    own().push(id);
    Ok(id)
}

/// Notes a process of the lab, so that teardown finds it.
pub(crate) fn record_process(id: LabId, process: ProcessId, name: &str) -> Result<()> {
    let path = id.directory().join("processes");
    let mut file = fs::File::options()
        .append(true)
        .create(true)
        .open(&path)
        .context("open", path.display())?;
    file.write_all(format!("{process} {name}\n").as_bytes())
        .context("write", path.display())
}

/// Makes a folder outside of labs, with those above it, unless it is there. What was made goes with the machine's last
/// lab, if it is empty then.
///
/// # Errors
/// If it cannot be made or noted.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    let _permit = signals::permit();
    let _lock = lock()?;
    let missing: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
    let list = folders_path();
    let mut file = fs::File::options()
        .append(true)
        .create(true)
        .open(&list)
        .context("open", list.display())?;
    for folder in missing.into_iter().rev() {
        // Noted first: what is not there after all does no harm.
        file.write_all(format!("{}\n", folder.display()).as_bytes())
            .context("write", list.display())?;
        fs::create_dir(folder).context("create", folder.display())?;
    }
    Ok(())
}

/// Marks the lab as one that outlives its owner: only [`clean`] removes it, or its last process's death.
///
/// # Errors
/// If the mark cannot be written.
pub fn keep(id: LabId) -> Result<()> {
    let path = id.directory().join("kept");
    fs::write(&path, "").context("write", path.display())?;
    own().retain(|own| *own != id);
    Ok(())
}

/// Removes a lab of this process and reports what resisted.
pub(crate) fn remove(id: LabId) -> Vec<Error> {
    let mut problems = remove_contents(id);
    match lock() {
        Ok(_lock) => problems.extend(remove_directory(id)),
        Err(error) => problems.push(error),
    }
    own().retain(|own| *own != id);
    problems
}

/// Removes every lab that this process still owns.
pub(crate) fn remove_all_of_this_process() -> Vec<Error> {
    let ids = own().clone();
    ids.into_iter().flat_map(remove).collect()
}

/// Removes the labs of dead processes, such as an earlier run that was killed with SIGKILL. Returns their numbers.
///
/// # Errors
/// The first object that could not be removed.
pub fn reap_stale() -> Result<Vec<LabId>> {
    let in_use = |id| is_kept(id) && processes(id).iter().any(ProcessId::is_alive);
    remove_where(|id| !owner_lives(id) && !in_use(id))
}

/// Removes the labs of dead processes and those that were kept on purpose. Returns their numbers.
///
/// # Errors
/// The first object that could not be removed.
pub fn clean() -> Result<Vec<LabId>> {
    remove_where(|id| !owner_lives(id))
}

fn remove_where(condition: impl Fn(LabId) -> bool) -> Result<Vec<LabId>> {
    if !Path::new(DIRECTORY).exists() {
        return Ok(Vec::new());
    }
    // Held throughout: a number must not be taken by a new lab while its old contents are being removed.
    let _lock = lock()?;
    let removed: Vec<_> = all()?.into_iter().filter(|id| condition(*id)).collect();
    let problems = removed.iter().flat_map(|id| {
        let mut problems = remove_contents(*id);
        problems.extend(remove_directory(*id));
        problems
    });
    match problems.collect::<Vec<_>>().into_iter().next() {
        Some(problem) => Err(problem),
        None => {
            release_shared();
            Ok(removed)
        }
    }
}

/// Kills the lab's processes and removes its namespaces, pins and control groups.
fn remove_contents(id: LabId) -> Vec<Error> {
    let mut problems: Vec<Error> = Vec::new();
    let processes = processes(id);
    // First all, then wait: they die in parallel.
    processes.iter().for_each(ProcessId::kill);
    problems.extend(
        processes
            .iter()
            .filter_map(|process| process.wait_gone().err()),
    );

    let prefix = id.namespace("");
    for path in entries(Path::new(netns::DIRECTORY)) {
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        {
            problems.extend(netns::remove(&path).err());
        }
    }
    problems.extend(remove_tree(&id.pin_directory()).err());
    let prefix = id.cgroup("");
    problems.extend(cgroups::remove(|name| name.starts_with(&prefix)).err());
    problems
}

/// Removes the lab's directory, and with the last one what all labs share. The lock must be held.
fn remove_directory(id: LabId) -> Option<Error> {
    let directory = id.directory();
    mounts::unmount(&directory);
    let result = remove_tree(&directory);
    release_shared();
    result.err()
}

fn release_shared() {
    if all().is_ok_and(|labs| labs.is_empty()) {
        mounts::release();
        remove_folders();
        fs::remove_file(lock_path()).ok();
        fs::remove_dir(DIRECTORY).ok();
    }
}

/// Removes what [`make_folder`] has made, but for what somebody has put something into.
fn remove_folders() {
    let list = folders_path();
    let folders = fs::read_to_string(&list).unwrap_or_default();
    for folder in folders.lines().rev() {
        fs::remove_dir(folder).ok();
    }
    fs::remove_file(list).ok();
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("remove", path.display())
        }
        _ => Ok(()),
    }
}

fn all() -> Result<Vec<LabId>> {
    let mut ids: Vec<_> = entries(Path::new(DIRECTORY))
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse().ok())
        .collect();
    ids.sort();
    Ok(ids)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn is_kept(id: LabId) -> bool {
    id.directory().join("kept").exists()
}

fn owner_lives(id: LabId) -> bool {
    let owner = fs::read_to_string(id.directory().join("owner")).ok();
    owner
        .and_then(|line| line.parse::<ProcessId>().ok())
        .is_some_and(|owner| owner.is_alive())
}

fn processes(id: LabId) -> Vec<ProcessId> {
    let text = fs::read_to_string(id.directory().join("processes")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn own() -> std::sync::MutexGuard<'static, Vec<LabId>> {
    OWN.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The list of folders that labs have made outside of theirs.
fn folders_path() -> PathBuf {
    Path::new(DIRECTORY).join("folders")
}

fn lock_path() -> PathBuf {
    Path::new(DIRECTORY).join("lock")
}

/// Takes the lock that all labs of the machine share. It is released when the file is closed.
fn lock() -> Result<fs::File> {
    let path = lock_path();
    loop {
        fs::create_dir_all(DIRECTORY).context("create", DIRECTORY)?;
        let file = match fs::File::options().append(true).create(true).open(&path) {
            // Its directory has just been removed by the last lab.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            opened => opened.context("open", path.display())?,
        };
        flock(&file, FlockOperation::LockExclusive).context("lock", path.display())?;
        // The last lab removes the file: a lock on a removed file protects nothing.
        if same_file(&file, &path) {
            return Ok(file);
        }
    }
}

fn same_file(file: &fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}
