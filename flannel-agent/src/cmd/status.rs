//! `flannel-agent status`: asks the agent and prints what it says.

use std::{
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use super::args::StatusOptions;
use crate::status::Status;

/// The agent answers within milliseconds; one that does not is stuck.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Prints the status; success if the agent is ready.
pub fn run(options: &StatusOptions) -> ExitCode {
    let (status, text) = match fetch(&options.status_socket, "") {
        Ok(answer) => answer,
        Err(line) => {
            eprintln!("{line}");
            return ExitCode::FAILURE;
        }
    };
    let shown = if options.json {
        format!("{}\n", text.trim_end())
    } else {
        table(&status)
    };
    if let Err(error) = io::stdout().write_all(shown.as_bytes())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("error: standard output: {error}");
        return ExitCode::FAILURE;
    }
    if status.ready {
        return ExitCode::SUCCESS;
    }
    let reason = status
        .problems
        .first()
        .map_or("start-up is not complete yet", String::as_str);
    eprintln!("not ready: {reason}");
    ExitCode::FAILURE
}

/// The agent's answer to `request`, understood and as it came.
///
/// # Errors
/// The line to print when there is none, or it is not understood.
pub fn fetch(path: &Path, request: &str) -> Result<(Status, String), String> {
    let text = ask(path, request).map_err(|error| unreachable_line(path, &error))?;
    let status = serde_json::from_str(&text).map_err(|error| {
        format!(
            "error: the agent's answer on {} is not understood ({error}): is it another version?",
            path.display()
        )
    })?;
    Ok((status, text))
}

/// The agent's answer to `request`, or without one its status: JSON in either case.
///
/// # Errors
/// When nothing listens on the socket, or the answer does not come in time.
fn ask(path: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn unreachable_line(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "error: no agent runs with the socket {}: start it with `flannel-agent run`, or give its --status-socket",
            path.display()
        ),
        io::ErrorKind::PermissionDenied => {
            format!("error: {}: {error}: only root may ask", path.display())
        }
        _ => format!("error: {}: {error}", path.display()),
    }
}

