//! The tables: what each kernel makes of the fast path, and of each program.

use std::{fmt::Write as _, time::Duration};

use super::results::Results;

/// What became of one kernel.
#[derive(Debug)]
pub struct Row {
    /// The name that it was asked for by.
    pub name: String,
    /// What its machine said, or why there was none.
    pub results: Result<Results, String>,
    /// How long it took.
    pub time: Duration,
}

impl Row {
    /// The kernel's release, or its name as long as that is not known.
    pub fn release(&self) -> &str {
        match &self.results {
            Ok(results) if results.is_booted() => &results.release,
            _ => &self.name,
        }
    }
}

/// One line for each kernel.
pub fn kernels(rows: &[Row]) -> String {
    let mut text = format!(
        "{:26}{:8}{:8}{:9}{:13}{:>7}{:>7}{:>8}{:>9}\n",
        "KERNEL",
        "ATTACH",
        "EGRESS",
        "INGRESS",
        "ATTESTATION",
        "PASSED",
        "FAILED",
        "SKIPPED",
        "TIME"
    );
    for row in rows {
        let _ = match &row.results {
            Ok(results) => {
                let probe = results.probe.clone().unwrap_or_default();
                writeln!(
                    text,
                    "{:26}{:8}{:8}{:9}{:13}{:>7}{:>7}{:>8}{:>7.0} s",
                    row.release(),
                    dash(&probe.attach),
                    dash(&probe.egress),
                    dash(&probe.ingress),
                    dash(&probe.attestation),
                    results.tally.passed,
                    results.tally.failed.len(),
                    results.tally.skipped.len(),
                    row.time.as_secs_f64()
                )
            }
            Err(reason) => writeln!(text, "{:26}skipped: {reason}", row.name),
        };
    }
    text
}

/// One line for each program: what each kernel's verifier has looked at, and how long the kernel took to load it.
pub fn programs(rows: &[Row]) -> String {
    let probes: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let probe = row.results.as_ref().ok()?.probe.as_ref()?;
            Some((row.release(), probe))
        })
        .collect();
    let Some((_, first)) = probes.first() else {
        return String::new();
    };
    let mut text = format!("{:16}", "PROGRAM");
    for (release, _) in &probes {
        let _ = write!(text, "{release:>28}");
    }
    text.push('\n');
    for program in &first.programs {
        let _ = write!(text, "{:16}", program.name);
        for (_, probe) in &probes {
            let found = probe
                .programs
                .iter()
                .find(|other| other.name == program.name);
            let cell = found.map_or("-".into(), |program| {
                let number =
                    |value: Option<u32>| value.map_or("-".into(), |value| value.to_string());
                format!(
                    "{} / {} / {:.0} ms",
                    number(program.instructions),
                    number(program.verified),
                    program.load_us as f64 / 1000.0
                )
            });
            let _ = write!(text, "{cell:>28}");
        }
        text.push('\n');
    }
    text + "(instructions / looked at by the verifier, from 5.16 on / time to load, emulated)\n"
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::results::{BOOTED, Probe, Program};

    #[test]
    fn each_kernel_has_its_line_and_its_column() {
        let program = |verified| Program {
            name: "attest_in".into(),
            verified,
            instructions: Some(479),
            load_us: 11_300,
        };
        let results = |release: &str, verified| {
            let mut results = Results::default();
            results.line(&format!("{BOOTED} {release}"));
            results.probe = Some(Probe {
                attach: "clsact".into(),
                egress: "assist".into(),
                ingress: "nic".into(),
                attestation: "conntrack".into(),
                programs: vec![program(verified)],
            });
            results.tally.passed = 200;
            results.fail("x".into());
            results
        };
        let row = |name: &str, results| Row {
            name: name.into(),
            results,
            time: Duration::from_secs(95),
        };
        let rows = [
            row("5.10", Ok(results("5.10.0-46-amd64", None))),
            row("6.1", Ok(results("6.1.0-56-amd64", Some(1678)))),
            row("9.9", Err("no such kernel".into())),
        ];
        assert_eq!(
            kernels(&rows),
            "KERNEL                    ATTACH  EGRESS  INGRESS  ATTESTATION   PASSED FAILED SKIPPED     TIME\n\
             5.10.0-46-amd64           clsact  assist  nic      conntrack        200      1       0     95 s\n\
             6.1.0-56-amd64            clsact  assist  nic      conntrack        200      1       0     95 s\n\
             9.9                       skipped: no such kernel\n"
        );
        assert_eq!(
            programs(&rows),
            "PROGRAM                      5.10.0-46-amd64              6.1.0-56-amd64\n\
             attest_in                    479 / - / 11 ms          479 / 1678 / 11 ms\n\
             (instructions / looked at by the verifier, from 5.16 on / time to load, emulated)\n"
        );
        assert_eq!(programs(&rows[2..]), "");
    }
}
