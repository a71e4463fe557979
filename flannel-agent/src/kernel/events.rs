//! Notifications of changes: one netlink socket in the groups for links, addresses, routes, neighbours and traffic
//! control, and one for IPsec policies.
//!
//! An event only says where to look again; nothing is taken from it as fact. The socket also hears the namespaces that
//! have an id in this one, which are those of the pods: their addresses appear inside, after the veth outside.

use std::{io, mem::MaybeUninit, os::fd::AsRawFd as _};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_ROUTE, NETLINK_XFRM},
};
use tokio::io::unix::AsyncFd;

use super::{
    decode::{self, Neighbour},
    netlink::{self, Payload},
    objects::Route,
};
use ipnet::IpNet;

/// `RTNLGRP_LINK`, `RTNLGRP_NEIGH`, `RTNLGRP_TC`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV4_RULE`,
/// `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_IPV6_ROUTE`, `RTNLGRP_IPV6_RULE` (include/uapi/linux/rtnetlink.h).
const GROUPS: [u32; 9] = [1, 3, 4, 5, 7, 8, 9, 11, 19];
/// `XFRMNLGRP_POLICY` (include/uapi/linux/xfrm.h).
const POLICY_GROUP: u32 = 4;
/// `RTM_NEWQDISC` up to `RTM_GETTFILTER`: disciplines, their classes and filters (include/uapi/linux/rtnetlink.h).
const TRAFFIC_CONTROL: std::ops::RangeInclusive<u16> = 36..=46;
/// A burst of events while the agent is busy, such as 5 000 new routes, must fit.
const RECEIVE_BUFFER_BYTES: i32 = 4 << 20;
/// Largest datagram: events are single messages, of a few KiB at most.
const DATAGRAM: usize = 32 * 1024;

/// A change in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link or an address of this namespace: the interface's index.
    Link(u32),
    /// A route of the main table: destination, route, whether it is gone.
    Route(IpNet, Route, bool),
    /// A route of another form, or a rule of policy routing.
    OtherRoute,
    /// A neighbour or FDB entry: index of its interface, the entry, whether it is gone.
    Neighbour(u32, Neighbour, bool),
    /// Traffic control of an interface of this namespace.
    TrafficControl,
    /// An IPsec policy.
    Ipsec,
    /// A link or an address inside another namespace, whose id this is.
    Pod(i32),
    /// Events were lost: anything may have changed.
    Lost,
}

/// The sockets.
pub struct Events {
    socket: AsyncFd<Socket>,
    /// Absent where the kernel has no IPsec.
    policies: Option<AsyncFd<Socket>>,
    hears_pods: bool,
}

impl Events {
    /// Subscribes in the network namespace of the calling thread. Must be called inside the tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the socket or a group.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // More than net.core.rmem_max needs CAP_NET_ADMIN, which the agent has; without, lost events are noticed.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(
            &socket,
            RECEIVE_BUFFER_BYTES.unsigned_abs() as usize,
        );
        // Needs CAP_NET_BROADCAST; without it the timer finds pods' addresses.
        let hears_pods = socket.set_listen_all_namespaces(true).is_ok();
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self {
            socket: register(socket)?,
            policies: policies()?,
            hears_pods,
        })
    }

    /// Whether changes inside pods' namespaces are heard.
    pub fn hears_pods(&self) -> bool {
        self.hears_pods
    }

    /// Waits for events and returns all that are there. Safe to drop while it waits.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        let policies = async {
            match &self.policies {
                Some(socket) => read(socket, |_, _| vec![Event::Ipsec]).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            events = read(&self.socket, rtnetlink) => events,
            events = policies => events,
        }
    }
}

fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: `Socket` owns its descriptor, always returns the same one, and closes it only when it is dropped, which
    // `AsyncFd` does after it has deregistered it.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Hears of IPsec policies, if this kernel has any.
fn policies() -> io::Result<Option<AsyncFd<Socket>>> {
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(None),
        Err(error) => return Err(error),
    };
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    socket.add_membership(POLICY_GROUP)?;
    register(socket).map(Some)
}

