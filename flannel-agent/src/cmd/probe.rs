//! `flannel-agent probe`: what this kernel makes of the BPF programs.

use std::fmt::Write as _;

use super::args::ProbeOptions;
use crate::fastpath::probe::{self, Report};

/// Loads, attaches and detaches the programs, and prints the tiers and the programs.
///
/// # Errors
/// The reason why an agent would leave all traffic to the kernel, with the remedy.
pub fn run(options: &ProbeOptions) -> anyhow::Result<()> {
    let report = probe::run(options.bpf_object.as_deref(), options.fast_path_attest)
        .map_err(|error| anyhow::anyhow!("{error}: {}", error.remedy()))?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", table(&report));
    }
    Ok(())
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "kernel {}: attached by {}, encapsulation {}, receives at {}, attested by {}\n",
        report.kernel, report.attach, report.egress, report.ingress, report.attestation
    );
    let number = |value: Option<u32>| value.map_or("-".into(), |value| value.to_string());
    let _ = writeln!(
        text,
        "{:14}{:>14}{:>14}{:>12}",
        "PROGRAM", "INSTRUCTIONS", "VERIFIED", "LOAD TIME"
    );
    for program in &report.programs {
        let _ = writeln!(
            text,
            "{:14}{:>14}{:>14}{:>9.1} ms",
            program.name,
            number(program.instructions),
            number(program.verified),
            program.load_us as f64 / 1000.0
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fastpath::probe::Program;

    #[test]
    fn what_a_kernel_does_not_count_is_a_dash() {
        let report = Report {
            kernel: "5.10.0".into(),
            attach: "clsact".into(),
            egress: "assist".into(),
            ingress: "nic".into(),
            attestation: "mark".into(),
            programs: vec![Program {
                name: "pod_egress".into(),
                verified: None,
                instructions: Some(1234),
                load_us: 5678,
            }],
        };
        assert_eq!(
            table(&report),
            "kernel 5.10.0: attached by clsact, encapsulation assist, receives at nic, attested by mark\n\
             PROGRAM         INSTRUCTIONS      VERIFIED   LOAD TIME\n\
             pod_egress              1234             -      5.7 ms\n"
        );
    }
}
