//! Log events to standard error: text or JSON, one line for each, whatever its values hold.

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::cmd::args::LogFormat;

/// `-v` from here on means debug.
const DEBUG_LEVEL: i32 = 4;
/// `-v` from here on means trace.
const TRACE_LEVEL: i32 = 6;

/// Starts logging at flanneld's `verbosity`; the variable `RUST_LOG` wins.
pub fn start(format: LogFormat, verbosity: i32) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter(verbosity)));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(OneLine);
    let started = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        eprintln!("error: logging: {error}");
    }
}

/// Warnings of all, and the agent at `verbosity`. What a certificate's verification fails with is said with the request
/// that it has failed.
fn filter(verbosity: i32) -> String {
    let level = level(verbosity);
    format!("warn,rustls_platform_verifier=off,flannel_agent={level}")
}

/// What klog's levels are here: flanneld logs peers and commands from 2 on, which are no news here below debug.
fn level(verbosity: i32) -> &'static str {
    match verbosity {
        ..DEBUG_LEVEL => "info",
        DEBUG_LEVEL..TRACE_LEVEL => "debug",
        TRACE_LEVEL.. => "trace",
    }
}

/// Standard error, where each event is one line.
struct OneLine;

impl<'a> MakeWriter<'a> for OneLine {
    type Writer = Lines<io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        Lines(io::stderr())
    }
}

/// Each write is one event.
struct Lines<W>(W);

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        if text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            let mut line = Vec::with_capacity(event.len() * 2);
            for &byte in text {
                match byte {
                    b'\n' => line.extend(b"\\n"),
                    b'\r' => line.extend(b"\\r"),
                    other => line.push(other),
                }
            }
            line.push(b'\n');
            self.0.write_all(&line)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let builder = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Lines(writer.clone()));
        let log = || {
            tracing::info!(name = "a\nb", shown = %"c\r\nd", "first\nsecond");
            tracing::warn!("third");
        };
        if json {
            tracing::subscriber::with_default(builder.json().finish(), log);
        } else {
            tracing::subscriber::with_default(builder.finish(), log);
        }
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_one_line_of_text() {
        let text = logged(false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("first\\nsecond"), "{text}");
        assert!(lines[0].contains("shown=c\\r\\nd"), "{text}");
        assert!(lines[1].ends_with("third"), "{text}");
    }

    #[test]
    fn an_event_is_one_object_of_json() {
        let text = logged(true);
        let events: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(events.len(), 2, "{text}");
        assert_eq!(events[0]["fields"]["message"], "first\nsecond");
        assert_eq!(events[0]["fields"]["name"], "a\nb");
        assert_eq!(events[1]["level"], "WARN");
    }

    #[test]
    fn klogs_levels_are_mapped() {
        for (verbosity, name) in [
            (-1, "info"),
            (0, "info"),
            (3, "info"),
            (4, "debug"),
            (5, "debug"),
            (6, "trace"),
            (10, "trace"),
        ] {
            assert_eq!(level(verbosity), name, "{verbosity}");
        }
    }
}
