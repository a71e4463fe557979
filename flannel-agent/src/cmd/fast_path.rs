//! `flannel-agent fast-path`: tells the running agent which traffic BPF may carry.

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{args::FastPathOptions, status};
use crate::{fastpath::Mode, status_socket::FAST_PATH};

/// How long the agent may take until BPF carries packets.
const SETTLE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks for the mode; success if the agent has it when it answers.
pub fn run(options: &FastPathOptions) -> ExitCode {
    let wanted = Mode::from(options.mode);
    let deadline = Instant::now() + SETTLE;
    let mut request = format!("{FAST_PATH}{}\n", wanted.name());
    let status = loop {
        let status = match status::fetch(&options.status_socket, &request) {
            Ok((status, _)) => status,
            Err(line) => {
                eprintln!("{line}");
                return ExitCode::FAILURE;
            }
        };
        let pending = status.fast_path.mode == wanted.name() && !status.fast_path.active;
        if wanted == Mode::Off || !pending || Instant::now() > deadline {
            break status;
        }
        // The rule that marks, if flows are attested by one, takes a moment to be written.
        sleep(PAUSE);
        request.clear();
    };
    let fast = &status.fast_path;
    if fast.mode != wanted.name() {
        eprintln!(
            "error: the fast path is still {}: the agent has not finished starting, or is another version; see `flannel-agent status`",
            fast.mode
        );
        return ExitCode::FAILURE;
    }
    if wanted != Mode::Off && !fast.active {
        let reason = fast.reason.as_deref().unwrap_or("no reason is given");
        let remedy = fast
            .remedy
            .as_deref()
            .unwrap_or("see `flannel-agent status`");
        eprintln!(
            "error: the fast path is {}, but not active: {reason}; {remedy}",
            fast.mode
        );
        return ExitCode::FAILURE;
    }
    println!("fast path: {}", fast.mode);
    ExitCode::SUCCESS
}