fn table(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    let absent = "-";
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let object = if status.bpf_object {
        "with BPF object"
    } else {
        "without BPF object"
    };
    line(
        "agent",
        &format!("{} ({object}), pid {}", status.version, status.pid),
    );
    line("ready", yes_no(status.ready));
    let config = status.config.as_ref().map(ToString::to_string);
    line("config", config.as_deref().unwrap_or(absent));
    line("interface", status.interface.as_deref().unwrap_or(absent));
    line("public IP", status.public_ip.as_deref().unwrap_or(absent));
    let lease = status.lease.as_ref().map(|lease| match lease.expires_in_s {
        Some(seconds) => format!("{}, expires in {seconds} s unless renewed", lease.subnet),
        None => format!("{}, a reservation", lease.subnet),
    });
    line("lease", lease.as_deref().unwrap_or(absent));
    let matching = status
        .objects
        .iter()
        .filter(|object| object.state == "ok")
        .count();
    line(
        "objects",
        &format!("{matching} of {} as they should be", status.objects.len()),
    );
    let fast = &status.fast_path;
    let tier = if fast.active {
        let part = |name: &str, value: &Option<String>| {
            value
                .as_ref()
                .map(|value| format!(", {name} {value}"))
                .unwrap_or_default()
        };
        format!(
            "{}, active{}{}{}{}{}{}",
            fast.mode,
            part("attested by", &fast.attestation),
            part("attached by", &fast.attach),
            part("egress", &fast.egress),
            part("ingress", &fast.ingress),
            part("IPv6 egress", &fast.egress_v6),
            part("IPv6 ingress", &fast.ingress_v6)
        )
    } else {
        let reason = fast
            .reason
            .as_ref()
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        format!("{}, not active{reason}", fast.mode)
    };
    line("fast path", &tier);
    if fast.active {
        let declined: u64 = fast.counters.declined.values().sum();
        line(
            "packets",
            &format!(
                "{} fast out, {} fast in, {declined} left to the kernel",
                fast.counters.fast_egress, fast.counters.fast_ingress
            ),
        );
        if let Some(flows) = fast.flows {
            line("flows", &format!("{flows} remembered"));
        }
    }
    let problems = status.problems.iter().map(String::as_str);
    section(
        &mut text,
        "problems",
        problems.map(|problem| vec![problem.to_owned()]),
    );
    section(
        &mut text,
        "peers",
        status.peers.iter().map(|peer| {
            vec![
                peer.subnet.clone(),
                peer.public_ip.clone(),
                peer.via.clone(),
                peer.problem.clone().unwrap_or_else(|| {
                    let why = peer.kernel_path.as_ref();
                    why.map_or_else(String::new, |why| format!("kernel path: {why}"))
                }),
            ]
        }),
    );
    section(
        &mut text,
        "skipped leases",
        status
            .skipped_leases
            .iter()
            .map(|(key, why)| vec![key.clone(), why.clone()]),
    );
    section(
        &mut text,
        "objects that differ",
        status
            .objects
            .iter()
            .filter(|object| object.state != "ok")
            .map(|object| {
                vec![
                    object.kind.clone(),
                    object.name.clone(),
                    object.state.clone(),
                    object.detail.clone().unwrap_or_default(),
                ]
            }),
    );
    section(
        &mut text,
        "pods",
        fast.pods.iter().map(|pod| {
            vec![
                pod.ip.clone(),
                pod.device.clone(),
                pod.problem.clone().unwrap_or_default(),
            ]
        }),
    );
    section(
        &mut text,
        "hooks",
        fast.hooks
            .iter()
            .map(|hook| vec![hook.device.clone(), hook.program.clone()]),
    );
    section(
        &mut text,
        "left to the kernel",
        fast.counters
            .declined
            .iter()
            .map(|(reason, count)| vec![reason.clone(), count.to_string()]),
    );
    section(
        &mut text,
        "learned from the kernel's packets",
        fast.counters
            .attest
            .iter()
            .map(|(what, count)| vec![what.clone(), count.to_string()]),
    );
    text
}

/// A heading and rows in columns; nothing if there are no rows.
fn section(text: &mut String, heading: &str, rows: impl Iterator<Item = Vec<String>>) {
    let rows: Vec<Vec<String>> = rows.collect();
    let Some(columns) = rows.iter().map(Vec::len).max() else {
        return;
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let _ = writeln!(text, "\n{heading}");
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let _ = writeln!(text, "  {}", cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{OwnLease, Peer};

    #[test]
    fn the_table_shows_what_matters() {
        let status = Status {
            ready: true,
            lease: Some(OwnLease {
                subnet: "10.5.9.0/24".into(),
                expires_in_s: Some(100),
            }),
            peers: vec![Peer {
                subnet: "10.5.60.0/24".into(),
                public_ip: "192.168.101.3".into(),
                via: "none".into(),
                problem: Some("behind a router".into()),
                kernel_path: None,
            }],
            problems: vec!["peer is not reached".into()],
            ..Status::default()
        };
        let text = table(&status);
        for line in [
            "ready        yes",
            "lease        10.5.9.0/24, expires in 100 s unless renewed",
            "  10.5.60.0/24  192.168.101.3  none  behind a router",
            "  peer is not reached",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line:?} is missing from\n{text}"
            );
        }
        assert!(!text.contains("skipped leases"));
    }

    #[test]
    fn an_absent_agent_is_said_so_with_the_remedy() {
        let path = Path::new("/nonexistent/agent.sock");
        let line = unreachable_line(path, &ask(path, "").unwrap_err());
        assert!(
            line.contains("no agent runs") && line.contains("flannel-agent run"),
            "{line}"
        );
    }
}
