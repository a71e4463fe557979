use clap::CommandFactory as _;

use super::*;
use crate::cmd::go_flags;

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

/// How flanneld 0.28.9 declares an option, and how it shows in [`RunOptions`].
struct Row {
    /// Without dashes.
    name: &'static str,
    /// What it is when not given.
    default: &'static str,
    /// Values, and what becomes of each.
    values: &'static [(&'static str, &'static str)],
    /// Values that are refused; as a variable, each is ignored with a warning.
    wrong: &'static [&'static str],
    show: fn(&RunOptions) -> String,
}

macro_rules! row {
    ($name:literal, $default:literal, $values:expr, $wrong:expr, $options:ident => $show:expr) => {
        Row {
            name: $name,
            default: $default,
            values: &$values,
            wrong: &$wrong,
            show: |$options| $show,
        }
    };
}

const BOOLEANS: [(&str, &str); 6] = [
    ("1", "true"),
    ("t", "true"),
    ("TRUE", "true"),
    ("0", "false"),
    ("F", "false"),
    ("False", "false"),
];
const NO_BOOLEANS: [&str; 3] = ["yes", "", "tRUE"];
const A_PATH: [(&str, &str); 2] = [("/a/b", "/a/b"), ("", "")];

/// Each line of `flannel.md` 1.1: main.go's `init`.
const FLANNELDS: &[Row] = &[
    row!("etcd-endpoints", "http://127.0.0.1:4001 http://127.0.0.1:2379",
        [("https://a:1", "https://a:1"), ("a:1,b:2", "a:1 b:2")], [], o => o.etcd_endpoints.join(" ")),
    row!("etcd-prefix", "/coreos.com/network", [("/a", "/a")], [], o => o.etcd_prefix.clone()),
    row!("etcd-keyfile", "", A_PATH, [], o => o.etcd_keyfile.display().to_string()),
    row!("etcd-certfile", "", A_PATH, [], o => o.etcd_certfile.display().to_string()),
    row!("etcd-cafile", "", A_PATH, [], o => o.etcd_cafile.display().to_string()),
    row!("etcd-username", "", [("root", "root"), ("", "")], [], o => o.etcd_username.clone()),
    row!("etcd-password", "", [("-p =,x", "-p =,x"), ("", "")], [], o => o.etcd_password.0.clone()),
    row!("iface", "", [("eth0", "eth0"), ("a,b", "a,b"), ("fd00::1", "fd00::1")], [], o => o.iface.join(" ")),
    row!("iface-regex", "", [("^en.*", "^en.*"), ("a,b", "a,b")], ["("],
        o => o.iface_regex.iter().map(Regex::as_str).collect::<Vec<_>>().join(" ")),
    row!("iface-can-reach", "", [("8.8.8.8", "8.8.8.8"), ("fd00::1", "fd00::1"), ("", "")], ["here"],
        o => shown(o.iface_can_reach)),
    row!("public-ip", "", [("10.0.0.1", "10.0.0.1"), ("", "")], ["here", "fd00::1"], o => shown(o.public_ip)),
    row!("public-ipv6", "", [("fd00::1", "fd00::1"), ("", "")], ["here", "10.0.0.1"], o => shown(o.public_ipv6)),
    row!("subnet-file", "/run/flannel/subnet.env", [("/a", "/a")], [], o => o.subnet_file.display().to_string()),
    row!("subnet-lease-renew-margin", "60", [("1", "1"), ("1439", "1439"), ("0x10", "16")],
        ["0", "1440", "-1", "60m"], o => o.subnet_lease_renew_margin.to_string()),
    row!("ip-masq", "false", BOOLEANS, NO_BOOLEANS, o => o.switches.ip_masq.to_string()),
    row!("ip-masq-fully-random-disable", "false", BOOLEANS, NO_BOOLEANS,
        o => o.switches.ip_masq_fully_random_disable.to_string()),
    row!("kube-subnet-mgr", "false", BOOLEANS, NO_BOOLEANS, o => o.switches.kube_subnet_mgr.to_string()),
    row!("kube-api-url", "", [("https://a", "https://a"), ("", "")], [], o => o.kube_api_url.clone()),
    row!("kubeconfig-file", "", A_PATH, [], o => o.kubeconfig_file.display().to_string()),
    row!("kube-annotation-prefix", "flannel.alpha.coreos.com", [("a.b/c", "a.b/c")], [],
        o => o.kube_annotation_prefix.clone()),
    row!("net-config-path", "/etc/kube-flannel/net-conf.json", [("/a", "/a")], [],
        o => o.net_config_path.display().to_string()),
    row!("set-node-network-unavailable", "true", BOOLEANS, NO_BOOLEANS,
        o => o.switches.set_node_network_unavailable.to_string()),
    row!("healthz-ip", "0.0.0.0", [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("localhost", "localhost"), ("", "")], [],
        o => o.healthz_ip.clone()),
    row!("healthz-port", "0", [("10256", "10256"), ("0", "0")], ["65536", "-1", "http"], o => o.healthz_port.to_string()),
    row!("iptables-resync", "5", [("30", "30")], ["0", "-1", "5s"], o => o.iptables_resync.to_string()),
    row!("iptables-forward-rules", "true", BOOLEANS, NO_BOOLEANS, o => o.switches.iptables_forward_rules.to_string()),
    row!("ip-blackhole-route", "false", BOOLEANS, NO_BOOLEANS, o => o.switches.ip_blackhole_route.to_string()),
    row!("version", "false", BOOLEANS, NO_BOOLEANS, o => o.switches.version.to_string()),
    row!("v", "0", [("3", "3"), ("-1", "-1"), ("10", "10")], ["x", "1.5"], o => o.v.to_string()),
    row!("vmodule", "", [("a=1,b=2", "a=1,b=2"), ("", "")], [], o => o.vmodule.clone()),
    row!("log_backtrace_at", "", [("a.go:1", "a.go:1"), ("", "")], [], o => o.log_backtrace_at.clone()),
    // Removed ones.
    row!("use-multi-cluster-cidr", "", [("true", "--use-multi-cluster-cidr")], ["maybe"], o => removed(o)),
    row!("logtostderr", "", [("true", "--logtostderr")], ["maybe"], o => removed(o)),
    row!("alsologtostderr", "", [("false", "--alsologtostderr")], ["maybe"], o => removed(o)),
    row!("stderrthreshold", "", [("INFO", "--stderrthreshold")], [], o => removed(o)),
    row!("log_dir", "", [("/var/log", "--log_dir")], [], o => removed(o)),
];

