//! Access to a packet: bounds-checked reads and writes of headers, and the helpers that hooks need.
//!
//! All that is unsafe about packets is in this file.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_INGRESS, bpf_adj_room_mode, bpf_redir_neigh,
    bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_csum_level, bpf_csum_update, bpf_get_hash_recalc,
    bpf_probe_read_kernel, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_skb_adjust_room, bpf_skb_pull_data,
};
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use flannel_common::decide::attest::PROBE_TTL;
use flannel_common::decide::conntrack::{self, Tuples};
use flannel_common::decide::{Meta, Tag};
use flannel_common::flow::SharedFlow;
use flannel_common::maps::{Config, FLAG_FLOWS};
use flannel_common::outcome::Outcome;
use flannel_common::wire::ip::IpHeader;
use flannel_common::wire::{Be32, Be128, Packet, ethernet, vxlan};

use crate::kernel;

/// `PACKET_HOST` of include/uapi/linux/if_packet.h.
const PACKET_HOST: u32 = 0;

/// `AF_INET` of include/linux/socket.h.
const AF_INET: u32 = 2;

/// `AF_INET6` of the same.
const AF_INET6: u32 = 10;

/// `TC_ACT_SHOT` of include/uapi/linux/pkt_cls.h.
pub const DROP: i32 = 2;

/// A packet in a TC program.
pub struct Skb {
    raw: *mut __sk_buff,
}

impl Skb {
    /// The packet of `ctx`, with its first `headers` bytes in the linear part if it has as many.
    #[inline(always)]
    pub fn new(ctx: &TcContext, headers: usize) -> Self {
        let mut skb = Self::as_it_is(ctx);
        skb.pull(headers);
        skb
    }

    /// The packet of `ctx`, of which perhaps no byte can be read before [`Self::pull`].
    #[inline(always)]
    pub fn as_it_is(ctx: &TcContext) -> Self {
        Self { raw: ctx.skb.skb }
    }

    /// Gets the first `headers` bytes into the linear part if the packet has as many.
    #[inline(always)]
    pub fn pull(&mut self, headers: usize) {
        // SAFETY: the verifier guarantees the context.
        let len = unsafe { (*self.raw).len };
        if len as usize >= headers && self.pointer(0, headers).is_none() {
            // SAFETY: as above. A failure leaves the linear part as it was: reads behind it are refused.
            unsafe { bpf_skb_pull_data(self.raw, headers as u32) };
        }
    }

    /// What the kernel knows of the packet.
    #[inline(always)]
    pub fn meta(&self) -> Meta {
        // SAFETY: the verifier guarantees the context.
        let raw = unsafe { &*self.raw };
        Meta {
            len: raw.len,
            gso_size: raw.gso_size,
            ifindex: raw.ifindex,
            vlan: raw.vlan_present != 0,
            to_us: raw.pkt_type == PACKET_HOST,
            ingress_ifindex: raw.ingress_ifindex,
            tag: self.tag(),
        }
    }

    /// What this host has noted beside the packet.
    #[inline(always)]
    pub fn tag(&self) -> Tag {
        // SAFETY: the verifier guarantees the context.
        Tag::from_index(unsafe { (*self.raw).tc_index } as u16)
    }

    /// Tells the hook that attests, if there is one, that the packet is one of ours. Without one nobody would take the
    /// tag off again, and over a veth it would get to another namespace.
    #[inline(always)]
    pub fn set_fast(&mut self, config: &Config) {
        if config.flags & FLAG_FLOWS != 0 {
            self.set_tag(Tag::Fast);
        }
    }

    /// Takes off a tag that the packet must have from elsewhere (a veth is no barrier to it) and that would keep the hook
    /// that attests from looking at it.
    #[inline(always)]
    pub fn clear_fast(&mut self) {
        if self.tag() == Tag::Fast {
            self.set_tag(Tag::None);
        }
    }

    /// Notes something beside the packet.
    #[inline(always)]
    pub fn set_tag(&mut self, tag: Tag) {
        // SAFETY: the verifier guarantees the context, and lets programs write this field.
        unsafe { (*self.raw).tc_index = u32::from(tag.index()) };
    }

    /// Whether the bits of `mask` were set in the packet's mark; clears them.
    #[inline(always)]
    pub fn take_mark(&mut self, mask: u32) -> bool {
        // SAFETY: as above.
        let raw = unsafe { &mut *self.raw };
        let marked = raw.mark & mask != 0;
        if marked {
            raw.mark &= !mask;
        }
        marked
    }

