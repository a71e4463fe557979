//! Access to a packet: bounds-checked reads and writes of headers, and the helpers that hooks need.
//!
//! All that is unsafe about packets is in this file.

use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_CSUM_LEVEL_DEC, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode, bpf_redir_neigh,
    bpf_redir_neigh__bindgen_ty_1,
};
use aya_ebpf::helpers::generated::{
    bpf_csum_level, bpf_get_hash_recalc, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_skb_adjust_room, bpf_skb_pull_data,
};
use aya_ebpf::programs::TcContext;
use bytemuck::Pod;
use flannel_common::decide::Meta;
use flannel_common::outcome::Outcome;
use flannel_common::wire::{Be32, Packet, ethernet, vxlan};

/// `PACKET_HOST` of include/uapi/linux/if_packet.h.
const PACKET_HOST: u32 = 0;

/// `AF_INET` of include/linux/socket.h.
const AF_INET: u32 = 2;

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
        let skb = Self { raw: ctx.skb.skb };
        // SAFETY: the verifier guarantees the context.
        let len = unsafe { (*skb.raw).len };
        if len as usize >= headers && skb.pointer(0, headers).is_none() {
            // SAFETY: as above. A failure leaves the linear part as it was: reads behind it are refused.
            unsafe { bpf_skb_pull_data(skb.raw, headers as u32) };
        }
        skb
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
        }
    }

    /// The hash of its flow, as the kernel's own VXLAN device would use it.
    #[inline(always)]
    pub fn flow_hash(&self) -> u32 {
        // SAFETY: the verifier guarantees the context.
        unsafe { bpf_get_hash_recalc(self.raw) }
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

/// The verdict that sends the packet to a neighbour, whose address the kernel resolves. Kernel 5.10 (commit
/// ba452c9e996d, explicit next hop).
#[inline(always)]
pub fn to_neighbour(ifindex: u32, next_hop: Be32) -> i32 {
    let mut params = bpf_redir_neigh {
        nh_family: AF_INET,
        // All sixteen bytes are set, since the helper reads them all.
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
            ipv6_nh: [next_hop.raw(), 0, 0, 0],
        },
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

/// The verdict that makes the packet appear at the other end of a veth. Kernel 5.10 (commit 9aa1206e8f48).
#[inline(always)]
pub fn to_veth_peer(ifindex: u32) -> i32 {
    // SAFETY: no pointer is involved.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}
