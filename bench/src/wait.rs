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

/// Names the factor by which limits are longer on a machine that is slow by nature, such as an emulated one.
pub const PATIENCE: &str = "FLANNEL_LAB_PATIENCE";

fn patience() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let factor = env::var(PATIENCE).ok().and_then(|text| text.parse().ok());
        factor.unwrap_or(1)
    })
}

/// Calls `probe` until it yields a value, and returns that value.
///
/// `probe` answers `Ok(Err(state))` while the condition does not hold yet, with the state seen, which the timeout
/// error reports; `Err` ends the wait at once.
///
/// # Errors
/// [`Error::Timeout`] after `limit`, as often as [`PATIENCE`] says, or the error of `probe`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    let limit = limit * patience();
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
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}
