//! What the agent has found out about the running kernel, written into the object before it is loaded.
//!
//! The verifier knows these values and removes the branches that they rule out.

use core::ptr::read_volatile;

/// Whether `bpf_ktime_get_coarse_ns` exists (kernel 5.11, commit d05512618056).
#[unsafe(no_mangle)]
static COARSE_CLOCK: u32 = 0;

/// Offset in bytes of `sk_buff::_nfct`; zero if conntrack cannot be read, and the packet's mark attests instead.
#[unsafe(no_mangle)]
static NFCT: u32 = 0;

/// Offset in bytes of `nf_conn::status`.
#[unsafe(no_mangle)]
static CT_STATUS: u32 = 0;

/// Offset in bytes of `nf_conn::tuplehash`.
#[unsafe(no_mangle)]
static CT_TUPLES: u32 = 0;

/// Reads a value that the compiler must not take for granted.
#[inline(always)]
fn get(value: &'static u32) -> u32 {
    // SAFETY: a reference is valid to read from.
    unsafe { read_volatile(value) }
}

/// Whether the coarse clock may be asked.
#[inline(always)]
pub fn has_coarse_clock() -> bool {
    get(&COARSE_CLOCK) != 0
}

/// Offset of the conntrack entry's address in a packet; zero if it cannot be read.
#[inline(always)]
pub fn nfct() -> usize {
    get(&NFCT) as usize
}

/// Offset of the status in a conntrack entry.
#[inline(always)]
pub fn ct_status() -> u64 {
    u64::from(get(&CT_STATUS))
}

/// Offset of the tuples in a conntrack entry.
#[inline(always)]
pub fn ct_tuples() -> u64 {
    u64::from(get(&CT_TUPLES))
}
