//! The thread behind a server of the lab: it waits for either of two descriptors, and ends when its owner is dropped.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread::{self, JoinHandle},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{Errno, write},
};

use crate::error::{IoContext, Result};

/// A thread that serves. Ended, and waited for, when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

/// What the thread hears of its end by.
pub(crate) struct Stop(OwnedFd);

impl Server {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the kernel has no event descriptor for it.
    pub(crate) fn start(serve: impl FnOnce(&Stop) + Send + 'static) -> Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).context("make", "event descriptor")?;
        let stopped = Stop(stop.try_clone().context("duplicate", "event descriptor")?);
        Ok(Self {
            stop,
            thread: Some(thread::spawn(move || serve(&stopped))),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        write(&self.stop, &1_u64.to_ne_bytes()).ok();
        self.thread.take().map(JoinHandle::join);
    }
}

impl Stop {
    /// Waits until one of the two can be read; false when it is time to end.
    pub(crate) fn wait_readable(&self, fds: [BorrowedFd<'_>; 2]) -> bool {
        loop {
            let mut fds = [fds[0], fds[1], self.0.as_fd()]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(_) => return false,
                Ok(_) => return fds[2].revents().is_empty(),
            }
        }
    }
}
