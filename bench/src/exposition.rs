//! A strict reader of Prometheus' text format 0.0.4, for tests of what an agent exposes.
//!
//! Stricter than Prometheus: every metric has HELP and TYPE before its samples, stands in one place, is a counter or a
//! gauge, and no sample occurs twice.

use std::collections::BTreeMap;

/// What a metric's numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Its TYPE.
    pub kind: Kind,
    /// Its HELP.
    pub help: String,
    /// Values by their labels.
    pub samples: BTreeMap<BTreeMap<String, String>, f64>,
}

impl Family {
    /// The value of the sample with exactly these labels.
    pub fn get(&self, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.samples
            .get(&labels.collect::<BTreeMap<_, _>>())
            .copied()
    }

    /// The sum of all samples.
    pub fn sum(&self) -> f64 {
        self.samples.values().sum()
    }
}

/// All metrics by name.
pub type Families = BTreeMap<String, Family>;

/// Reads a whole page.
///
/// # Errors
/// The first line that is wrong, and why.
pub fn parse(text: &str) -> Result<Families, String> {
    if !text.ends_with('\n') {
        return Err("the last line is not ended".to_owned());
    }
    let mut families = Families::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let wrong = |why: &str| format!("{why}: {line:?}");
        let (name, help) = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '))
            .ok_or_else(|| wrong("no HELP where a metric must begin"))?;
        if !is_name(name) || help.trim().is_empty() {
            return Err(wrong("a metric's name, or no text"));
        }
        let kind = lines
            .next()
            .and_then(|line| line.strip_prefix("# TYPE "))
            .and_then(|rest| rest.strip_prefix(name)?.strip_prefix(' '));
        let kind = match kind {
            Some("counter") => Kind::Counter,
            Some("gauge") => Kind::Gauge,
            _ => return Err(wrong("no TYPE after HELP")),
        };
        let mut samples = BTreeMap::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let wrong = |why: &str| format!("{why}: {line:?}");
            let rest = line
                .strip_prefix(name)
                .ok_or_else(|| wrong("another metric's sample"))?;
            let (labels, rest) = labels(rest).ok_or_else(|| wrong("labels"))?;
            let value: f64 = rest
                .strip_prefix(' ')
                .and_then(|value| value.parse().ok())
                .ok_or_else(|| wrong("a value"))?;
            if kind == Kind::Counter && !(value.is_finite() && value >= 0.0) {
                return Err(wrong("a counter's value"));
            }
            if samples.insert(labels, value).is_some() {
                return Err(wrong("the same sample twice"));
            }
        }
        let family = Family {
            kind,
            help: help.to_owned(),
            samples,
        };
        if families.insert(name.to_owned(), family).is_some() {
            return Err(wrong("the same metric in two places"));
        }
    }
    Ok(families)
}

/// Whether `text` is `[a-zA-Z_][a-zA-Z0-9_]*`; colons are for rules.
fn is_name(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(word)
        && text
            .bytes()
            .next()
            .is_some_and(|byte| !byte.is_ascii_digit())
}

/// The labels at the beginning of `text`, if there are any, and what follows.
fn labels(text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return Some((labels, text));
    };
    loop {
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        if !is_name(name) || labels.insert(name.to_owned(), value).is_some() {
            return None;
        }
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Some((labels, after.strip_prefix('}')?)),
        }
    }
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((place, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[place + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# HELP a_total What.\n# TYPE a_total counter\n";

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = format!("{HEAD}a_total{{x=\"1\",y=\"\\\"\\\\\\n,}}\"}} 3\na_total 1.5\n");
        let families = parse(&text).unwrap();
        let family = &families["a_total"];
        assert_eq!(family.get(&[("x", "1"), ("y", "\"\\\n,}")]), Some(3.0));
        assert_eq!((family.get(&[]), family.sum()), (Some(1.5), 4.5));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for wrong in [
            "a_total 1\n".to_owned(),
            format!("{HEAD}a_total 1"),
            format!("{HEAD}a_total\n"),
            format!("{HEAD}a_total  1\n"),
            format!("{HEAD}a_total one\n"),
            format!("{HEAD}a_total -1\n"),
            format!("{HEAD}a_total 1\na_total 2\n"),
            format!("{HEAD}b_total 1\n"),
            format!("{HEAD}a_total{{x=1}} 1\n"),
            format!("{HEAD}a_total{{x=\"1\"y=\"2\"}} 1\n"),
            format!("{HEAD}a_total{{x=\"1\",x=\"2\"}} 1\n"),
            format!("{HEAD}a_total{{x=\"\\t\"}} 1\n"),
            format!("{HEAD}a_total{{}} 1\n"),
            format!("{HEAD}\n"),
            format!("{HEAD}{HEAD}"),
            "# HELP a \n# TYPE a gauge\n".to_owned(),
            "# HELP a What.\n# TYPE a histogram\n".to_owned(),
            "# HELP a What.\n# TYPE b gauge\n".to_owned(),
            "# HELP 1a What.\n# TYPE 1a gauge\n".to_owned(),
        ] {
            assert!(parse(&wrong).is_err(), "{wrong}");
        }
    }
}
