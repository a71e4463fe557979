//! What becomes of memory that the agent has freed: it goes back to the kernel.
//!
//! At the start the kernel's type information is read, many megabytes that nobody needs afterwards. glibc takes the first
//! large block that is freed as a reason to keep all later ones of its size in its heap, where what lies behind them holds
//! them for as long as the agent lives.

/// Blocks of this size and more are the kernel's as soon as they are free, and so is the heap's free end: glibc's own
/// value, in bytes, until it adapts it.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Makes the allocator keep to that, whatever the agent allocates (mallopt(3): a value that is set does not adapt).
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: the call takes two numbers, and nobody else uses it.
        let _ = unsafe { libc::mallopt(parameter, LARGE) };
    }
}
