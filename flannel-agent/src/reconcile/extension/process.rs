//! Runs one command of the operator's: in a process group of its own, within a time limit, its output captured.

use std::{
    convert::Infallible, io, os::fd::OwnedFd, process::ExitStatus, process::Stdio, time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe::Receiver,
    process, time,
};

use crate::backend::extension::Command;

/// How much of the output is kept, in bytes.
const OUTPUT_MAX: usize = 64 * 1024;
/// How many of the output's last lines an error repeats.
const LINES: usize = 3;

/// Why a command has not done what it is for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not run.
    #[error(
        "Backend.{field}: cannot run {program:?}: {source}; there is no shell: name a program or a script that is executable"
    )]
    Start {
        /// The field of the network config.
        field: &'static str,
        /// The first word.
        program: String,
        /// What the system call said.
        source: io::Error,
    },
    /// It has failed.
    #[error("Backend.{field}: {program}: {status}{}", said(.output))]
    Failed {
        /// The field of the network config.
        field: &'static str,
        /// The first word.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: Output,
    },
    /// It did not end in time, and was killed with all that it had started.
    #[error(
        "Backend.{field}: {program}: did not end within {}s and was killed; what takes longer must go to the background{}",
        .limit.as_secs(),
        said(.output)
    )]
    Late {
        /// The field of the network config.
        field: &'static str,
        /// The first word.
        program: String,
        /// The limit.
        limit: Duration,
        /// What it printed.
        output: Output,
    },
}

/// What a command has printed on standard output and error, in the order in which it did.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// Whether only the end was kept.
    pub cut: bool,
}

impl Output {
    /// As text, without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).trim().to_owned()
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let surplus = self.bytes.len().saturating_sub(OUTPUT_MAX);
        if surplus > 0 {
            self.bytes.drain(..surplus);
            self.cut = true;
        }
    }

    /// Reads until the last writer is gone.
    async fn read(&mut self, reader: &mut Receiver) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            self.add(&buffer[..length]);
        }
    }

    /// Reads what is there.
    fn drain(&mut self, reader: &Receiver) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = reader.try_read(&mut buffer) {
            self.add(&buffer[..length]);
        }
    }
}

/// The last lines, for an error.
fn said(output: &Output) -> String {
    let text = output.text();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    match &lines[lines.len().saturating_sub(LINES)..] {
        [] => String::new(),
        last => format!(": {}", last.join(" | ")),
    }
}

/// Kills the group when it is dropped: also when nobody waits for the command any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // All may have ended meanwhile.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs a command. What it leaves in the background goes on when the command itself ends, but is no longer read from.
///
/// # Errors
/// When it cannot be started, fails or takes longer than `limit`.
pub async fn run(command: &Command, limit: Duration) -> Result<Output, Error> {
    let field = command.field;
    let program = || command.arguments[0].clone();
    let start = |source| Error::Start {
        field,
        program: program(),
        source,
    };
    let (mut child, mut reader) = spawn(command).map_err(start)?;
    // Until the process has been waited for, its number is nobody else's.
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let mut output = Output::default();
    let stdin = child.stdin.take();
    let status = {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A command need not read it.
                let _ = stdin.write_all(command.input.as_bytes()).await;
            }
        };
        let exchange = async {
            tokio::join!(feed, output.read(&mut reader));
            std::future::pending::<Infallible>().await
        };
        let end = async {
            tokio::select! {
                status = child.wait() => status,
                never = exchange => match never {},
            }
        };
        time::timeout(limit, end).await
    };
    let Ok(status) = status else {
        drop(group);
        // Killed: it ends at once.
        let _ = child.wait().await;
        output.drain(&reader);
        return Err(Error::Late {
            field,
            program: program(),
            limit,
            output,
        });
    };
    group.0 = None;
    output.drain(&reader);
    let status = status.map_err(start)?;
    if status.success() {
        return Ok(output);
    }
    Err(Error::Failed {
        field,
        program: program(),
        status,
        output,
    })
}

fn spawn(command: &Command) -> io::Result<(process::Child, Receiver)> {
    let (reader, writer) = io::pipe()?;
    let child = process::Command::new(&command.arguments[0])
        .args(&command.arguments[1..])
        .envs(command.variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    Ok((child, Receiver::from_owned_fd(OwnedFd::from(reader))?))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, thread};

    use super::*;

    fn command(arguments: &[&str]) -> Command {
        Command {
            field: "SubnetAddCommand",
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            variables: vec![("SUBNET", "10.5.7.0/24".into())],
            input: "the key\n".into(),
        }
    }

    fn shell(script: &str) -> Command {
        command(&["sh", "-c", script])
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn it_gets_variables_and_input_and_all_that_it_prints_is_kept() {
        let script = "read line; echo \"$line for $SUBNET\"; echo oops >&2; echo; echo end";
        let output = run(&shell(script), LONG).await.unwrap();
        assert_eq!(output.text(), "the key for 10.5.7.0/24\noops\n\nend");
        assert!(!output.cut);
        // Nobody reads the input; all output is read, whatever there is.
        let output = run(&shell("head -c 1000000 /dev/zero; echo end"), LONG).await;
        let output = output.unwrap();
        assert!(output.cut && output.text().ends_with("end") && output.bytes.len() == OUTPUT_MAX);
    }

    #[tokio::test]
    async fn errors_name_field_program_and_last_lines() {
        let error = run(&shell("seq 9; exit 3"), LONG).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "Backend.SubnetAddCommand: sh: exit status: 3: 7 | 8 | 9"
        );
        let error = run(&command(&["/no/such"]), LONG).await.unwrap_err();
        assert!(
            error.to_string().starts_with(
                "Backend.SubnetAddCommand: cannot run \"/no/such\": No such file or directory"
            ),
            "{error}"
        );
        assert!(run(&command(&[""]), LONG).await.is_err());
    }

    fn process(id: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // A zombie is none any more.
        Path::new(&format!("/proc/{id}")).exists() && !stat.contains(") Z ")
    }

    #[tokio::test]
    async fn a_late_one_is_killed_with_all_that_it_has_started() {
        let script = "sleep 1000 & echo $!; sleep 1000";
        let limit = Duration::from_millis(500);
        let Err(Error::Late { output, .. }) = run(&shell(script), limit).await else {
            panic!("it ended");
        };
        let child = output.text();
        for _ in 0..100 {
            if !process(&child) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("process {child} is still there");
    }

    #[tokio::test]
    async fn what_is_in_the_background_is_not_waited_for() {
        let output = run(&shell("sleep 1000 & echo $!"), LONG).await.unwrap();
        let child = output.text();
        assert!(process(&child), "{child}");
        kill_process_group(Pid::from_raw(group_of(&child)).unwrap(), Signal::KILL).unwrap();
    }

    fn group_of(id: &str) -> i32 {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        let after_name = stat.rsplit(") ").next().unwrap();
        after_name.split(' ').nth(2).unwrap().parse().unwrap()
    }
}