/// Turns one message, from the namespace with an id if it is another, into an event.
type Decode = fn(&[u8], Option<i32>) -> Vec<Event>;

async fn read(socket: &AsyncFd<Socket>, decode: Decode) -> io::Result<Vec<Event>> {
    loop {
        let mut guard = socket.readable().await?;
        match guard.try_io(|socket| drain(socket.get_ref(), decode)) {
            Ok(events) => return events,
            Err(_would_block) => {}
        }
    }
}

/// Reads until the socket is empty; `WouldBlock` if it was from the start.
fn drain(socket: &Socket, decode: Decode) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    let mut buffer = vec![0; DATAGRAM];
    let mut read_any = false;
    loop {
        match receive(socket, &mut buffer) {
            Ok((read, namespace)) => {
                read_any = true;
                events.extend(decode(&buffer[..read], namespace));
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                read_any = true;
                events.push(Event::Lost);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && read_any => {
                return Ok(events);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The events in a datagram of the rtnetlink socket, from the namespace with an id if it is another.
pub fn rtnetlink(datagram: &[u8], namespace: Option<i32>) -> Vec<Event> {
    netlink::messages(datagram)
        .filter_map(|(header, payload)| {
            // Known by their type alone: what is in them differs with every module.
            if TRAFFIC_CONTROL.contains(&header.message_type) {
                return namespace.is_none().then_some(Event::TrafficControl);
            }
            match payload {
                Ok(Payload::Answer(Some(message))) => event(&message, namespace),
                _ => None,
            }
        })
        .collect()
}

fn event(message: &RouteNetlinkMessage, namespace: Option<i32>) -> Option<Event> {
    use RouteNetlinkMessage as M;
    if let Some(namespace) = namespace {
        return matches!(
            message,
            M::NewLink(_) | M::DelLink(_) | M::NewAddress(_) | M::DelAddress(_)
        )
        .then_some(Event::Pod(namespace));
    }
    match message {
        M::NewLink(link) | M::DelLink(link) => Some(Event::Link(link.header.index)),
        M::NewAddress(address) | M::DelAddress(address) => Some(Event::Link(address.header.index)),
        M::NewRoute(route) | M::DelRoute(route) => Some(match decode::route(route) {
            Some((net, value)) => Event::Route(net, value, matches!(message, M::DelRoute(_))),
            None if decode::leads_to_no_node(route) => return None,
            None => Event::OtherRoute,
        }),
        M::NewRule(_) | M::DelRule(_) => Some(Event::OtherRoute),
        M::NewNeighbour(entry) | M::DelNeighbour(entry) => {
            let (index, neighbour) = decode::neighbour(entry)?;
            Some(Event::Neighbour(
                index,
                neighbour,
                matches!(message, M::DelNeighbour(_)),
            ))
        }
        _ => None,
    }
}

/// One datagram: its length, and the id of the namespace that it comes from if it is another, which only a control
/// message tells.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    /// Room for the control messages that may come, in units of alignment: `NETLINK_LISTEN_ALL_NSID` needs 20 bytes.
    const CONTROL_WORDS: usize = 16;
    let mut control = [MaybeUninit::<u64>::uninit(); CONTROL_WORDS];
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero bytes are a valid `msghdr`: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    // C libraries differ in its type.
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: `header` points to one vector over `buffer` and to `control`, both alive and writable during the call,
    // with their true lengths.
    let read = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    let mut namespace = None;
    // SAFETY: `header` is as the kernel left it: `msg_controllen` bytes of `control` are initialised with well-formed
    // control messages, which is what the CMSG functions walk; `control` is aligned for `cmsghdr`. The data of a
    // NETLINK_LISTEN_ALL_NSID message is an int (net/netlink/af_netlink.c, `netlink_cmsg_listen_all_nsid`).
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(control) = message.as_ref() {
            if control.cmsg_level == libc::SOL_NETLINK
                && control.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID
            {
                namespace = Some(libc::CMSG_DATA(message).cast::<i32>().read_unaligned());
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    Ok((read, namespace))
}
