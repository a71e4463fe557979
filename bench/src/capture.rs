//! Frames as they pass an interface, byte by byte, for comparison in tests.
//!
//! A packet socket (`packet(7)`) in the namespace. It sees frames before TC ingress and after TC egress, like tcpdump;
//! aggregates and unfinished checksums appear as the kernel carries them, so turn offloads off where real wire bytes
//! matter ([`crate::underlay::disable_offloads`]).

use std::{
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketAddrAny, SocketFlags, SocketType, bind,
        netdevice::name_to_index, recvfrom, socket_with,
    },
};

use crate::{
    error::{IoContext, Result},
    netns::Netns,
    wait,
};

/// How often the thread looks whether it should stop.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};
/// The largest frame: an aggregate of 64 KiB and headers.
const MAX_FRAME: usize = 128 << 10;
/// Receive buffer in bytes.
const BUFFER: usize = 16 << 20;

/// Which way a frame passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The interface received it.
    In,
    /// The interface sent it.
    Out,
}

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Time since the capture began.
    pub at: Duration,
    /// Which way it passed.
    pub direction: Direction,
    /// From the Ethernet header on, without frame check sequence.
    pub bytes: Vec<u8>,
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    frames: Arc<Mutex<Vec<Frame>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Captures all frames of an interface from now on.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns.run(|| open(interface))?.context(
            "capture on",
            format_args!("{interface} in {}", netns.name()),
        )?;
        let frames = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (frames, stop) = (frames.clone(), stop.clone());
            thread::spawn(move || collect(&socket, &frames, &stop))
        };
        Ok(Self {
            frames,
            stop,
            thread: Some(thread),
        })
    }

    /// Waits until a frame fulfils `condition` and returns the first that does.
    ///
    /// # Errors
    /// If none does within `limit`.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        condition: impl Fn(&Frame) -> bool,
    ) -> Result<Frame> {
        wait::until(what, limit, || {
            let frames = self
                .frames
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let found = frames.iter().find(|frame| condition(frame)).cloned();
            Ok(found.ok_or_else(|| format!("{} other frames", frames.len())))
        })
    }

    /// How many frames have passed by now.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a running capture is no collection"
    )]
    pub fn len(&self) -> usize {
        let frames = self.frames.lock();
        frames
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .len()
    }

    /// Ends the capture and returns all frames, those that had passed by now included.
    pub fn stop(mut self) -> Vec<Frame> {
        self.end();
        std::mem::take(
            &mut *self
                .frames
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

fn open(interface: &str) -> rustix::io::Result<OwnedFd> {
    // Without a protocol the socket receives nothing until it is bound: no frame of another interface gets in.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    let index = name_to_index(&socket, interface)?;
    bind(&socket, &link_address(index, libc::ETH_P_ALL))?;
    Ok(socket)
}

/// The packet socket address of one interface, for a protocol of `<linux/if_ether.h>` (zero: send only).
pub(crate) fn link_address(index: u32, protocol: i32) -> SocketAddrAny {
    // SAFETY: a structure of integers, for which zeroes are valid.
    let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small constant");
    address.sll_protocol = u16::try_from(protocol).expect("a small constant").to_be();
    address.sll_ifindex = index.cast_signed();
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("a small structure");
    // SAFETY: the pointer is to `length` initialized bytes that are a socket address by their family field.
    unsafe { SocketAddrAny::read((&raw const address).cast(), length) }
}

fn collect(socket: &OwnedFd, frames: &Mutex<Vec<Frame>>, stop: &AtomicBool) {
    let start = Instant::now();
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        // Looked at before the socket is drained: what had passed when `stop` was set is taken.
        let last = stop.load(Ordering::Relaxed);
        loop {
            match recvfrom(socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _, source)) => {
                    let direction = source.as_ref().map_or(Direction::In, direction);
                    let frame = Frame {
                        at: start.elapsed(),
                        direction,
                        bytes: buffer[..length].to_vec(),
                    };
                    frames
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(frame);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The interface has gone.
                Err(_) => return,
            }
        }
        if last {
            return;
        }
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        poll(&mut fds, Some(&TICK)).ok();
    }
}

fn direction(source: &SocketAddrAny) -> Direction {
    if source.addr_len() as usize <= std::mem::offset_of!(libc::sockaddr_ll, sll_pkttype) {
        return Direction::In;
    }
    // SAFETY: the kernel wrote a `sockaddr_ll` that reaches beyond this field, as was just tested.
    let kind = unsafe { (*source.as_ptr().cast::<libc::sockaddr_ll>()).sll_pkttype };
    if kind == libc::PACKET_OUTGOING {
        Direction::Out
    } else {
        Direction::In
    }
}
