//! The comparison on real nodes: `bench server` in one pod, `bench client` in another on a different node.
//!
//! One port carries all of it. A TCP connection begins with two bytes that say what it is for ([`protocol::Purpose`]);
//! datagrams of the same port number carry round trips and the flood. Over the control connection the client asks for
//! the server's counts and for another mode of its node's agent.
//!
//! - [`protocol`]: what goes over the control connection.
//! - [`server`]: who answers, to one client at a time; [`admission`] says to whom.
//! - [`client`]: the rounds; [`order`] says in which order, [`load`] holds the traffic, [`proof`] which path it took.
//! - [`agent`]: the mode of a node's agent, and its restoration.
//! - [`cpu`]: the CPU time of a node.
//! - [`report`]: what is said in the end.

mod admission;
pub mod agent;
pub mod client;
mod control;
mod cpu;
mod load;
mod order;
mod proof;
mod protocol;
mod report;
pub mod server;

use std::{io, thread};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// Ends the process by Ctrl-C, SIGTERM or SIGHUP, after `before`. The lab's own handlers are not used: there is no lab
/// here, and nothing may wait for its gate.
///
/// # Errors
/// If the handlers cannot be installed.
fn on_signals(before: impl FnOnce() + Send + 'static) -> Result<()> {
    let install = || -> io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    before();
                    std::process::exit(lab::signals::exit_code(signal));
                }
            })?;
        Ok(())
    };
    install().context("cannot install signal handlers")
}
