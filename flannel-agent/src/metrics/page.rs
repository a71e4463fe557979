//! Writes the exposition format: HELP, TYPE, samples.

use std::fmt::{self, Write as _};

/// The text so far.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// The whole text.
    pub fn into_text(self) -> String {
        self.0
    }

    /// A metric that only grows.
    pub fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, help, "counter")
    }

    /// A metric that goes up and down.
    pub fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, help, "gauge")
    }

    fn family<'a>(&'a mut self, name: &'a str, help: &str, kind: &str) -> Family<'a> {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: self, name }
    }
}

/// One metric, to which samples are added.
pub struct Family<'a> {
    page: &'a mut Page,
    name: &'a str,
}

impl Family<'_> {
    /// The sample without labels.
    pub fn value(&mut self, value: impl fmt::Display) {
        self.labelled(&[], value);
    }

    /// A sample with labels, as names and values.
    pub fn labelled(&mut self, labels: &[(&str, &str)], value: impl fmt::Display) {
        let text = &mut self.page.0;
        text.push_str(self.name);
        for (number, (name, value)) in labels.iter().enumerate() {
            let opening = if number == 0 { '{' } else { ',' };
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(text, "{opening}{name}=\"{value}\"");
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(text, "{closing} {value}");
    }
}
