//! Upstream's way to carry packets: one thread that polls device and socket, and moves one packet by one read and one send,
//! with a list of routes whose last hit comes first (`run_proxy` of `pkg/backend/udp/proxy_amd64.c`).

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use flannel_agent::udp::{packet::Header, tun};
use ipnet::Ipv4Net;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, read, write},
    net::{RecvFlags, recv},
};

/// How often it looks whether it should end.
const TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// A running proxy; ends when dropped.
pub(crate) struct Baseline {
    pub(crate) device: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Proxy {
    tun: OwnedFd,
    socket: UdpSocket,
    routes: Vec<(Ipv4Net, SocketAddrV4)>,
    buffer: Vec<u8>,
}

impl Baseline {
    pub(crate) fn start(
        bind: SocketAddrV4,
        mtu: usize,
        routes: Vec<(Ipv4Net, SocketAddrV4)>,
    ) -> anyhow::Result<Self> {
        let (tun, device) = tun::open("flannel%d")?;
        let mut proxy = Proxy {
            tun,
            socket: UdpSocket::bind(bind)?,
            routes,
            buffer: vec![0; mtu],
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || proxy.run(&stopped));
        Ok(Self {
            device,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

impl Proxy {
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut fds = [
                PollFd::new(&self.tun, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::IN),
            ];
            poll(&mut fds, Some(&TICK)).ok();
            // As long as there is anything, without polling.
            loop {
                let active = [self.outbound(), self.inbound()];
                if active == [false, false] {
                    break;
                }
            }
        }
    }

    fn outbound(&mut self) -> bool {
        let Ok(length) = read(&self.tun, &mut self.buffer[..]) else {
            return false;
        };
        let packet = &mut self.buffer[..length];
        if let Some(header) = Header::read(packet)
            && let Some(to) = find(&mut self.routes, header.destination())
            && header.hop(packet).is_ok()
        {
            self.socket.send_to(packet, to).ok();
        }
        true
    }

    fn inbound(&mut self) -> bool {
        let Ok((length, _)) = recv(
            self.socket.as_fd(),
            &mut self.buffer[..],
            RecvFlags::DONTWAIT,
        ) else {
            return false;
        };
        let packet = &mut self.buffer[..length];
        if let Some(header) = Header::read(packet)
            && header.hop(packet).is_ok()
        {
            while matches!(write(&self.tun, packet), Err(Errno::AGAIN)) {}
        }
        true
    }
}

fn find(routes: &mut [(Ipv4Net, SocketAddrV4)], address: Ipv4Addr) -> Option<SocketAddrV4> {
    let found = routes
        .iter()
        .position(|(subnet, _)| subnet.contains(&address))?;
    routes.swap(0, found);
    Some(routes[0].1)
}
