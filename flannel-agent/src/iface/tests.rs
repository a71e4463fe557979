use super::*;
use crate::kernel::objects::LinkKind;

fn candidates() -> Candidates {
    let mut candidates = Candidates {
        default_route: PerFamily::v4(3),
        ..Candidates::default()
    };
    for (index, name, addresses) in [
        (1, "lo", &["127.0.0.1/8"][..]),
        (
            2,
            "eth0",
            &["192.168.1.1/24", "192.168.1.9/24", "fd00:1::1/64"],
        ),
        (3, "eth1", &["10.0.0.3/8"]),
        (4, "eth2", &[]),
    ] {
        let link = Link {
            index,
            name: name.into(),
            mac: None,
            mtu: 1500,
            up: true,
            loopback: index == 1,
            ethernet: true,
            master: None,
            peer: None,
            kind: LinkKind::Other,
        };
        candidates.links.insert(index, link);
        candidates.addresses.insert(
            index,
            addresses.iter().map(|a| a.parse().unwrap()).collect(),
        );
    }
    candidates
}

fn choose_for(
    families: PerFamily<()>,
    options: Options,
) -> Result<(String, String, String), String> {
    let options = Options {
        families,
        ..options
    };
    let chosen = candidates()
        .choose(&options)
        .map_err(|error| error.to_string())?;
    Ok((chosen.name, chosen.addresses.join(), chosen.public.join()))
}

fn choose(options: Options) -> Result<(String, String, String), String> {
    choose_for(PerFamily::v4(()), options)
}

const BOTH: PerFamily<()> = PerFamily {
    v4: Some(()),
    v6: Some(()),
};

fn chosen(name: &str, address: &str, public: &str) -> Result<(String, String, String), String> {
    Ok((name.into(), address.into(), public.into()))
}

fn iface(wanted: &[&str]) -> Options {
    Options {
        iface: wanted.iter().map(ToString::to_string).collect(),
        ..Options::default()
    }
}

fn regex(wanted: &str) -> Options {
    Options {
        iface_regex: vec![Regex::new(wanted).unwrap()],
        ..Options::default()
    }
}

#[test]
fn the_default_route_decides_without_options() {
    assert_eq!(
        choose(Options::default()),
        chosen("eth1", "10.0.0.3", "10.0.0.3")
    );
}

#[test]
fn the_first_name_or_address_that_exists_wins() {
    assert_eq!(
        choose(iface(&["wlan0", "eth0", "eth1"])),
        chosen("eth0", "192.168.1.1", "192.168.1.1")
    );
    assert_eq!(
        choose(iface(&["192.168.1.9"])),
        chosen("eth0", "192.168.1.9", "192.168.1.9")
    );
}

#[test]
fn a_regex_meets_addresses_before_names() {
    assert_eq!(
        choose(regex("^10\\.")),
        chosen("eth1", "10.0.0.3", "10.0.0.3")
    );
    assert_eq!(
        choose(regex("^eth[01]$")),
        chosen("eth0", "192.168.1.1", "192.168.1.1")
    );
    // Not only with the one that stands for the interface.
    assert_eq!(
        choose(regex("^192\\.168\\.1\\.9$")),
        chosen("eth0", "192.168.1.9", "192.168.1.9")
    );
    let both = Options {
        iface: vec!["eth1".into()],
        ..regex("eth0")
    };
    assert_eq!(choose(both), chosen("eth1", "10.0.0.3", "10.0.0.3"));
}

#[test]
fn public_ip_chooses_only_when_nothing_else_does() {
    let public = PerFamily::v4([192, 168, 1, 9].into());
    let alone = Options {
        public,
        ..Options::default()
    };
    assert_eq!(choose(alone), chosen("eth0", "192.168.1.9", "192.168.1.9"));
    let with = Options {
        public,
        ..iface(&["eth1"])
    };
    assert_eq!(choose(with), chosen("eth1", "10.0.0.3", "192.168.1.9"));
}

#[test]
fn can_reach_takes_device_and_source_of_the_route() {
    let mut candidates = candidates();
    let source = Some([192, 168, 1, 9].into());
    candidates.reach = Some(Hop {
        device: 2,
        gateway: None,
        source,
        local: false,
    });
    let options = Options {
        can_reach: Some([192, 168, 1, 77].into()),
        families: PerFamily::v4(()),
        ..Options::default()
    };
    let chosen = candidates.choose(&options).unwrap();
    assert_eq!(
        (chosen.name.as_str(), chosen.addresses.v4),
        ("eth0", source)
    );
}

#[test]
fn failures_name_option_value_and_what_there_is() {
    let error = choose(iface(&["wlan0"])).unwrap_err();
    assert_eq!(
        error,
        "--iface = wlan0: no interface matches; interfaces are lo (127.0.0.1), eth0 (192.168.1.1, fd00:1::1), eth1 (10.0.0.3), eth2"
    );
    assert!(
        choose(iface(&["eth2"]))
            .unwrap_err()
            .contains("eth2 has no IPv4 address")
    );
    assert!(
        choose(regex("^wlan"))
            .unwrap_err()
            .starts_with("--iface-regex = ^wlan: ")
    );
}

#[test]
fn both_families_are_of_one_interface() {
    assert_eq!(
        choose_for(BOTH, iface(&["eth0"])),
        chosen("eth0", "192.168.1.1,fd00:1::1", "192.168.1.1,fd00:1::1")
    );
    assert_eq!(
        choose_for(BOTH, iface(&["fd00:1::1"])),
        chosen("eth0", "192.168.1.1,fd00:1::1", "192.168.1.1,fd00:1::1")
    );
    assert_eq!(
        choose_for(BOTH, regex("^fd00:")),
        chosen("eth0", "192.168.1.1,fd00:1::1", "192.168.1.1,fd00:1::1")
    );
    let public = PerFamily {
        v4: None,
        v6: Some("fd00:9::9".parse().unwrap()),
    };
    let options = Options {
        public,
        ..iface(&["192.168.1.9"])
    };
    assert_eq!(
        choose_for(BOTH, options),
        chosen("eth0", "192.168.1.9,fd00:1::1", "192.168.1.9,fd00:9::9")
    );
    assert_eq!(
        choose_for(BOTH, Options::default()).unwrap_err(),
        "interface eth1 has no IPv6 address: give it one, or choose another with --iface"
    );
}
