//! The BPF programs: one file per hook, thin around the decisions of `flannel_common`.
//!
//! A hook reads the packet's headers, asks `flannel_common::decide`, and carries out the answer. No decision lives
//! here. A packet that the answer leaves to the kernel is not changed in any byte.
//!
//! Programs return `TCX_NEXT` (equal to `TC_ACT_UNSPEC`) for such a packet, so that programs of others behind ours
//! see it too.
//!
//! On the host this crate is an empty shell, so that the workspace builds without the BPF toolchain.
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", no_main)]

#[cfg(target_arch = "bpf")]
mod attest;
#[cfg(target_arch = "bpf")]
mod deliver;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod nic_ingress;
#[cfg(target_arch = "bpf")]
mod nic_xdp;
#[cfg(target_arch = "bpf")]
mod pod_egress;
#[cfg(target_arch = "bpf")]
mod probe;
#[cfg(target_arch = "bpf")]
mod skb;
#[cfg(target_arch = "bpf")]
mod vtep_ingress;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // An endless loop does not pass the verifier: a program that can panic is refused at load time.
    loop {}
}

/// The kernel lets programs call GPL-only helpers if this names a compatible licence (include/linux/license.h).
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
