//! The fuzz targets without libFuzzer: on their seeds, on seeds that were damaged, and on random bytes.

use std::{fs, path::Path};

use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

use crate::{TARGETS, Target, find};

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target.name);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let seeds: Vec<_> = entries
        .map(|entry| fs::read(entry.expect("an entry").path()).expect("a file"))
        .collect();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    seeds
}

/// A change of a few bytes, as fuzzers make them.
#[derive(Clone, Debug)]
enum Damage {
    Replace(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Cut(Index),
    Repeat(Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    // Bytes of the formats' own more often than chance has it.
    let byte = || {
        prop_oneof![
            any::<u8>(),
            prop::sample::select(b"0129af.:/-&,={}[]\"n\0\n".to_vec())
        ]
    };
    prop_oneof![
        (any::<Index>(), byte()).prop_map(|(at, byte)| Damage::Replace(at, byte)),
        (any::<Index>(), byte()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        any::<Index>().prop_map(Damage::Remove),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match damage {
            Damage::Replace(at, byte) => bytes[at.index(len)] = *byte,
            Damage::Insert(at, byte) => bytes.insert(at.index(len + 1), *byte),
            Damage::Remove(at) => drop(bytes.remove(at.index(len))),
            Damage::Cut(at) => bytes.truncate(at.index(len)),
            Damage::Repeat(from, to) => {
                let part = bytes[from.index(len)..].to_vec();
                bytes.splice(to.index(len)..to.index(len), part);
            }
        }
    }
    bytes
}

fn holds(name: &str) {
    const CASES: u32 = 2000;
    let target = find(name).expect("a target");
    let seeds = seeds(&target);
    for seed in &seeds {
        (target.run)(seed);
    }
    let inputs = prop_oneof![
        4 => (prop::sample::select(seeds), prop::collection::vec(damage(), 1..6))
            .prop_map(|(seed, damages)| damaged(seed, &damages)),
        1 => prop::collection::vec(any::<u8>(), 0..128),
    ];
    let mut runner = TestRunner::new(ProptestConfig {
        cases: CASES,
        // Whoever finds something adds a seed.
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&inputs, |bytes| {
        (target.run)(&bytes);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{name}: {error}"));
}

macro_rules! tests {
    ($($test:ident: $name:literal)*) => {
        $(#[test]
        fn $test() {
            holds($name);
        })*

        #[test]
        fn every_target_has_a_test() {
            assert_eq!(TARGETS.map(|target| target.name), [$($name),*]);
        }
    };
}

tests! {
    lease_keys: "lease-key"
    lease_values: "lease-value"
    lease_files: "lease-file"
    network_configs: "network-config"
    subnet_envs: "subnet-env"
    cni_inputs: "cni"
    netlink_datagrams: "netlink"
    packets_of_the_udp_backend: "udp-packet"
    kernel_types: "btf"
}
