//! Ctrl-C, SIGTERM and SIGHUP: everything that this process's labs made goes before the process does.
//!
//! The signal thread tears labs down by their state directories alone, so it needs nothing from the threads that it
//! interrupts. From its start on no thread can make a namespace or start a program: see `permit`.

use std::{
    io,
    sync::{OnceLock, RwLock, RwLockReadGuard},
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::state;

/// Held for reading while something is made that teardown must find; held for writing, for ever, by the teardown of
/// a dying process.
static GATE: RwLock<()> = RwLock::new(());
static INSTALLED: OnceLock<()> = OnceLock::new();

/// Status of a process that ended because of `signal`, by the shells' convention.
pub fn exit_code(signal: i32) -> i32 {
    /// Shells report a death by signal as this plus the signal's number.
    const SIGNALLED: i32 = 128;
    SIGNALLED + signal
}

/// From now on a termination signal tears down all labs of this process and ends it. `before` runs first, on the
/// signal thread, and chooses the exit status; a second signal changes nothing. Later calls have no effect.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn tear_down_on_signals(before: impl FnOnce(i32) -> i32 + Send + 'static) -> io::Result<()> {
    if INSTALLED.set(()).is_err() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let Some(signal) = signals.forever().next() else {
                return;
            };
            let status = before(signal);
            let _closed = GATE.write();
            for problem in state::remove_all_of_this_process() {
                eprintln!("teardown: {problem}");
            }
            std::process::exit(status);
        })?;
    Ok(())
}

/// Permission to make a namespace or start a program; blocks for ever once a signal has begun the teardown.
pub(crate) fn permit() -> RwLockReadGuard<'static, ()> {
    GATE.read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