    /// Forgets the packet's mark, which means something on this host only.
    #[inline(always)]
    pub fn clear_mark(&mut self) {
        // SAFETY: as above.
        unsafe { (*self.raw).mark = 0 };
    }

    /// Whether conntrack has assigned this very packet to a connection that attests its flow.
    #[inline(always)]
    pub fn attested_by_conntrack(&self) -> bool {
        // The context is the kernel's `sk_buff` to the kernel's own reads.
        let Some(entry) = read_kernel::<u64>(self.raw as usize + kernel::nfct()) else {
            return false;
        };
        let info = (entry & conntrack::INFO_MASK) as u8;
        let address = entry & !conntrack::INFO_MASK;
        if address == 0 || !conntrack::is_established(info) {
            return false;
        }
        let status = read_kernel::<u64>((address + kernel::ct_status()) as usize);
        let tuples = read_kernel::<Tuples>((address + kernel::ct_tuples()) as usize);
        match (status, tuples) {
            (Some(status), Some(tuples)) => conntrack::attests(info, status, &tuples),
            _ => false,
        }
    }

    /// Sends a copy into the kernel's path, to be attested and dropped behind it. `offset` is that of the IP header, of the
    /// kind `H`, that it is forwarded by. The packet itself is unchanged. Without memory no probe is sent.
    #[inline(always)]
    pub fn probe<H: IpHeader>(&mut self, offset: usize) {
        let Some(ip) = self.read::<H>(offset) else {
            return;
        };
        // Nothing would tell a copy from the packets around it.
        if ip.ttl() <= PROBE_TTL {
            return;
        }
        if !self.rewrite(offset, ip.ttl(), &ip.with_ttl(PROBE_TTL)) {
            return;
        }
        self.set_tag(Tag::Probe);
        // SAFETY: the verifier guarantees the context.
        unsafe {
            let ifindex = (*self.raw).ifindex;
            bpf_clone_redirect(self.raw, ifindex, BPF_F_INGRESS as u64);
        }
        self.set_tag(Tag::None);
        // Cannot fail: the helper leaves as many bytes in the linear part as there were.
        let _ = self.rewrite(offset, PROBE_TTL, &ip);
    }

    /// Replaces an IP header at `offset` by one that differs in its hops at most, also in the sum over the packet that a
    /// network card may have brought along: the kernel would find it wrong. `false` as for [`Self::write`].
    #[inline(always)]
    #[must_use]
    fn rewrite<H: IpHeader>(&mut self, offset: usize, old_ttl: u8, new: &H) -> bool {
        let change = new.sum_change_from(old_ttl);
        if change != 0 {
            // SAFETY: the verifier guarantees the context. Fails where there is no such sum.
            unsafe { bpf_csum_update(self.raw, change.into()) };
        }
        self.write(offset + H::HOP, new.hop())
    }

    /// Writes an IP header that has gone one hop further at `offset`. `false` as for [`Self::write`].
    #[inline(always)]
    #[must_use]
    pub fn advance<H: IpHeader>(&mut self, offset: usize, ip: &H) -> bool {
        self.rewrite(offset, ip.ttl().wrapping_add(1), ip)
    }

    /// The hash of its flow, as the kernel's own VXLAN device would use it: the one that came with the packet, such as
    /// the socket's, or else that of its addresses and ports, which is remembered where `flow` is.
    #[inline(always)]
    pub fn flow_hash(&self, flow: Option<&SharedFlow>) -> u32 {
        // SAFETY: the verifier guarantees the context.
        let ask = || unsafe { bpf_get_hash_recalc(self.raw) };
        match flow {
            // SAFETY: as above.
            Some(flow) if unsafe { (*self.raw).hash } == 0 => flow.hash(ask),
            _ => ask(),
        }
    }

    /// The address of `size` bytes at `offset` in the linear part.
    #[inline(always)]
    fn pointer(&self, offset: usize, size: usize) -> Option<usize> {
        // SAFETY: the verifier guarantees the context.
        let raw = unsafe { &*self.raw };
        let start = raw.data as usize + offset;
        if start + size > raw.data_end as usize {
            None
        } else {
            Some(start)
        }
    }

    /// Writes a header at `offset`. `false`, with nothing written, where the linear part is too short.
    #[inline(always)]
    #[must_use]
    pub fn write<T: Pod>(&mut self, offset: usize, value: T) -> bool {
        const { assert!(align_of::<T>() <= 2) };
        let Some(pointer) = self.pointer(offset, size_of::<T>()) else {
            return false;
        };
        // SAFETY: `pointer` checked the bounds, offsets are even and packet data starts at an even address.
        unsafe { (pointer as *mut T).write(value) };
        true
    }

