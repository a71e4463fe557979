//! Questions to the kernel that only a test run answers. Never attached.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

use crate::skb::Skb;

/// Returns 1 if the kernel can encapsulate a packet as the fast path needs it (kernel 5.13), else 0.
#[classifier]
pub fn probe_encap(ctx: TcContext) -> i32 {
    i32::from(Skb::new(&ctx, 0).grow().is_ok())
}