fn shown<T: ToString>(value: Optional<T>) -> String {
    value.0.map(|value| value.to_string()).unwrap_or_default()
}

fn removed(options: &RunOptions) -> String {
    options.removed.given().collect::<Vec<_>>().join(" ")
}

/// Called as flanneld, with these arguments and variables.
fn as_flanneld(
    arguments: &[String],
    environment: &[(String, String)],
) -> Result<(RunOptions, Vec<String>), clap::Error> {
    let argv = std::iter::once("flanneld".into()).chain(arguments.iter().map(Into::into));
    let environment = environment
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let prepared = go_flags::prepare(argv.collect(), &environment);
    let Command::Run(options) = Cli::try_parse_from(prepared.argv)?.command else {
        panic!("not run");
    };
    Ok((*options, prepared.warnings))
}

#[test]
fn every_option_of_flanneld_is_understood_in_each_spelling() {
    for row in FLANNELDS {
        let Row { name, show, .. } = row;
        let variable = format!("FLANNELD_{}", name.to_uppercase().replace('-', "_"));
        let value_of = |arguments: &[String], environment: &[(String, String)]| {
            let parsed = as_flanneld(arguments, environment);
            let (options, warnings) =
                parsed.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            assert_eq!(warnings, [""; 0], "{arguments:?}");
            show(&options)
        };
        assert_eq!(value_of(&[], &[]), row.default, "{name}");
        let boolean = row.values.iter().any(|(text, _)| *text == "true")
            || row.values == BOOLEANS
            || row.values.iter().any(|(text, _)| *text == "false");
        for (text, value) in row.values {
            for dashes in ["-", "--"] {
                let joined = [format!("{dashes}{name}={text}")];
                assert_eq!(value_of(&joined, &[]), *value, "{joined:?}");
                if !boolean {
                    let apart = [format!("{dashes}{name}"), (*text).to_owned()];
                    assert_eq!(value_of(&apart, &[]), *value, "{apart:?}");
                }
            }
            let environment = [(variable.clone(), (*text).to_owned())];
            let from_environment = if text.is_empty() { row.default } else { value };
            assert_eq!(
                value_of(&[], &environment),
                from_environment,
                "{environment:?}"
            );
            // The command line wins.
            let (other, shown) = row.values[0];
            let given = [format!("-{name}={other}")];
            assert_eq!(
                value_of(&given, &environment),
                shown,
                "{given:?}, {environment:?}"
            );
            let bad = [(variable.clone(), "\u{1}bad".to_owned())];
            assert_eq!(value_of(&given, &bad), shown, "{given:?}");
        }
        for text in row.wrong {
            let error = as_flanneld(&[format!("-{name}={text}")], &[]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{name}={text}");
            assert!(error.to_string().contains(name), "{name}={text}: {error}");
            if text.is_empty() {
                continue;
            }
            let environment = [(variable.clone(), (*text).to_owned())];
            let (options, warnings) = as_flanneld(&[], &environment).unwrap();
            assert_eq!(show(&options), row.default, "{environment:?}");
            assert!(
                warnings.iter().any(|w| w.contains(&variable)),
                "{warnings:?}"
            );
        }
    }
}

#[test]
fn variables_that_are_no_options_are_accepted() {
    for variable in [
        "EVENT_QUEUE_DEPTH",
        "CONT_WHEN_CACHE_NOT_READY",
        "NODE_NAME",
        "WIREGUARD_KEY_FILE",
        "FLANNELD_NO_SUCH",
    ] {
        let (_, warnings) = as_flanneld(&[], &[(variable.into(), "1".into())]).unwrap();
        assert_eq!(warnings, [""; 0], "{variable}");
    }
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
