use clap::CommandFactory as _;

use super::*;

fn parse(arguments: &[&str]) -> Result<RunOptions, clap::Error> {
    RunOptions::try_parse_from([&["run"], arguments].concat())
}

#[test]
fn definitions_are_consistent() {
    Cli::command().debug_assert();
    RunOptions::command().debug_assert();
}

#[test]
fn defaults_are_flannelds() {
    let options = parse(&[]).unwrap();
    assert_eq!(
        options.etcd_endpoints,
        ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]
    );
    assert_eq!(options.etcd_prefix, "/coreos.com/network");
    assert_eq!(
        options.subnet_file.to_str(),
        Some("/run/flannel/subnet.env")
    );
    assert_eq!(options.subnet_lease_renew_margin, 60);
    assert_eq!(options.iptables_resync, 5);
    assert_eq!(
        (options.healthz_ip.to_string(), options.healthz_port),
        ("0.0.0.0".into(), 0)
    );
    let Switches {
        ip_masq,
        iptables_forward_rules,
        kube_subnet_mgr,
        ip_blackhole_route,
        ..
    } = options.switches;
    assert_eq!(
        (
            ip_masq,
            iptables_forward_rules,
            kube_subnet_mgr,
            ip_blackhole_route
        ),
        (false, true, false, false)
    );
    assert_eq!(options.fast_path, FastPathMode::Flow);
    assert_eq!(options.fast_path_heartbeat, Duration::from_secs(600));
    assert_eq!(options.public_ip, Optional(None));
}

#[test]
fn booleans_are_gos() {
    let masq = |arguments: &[&str]| parse(arguments).map(|options| options.switches.ip_masq);
    assert!(masq(&["--ip-masq"]).unwrap());
    for (text, value) in [
        ("1", true),
        ("t", true),
        ("TRUE", true),
        ("0", false),
        ("F", false),
        ("false", false),
    ] {
        assert_eq!(masq(&[&format!("--ip-masq={text}")]).unwrap(), value);
    }
    assert!(masq(&["--ip-masq=yes"]).is_err());
    assert!(
        masq(&["--ip-masq", "true"]).is_err(),
        "Go would take it for the end of the options"
    );
}

#[test]
fn lists_repeat_and_bounds_hold() {
    let options = parse(&[
        "--iface=eth0",
        "--iface",
        "10.0.0.1",
        "--iface-regex",
        "^en",
    ])
    .unwrap();
    assert_eq!(options.iface, ["eth0", "10.0.0.1"]);
    assert_eq!(options.iface_regex.len(), 1);
    for wrong in [
        "--subnet-lease-renew-margin=0",
        "--subnet-lease-renew-margin=1440",
        "--iface-regex=(",
        "--unknown",
        "--public-ip=here",
        "--healthz-port=65536",
        "--fast-path-heartbeat=1s",
        "--fast-path-heartbeat=25h",
        "--fast-path-heartbeat=600",
    ] {
        let message = parse(&[wrong]).unwrap_err().to_string();
        assert!(
            message.contains(wrong.split('=').next().unwrap()),
            "{message}"
        );
    }
}

#[test]
fn of_a_repeated_option_the_last_counts_unless_it_is_a_list() {
    let given = [
        "--iface=a",
        "--v=1",
        "--v=3",
        "--ip-masq",
        "--ip-masq=false",
        "--iface=b",
    ];
    let options = parse(&given).unwrap();
    assert_eq!((options.v, options.switches.ip_masq), (3, false));
    assert_eq!(options.iface, ["a", "b"]);
}

#[test]
fn passwords_are_not_shown() {
    let options = parse(&["--etcd-password=hunter2"]).unwrap();
    assert_eq!(options.etcd_password.0, "hunter2");
    assert!(!format!("{options:?}").contains("hunter2"));
}
