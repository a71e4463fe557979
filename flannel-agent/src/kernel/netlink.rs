//! One rtnetlink socket: requests, dumps and pipelined batches.
//!
//! The kernel carries out an rtnetlink request inside the `sendmsg` call that delivers it, and its answer lies in the
//! receive queue when that call returns. So the socket is synchronous: nothing is gained by waiting for it elsewhere.
//! It must never be shared with multicast groups; `events` has a socket of its own.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::net::RecvFlags;

use crate::metrics::COUNTERS;

/// Requests per `sendmsg`. Every answer takes about a KiB of the socket's receive buffer (208 KiB by default).
const BATCH: usize = 64;
/// The kernel builds dump messages of at most 32 KiB for a reader that offers at least as much.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// A dump that is interrupted by changes is read again, so often at most.
const DUMP_ATTEMPTS: usize = 10;
/// Length of `struct nlmsghdr`, in bytes.
const HEADER_LEN: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation of an error, a string.
const ERROR_TEXT: u16 = 1;
/// Mask that removes `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` from an attribute's type.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// What can go wrong on the socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be made or set up.
    #[error("rtnetlink socket: {0}")]
    Open(#[source] io::Error),
    /// Sending or receiving failed.
    #[error("rtnetlink {operation}: {source}")]
    Transfer {
        /// `send` or `receive`.
        operation: &'static str,
        /// What the system call said.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("{source}{}", explain(.text))]
    Refused {
        /// The errno.
        source: io::Error,
        /// The extended acknowledgement's text, where the kernel gives one (4.12 and newer).
        text: Option<String>,
    },
    /// An answer could not be decoded.
    #[error("rtnetlink answer: {0}")]
    Decode(String),
    /// Every attempt at a dump was interrupted by a change.
    #[error("rtnetlink dump: changed while it was read, {DUMP_ATTEMPTS} times in a row")]
    Interrupted,
}

fn explain(text: &Option<String>) -> String {
    text.as_ref().map(|t| format!(" ({t})")).unwrap_or_default()
}

impl Error {
    /// The errno of a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

fn transfer(operation: &'static str, source: io::Error) -> Error {
    COUNTERS.netlink_errors.count();
    Error::Transfer { operation, source }
}

/// A request: the message and `NLM_F_*` flags beyond `NLM_F_REQUEST | NLM_F_ACK`.
pub type Request = (RouteNetlinkMessage, u16);

/// The socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses the socket or one of its options (all exist since Linux 4.20).
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(Error::Open)?;
        socket.set_cap_ack(true).map_err(Error::Open)?;
        socket.set_ext_ack(true).map_err(Error::Open)?;
        // Without strict checking the kernel ignores the filters of dumps, IFA_TARGET_NETNSID among them.
        socket
            .set_netlink_get_strict_chk(true)
            .map_err(Error::Open)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// All objects that match `message`.
    ///
    /// # Errors
    /// When the kernel refuses the dump, or changes keep interrupting it.
    pub fn dump(
        &mut self,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.collect(message, Vec::push)
    }

    /// What `take` makes of all objects that match `message`, one by one. It begins anew when a change interrupts the
    /// dump.
    ///
    /// # Errors
    /// When the kernel refuses the dump, or changes keep interrupting it.
    pub fn collect<T: Default>(
        &mut self,
        message: &RouteNetlinkMessage,
        mut take: impl FnMut(&mut T, RouteNetlinkMessage),
    ) -> Result<T, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = T::default();
            if !self.dump_once(message.clone(), |answer| take(&mut found, answer))? {
                return Ok(found);
            }
        }
        Err(Error::Interrupted)
    }

    /// One object.
    ///
    /// # Errors
    /// When the kernel refuses, `ENODEV` or `ENOENT` for what does not exist.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> Result<RouteNetlinkMessage, Error> {
        let mut results = self.exchange(vec![(message, 0)])?;
        results
            .remove(0)?
            .pop()
            .ok_or_else(|| Error::Decode("empty answer".into()))
    }

    /// Carries out all requests, in order; one that fails does not keep the others from being done.
    ///
    /// # Errors
    /// Outer: the socket failed. Inner, one per request: the kernel refused it.
    pub fn exchange(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Result<Vec<RouteNetlinkMessage>, Error>>, Error> {
        let mut results = Vec::new();
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            let mut sent = 0;
            for (message, flags) in requests.by_ref().take(BATCH) {
                self.append(&mut bytes, message, flags | NLM_F_ACK);
                sent += 1;
            }
            self.send(&bytes)?;
            self.await_answers(first, sent, &mut results)?;
        }
        Ok(results)
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        self.socket
            .send(bytes, 0)
            .map(drop)
            .map_err(|source| transfer("send", source))
    }

    fn receive(&mut self) -> Result<usize, Error> {
        loop {
            match rustix::net::recv(&self.socket, &mut *self.buffer, RecvFlags::empty()) {
                Ok((read, _)) => return Ok(read),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(transfer("receive", errno.into())),
            }
        }
    }

    /// Reads until each of the `sent` requests from sequence number `first` on is acknowledged.
    fn await_answers(
        &mut self,
        first: u32,
        sent: usize,
        results: &mut Vec<Result<Vec<RouteNetlinkMessage>, Error>>,
    ) -> Result<(), Error> {
        let mut answers: Vec<Vec<RouteNetlinkMessage>> = vec![Vec::new(); sent];
        let mut outcomes: Vec<Option<Result<(), Error>>> = (0..sent).map(|_| None).collect();
        let mut open = sent;
        while open > 0 {
            let read = self.receive()?;
            for (header, payload) in messages(&self.buffer[..read]) {
                let slot = header.sequence_number.wrapping_sub(first) as usize;
                if slot >= sent {
                    continue; // left over from an exchange that failed half-way
                }
                match payload? {
                    Payload::Answer(message) => answers[slot].extend(message),
                    Payload::Done => {}
                    Payload::Acknowledged(result) => {
                        if outcomes[slot].replace(result).is_none() {
                            open -= 1;
                        }
                    }
                }
            }
        }
        let outcomes = outcomes.into_iter().map(|o| o.unwrap_or(Ok(())));
        results.extend(
            outcomes
                .zip(answers)
                .map(|(outcome, answers)| outcome.map(|()| answers)),
        );
        Ok(())
    }

    /// Whether the dump was interrupted by a change.
    fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> Result<bool, Error> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, NLM_F_DUMP);
        let sequence = self.sequence;
        self.send(&bytes)?;
        let mut interrupted = false;
        loop {
            let read = self.receive()?;
            for (header, payload) in messages(&self.buffer[..read]) {
                if header.sequence_number != sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload? {
                    Payload::Answer(message) => message.into_iter().for_each(&mut take),
                    Payload::Done => return Ok(interrupted),
                    Payload::Acknowledged(result) => {
                        result?;
                        return Ok(interrupted);
                    }
                }
            }
        }
    }
}

