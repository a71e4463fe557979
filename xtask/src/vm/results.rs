//! What a machine's script says, line by line: the agent's probe, then test runners.

use anyhow::Error;
use serde::Deserialize;

use crate::test::tally::{Failure, Reader, Tally};

/// The first line, with the kernel's release.
pub const BOOTED: &str = "machine booted";
/// Before a runner, with its name.
pub const BEGIN: &str = "machine begin";
/// Behind a runner, with its exit status.
pub const END: &str = "machine end";
/// The last line.
pub const DONE: &str = "machine done";

/// The runner that is no test.
const PROBE: &str = "probe";

/// Lines of a runner that failed which are shown.
const SHOWN: usize = 60;

/// What `flannel-agent probe --json` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Probe {
    /// How programs are attached.
    pub attach: String,
    /// Who encapsulates.
    pub egress: String,
    /// Where packets from other nodes are taken up.
    pub ingress: String,
    /// Who attests flows.
    pub attestation: String,
    /// The programs.
    pub programs: Vec<Program>,
}

/// A program, as the verifier saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier has looked at; older kernels do not count them.
    pub verified: Option<u32>,
    /// Instructions that are left to run.
    pub instructions: Option<u32>,
    /// How long the kernel took to load it.
    pub load_us: u64,
}

/// What is known of a machine.
#[derive(Debug, Default)]
pub struct Results {
    /// The kernel's release, once it is up.
    pub release: String,
    /// What the agent found; none if it could not use BPF.
    pub probe: Option<Probe>,
    /// Tests.
    pub tally: Tally,
    /// What the failed runners have printed.
    pub output: String,
    runner: Option<Runner>,
    done: bool,
}

/// A runner that is running.
#[derive(Debug)]
struct Runner {
    name: String,
    reader: Reader,
    lines: Vec<String>,
}

impl Results {
    /// Takes a line; returns what is worth telling at once.
    pub fn line(&mut self, line: &str) -> Option<String> {
        let after = |mark: &str| line.strip_prefix(mark).map(|rest| rest.trim().to_owned());
        if let Some(release) = after(BOOTED) {
            self.release = release;
            return Some("booted".into());
        }
        if let Some(name) = after(BEGIN) {
            self.runner = Some(Runner {
                name,
                reader: Reader::default(),
                lines: Vec::new(),
            });
            return None;
        }
        if let Some(status) = after(END) {
            return self.end_runner(&status);
        }
        if line == DONE {
            self.done = true;
            return None;
        }
        if let Some(runner) = &mut self.runner {
            runner.reader.line(line);
            runner.lines.push(line.to_owned());
        }
        None
    }

    fn end_runner(&mut self, status: &str) -> Option<String> {
        let Runner {
            name,
            reader,
            lines,
        } = self.runner.take()?;
        let end = match status {
            "0" => Ok(()),
            status => Err(format!("exit status {status}")),
        };
        if name == PROBE {
            let probe = lines
                .iter()
                .find_map(|line| serde_json::from_str(line).ok());
            match (end, probe) {
                (Ok(()), Some(probe)) => {
                    self.probe = Some(probe);
                    self.tally.passed += 1;
                }
                _ => self.fail(format!("probe: {}", lines.join(" "))),
            }
            return None;
        }
        let tally = reader.finish(&name, end);
        let verdict = format!(
            "{name}: {} passed, {} failed, {} skipped",
            tally.passed,
            tally.failed.len(),
            tally.skipped.len()
        );
        if !tally.failed.is_empty() {
            let last = &lines[lines.len().saturating_sub(SHOWN)..];
            self.output += &format!("--- {name}\n{}\n", last.join("\n"));
        }
        self.tally.add(tally);
        Some(verdict)
    }

    /// Whether the kernel came up.
    pub fn is_booted(&self) -> bool {
        !self.release.is_empty()
    }

    /// Closes the account of a machine that has ended.
    pub fn end(&mut self, faults: Vec<String>) {
        if let Some(runner) = self.runner.take() {
            self.fail(format!("{}: the machine ended meanwhile", runner.name));
        } else if !self.done {
            self.fail("the machine ended before the last test".into());
        }
        for fault in faults {
            self.fail(fault);
        }
    }

    /// Of a machine that could not be started.
    pub fn failed(error: Error) -> Self {
        let mut results = Self::default();
        results.fail(format!("{error:#}"));
        results
    }

    /// Counts a failure that is no test's.
    pub fn fail(&mut self, reason: String) {
        self.tally.failed.push(Failure::of(reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Results {
        let mut results = Results::default();
        for line in text.lines() {
            results.line(line);
        }
        results
    }

    const RUN: &str = "machine booted 6.1.0\n\
        machine begin probe\n\
        {\"kernel\":\"6.1.0\",\"attach\":\"clsact\",\"egress\":\"encap\",\"ingress\":\"nic\",\"attestation\":\"mark\",\
         \"programs\":[{\"name\":\"attest_in\",\"verified\":null,\"instructions\":7,\"load_us\":9}]}\n\
        machine end 0\n\
        machine begin programs\n\
        test a ... ok\n\
        test b ... ignored (no VLAN)\n\
        test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
        machine end 0\n";

    #[test]
    fn a_machine_that_ends_well_counts_its_tests_and_its_probe() {
        let mut results = read(&format!("{RUN}machine done\n"));
        results.end(Vec::new());
        assert_eq!(results.release, "6.1.0");
        let probe = results.probe.expect("a probe");
        assert_eq!((&*probe.attach, &*probe.attestation), ("clsact", "mark"));
        assert_eq!(probe.programs[0].instructions, Some(7));
        assert_eq!((results.tally.passed, results.tally.skipped.len()), (2, 1));
        assert!(results.tally.failed.is_empty());
    }

    fn names(results: &Results) -> Vec<String> {
        results
            .tally
            .failed
            .iter()
            .map(Failure::to_string)
            .collect()
    }

    #[test]
    fn a_machine_that_ends_early_is_a_failure() {
        let mut early = read(RUN);
        early.end(Vec::new());
        assert_eq!(names(&early), ["the machine ended before the last test"]);
        let mut meanwhile = read(&format!("{RUN}machine begin vlan\ntest c ... "));
        meanwhile.end(vec!["kernel message: Oops".into()]);
        assert_eq!(
            names(&meanwhile),
            ["vlan: the machine ended meanwhile", "kernel message: Oops"]
        );
    }

    #[test]
    fn runners_and_probes_that_fail_are_failures() {
        let results = read(
            "machine booted 5.10\nmachine begin probe\nerror: no BTF\nmachine end 1\n\
             machine begin cluster\ntest x ... FAILED\nmachine end 124\n",
        );
        assert_eq!(
            names(&results),
            ["probe: error: no BTF", "x", "cluster: exit status 124"]
        );
        assert!(results.output.contains("test x ... FAILED"));
    }
}