    /// Makes room for the outer headers behind the link-layer header, and tells the kernel's segmentation what they
    /// will be. Needs kernel 5.13 (commit d01b59c9ae94, `BPF_F_ADJ_ROOM_ENCAP_L2_ETH`).
    ///
    /// # Errors
    /// The packet is unchanged: out of memory, or encapsulated already.
    #[inline(always)]
    pub fn grow(&mut self) -> Result<(), Outcome> {
        const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
            | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64
            | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
            | (ethernet::LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        // SAFETY: the verifier guarantees the context.
        let result = unsafe {
            bpf_skb_adjust_room(
                self.raw,
                vxlan::OVERHEAD as i32,
                bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
                FLAGS,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(Outcome::Helper)
        }
    }

    /// Takes the outer headers off. What the hardware verified then counts for one checksum less.
    ///
    /// # Errors
    /// The packet's bytes are unchanged.
    #[inline(always)]
    pub fn shrink(&mut self) -> Result<(), Outcome> {
        const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64 | BPF_F_ADJ_ROOM_NO_CSUM_RESET as u64;
        // SAFETY: the verifier guarantees the context.
        let result = unsafe {
            bpf_skb_adjust_room(
                self.raw,
                -(vxlan::OVERHEAD as i32),
                bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
                FLAGS,
            )
        };
        if result != 0 {
            return Err(Outcome::Helper);
        }
        // SAFETY: as above. Fails only where the hardware verified nothing, which is as well.
        unsafe { bpf_csum_level(self.raw, BPF_CSUM_LEVEL_DEC as u64) };
        Ok(())
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        const { assert!(align_of::<T>() <= 2) };
        let pointer = self.pointer(offset, size_of::<T>())?;
        // SAFETY: `pointer` checked the bounds, offsets are even and packet data starts at an even address.
        Some(unsafe { (pointer as *const T).read() })
    }
}

/// Reads kernel memory; nothing where there is none.
#[inline(always)]
fn read_kernel<T: Pod>(address: usize) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes as many bytes as the value has, and survives any address.
    let result = unsafe {
        bpf_probe_read_kernel(
            value.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            address as *const core::ffi::c_void,
        )
    };
    // SAFETY: the helper has written every byte, zeroes if it failed, and any bytes make a valid value.
    let value = unsafe { value.assume_init() };
    (result == 0).then_some(value)
}

/// A next hop, as the kernel takes it.
pub trait NextHop {
    /// Its address family, and its address in as many words as the longest has.
    fn parameters(self) -> (u32, [u32; 4]);
}

impl NextHop for Be32 {
    #[inline(always)]
    fn parameters(self) -> (u32, [u32; 4]) {
        (AF_INET, [self.raw(), 0, 0, 0])
    }
}

impl NextHop for Be128 {
    #[inline(always)]
    fn parameters(self) -> (u32, [u32; 4]) {
        (AF_INET6, bytemuck::cast(self.raw()))
    }
}

/// The verdict that sends the packet to a neighbour, whose address the kernel resolves. Kernel 5.10 (commit
/// ba452c9e996d, explicit next hop).
#[inline(always)]
pub fn to_neighbour(ifindex: u32, next_hop: impl NextHop) -> i32 {
    let (nh_family, ipv6_nh) = next_hop.parameters();
    let mut params = bpf_redir_neigh {
        nh_family,
        // All sixteen bytes are set, since the helper reads them all.
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh },
    };
    // SAFETY: the helper reads the parameters, of the size given, during the call.
    unsafe {
        bpf_redirect_neigh(
            ifindex,
            &raw mut params,
            size_of::<bpf_redir_neigh>() as i32,
            0,
        ) as i32
    }
}

/// The verdict that sends the packet out of an interface.
#[inline(always)]
pub fn to_device(ifindex: u32) -> i32 {
    // SAFETY: no pointer is involved.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// The verdict that makes the packet appear as if an interface had received it.
#[inline(always)]
pub fn to_ingress(ifindex: u32) -> i32 {
    // SAFETY: no pointer is involved.
    unsafe { bpf_redirect(ifindex, BPF_F_INGRESS as u64) as i32 }
}

/// The verdict that makes the packet appear at the other end of a veth. Kernel 5.10 (commit 9aa1206e8f48).
#[inline(always)]
pub fn to_veth_peer(ifindex: u32) -> i32 {
    // SAFETY: no pointer is involved.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}
