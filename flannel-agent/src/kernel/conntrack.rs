//! Settings of conntrack that the fast path depends on.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use super::apply::{read_sysctl, write_sysctl};

/// Whether TCP segments outside of the known window are taken: packets that come back to the kernel after a fast burst
/// are.
const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

/// Shortest time between revalidations, whatever the timeouts: each costs a packet's way through the kernel.
const SHORTEST: Duration = Duration::from_millis(50);

/// Timeouts of UDP connections, in seconds.
const UDP_TIMEOUTS: [&str; 2] = [
    "net/netfilter/nf_conntrack_udp_timeout",
    "net/netfilter/nf_conntrack_udp_timeout_stream",
];

/// Why conntrack could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The setting could not be read or written.
    #[error("net.netfilter.nf_conntrack_tcp_be_liberal: {0}")]
    Liberal(#[source] io::Error),
    /// The former value could not be noted.
    #[error("{}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes conntrack take TCP segments outside of the window, and notes the former value in `state` unless one is noted.
///
/// # Errors
/// When the setting does not exist or cannot be written.
pub fn be_liberal(state: &Path) -> Result<(), Error> {
    let before = read_sysctl(LIBERAL).map_err(Error::Liberal)?;
    if before.trim() == "1" {
        return Ok(());
    }
    if !state.exists() {
        let failed = |source| Error::State {
            path: state.to_owned(),
            source,
        };
        if let Some(directory) = state.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        fs::write(state, format!("{before}\n")).map_err(failed)?;
    }
    write_sysctl(LIBERAL, "1").map_err(Error::Liberal)
}

/// Gives the setting the value noted in `state`, and removes the note. Returns what was done, if anything was noted.
///
/// # Errors
/// When the setting or the note cannot be written.
pub fn restore(state: &Path, dry_run: bool) -> Result<Option<String>, Error> {
    let value = match fs::read_to_string(state) {
        Ok(value) => value,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::State {
                path: state.to_owned(),
                source,
            });
        }
    };
    let value = value.trim();
    if !dry_run {
        write_sysctl(LIBERAL, value).map_err(Error::Liberal)?;
        fs::remove_file(state).map_err(|source| Error::State {
            path: state.to_owned(),
            source,
        })?;
    }
    Ok(Some(format!(
        "net.netfilter.nf_conntrack_tcp_be_liberal = 1, back to {value}"
    )))
}

/// How often flows are revalidated: as wanted, but at least twice within the shortest time after which conntrack forgets
/// a UDP connection.
pub fn revalidation(wanted: Duration) -> Duration {
    UDP_TIMEOUTS
        .into_iter()
        .filter_map(|path| read_sysctl(path).ok()?.trim().parse().ok())
        .map(|seconds: u64| Duration::from_secs(seconds) / 2)
        .fold(wanted, Duration::min)
        .max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revalidation_is_as_wanted_within_bounds() {
        let tiny = Duration::from_millis(1);
        assert_eq!(revalidation(tiny), SHORTEST);
        assert!(revalidation(Duration::from_secs(3600)) <= Duration::from_secs(3600));
    }

    #[test]
    fn nothing_noted_is_nothing_to_restore() {
        let state = std::env::temp_dir().join(format!("no-such-note-{}", std::process::id()));
        assert!(restore(&state, false).is_ok_and(|done| done.is_none()));
    }
}
