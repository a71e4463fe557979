//! From other nodes, before the kernel has made a packet of the frame: XDP at the node's interface.
//!
//! Only takes the tunnel off. What is left is merged with its like by GRO as if it had never been in one, and delivered by
//! `nic_ingress`, which knows it by its source address.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use bytemuck::Pod;
use flannel_common::decide::{self, L3, Meta, Topology as _, ingress};
use flannel_common::outcome::{Hook, Outcome};
use flannel_common::wire::ethernet::{self, Ethernet};
use flannel_common::wire::{Packet, vxlan};

use crate::maps::{Remembered, Topology, count};

/// XDP, node's interface.
#[xdp]
pub fn nic_xdp(ctx: XdpContext) -> u32 {
    let (outcome, action) = match receive(&ctx) {
        Ok(action) => (Outcome::Decapsulated, action),
        Err(outcome) if outcome.drops() => (outcome, xdp_action::XDP_DROP),
        Err(outcome) => (outcome, xdp_action::XDP_PASS),
    };
    count(Hook::NicXdp, outcome);
    action
}

#[inline(always)]
fn receive(ctx: &XdpContext) -> Result<u32, Outcome> {
    let topology = Topology::load().ok_or(Outcome::Inactive)?;
    let mut frame = Frame { ctx };
    let meta = frame.meta();
    // The tunnel of IPv6 is the kernel's alone.
    let decide::Frame::V4(ethernet) = decide::frame(&frame, &meta, &topology)? else {
        return Err(Outcome::NotIp);
    };
    let decision = ingress::from_driver(&frame, &meta, &ethernet, &topology, &Remembered)?;
    let config = topology.config();
    let ethernet = Ethernet {
        destination: config.uplink_mac,
        source: ingress::xdp_source(config, decision.permit),
        ethertype: ethernet::IPV4,
    };
    frame.shrink()?;
    // The decision has read what is written here, so this cannot fail; the verifier cannot know.
    Ok(
        if frame.write(0, ethernet) && frame.write(L3, decision.ip) {
            xdp_action::XDP_PASS
        } else {
            xdp_action::XDP_ABORTED
        },
    )
}

/// A frame in an XDP program.
struct Frame<'a> {
    ctx: &'a XdpContext,
}

impl Frame<'_> {
    /// What there is to know of it beside its bytes: to whom it is addressed, is for the decision to see.
    #[inline(always)]
    fn meta(&self) -> Meta {
        Meta {
            len: (self.ctx.data_end() - self.ctx.data()) as u32,
            to_us: true,
            ..Meta::default()
        }
    }

    /// The address of `size` bytes at `offset`.
    #[inline(always)]
    fn pointer(&self, offset: usize, size: usize) -> Option<usize> {
        let start = self.ctx.data() + offset;
        if start + size > self.ctx.data_end() {
            None
        } else {
            Some(start)
        }
    }

    /// Writes a header at `offset`. `false`, with nothing written, where the frame is too short.
    #[inline(always)]
    #[must_use]
    fn write<T: Pod>(&mut self, offset: usize, value: T) -> bool {
        const { assert!(align_of::<T>() <= 2) };
        let Some(pointer) = self.pointer(offset, size_of::<T>()) else {
            return false;
        };
        // SAFETY: `pointer` checked the bounds, offsets are even and packet data starts at an even address.
        unsafe { (pointer as *mut T).write(value) };
        true
    }

    /// Takes the outer headers off.
    ///
    /// # Errors
    /// The frame is as it was.
    #[inline(always)]
    fn shrink(&mut self) -> Result<(), Outcome> {
        // SAFETY: the context is the program's.
        if unsafe { bpf_xdp_adjust_head(self.ctx.ctx, vxlan::OVERHEAD as i32) } == 0 {
            Ok(())
        } else {
            Err(Outcome::Helper)
        }
    }
}

impl Packet for Frame<'_> {
    #[inline(always)]
    fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        const { assert!(align_of::<T>() <= 2) };
        let pointer = self.pointer(offset, size_of::<T>())?;
        // SAFETY: `pointer` checked the bounds, offsets are even and packet data starts at an even address.
        Some(unsafe { (pointer as *const T).read() })
    }
}
