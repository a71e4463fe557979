//! What the BPF programs and the agent must agree on.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
