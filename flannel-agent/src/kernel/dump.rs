//! Dumps whose messages are read as bytes: traffic control and IPsec, of which a few fields matter here, in messages
//! that differ from kernel to kernel and with every module that extends them.
//!
//! Reading only. A message that cannot be understood must not hide another, so nothing is decoded here.

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};

/// Length of `struct nlmsghdr`, in bytes.
const HEADER_LEN: usize = 16;
/// The kernel builds dump messages of at most 32 KiB for a reader that offers at least as much.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// A dump that is interrupted by changes is read again, so often at most.
const ATTEMPTS: usize = 10;

/// What `request` (a `NETLINK_` family's message type and body) makes the kernel list: the messages' bodies. Reads the
/// network namespace of the calling thread.
///
/// # Errors
/// What the kernel says: `EPROTONOSUPPORT` for a family that it does not have, `EINTR` for a dump that changes keep
/// interrupting.
pub fn dump(family: isize, kind: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(family)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    for sequence in 1..=ATTEMPTS as u32 {
        if let Some(bodies) = once(&socket, kind, body, sequence)? {
            return Ok(bodies);
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

fn once(
    socket: &Socket,
    kind: u16,
    body: &[u8],
    sequence: u32,
) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut request = Vec::with_capacity(HEADER_LEN + body.len());
    request.extend(((HEADER_LEN + body.len()) as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    request.extend(0u32.to_ne_bytes()); // port: the kernel fills it in
    request.extend(body);
    socket.send(&request, 0)?;
    let mut bodies = Vec::new();
    let mut interrupted = false;
    loop {
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while let Some(message) = next(&mut rest) {
            if message.sequence != sequence {
                continue;
            }
            interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            match message.kind {
                NLMSG_DONE => return Ok((!interrupted).then_some(bodies)),
                NLMSG_ERROR => match number(message.body, 0) {
                    Some(0) => {}
                    Some(errno) => {
                        let errno = errno.cast_signed().wrapping_neg();
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    None => return Err(io::ErrorKind::InvalidData.into()),
                },
                _ => bodies.push(message.body.to_vec()),
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// Takes the next message off `rest`.
fn next<'a>(rest: &mut &'a [u8]) -> Option<Message<'a>> {
    let length = number(rest, 0)? as usize;
    let header = rest.get(..HEADER_LEN)?;
    let body = rest.get(HEADER_LEN..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(Message {
        kind: u16::from_ne_bytes([header[4], header[5]]),
        flags: u16::from_ne_bytes([header[6], header[7]]),
        sequence: number(header, 8)?,
        body,
    })
}

/// The number at `offset`, in the order of this machine.
pub fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset + 4)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// The value of the first attribute of type `kind` among `attributes`.
pub fn attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == kind)
        .map(|attribute| attribute.value().to_vec())
}

/// The text of an attribute, without the zero byte behind it.
pub fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(((HEADER_LEN + body.len()) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn messages_are_split_and_garbage_ends_them() {
        let bytes = [message(7, b"abcde"), message(8, b"f"), vec![200, 0, 0]].concat();
        let mut rest = bytes.as_slice();
        let first = next(&mut rest).expect("the first message");
        assert_eq!((first.kind, first.body), (7, b"abcde".as_slice()));
        let second = next(&mut rest).expect("the second message");
        assert_eq!((second.kind, second.body), (8, b"f".as_slice()));
        assert!(next(&mut rest).is_none());
        let mut too_long: &[u8] = &[200, 0, 0, 0, 0, 0, 0, 0];
        assert!(next(&mut too_long).is_none());
    }

    #[test]
    fn attributes_are_found_by_type() {
        let attributes = [8, 0, 1, 0, b'b', b'p', b'f', 0, 5, 0, 2, 0, 9, 0, 0, 0];
        let kind = attribute(&attributes, 1).expect("attribute 1");
        assert_eq!(text(&kind), "bpf");
        assert_eq!(attribute(&attributes, 2), Some(vec![9]));
        assert_eq!(attribute(&attributes, 3), None);
    }
}
