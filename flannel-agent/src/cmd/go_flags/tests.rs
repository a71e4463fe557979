use super::*;

fn prepared(argv: &[&str], environment: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let environment = environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let invocation = prepare(argv.iter().map(OsString::from).collect(), &environment);
    let argv = invocation.argv.iter();
    (
        argv.map(|a| a.to_str().unwrap().to_owned()).collect(),
        invocation.warnings,
    )
}

fn argv(argv: &[&str]) -> Vec<String> {
    prepared(argv, &[]).0
}

#[test]
fn flags_alone_mean_run() {
    for (given, understood) in [
        (&["a", "-iface=eth0"][..], &["a", "run", "--iface=eth0"][..]),
        (
            &["a", "--iface", "eth0", "-v=3"],
            &["a", "run", "--iface=eth0", "--v=3"],
        ),
        (&["/opt/bin/flanneld"], &["/opt/bin/flanneld", "run"]),
        (&["flanneld", "-ip-masq"], &["flanneld", "run", "--ip-masq"]),
        (
            &["a", "run", "-ip-masq=false"],
            &["a", "run", "--ip-masq=false"],
        ),
        // A value may look like a flag.
        (
            &["flanneld", "-etcd-password", "-x", "-v", "2"],
            &["flanneld", "run", "--etcd-password=-x", "--v=2"],
        ),
        (&["flanneld", "-version"], &["flanneld", "run", "--version"]),
        (
            &["flanneld", "-iface=a", "-h"],
            &["flanneld", "run", "--iface=a", "--help"],
        ),
        (&["flanneld", "-help"], &["flanneld", "run", "--help"]),
        // clap says what is wrong with these.
        (&["flanneld", "-iface"], &["flanneld", "run", "--iface"]),
        (&["flanneld", "-what"], &["flanneld", "run", "--what"]),
        (&["flanneld", "---v=1"], &["flanneld", "run", "---v=1"]),
    ] {
        assert_eq!(
            prepared(given, &[]),
            (strings(understood), vec![]),
            "{given:?}"
        );
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn other_commands_and_top_level_flags_stay() {
    assert_eq!(argv(&["a"]), ["a"]);
    assert_eq!(argv(&["a", "status", "--json"]), ["a", "status", "--json"]);
    assert_eq!(argv(&["a", "-version"]), ["a", "--version"]);
    assert_eq!(argv(&["a", "-h"]), ["a", "--help"]);
}

#[test]
fn a_word_that_belongs_to_no_flag_ends_them() {
    for (given, understood, warns) in [
        (
            &["flanneld", "-ip-masq", "true", "-iface=eth0"][..],
            &["--ip-masq"][..],
            "\"true\"",
        ),
        (
            &["flanneld", "-v=1", "--", "-iface=eth0"],
            &["--v=1"],
            "after --",
        ),
        (
            &["flanneld", "-v=1", "-", "-iface=eth0"],
            &["--v=1"],
            "\"-\"",
        ),
        (&["flanneld", "word"], &[], "\"word\""),
    ] {
        let (argv, warnings) = prepared(given, &[]);
        assert_eq!(argv[2..], strings(understood), "{given:?}");
        assert!(
            matches!(&warnings[..], [warning] if warning.contains(warns)),
            "{given:?}: {warnings:?}"
        );
    }
    assert_eq!(prepared(&["flanneld", "-v=1", "--"], &[]).1, strings(&[]));
}

#[test]
fn variables_fill_in_what_the_command_line_leaves_open() {
    let environment = [
        ("FLANNELD_IFACE", "eth7"),
        ("FLANNELD_IP_MASQ", "1"),
        ("FLANNELD_ETCD_PREFIX", ""),
        ("FLANNELD_UNKNOWN", "x"),
        ("IFACE", "eth8"),
    ];
    assert_eq!(
        prepared(&["flanneld"], &environment).0,
        ["flanneld", "run", "--iface=eth7", "--ip-masq=1"]
    );
    assert_eq!(
        prepared(&["flanneld", "-iface", "eth0"], &environment).0,
        ["flanneld", "run", "--ip-masq=1", "--iface=eth0"]
    );
    // What flanneld does not read is not given.
    assert_eq!(
        prepared(&["flanneld", "-v=1", "x", "-iface", "eth0"], &environment).0,
        ["flanneld", "run", "--iface=eth7", "--ip-masq=1", "--v=1"]
    );
}

#[test]
fn a_variable_that_cannot_be_parsed_is_only_warned_about() {
    let (argv, warnings) = prepared(
        &["flanneld"],
        &[
            ("FLANNELD_IP_MASQ", "perhaps"),
            ("FLANNELD_ETCD_PASSWORD", "secret"),
        ],
    );
    assert_eq!(argv, ["flanneld", "run", "--etcd-password=secret"]);
    assert_eq!(
        warnings,
        ["FLANNELD_IP_MASQ: not a valid value for --ip-masq; ignored"]
    );
}