/// A decoded message.
pub enum Payload {
    /// An object; absent if it is of a kind that could not be decoded.
    Answer(Option<RouteNetlinkMessage>),
    /// The end of a dump.
    Done,
    /// The outcome of a request.
    Acknowledged(Result<(), Error>),
}

/// Splits what one `recv` returned into messages. Bytes that are no message end them.
pub fn messages(
    mut bytes: &[u8],
) -> impl Iterator<Item = (NetlinkHeader, Result<Payload, Error>)> + '_ {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let one = bytes.get(..length).filter(|one| one.len() >= HEADER_LEN)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let mut header = NetlinkHeader::default();
        header.length = length as u32;
        header.message_type = kind;
        header.flags = u16::from_ne_bytes([one[6], one[7]]);
        header.sequence_number = u32::from_ne_bytes([one[8], one[9], one[10], one[11]]);
        header.port_number = u32::from_ne_bytes([one[12], one[13], one[14], one[15]]);
        Some((header, decode(one)))
    })
}

fn decode(one: &[u8]) -> Result<Payload, Error> {
    let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(one) {
        Ok(message) => message,
        Err(error) => {
            // An attribute that a newer kernel shapes differently must not hide all the other objects.
            tracing::debug!(%error, "undecodable rtnetlink message skipped");
            return Ok(Payload::Answer(None));
        }
    };
    Ok(match message.payload {
        NetlinkPayload::InnerMessage(message) => Payload::Answer(Some(message)),
        NetlinkPayload::Done(_) => Payload::Done,
        NetlinkPayload::Error(error) => Payload::Acknowledged(match error.code {
            None => Ok(()),
            Some(_) => {
                COUNTERS.netlink_errors.count();
                Err(Error::Refused {
                    source: error.to_io(),
                    text: error_text(one),
                })
            }
        }),
        NetlinkPayload::Noop => Payload::Answer(None),
        other => return Err(Error::Decode(format!("{other:?}"))),
    })
}

/// The extended acknowledgement's text: an attribute after the error code and the request's header.
fn error_text(one: &[u8]) -> Option<String> {
    let mut attributes = one.get(HEADER_LEN + 4 + HEADER_LEN..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?) & ATTRIBUTE_TYPE;
        let value = attributes.get(4..length)?;
        if kind == ERROR_TEXT {
            return Some(
                String::from_utf8_lossy(value)
                    .trim_end_matches('\0')
                    .to_owned(),
            );
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}
