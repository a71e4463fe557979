//! libFuzzer on one kind of input, which the environment names. `cargo xtask fuzz` builds and runs it.
#![no_main]

use std::{env, sync::LazyLock};

use flannel_fuzz::Target;

/// Names the kind of input.
const VARIABLE: &str = "FLANNEL_FUZZ_TARGET";

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = env::var(VARIABLE).unwrap_or_default();
    flannel_fuzz::find(&name).unwrap_or_else(|| panic!("{VARIABLE} = {name}: no such target"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
