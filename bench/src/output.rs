//! Where reports go: the terminal and files; and where they come from again.

use std::{
    fs::File,
    io::{BufReader, BufWriter, ErrorKind, IsTerminal, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;

use crate::report::Report;

/// The files that are asked for.
#[derive(Debug, Args)]
pub struct Outputs {
    /// Also write everything that was measured to this file, for `compare` and `show`.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write every sample to this file, one a line.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Also write a page with charts to this file, which needs nothing else to be shown.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What is shown again.
#[derive(Debug, Args)]
pub struct ShowOptions {
    /// A report that was written by `--json`.
    #[arg(value_name = "FILE")]
    report: PathBuf,
    #[command(flatten)]
    output: Outputs,
}

/// The files, opened before there is anything to write: measurements take minutes.
#[derive(Debug)]
pub struct Files {
    json: Option<Destination>,
    csv: Option<Destination>,
    html: Option<Destination>,
}

/// A file with its name, for errors.
#[derive(Debug)]
struct Destination {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Destination {
    fn create(path: &Option<PathBuf>) -> Result<Option<Self>> {
        let Some(path) = path.clone() else {
            return Ok(None);
        };
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let file = BufWriter::new(file);
        Ok(Some(Self { path, file }))
    }

    fn write(mut self, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
        let written = write(&mut self.file).and_then(|()| Ok(self.file.flush()?));
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Outputs {
    /// Creates the files.
    ///
    /// # Errors
    /// If one cannot be created.
    pub fn create(&self) -> Result<Files> {
        Ok(Files {
            json: Destination::create(&self.json)?,
            csv: Destination::create(&self.csv)?,
            html: Destination::create(&self.html)?,
        })
    }
}

impl Files {
    /// Writes a report to all of them.
    ///
    /// # Errors
    /// If one cannot be written.
    pub fn write(self, report: &Report) -> Result<()> {
        if let Some(json) = self.json {
            json.write(|file| Ok(serde_json::to_writer_pretty(file, report)?))?;
        }
        if let Some(csv) = self.csv {
            csv.write(|file| Ok(report.csv(file)?))?;
        }
        if let Some(html) = self.html {
            html.write(|file| Ok(file.write_all(report.html().as_bytes())?))?;
        }
        Ok(())
    }
}

/// Reads a report that was written as JSON.
///
/// # Errors
/// If the file cannot be read, or is something else.
pub fn read(path: &Path) -> Result<Report> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_reader(BufReader::new(file)).with_context(|| {
        format!(
            "{} is not a report that this benchmark has written by --json",
            path.display()
        )
    })
}

/// Whether the output is to have colours: it goes to a terminal, or `cargo xtask` says that it will (CLICOLOR_FORCE), and
/// NO_COLOR (<https://no-color.org>) is empty.
pub fn colours() -> bool {
    let asked = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !asked("NO_COLOR") && (std::io::stdout().is_terminal() || asked("CLICOLOR_FORCE"))
}

/// Prints; a reader that has gone, as `head` does, has read enough.
///
/// # Errors
/// If the output takes no more for another reason.
pub fn say(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to the standard output")
        }
        _ => Ok(()),
    }
}

/// Shows a report again; whether every row of it has its number.
///
/// # Errors
/// If there is no such report, or a file cannot be written.
pub fn show(options: &ShowOptions) -> Result<bool> {
    // Read first: a file may be asked for that is the same.
    let report = read(&options.report)?;
    let files = options.output.create()?;
    say(&report.text(colours()))?;
    files.write(&report)?;
    Ok(report.is_complete())
}
