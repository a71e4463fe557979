//! `bench server` and `bench client` between two pods, without agents: every figure comes, and is possible.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use lab::{
    Error, Pod, Result,
    error::IoContext,
    process::{self, Helper},
};
use serde_json::Value;

use crate::traffic::pair;

/// The benchmark, where it is built together with this test.
const BENCH: Option<&str> = option_env!("CARGO_BIN_EXE_bench");
/// The whole comparison: five kinds in two rounds.
const LIMIT: Duration = Duration::from_secs(60);
/// Datagrams per second of the flood; not many, since other tests run at the same time.
const RATE: f64 = 2000.0;
/// What a client says.
const FIGURES: [&str; 21] = [
    "TCP round trip, p50",
    "TCP round trip, p90",
    "TCP round trip, p99",
    "TCP round trip, p99.9",
    "TCP round trips",
    "UDP round trip, p50",
    "UDP round trip, p90",
    "UDP round trip, p99",
    "UDP round trip, p99.9",
    "UDP round trips",
    "UDP round trips, lost",
    "TCP connect, request, close, p50",
    "TCP connections",
    "TCP stream",
    "TCP stream, client's CPU",
    "TCP stream, server's CPU",
    "UDP flood, sent",
    "UDP flood, received",
    "UDP flood, lost",
    "UDP flood, client's CPU",
    "UDP flood, server's CPU",
];

fn bench() -> Result<&'static str> {
    BENCH.ok_or_else(|| Error::Unsupported("built without the benchmark".to_owned()))
}

/// Starts a server in a pod and waits until it listens.
fn serve(pod: &Pod) -> Result<Helper> {
    let mut command = Command::new(bench()?);
    command.arg("server").stdout(Stdio::piped());
    let mut server = Helper::spawn(pod.netns(), command)?;
    let stdout = server.stdout().expect("a pipe was asked for");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .context("read output of", "the server")?;
    assert!(line.starts_with("listening on 0.0.0.0:5210"), "{line}");
    Ok(server)
}

pub(crate) fn all_figures_come() -> Result<()> {
    let (_cluster, from, to) = pair()?;
    let _server = serve(&to)?;
    let directory = std::env::temp_dir().join(format!("bench-client-{}", std::process::id()));
    let mut client = Command::new(bench()?);
    client.arg("client").args([
        format!("--server={}:5210", to.address()),
        format!("--udp-rate={RATE}"),
        format!("--json={}", directory.display()),
        "--duration=300ms".to_owned(),
        "--rounds=2".to_owned(),
    ]);
    let text = process::run_limited(Some(from.netns()), &mut client, "", LIMIT)?;
    let json = std::fs::read_to_string(&directory).context("read", directory.display())?;
    std::fs::remove_file(&directory).ok();
    let report: Value = serde_json::from_str(&json).expect("the file is JSON");

    assert!(text.contains("the path as it is"), "{text}");
    assert!(text.contains("path unknown"), "{text}");
    let rows = report["rows"].as_array().expect("rows");
    let figures: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| row["figure"].as_str())
        .collect();
    assert_eq!(figures, BTreeSet::from(FIGURES), "{text}");
    for row in rows {
        assert_eq!(row["path"], "as-is");
        let samples = row["samples"].as_array().expect("samples");
        assert_eq!(samples.len(), 2, "{row}");
    }
    assert_sane(rows);
    Ok(())
}

/// The machine may be busy: only what is impossible is wrong.
fn assert_sane(rows: &[Value]) {
    let median = |figure: &str| {
        let row = rows.iter().find(|row| row["figure"] == figure);
        row.and_then(|row| row["summary"]["median"].as_f64())
            .expect("a figure has a median")
    };
    for transport in ["TCP", "UDP"] {
        let percentiles = ["p50", "p90", "p99", "p99.9"]
            .map(|percentile| median(&format!("{transport} round trip, {percentile}")));
        assert!(percentiles.is_sorted(), "{percentiles:?}");
        // One at a time: as many as fit into a second, and less.
        let rate = median(&format!("{transport} round trips"));
        assert!(
            percentiles[0] > 1.0 && rate > 10.0 && rate < 1e6,
            "{percentiles:?}, {rate}"
        );
    }
    assert!(median("TCP connect, request, close, p50") > median("TCP round trip, p50") / 2.0);
    let bandwidth = median("TCP stream");
    assert!((0.01..1000.0).contains(&bandwidth), "{bandwidth} Gbit/s");
    let (sent, received) = (median("UDP flood, sent"), median("UDP flood, received"));
    assert!(
        (RATE / 10.0..=RATE * 1.01).contains(&sent) && received <= sent,
        "{sent}, {received}"
    );
    let lost = median("UDP flood, lost");
    assert!((0.0..50.0).contains(&lost), "{lost} % lost");
}

/// A client that reaches nobody, or gives a server what it cannot use, says so in a line.
pub(crate) fn what_is_wrong_is_said() -> Result<()> {
    let (_cluster, from, to) = pair()?;
    let run = |arguments: &[&str]| -> Result<String> {
        let mut client = Command::new(bench()?);
        client.args(arguments);
        match process::run_limited(Some(from.netns()), &mut client, "", LIMIT) {
            Err(Error::Command { output, .. }) => Ok(output),
            Ok(output) => panic!("{arguments:?} is taken: {output}"),
            Err(error) => Err(error),
        }
    };
    let server = format!("--server={}:5210", to.address());
    let said = run(&["client", &server])?;
    assert!(
        said.starts_with("error: --server = ") && said.contains("start `bench server` there"),
        "{said}"
    );
    for side in [&["client", &server][..], &["server"]] {
        let said = run(&[side, &["--agent-socket=/nowhere/agent.sock"]].concat())?;
        assert!(
            said.starts_with("error: --agent-socket = /nowhere/agent.sock: "),
            "{said}"
        );
    }
    Ok(())
}
