//! Single connections in conntrack's table: those that may leave the windows which it knows of them.
//!
//! What holds for all connections of the node is in `conntrack`. BPF carries packets past conntrack, so what that knows
//! of a carried connection's windows is out of date for as long as the connection lives, and a strict conntrack calls
//! its packets invalid, which kube-proxy's rules drop. So before the node becomes strict again, every connection that
//! is there is told to stay liberal; those that begin later are followed from their first packet.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::dump::{attribute, dump, number};

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_NEW`, which also changes what is there, and `IPCTNL_MSG_CT_GET`
/// (include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h; so are the attributes below).
const NEW: u16 = 0x100;
const GET: u16 = 0x101;
/// Length of `struct nfgenmsg`, in bytes: address family, version, resource.
const GENERAL_LEN: usize = 4;
/// Length of `struct nlmsghdr`, in bytes.
const HEADER_LEN: usize = 16;
/// Attributes of a connection: `CTA_TUPLE_ORIG`, `CTA_PROTOINFO`, `CTA_ZONE`.
const ORIGINAL: u16 = 1;
const PROTOCOL_STATE: u16 = 4;
const ZONE: u16 = 18;
/// Inside the tuple: `CTA_TUPLE_PROTO`, and in that `CTA_PROTO_NUM`.
const PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
/// Inside the protocol's state: `CTA_PROTOINFO_TCP`, and in that `CTA_PROTOINFO_TCP_FLAGS_ORIGINAL` and `…_REPLY`.
const TCP: u16 = 1;
const TCP_FLAGS: [u16; 2] = [4, 5];
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `IP_CT_TCP_FLAG_BE_LIBERAL` (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const BE_LIBERAL: u8 = 0x08;
/// An answer is a header, an error number, and the request's header.
const ANSWER_LEN: usize = 64;

/// Tells every TCP connection that conntrack knows to stay liberal about windows until it ends, in both directions;
/// how many there are.
///
/// # Errors
/// When the kernel has no interface to conntrack's table (`nf_conntrack_netlink`), or refuses a change.
pub fn keep_liberal() -> io::Result<usize> {
    let any_family = [0; GENERAL_LEN];
    let connections = dump(NETLINK_NETFILTER, GET, &any_family)?;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut changed = 0;
    let changes = connections.iter().filter_map(|bytes| change(bytes));
    for (sequence, body) in (1..).zip(changes) {
        match request(&socket, sequence, &body) {
            Ok(()) => changed += 1,
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(changed)
}

/// The change of a connection, the body of an `IPCTNL_MSG_CT_NEW`, if it is TCP's.
fn change(connection: &[u8]) -> Option<Vec<u8>> {
    let general = connection.get(..GENERAL_LEN)?;
    let attributes = connection.get(GENERAL_LEN..)?;
    let tuple = attribute(attributes, ORIGINAL)?;
    let protocol = attribute(&attribute(&tuple, PROTOCOL)?, PROTOCOL_NUMBER)?;
    if protocol != [libc::IPPROTO_TCP as u8] {
        return None;
    }
    // Flags, and which of them to change.
    let flags = TCP_FLAGS.map(|kind| encode(kind, &[BE_LIBERAL, BE_LIBERAL]));
    let state = encode(TCP | NESTED, &flags.concat());
    let mut body = general.to_vec();
    body.extend(encode(ORIGINAL | NESTED, &tuple));
    body.extend(encode(PROTOCOL_STATE | NESTED, &state));
    if let Some(zone) = attribute(attributes, ZONE) {
        body.extend(encode(ZONE, &zone));
    }
    Some(body)
}

/// An attribute, padded as the next one needs it.
fn encode(kind: u16, value: &[u8]) -> Vec<u8> {
    /// Length of `struct nlattr`, in bytes.
    const HEADER: usize = 4;
    let length = HEADER + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn request(socket: &Socket, sequence: u32, body: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend(((HEADER_LEN + body.len()) as u32).to_ne_bytes());
    bytes.extend(NEW.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes()); // port: the kernel fills it in
    bytes.extend(body);
    socket.send(&bytes, 0)?;
    let mut answer = Vec::with_capacity(ANSWER_LEN + bytes.len());
    socket.recv(&mut answer, 0)?;
    let kind = answer.get(4..6).map(|kind| [kind[0], kind[1]]);
    match (kind.map(u16::from_ne_bytes), number(&answer, HEADER_LEN)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(errno)) => {
            let errno = errno.cast_signed().wrapping_neg();
            Err(io::Error::from_raw_os_error(errno))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection as the kernel lists it: the addresses and ports of the first direction, status, and a zone.
    fn connection(protocol: u8) -> Vec<u8> {
        let addresses = encode(
            1 | NESTED,
            &[encode(1, &[10, 5, 1, 2]), encode(2, &[10, 5, 2, 2])].concat(),
        );
        let ports = [
            encode(PROTOCOL_NUMBER, &[protocol]),
            encode(2, &[0x1f, 0x90]),
        ]
        .concat();
        let tuple = [addresses, encode(PROTOCOL | NESTED, &ports)].concat();
        [
            vec![libc::AF_INET as u8, 0, 0, 0],
            encode(ORIGINAL | NESTED, &tuple),
            encode(3, &[0, 0, 0, 0xe]),
            encode(ZONE, &[0, 7]),
        ]
        .concat()
    }

    #[test]
    fn changes_name_the_connection_and_set_one_flag_in_both_directions() {
        let listed = connection(libc::IPPROTO_TCP as u8);
        let body = change(&listed).expect("a change");
        let (general, attributes) = body.split_at(GENERAL_LEN);
        assert_eq!(general, &listed[..GENERAL_LEN]);
        let of_listed = |kind| attribute(&listed[GENERAL_LEN..], kind);
        assert_eq!(attribute(attributes, ORIGINAL), of_listed(ORIGINAL));
        assert_eq!(attribute(attributes, ZONE), of_listed(ZONE));
        assert_eq!(
            attribute(attributes, 3),
            None,
            "the status is nobody's to set"
        );
        let state = attribute(attributes, PROTOCOL_STATE).expect("a state");
        let tcp = attribute(&state, TCP).expect("TCP's state");
        for kind in TCP_FLAGS {
            assert_eq!(attribute(&tcp, kind), Some(vec![BE_LIBERAL, BE_LIBERAL]));
        }
    }

    #[test]
    fn other_protocols_and_garbage_are_left_alone() {
        assert_eq!(change(&connection(libc::IPPROTO_UDP as u8)), None);
        assert_eq!(change(&[2, 0, 0]), None);
        assert_eq!(change(&[2, 0, 0, 0, 9, 0, 1]), None);
    }
}
