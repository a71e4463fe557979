//! The benchmark's server and client switch both nodes' agents: their proofs of the path hold both ways, and the modes
//! that were found come back, also when the client is interrupted.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::{Path as FilePath, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use lab::{Netns, Pod};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::pair::{Pair, agent, with_pair};
use crate::support::{AGENT, Outcome, PROMPT, Setting, Skipped, eventually};

/// The benchmark; Cargo puts it beside the agent, if it builds all of the workspace.
const PROGRAM: &str = "bench";
/// The port that the server listens on.
const PORT: u16 = 5210;
/// One round of the client.
const ROUND_LIMIT: Duration = Duration::from_secs(120);
/// What a client ends with that SIGINT has ended.
const INTERRUPTED: i32 = 130;

/// A program in a pod, killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Running {
    /// Waits for its end; the exit status.
    fn wait(&mut self, limit: Duration) -> anyhow::Result<Option<i32>> {
        const PAUSE: Duration = Duration::from_millis(20);
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status.code());
            }
            ensure!(start.elapsed() < limit, "still running after {limit:?}");
            sleep(PAUSE);
        }
    }

    /// What it has written to its pipes, errors first, after its end.
    fn said(&mut self) -> anyhow::Result<String> {
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        if let Some(mut stdout) = self.0.stdout.take() {
            stdout.read_to_string(&mut said)?;
        }
        Ok(said)
    }

    fn interrupt(&self) -> Outcome {
        kill_process(Pid::from_child(&self.0), Signal::INT).context("interrupt the client")
    }
}

/// The benchmark in a namespace; `nsenter` becomes it, so a signal reaches it.
fn in_namespace(netns: &Netns, arguments: &[String]) -> anyhow::Result<Command> {
    let program = FilePath::new(AGENT).with_file_name(PROGRAM);
    if !program.exists() {
        let why = format!(
            "{} is not there: `cargo xtask test` builds it",
            program.display()
        );
        bail!(Skipped(why));
    }
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns.path().display()))
        .arg(program)
        .args(arguments);
    Ok(command)
}

/// Starts the server in the second pod and waits until it listens.
fn serve(pair: &Pair<'_>) -> anyhow::Result<Running> {
    let socket = agent(pair.nodes[1])?.socket();
    let arguments = [
        "server".to_owned(),
        format!("--agent-socket={}", socket.display()),
    ];
    let mut command = in_namespace(pair.pods[1].netns(), &arguments)?;
    let mut server = Running(command.stdout(Stdio::piped()).spawn()?);
    let stdout = server.0.stdout.take().context("a pipe was asked for")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.starts_with("listening"), "the server says {line:?}");
    Ok(server)
}

/// The client in the first pod.
fn client(pair: &Pair<'_>, arguments: &[String]) -> anyhow::Result<Command> {
    let [from, to]: &[Pod; 2] = &pair.pods;
    let socket = agent(pair.nodes[0])?.socket();
    let mut all = vec![
        "client".to_owned(),
        format!("--server={}:{PORT}", to.address()),
        format!("--agent-socket={}", socket.display()),
        // Other tests run at the same time.
        "--udp-rate=2000".to_owned(),
    ];
    all.extend_from_slice(arguments);
    in_namespace(from.netns(), &all)
}

fn modes(pair: &Pair<'_>) -> anyhow::Result<[String; 2]> {
    let mode = |node: usize| -> anyhow::Result<String> {
        Ok(agent(pair.nodes[node])?.status()?.fast_path.mode)
    };
    Ok([mode(0)?, mode(1)?])
}

fn wait_modes(pair: &Pair<'_>, wanted: &str) -> Outcome {
    eventually(&format!("mode {wanted} at both nodes"), PROMPT, || {
        let modes = modes(pair)?;
        let reached = modes.iter().all(|mode| mode == wanted);
        Ok(reached.then_some(()).ok_or_else(|| format!("{modes:?}")))
    })
}

/// All is measured by both paths, and both are proven at both nodes; the modes come back.
pub(crate) fn both_paths_are_measured_and_proven(setting: Setting) -> Outcome {
    with_pair(setting, &[], |pair| {
        let found = modes(pair)?;
        let _server = serve(pair)?;
        let file: PathBuf = agent(pair.nodes[0])?
            .log_path()
            .with_file_name("comparison.json");
        let arguments = [
            format!("--json={}", file.display()),
            "--duration=300ms".to_owned(),
            "--rounds=1".to_owned(),
        ];
        let mut command = client(pair, &arguments)?;
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = Running(command.spawn()?);
        // All that one round says fits into the pipes.
        let status = client.wait(ROUND_LIMIT)?;
        let said = client.said()?;
        ensure!(status == Some(0), "ended with {status:?}: {said}");
        let report: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        let proofs = report["proofs"].as_array().context("proofs")?;
        for path in ["kernel", "fast"] {
            let proven = proofs.iter().filter(|row| row["path"] == path);
            let proven = proven.filter(|row| row["proofs"][0]["verdict"] == "proven");
            ensure!(proven.count() == 5, "five kinds by {path}: {said}");
        }
        let ratio = report["rows"].as_array().into_iter().flatten();
        let mut ratio = ratio.filter(|row| row["figure"] == "TCP round trip, p50");
        ensure!(
            ratio.any(|row| row["comparison"]["summary"]["median"].as_f64() > Some(0.0)),
            "no ratio: {said}"
        );
        ensure!(
            modes(pair)? == found,
            "modes left behind: {:?}",
            modes(pair)
        );
        Ok(())
    })
}

/// A client that is interrupted while the fast path is off, and a server whose client is killed, give the modes back.
pub(crate) fn modes_come_back_after_an_interruption(setting: Setting) -> Outcome {
    with_pair(setting, &[], |pair| {
        let found = setting.path.mode();
        let mut server = serve(pair)?;
        let long = ["--duration=1m".to_owned()];
        let start = || -> anyhow::Result<Running> {
            let mut command = client(pair, &long)?;
            let command = command.stdout(Stdio::null()).stderr(Stdio::null());
            Ok(Running(command.spawn()?))
        };
        let mut interrupted = start()?;
        // The first round begins with the kernel's path.
        wait_modes(pair, "off")?;
        interrupted.interrupt()?;
        let status = interrupted.wait(PROMPT)?;
        ensure!(status == Some(INTERRUPTED), "ended with {status:?}");
        wait_modes(pair, found)?;

        // Nobody can restore the client's side of a killed one; the server does its own.
        let killed = start()?;
        wait_modes(pair, "off")?;
        drop(killed);
        eventually("the server's mode", PROMPT, || {
            let [_, mode] = modes(pair)?;
            Ok((mode == found).then_some(()).ok_or(mode))
        })?;
        reset(pair, found)?;

        // A server that is interrupted restores too; its client then fails, and does the same.
        let mut left = start()?;
        wait_modes(pair, "off")?;
        server.interrupt()?;
        let status = server.wait(PROMPT)?;
        ensure!(
            status == Some(INTERRUPTED),
            "the server ended with {status:?}"
        );
        let status = left.wait(ROUND_LIMIT)?;
        ensure!(status == Some(1), "its client ended with {status:?}");
        wait_modes(pair, found)
    })
}

/// What an operator does after a client was killed.
fn reset(pair: &Pair<'_>, mode: &str) -> Outcome {
    let client = agent(pair.nodes[0])?;
    let socket = format!("--status-socket={}", client.socket().display());
    client.command_output(&["fast-path", &socket, mode])?;
    wait_modes(pair, mode)
}
