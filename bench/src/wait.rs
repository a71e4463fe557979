//! Waiting for conditions with a deadline. Nothing in the lab sleeps for a fixed time and hopes.

use std::{
    env,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

/// How often a condition is looked at. Short against what is waited for, long against the cost of looking.
const INTERVAL: Duration = Duration::from_millis(5);

/// Names a number that limits are multiplied by, for machines that are slow for a reason: an emulated processor.
pub const PATIENCE: &str = "FLANNEL_LAB_PATIENCE";

/// A limit as it is on this machine.
pub fn patient(limit: Duration) -> Duration {
    limit * patience()
}

/// The number; one on any machine that nobody calls slow.
fn patience() -> u32 {
    static NUMBER: OnceLock<u32> = OnceLock::new();
    *NUMBER.get_or_init(|| {
        let given = env::var(PATIENCE).ok().and_then(|text| text.parse().ok());
        given.unwrap_or(1).max(1)
    })
}

/// Calls `probe` until it yields a value, and returns that value. On a slow machine it looks more seldom, and for longer.
///
/// `probe` answers `Ok(Err(state))` while the condition does not hold yet, with the state seen, which the timeout
/// error reports; `Err` ends the wait at once.
///
/// # Errors
/// [`Error::Timeout`] after `limit`, or the error of `probe`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let (interval, limit) = (patient(INTERVAL), patient(limit));
    let start = Instant::now();
    loop {
        match probe()? {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= limit => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    waited: start.elapsed(),
                    last,
                });
            }
            Err(_) => thread::sleep(interval),
        }
    }
}
