//! `flannel-agent install-cni`: puts the CNI plugin and its network config where the container runtime looks, as an init
//! container does before the agent starts.
//!
//! Both are replaced by a rename, and only if they differ. The config is flannel's to write as long as it is flannel's: a
//! file of that name that another network plugin has written stays. What comes before ours in the folder wins, since
//! runtimes take the first; it stays, too, and a warning names it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::Value;

use crate::atomic_file;

/// Where the plugin is in the image, as in upstream's.
const PLUGIN: &str = "/flannel";
/// What the config's `type` calls it, and so its file's name.
const PLUGIN_TYPE: &str = "flannel";
/// Mode of the plugin: runtimes execute it.
const PLUGIN_MODE: u32 = 0o755;
/// The config's file, as upstream's manifest has it.
const CONF_NAME: &str = "10-flannel.conflist";
/// Mode of the config.
const CONF_MODE: u32 = 0o644;
/// What runtimes take for a network config (libcni, `ConfFiles`).
const CONF_EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Options of `install-cni`.
#[derive(Debug, Args)]
pub struct InstallCniOptions {
    /// Folder to put the plugin in; without it, the plugin is not installed
    #[arg(long, value_name = "DIRECTORY", required_unless_present = "conf_dir")]
    pub bin_dir: Option<PathBuf>,
    /// The plugin to install
    #[arg(long, default_value = PLUGIN, value_name = "FILE")]
    pub plugin: PathBuf,
    /// Folder to put the network config in, as 10-flannel.conflist; without it, no config is installed
    #[arg(long, value_name = "DIRECTORY", requires = "conf_source")]
    pub conf_dir: Option<PathBuf>,
    /// The network config to install
    #[arg(long, value_name = "FILE", requires = "conf_dir")]
    pub conf_source: Option<PathBuf>,
}

/// Why something could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is to be installed, or the folder, could not be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The config would give pods no network.
    #[error(
        "{}: {reason}; it must be a list of CNI plugins, one of them with \"type\": \"{PLUGIN_TYPE}\"",
        path.display()
    )]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file could not be written.
    #[error(transparent)]
    Write(#[from] atomic_file::Error),
}

/// What was done, and what the operator should know.
#[derive(Debug, PartialEq, Eq)]
enum Note {
    Done(String),
    Warning(String),
}

/// Installs what the options name, and says what it did on standard output, warnings on standard error.
///
/// # Errors
/// When something cannot be read or written, or the config is none of flannel's.
pub fn run(options: &InstallCniOptions) -> anyhow::Result<()> {
    let mut notes = Vec::new();
    if let Some(directory) = &options.bin_dir {
        notes.push(install_plugin(&options.plugin, directory)?);
    }
    if let (Some(source), Some(directory)) = (&options.conf_source, &options.conf_dir) {
        notes.extend(install_config(source, directory)?);
    }
    for note in notes {
        match note {
            Note::Done(text) => println!("{text}"),
            Note::Warning(text) => eprintln!("warning: {text}"),
        }
    }
    Ok(())
}

fn install_plugin(plugin: &Path, directory: &Path) -> Result<Note, Error> {
    let contents = fs::read(plugin).map_err(cannot_read(plugin))?;
    put(&directory.join(PLUGIN_TYPE), &contents, PLUGIN_MODE)
}

fn install_config(source: &Path, directory: &Path) -> Result<Vec<Note>, Error> {
    let contents = fs::read(source).map_err(cannot_read(source))?;
    let types = plugin_types(&contents).map_err(|reason| Error::Config {
        path: source.to_owned(),
        reason,
    })?;
    if !types.iter().any(|kind| kind == PLUGIN_TYPE) {
        return Err(Error::Config {
            path: source.to_owned(),
            reason: format!("it has only {}", types.join(", ")),
        });
    }
    let target = directory.join(CONF_NAME);
    if let Some(owner) = foreign(&target) {
        return Ok(vec![Note::Warning(format!(
            "{} is not flannel's but {owner}, and stays: pods get no network from flannel; remove it if they should",
            target.display()
        ))]);
    }
    let mut notes = vec![put(&target, &contents, CONF_MODE)?];
    notes.extend(first_before(directory)?.map(|(path, owner)| {
        Note::Warning(format!(
            "{} is {owner} and comes before {CONF_NAME}: the container runtime takes it instead; remove it if pods should \
             get their network from flannel",
            path.display()
        ))
    }));
    Ok(notes)
}

fn put(target: &Path, contents: &[u8], mode: u32) -> Result<Note, Error> {
    let written = atomic_file::replace(target, contents, mode)?;
    let what = if written {
        "installed"
    } else {
        "is the same already"
    };
    Ok(Note::Done(format!("{}: {what}", target.display())))
}

/// Whose a config is, if it is there and not flannel's. One that cannot be understood is nobody's: no runtime takes it.
fn foreign(path: &Path) -> Option<String> {
    let types = plugin_types(&fs::read(path).ok()?).ok()?;
    if types.iter().any(|kind| kind == PLUGIN_TYPE) {
        return None;
    }
    Some(format!("{}'s", types.join(", ")))
}

/// The config that a runtime takes instead of ours: the first by name that is not flannel's, of those before ours.
fn first_before(directory: &Path) -> Result<Option<(PathBuf, String)>, Error> {
    let failed = |source| cannot_read(directory)(source);
    let mut before = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.file_name().is_some_and(|name| *name < *CONF_NAME)
            && extension.is_some_and(|extension| CONF_EXTENSIONS.contains(&extension))
        {
            before.push(path);
        }
    }
    before.sort();
    let mut before = before.into_iter();
    Ok(before.find_map(|path| foreign(&path).map(|owner| (path, owner))))
}

/// The types of a config's plugins: those of a list, or the one of a config that is no list.
fn plugin_types(contents: &[u8]) -> Result<Vec<String>, String> {
    let config: Value =
        serde_json::from_slice(contents).map_err(|error| format!("it is not JSON: {error}"))?;
    let kind = |plugin: &Value| plugin.get("type")?.as_str().map(str::to_owned);
    let types: Vec<String> = match config.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins.iter().filter_map(kind).collect(),
        None => kind(&config).into_iter().collect(),
    };
    if types.is_empty() {
        return Err("it names no plugin".to_owned());
    }
    Ok(types)
}

fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Read { path, source }
}

#[cfg(test)]
mod tests;
