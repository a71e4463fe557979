//! What is left when a process that has a cluster ends, in whatever way: this program starts itself and ends itself.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use lab::{
    Cluster, ClusterConfig, Lifetime, NodeConfig, Result, netns, process,
    state::{self, LabId},
    wait,
};

use crate::{CHILD_VARIABLE, KEEP, cluster};

/// The child of the tests below: builds a cluster, tells its number, and waits, or ends and leaves the cluster up.
pub(crate) fn stay_up(keep: bool) -> ExitCode {
    let lifetime = if keep {
        Lifetime::Outlives
    } else {
        Lifetime::Bound
    };
    let config = cluster(vec![NodeConfig::stock(), NodeConfig::stock()], 1);
    let mut cluster =
        Cluster::start(ClusterConfig { lifetime, ..config }).expect("the cluster starts");
    if keep {
        cluster.keep().expect("the cluster can be kept");
    }
    println!("{}", cluster.id());
    if !keep {
        thread::sleep(Duration::from_secs(60));
    }
    ExitCode::SUCCESS
}

/// Starts the child and waits until its cluster is up.
fn child(mode: &str) -> (Child, LabId) {
    let program = std::env::current_exe().expect("a program has a path");
    let mut command = Command::new(program);
    command.env(CHILD_VARIABLE, mode).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the test can start itself");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe was asked for"))
        .read_line(&mut line)
        .expect("a line comes");
    let id = line.trim().parse().expect("the line is a number");
    (child, id)
}

/// What bears the lab's number, by path.
fn traces(id: LabId) -> Vec<PathBuf> {
    let prefix = id.namespace("");
    let namespaces = fs::read_dir(netns::DIRECTORY)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut traces: Vec<_> = namespaces
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .collect();
    traces.extend(
        [id.directory(), id.pin_directory()]
            .into_iter()
            .filter(|path| path.exists()),
    );
    traces
}

/// The processes that the lab recorded.
fn processes(id: LabId) -> Vec<String> {
    let text = fs::read_to_string(id.directory().join("processes")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect()
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn after_a_signal() -> Result<()> {
    for signal in ["TERM", "INT", "HUP"] {
        let (mut child, id) = child("bound");
        let processes = processes(id);
        assert!(!processes.is_empty() && traces(id).len() > 4);
        process::run(
            None,
            "kill",
            &[&format!("-{signal}"), &child.id().to_string()],
        )?;
        let status = child.wait().expect("a child can be waited for");
        assert!(status.code().is_some_and(|code| code > 128), "{status}");
        assert_eq!(traces(id), Vec::<PathBuf>::new(), "after SIG{signal}");
        assert!(!processes.iter().any(|pid| runs(pid)), "after SIG{signal}");
    }
    Ok(())
}

pub(crate) fn after_a_kill() -> Result<()> {
    let (mut child, id) = child("bound");
    let processes = processes(id);
    child
        .kill()
        .and_then(|()| child.wait())
        .expect("a child can be killed");
    // Another test's start may have done this already.
    state::reap_stale()?;
    assert_eq!(traces(id), Vec::<PathBuf>::new());
    assert!(!processes.iter().any(|pid| runs(pid)));
    Ok(())
}

pub(crate) fn after_keeping() -> Result<()> {
    let (mut child, id) = child(KEEP);
    assert!(child.wait().expect("a child can be waited for").success());
    state::reap_stale()?;
    let processes = processes(id);
    assert!(
        traces(id).len() > 4 && processes.iter().all(|pid| runs(pid)),
        "{processes:?}"
    );
    // `state::clean` would remove the clusters that others keep, too. One whose processes are dead is not kept.
    process::run(
        None,
        "kill",
        &[
            &["-KILL"],
            &processes.iter().map(String::as_str).collect::<Vec<_>>()[..],
        ]
        .concat(),
    )?;
    wait::until("the end of the lab", Duration::from_secs(5), || {
        state::reap_stale()?;
        let left = traces(id);
        Ok(if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        })
    })?;
    Ok(())
}
