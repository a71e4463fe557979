//! What conntrack says of a packet, and whether that permits to remember its flow.

use bytemuck::{Pod, Zeroable};

/// `enum ip_conntrack_info` of include/uapi/linux/netfilter/nf_conntrack_common.h: part of a connection that packets
/// have been seen of in both directions.
const ESTABLISHED: u8 = 0;
/// The same, in the direction of replies.
const ESTABLISHED_REPLY: u8 = 3;
/// Bits of `sk_buff::_nfct` that hold `enum ip_conntrack_info` (`NFCT_INFOMASK`); the others are the entry's address.
pub const INFO_MASK: u64 = 7;

/// `enum ip_conntrack_status` of the same file, by bit: the connection will not be dropped early, since both sides
/// have shown that they mean it.
const ASSURED: u64 = 1 << 2;
/// In the table.
const CONFIRMED: u64 = 1 << 3;
/// Source address translation.
const SRC_NAT: u64 = 1 << 4;
/// Destination address translation.
const DST_NAT: u64 = 1 << 5;
/// TCP sequence numbers are adjusted.
const SEQ_ADJUST: u64 = 1 << 6;
/// Being removed.
const DYING: u64 = 1 << 9;
/// A helper (FTP, SIP, ...) was assigned by a rule: it must see the payload.
const HELPER: u64 = 1 << 13;

/// What a connection must be.
const REQUIRED: u64 = ASSURED | CONFIRMED;
/// What it must not be.
const FORBIDDEN: u64 = SRC_NAT | DST_NAT | SEQ_ADJUST | DYING | HELPER;

/// `struct nf_conntrack_tuple` of include/net/netfilter/nf_conntrack_tuple.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tuple {
    /// Source address; the first four bytes for IPv4.
    pub source: [u32; 4],
    /// Source port.
    pub source_port: u16,
    /// Address family.
    pub family: u16,
    /// Destination address.
    pub destination: [u32; 4],
    /// Destination port.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero for the direction of the first packet, one for the other.
    pub direction: u8,
}

const _: () = assert!(size_of::<Tuple>() == 40);

/// `nf_conn::tuplehash`: the tuples of both directions, each behind its node of the hash table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tuples {
    original_node: [u64; 2],
    /// Direction of the first packet.
    pub original: Tuple,
    reply_node: [u64; 2],
    /// Direction of replies, as conntrack expects them.
    pub reply: Tuple,
}

const _: () = assert!(size_of::<Tuples>() == 112);

impl Tuples {
    /// Whether replies have exactly the swapped addresses and ports: nobody rewrites either. Unlike the status bits,
    /// this holds for rewriting outside of netfilter's NAT too (IPVS).
    #[inline(always)]
    fn mirror(&self) -> bool {
        self.original.source == self.reply.destination
            && self.original.destination == self.reply.source
            && self.original.source_port == self.reply.destination_port
            && self.original.destination_port == self.reply.source_port
    }
}

/// Whether a packet with these low bits of `sk_buff::_nfct` belongs to a connection that packets have been seen of in both
/// directions: no other attests anything.
#[inline(always)]
pub const fn is_established(info: u8) -> bool {
    info == ESTABLISHED || info == ESTABLISHED_REPLY
}

/// Whether a packet with these low bits of `sk_buff::_nfct`, of a connection with this status and these tuples, attests
/// its flow: established, assured, and rewritten by nobody.
#[inline(always)]
pub fn attests(info: u8, status: u64, tuples: &Tuples) -> bool {
    if cfg!(feature = "broken-no-nat-test") {
        return is_established(info);
    }
    is_established(info)
        && status & REQUIRED == REQUIRED
        && status & FORBIDDEN == 0
        && tuples.mirror()
}
