//! Packets for host tests, program runs and benchmarks: built once here, by name.
