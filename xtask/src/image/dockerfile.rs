//! Reads from the Dockerfile how the image is run: its last stage says so to Docker, and to `cargo xtask image`, so that
//! both make the same.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// How an image is run: `config` of the OCI image specification (config.md), whose names these are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Run {
    /// User and group, as numbers.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The program.
    pub entrypoint: Vec<String>,
    /// Its arguments where none are given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Where it runs.
    pub working_dir: String,
    /// `org.opencontainers.image.*` (annotations.md).
    pub labels: BTreeMap<String, String>,
}

impl Run {
    /// Reads the last stage.
    ///
    /// # Errors
    /// At an instruction that is not understood, or a value in a form that is not.
    pub fn parse(dockerfile: &str) -> Result<Self> {
        let mut run = Self::default();
        for line in instructions(dockerfile) {
            let (name, value) = line
                .split_once(char::is_whitespace)
                .with_context(|| format!("Dockerfile: {line:?} has no value"))?;
            let value = value.trim();
            match name {
                "FROM" => run = Self::default(),
                "USER" => run.user = value.to_owned(),
                "WORKDIR" => run.working_dir = value.to_owned(),
                "ENTRYPOINT" => run.entrypoint = words(value)?,
                "CMD" => run.cmd = words(value)?,
                "ENV" => {
                    let pairs = pairs(value)?;
                    run.env
                        .extend(pairs.map(|(name, value)| format!("{name}={value}")));
                }
                "LABEL" => run.labels.extend(pairs(value)?),
                // What they do is done by xtask itself, or concerns Docker alone.
                "ARG" | "COPY" | "RUN" => {}
                _ => bail!("Dockerfile: {name} is not understood by cargo xtask image"),
            }
        }
        Ok(run)
    }
}

/// The instructions, each in one line, without comments.
pub fn instructions(dockerfile: &str) -> Vec<String> {
    let mut whole: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in dockerfile.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (line, more) = match line.strip_suffix('\\') {
            Some(line) => (line.trim_end(), true),
            None => (line, false),
        };
        match whole.last_mut().filter(|_| goes_on) {
            Some(last) => {
                last.push(' ');
                last.push_str(line);
            }
            None => whole.push(line.to_owned()),
        }
        goes_on = more;
    }
    whole
}

/// A list in brackets.
fn words(value: &str) -> Result<Vec<String>> {
    serde_json::from_str(value).with_context(|| {
        format!("Dockerfile: {value} is no list like [\"program\"], and there is no shell")
    })
}

/// `name="value"`, any number of them.
fn pairs(value: &str) -> Result<impl Iterator<Item = (String, String)>> {
    let mut rest = value;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let pair = rest.split_once("=\"").and_then(|(name, after)| {
            let (value, after) = after.split_once('"')?;
            Some((name, value, after))
        });
        let (name, value, after) = pair.with_context(|| {
            format!("Dockerfile: {rest} does not begin with a pair like name=\"value\"")
        })?;
        found.push((name.to_owned(), value.to_owned()));
        rest = after.trim_start();
    }
    Ok(found.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# syntax\nFROM a AS build\nENV LOST=\"1\"\nRUN x && \\\n    y\n\nFROM scratch\n\
        COPY --from=build /x /\nENV PATH=\"/opt/bin:/bin\" HOME=\"/\"\nLABEL a.b=\"one two\" \\\n    # why\n    c=\"3\"\n\
        USER 0:0\nWORKDIR /\nENTRYPOINT [\"/x\", \"y\"]\n";

    #[test]
    fn the_last_stage_says_how_the_image_is_run() {
        let run = Run::parse(TEXT).unwrap();
        assert_eq!(run.env, ["PATH=/opt/bin:/bin", "HOME=/"]);
        assert_eq!(run.entrypoint, ["/x", "y"]);
        assert!(run.cmd.is_empty());
        assert_eq!((run.user.as_str(), run.working_dir.as_str()), ("0:0", "/"));
        let labels = [("a.b", "one two"), ("c", "3")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(run.labels, labels.into());
        let lines = instructions(TEXT);
        assert_eq!(lines[2], "RUN x && y");
        assert_eq!(lines.len(), 10);
    }

    #[test]
    fn what_would_make_another_image_is_refused() {
        for text in [
            "FROM scratch\nENTRYPOINT /x y",
            "FROM scratch\nENV a=1",
            "FROM scratch\nVOLUME /x",
            "FROM",
        ] {
            assert!(Run::parse(text).is_err(), "{text}");
        }
    }
}
