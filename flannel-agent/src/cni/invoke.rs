//! Runs the delegate, as the reference library does (`pkg/invoke`): found by its name in CNI_PATH, with this plugin's
//! environment, its errors handed on as they are.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    path::PathBuf,
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Map, Value};

use super::{
    error::{Error, Report, code},
    go_json,
    request::Attachment,
    version,
};

/// How often a plugin is tried that is being written at this moment, as an installer does it…
const BUSY_TRIES: u32 = 5;
/// …and how long to wait in between.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// The key with the versions in an answer to VERSION.
pub const DECLARES_VERSIONS: &str = "supportedVersions";

/// The plugins that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugins {
    directories: Vec<PathBuf>,
}

/// Whose attachment a delegate is told to be about.
#[derive(Clone, Copy, Debug)]
enum About<'a> {
    /// That of this plugin's own environment.
    Environment,
    /// Another, whose namespace is gone.
    Gone(&'a Attachment),
}

impl Plugins {
    /// Those in the directories of `path`, separated by colons.
    pub fn new(path: impl AsRef<OsStr>) -> Self {
        let directories = std::env::split_paths(&path).filter(|path| !path.as_os_str().is_empty());
        Self {
            directories: directories.collect(),
        }
    }

    /// Runs ADD, and returns the plugin's result.
    ///
    /// # Errors
    /// What the plugin reports, or why it could not be run.
    pub fn add(&self, plugin: &str, config: &[u8]) -> Result<Vec<u8>, Error> {
        let answer = self.run("ADD", plugin, config, About::Environment)?;
        let problem = |problem: String| Error::Delegate {
            operation: "add".to_owned(),
            problem,
        };
        let result: Map<String, Value> = serde_json::from_slice(&answer).map_err(|error| {
            let text = String::from_utf8_lossy(&answer);
            problem(format!("{plugin} answered {text:?}: {error}"))
        })?;
        let declared = result.get("cniVersion").and_then(Value::as_str);
        if declared.is_some_and(|version| !version.is_empty()) {
            return Ok(answer);
        }
        // Old plugins leave it out, and mean the config's version (containernetworking/cni#895).
        let config: Map<String, Value> =
            serde_json::from_slice(config).map_err(|error| problem(error.to_string()))?;
        let mut result = result;
        if let Some(version) = config.get("cniVersion") {
            result.insert("cniVersion".into(), version.clone());
        }
        Ok(go_json::to_vec(&result))
    }

    /// Runs another command than ADD for the attachment at hand, or for none.
    ///
    /// # Errors
    /// What the plugin reports, or why it could not be run.
    pub fn call(&self, operation: &'static str, plugin: &str, config: &[u8]) -> Result<(), Error> {
        self.run(operation, plugin, config, About::Environment)
            .map(drop)
    }

    /// Runs DEL for an attachment whose namespace is gone.
    ///
    /// # Errors
    /// What the plugin reports, or why it could not be run.
    pub fn release(
        &self,
        plugin: &str,
        config: &[u8],
        attachment: &Attachment,
    ) -> Result<(), Error> {
        self.run("DEL", plugin, config, About::Gone(attachment))
            .map(drop)
    }

    /// Whether the plugin says that it knows GC and STATUS.
    ///
    /// # Errors
    /// If it cannot be run for `operation`.
    pub fn knows_gc_and_status(
        &self,
        operation: &'static str,
        plugin: &str,
    ) -> Result<bool, Error> {
        // Fails for `operation`, not for VERSION, if there is no such plugin.
        self.find(operation, plugin)?;
        let question = format!(r#"{{"cniVersion":"{}"}}"#, version::CURRENT);
        let answer = self.run("VERSION", plugin, question.as_bytes(), About::Environment)?;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let declared = answer[DECLARES_VERSIONS].as_array();
        Ok(declared.is_some_and(|versions| {
            versions
                .iter()
                .any(|version| version == version::WITH_GC_AND_STATUS)
        }))
    }

    fn run(
        &self,
        operation: &'static str,
        plugin: &str,
        config: &[u8],
        about: About<'_>,
    ) -> Result<Vec<u8>, Error> {
        let program = self.find(operation, plugin)?;
        let mut command = Command::new(&program);
        command
            .env("CNI_COMMAND", operation)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let About::Gone(attachment) = about {
            command
                .env("CNI_CONTAINERID", &attachment.container)
                .env("CNI_IFNAME", &attachment.interface)
                .env_remove("CNI_NETNS");
        }
        let output = execute(&mut command, config).map_err(|error| Error::Delegate {
            operation: operation.to_lowercase(),
            problem: format!("run {}: {error}", program.display()),
        })?;
        if output.status.success() {
            // It may warn of something. Nobody can be told that this could not be written.
            let _ = io::stderr().write_all(&output.stderr);
            return Ok(output.stdout);
        }
        Err(Error::Reported(reported(&output)))
    }

    fn find(&self, operation: &str, plugin: &str) -> Result<PathBuf, Error> {
        let problem = if plugin.is_empty() {
            "no plugin name provided".to_owned()
        } else if plugin.contains('/') {
            format!("invalid plugin name: {plugin}")
        } else if self.directories.is_empty() {
            "no paths provided".to_owned()
        } else {
            let mut programs = self.directories.iter().map(|path| path.join(plugin));
            if let Some(program) = programs.find(|program| program.is_file()) {
                return Ok(program);
            }
            let directories: Vec<_> = self
                .directories
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            format!(
                "failed to find plugin {plugin:?} in path [{}]",
                directories.join(" ")
            )
        };
        Err(Error::Delegate {
            operation: operation.to_lowercase(),
            problem,
        })
    }
}

fn execute(command: &mut Command, input: &[u8]) -> io::Result<Output> {
    let mut tries = 0;
    let mut child = loop {
        match command.spawn() {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
            {
                tries += 1;
                thread::sleep(BUSY_PAUSE);
            }
            result => break result?,
        }
    };
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        // Beside the reading: a plugin may write much before it reads all.
        scope.spawn(move || {
            // One that does not read its config says by its exit status whether that matters.
            stdin.map(|mut stdin| stdin.write_all(input))
        });
        child.wait_with_output()
    })
}

/// What a plugin that failed has to say.
fn reported(output: &Output) -> Report {
    let status = exit_text(output.status);
    let without_code = |msg: String| Report {
        version: String::new(),
        code: code::INTERNAL,
        msg,
        details: String::new(),
    };
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if stdout.is_empty() && stderr.is_empty() {
        return without_code(format!("netplugin failed with no error message: {status}"));
    }
    if stdout.is_empty() {
        return without_code(format!("netplugin failed: {stderr:?}: {status}"));
    }
    serde_json::from_str(&stdout).unwrap_or_else(|error| {
        without_code(format!(
            "netplugin failed but error parsing its diagnostic message {stdout:?}: {error}"
        ))
    })
}

/// As Go writes it.
fn exit_text(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}
