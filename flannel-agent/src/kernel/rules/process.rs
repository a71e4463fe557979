//! Runs the tools.

use std::{
    env,
    io::Write as _,
    process::{Command, Stdio},
};

use super::Error;

/// Runs a command with `input` on its standard input and returns what it prints.
///
/// # Errors
/// When it cannot be started or fails, with the first line that it says.
pub fn run(command: &[&str], input: &str) -> Result<String, Error> {
    let start = |source| Error::Start {
        command: command[0].to_owned(),
        source,
    };
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that exits early says why on standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    // iptables puts a headline above its errors, which ends with a colon, and hints at the other variant's rules.
    let message = errors
        .lines()
        .find(|line| !line.trim_end().ends_with(':') && !line.starts_with("# Warning"))
        .unwrap_or("failed without a message");
    Err(Error::Failed {
        command: command.join(" "),
        message: message.to_owned(),
    })
}

/// Whether there is a program of that name where commands are looked for.
pub fn exists(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| {
        env::split_paths(&path).any(|directory| directory.join(program).is_file())
    })
}
