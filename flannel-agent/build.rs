//! Embeds the BPF object named by `FLANNEL_EBPF_OBJECT`, which `cargo xtask` sets; without it the agent has none and says so.

use std::{env, fs, path::PathBuf};

const OBJECT_VARIABLE: &str = "FLANNEL_EBPF_OBJECT";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(embedded_bpf)");
    println!("cargo::rerun-if-env-changed={OBJECT_VARIABLE}");
    let Some(object) = env::var_os(OBJECT_VARIABLE).map(PathBuf::from) else {
        return;
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let target =
        PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("flannel.bpf.o");
    if let Err(error) = fs::copy(&object, &target) {
        println!(
            "cargo::error={OBJECT_VARIABLE}={}: {error}",
            object.display()
        );
        return;
    }
    println!("cargo::rustc-cfg=embedded_bpf");
}
