//! Reads what test runners print: libtest, rustdoc and libtest-mimic, which differ in how they give a reason.

use std::fmt;

/// A test that did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// Its name.
    pub test: String,
    /// Why.
    pub reason: String,
}

/// A test that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name, or that of the runner.
    pub test: String,
    /// The beginning of what it said, in one line; empty if nothing is known.
    pub reason: String,
}

/// How much of a failed test's words is repeated, in lines and in characters.
const REASON_LINES: usize = 6;
const REASON_LENGTH: usize = 500;

impl Failure {
    /// One of which only the name is known.
    pub fn of(test: impl Into<String>) -> Self {
        Self {
            test: test.into(),
            reason: String::new(),
        }
    }

    fn says(&mut self, line: &str) {
        let line = line.trim();
        let lines = self.reason.lines().count();
        if !line.is_empty() && lines < REASON_LINES && self.reason.len() < REASON_LENGTH {
            if lines > 0 {
                self.reason.push('\n');
            }
            self.reason.push_str(line);
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.test)?;
        for (number, line) in self.reason.lines().enumerate() {
            write!(f, "{}{line}", if number == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

/// Counts of one or more runners.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: Vec<Failure>,
    /// Tests that are among those that passed, but failed at first.
    pub passed_later: Vec<Failure>,
    /// Tests that did not run.
    pub skipped: Vec<Skip>,
}

impl Tally {
    /// Tests that ran.
    pub fn executed(&self) -> u64 {
        self.passed + self.failed.len() as u64
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.passed_later.extend(other.passed_later);
        self.skipped.extend(other.skipped);
    }
}

/// Counts that a runner closes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Closing {
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Follows a runner's output.
#[derive(Debug, Default)]
pub struct Reader {
    failed: Vec<Failure>,
    /// Whose words are being read: its place among the failed.
    speaking: Option<usize>,
    skipped: Vec<Skip>,
    closings: Vec<Closing>,
}

impl Reader {
    /// Takes a line of standard output.
    pub fn line(&mut self, line: &str) {
        if let Some(title) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" ----"))
        {
            let test = title.strip_suffix(" stdout").unwrap_or(title);
            self.speaking = self.failed.iter().position(|failure| failure.test == test);
            return;
        }
        if line == "failures:" || line.starts_with("test result: ") {
            self.speaking = None;
        }
        if let Some(speaking) = self.speaking {
            self.failed[speaking].says(line);
        }
        let Some(rest) = line.strip_prefix("test ") else {
            return;
        };
        if let Some(closing) = rest.strip_prefix("result: ") {
            self.closings.extend(parse_closing(closing));
        } else if let Some((name, outcome)) = rest.rsplit_once(" ... ") {
            let test = name.trim().to_owned();
            if outcome.starts_with("FAILED") {
                self.failed.push(Failure::of(test));
            } else if let Some(reason) = outcome.strip_prefix("ignored") {
                let reason = reason_text(reason).to_owned();
                self.skipped.push(Skip { test, reason });
            }
        }
    }

    /// What the runner has done. The closing counts are what holds: a test's own output can garble the line with its
    /// name, and a runner that dies prints no counts at all, which is a failure by itself.
    pub fn finish(mut self, runner: &str, end: Result<(), String>) -> Tally {
        let sum = |count: fn(&Closing) -> u64| self.closings.iter().map(count).sum::<u64>();
        let (passed, failed, ignored) = (
            sum(|closing| closing.passed),
            sum(|closing| closing.failed),
            sum(|closing| closing.ignored),
        );
        for number in self.failed.len() as u64..failed {
            let name = format!("{runner}: failure {} without a name", number + 1);
            self.failed.push(Failure::of(name));
        }
        for number in self.skipped.len() as u64..ignored {
            self.skipped.push(Skip {
                test: format!("{runner}: skip {} without a name", number + 1),
                reason: reason_text("").to_owned(),
            });
        }
        match end {
            Err(end) if failed == 0 => self.failed.push(Failure::of(format!("{runner}: {end}"))),
            Ok(()) if self.closings.is_empty() => self.failed.push(Failure::of(format!(
                "{runner}: ended without a test result"
            ))),
            _ => {}
        }
        Tally {
            passed,
            failed: self.failed,
            passed_later: Vec::new(),
            skipped: self.skipped,
        }
    }
}

/// The reason behind `ignored`: libtest prints `ignored, reason`, libtest-mimic `ignored (reason)`.
fn reason_text(text: &str) -> &str {
    let reason = text
        .strip_prefix(", ")
        .or_else(|| text.strip_prefix(" (")?.strip_suffix(')'))
        .unwrap_or("");
    if reason.is_empty() {
        "no reason given"
    } else {
        reason
    }
}

/// Reads `ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse_closing(text: &str) -> Option<Closing> {
    let (_, counts) = text.split_once(". ")?;
    let count = |name: &str| {
        counts
            .split("; ")
            .find_map(|part| part.strip_suffix(name)?.trim_end().parse().ok())
    };
    Some(Closing {
        passed: count("passed")?,
        failed: count("failed")?,
        ignored: count("ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, end: Result<(), String>) -> Tally {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.finish("runner", end)
    }

    fn names(tally: &Tally) -> Vec<String> {
        tally.failed.iter().map(Failure::to_string).collect()
    }

    #[test]
    fn libtest_output_is_counted_with_names_and_reasons() {
        let tally = read(
            "\nrunning 4 tests\n\
             test wire::short_header_is_refused ... ok\n\
             test wire::panics - should panic ... ok\n\
             test lease::renewal ... FAILED\n\
             test slow ... ignored, takes an hour\n\
             test slower has been running for over 60 seconds\n\
             \nfailures:\n\n---- lease::renewal stdout ----\ntest text that looks odd\n\n\
             test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
            Err("exit status: 101".into()),
        );
        assert_eq!(tally.passed, 2);
        assert_eq!(names(&tally), ["lease::renewal: test text that looks odd"]);
        assert_eq!(
            tally.skipped,
            [Skip {
                test: "slow".into(),
                reason: "takes an hour".into()
            }]
        );
        assert_eq!(tally.executed(), 3);
    }

    #[test]
    fn libtest_mimic_pads_names_and_puts_reasons_in_parentheses() {
        let tally = read(
            "test vxlan_ping    ... ok\n\
             test needs_vlan    ... ignored (the kernel has no 802.1Q (CONFIG_VLAN_8021Q))\n\
             test bare          ... ignored\n\
             test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out; finished in 1.20s\n",
            Ok(()),
        );
        assert_eq!(tally.passed, 1);
        assert!(tally.failed.is_empty());
        let reasons: Vec<_> = tally.skipped.iter().map(|skip| &*skip.reason).collect();
        assert_eq!(
            reasons,
            [
                "the kernel has no 802.1Q (CONFIG_VLAN_8021Q)",
                "no reason given"
            ]
        );
    }

    #[test]
    fn several_closings_of_documentation_tests_add_up() {
        let tally = read(
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
             test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n",
            Ok(()),
        );
        assert_eq!(tally.passed, 7);
    }

    #[test]
    fn a_runner_that_dies_is_a_failure() {
        let killed = read("test a ... ok\n", Err("signal: 9 (SIGKILL)".into()));
        assert_eq!(names(&killed), ["runner: signal: 9 (SIGKILL)"]);
        let silent = read("", Ok(()));
        assert_eq!(names(&silent), ["runner: ended without a test result"]);
        let late = read(
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s\n",
            Err("signal: 6 (SIGABRT)".into()),
        );
        assert_eq!(names(&late), ["runner: signal: 6 (SIGABRT)"]);
    }

    #[test]
    fn garbled_names_do_not_lose_counts() {
        let tally = read(
            "test first ... some output of the test\n\
             ok\n\
             test second ... noise\n\
             ignored (why)\n\
             test result: FAILED. 0 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n",
            Err("exit status: 101".into()),
        );
        assert_eq!(names(&tally), ["runner: failure 1 without a name"]);
        assert_eq!(tally.skipped.len(), 1);
    }
}
