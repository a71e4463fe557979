use std::{fs, time::Instant};

use super::*;
use crate::lease::value::{BackendData, Vtep};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a change of the file may take until it is reported: some looks, or one after a pause.
const REPORTED: Duration = Duration::from_secs(10);
const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn config() -> NetworkConfig {
    NetworkConfig::parse_assigned(CONFIG.as_bytes()).unwrap()
}

fn vxlan(address: &str, last: u8) -> String {
    format!(
        r#"{{"PublicIP":"{address}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:00:00:00:00:{last:02x}"}}}}"#
    )
}

fn document(leases: &[(&str, String)]) -> String {
    let leases: Vec<String> = leases
        .iter()
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    format!(
        "{{\"config\": {CONFIG}, \"leases\": {{{}}}}}",
        leases.join(", ")
    )
}

/// What a node with this address and device is.
fn node(address: &str, last: u8) -> Attributes {
    Attributes {
        addresses: PerFamily::v4(address.parse().unwrap()),
        backend: BackendData::Vxlan(PerFamily::v4(Vtep {
            vni: Some(1),
            mac: flannel_common::addr::Mac([0x0e, 0, 0, 0, 0, last]),
        })),
    }
}

fn judged(leases: &[(&str, String)], node: &Attributes) -> Result<PerFamily<IpNet>, String> {
    let document = Document::parse(document(leases).as_bytes()).unwrap();
    judge(&document.config, &document.leases, node)
        .map(|lease| lease.subnets)
        .map_err(|error| error.to_string())
}

#[test]
fn the_own_lease_is_found_by_address_and_must_say_what_is_so() {
    let first = ("10.5.1.0-24", vxlan("192.168.100.1", 1));
    let second = ("10.5.2.0-25", vxlan("192.168.100.2", 2));
    let leases = [first.clone(), second];
    let held = judged(&leases, &node("192.168.100.2", 2)).unwrap();
    assert_eq!(held, PerFamily::v4("10.5.2.0/25".parse().unwrap()));
    let other_vni = |vni| first.1.replace("\"VNI\":1", vni);
    assert!(
        judged(
            &[(first.0, other_vni("\"VNI\":null"))],
            &node("192.168.100.1", 1)
        )
        .is_ok()
    );
    let foreign = first.1.replace("vxlan", "host-gw");
    for (leases, node, parts) in [
        (
            &leases[..],
            node("192.168.100.3", 3),
            &[
                "no lease with PublicIP = 192.168.100.3",
                r#"add one such as "10.5.34.0-24": {"PublicIP":"192.168.100.3","BackendType":"vxlan""#,
            ][..],
        ),
        (
            &[("10.5.1.0-24", "{}".into())],
            node("192.168.100.1", 1),
            &["one is not understood: key = 10.5.1.0-24"],
        ),
        (
            &[first.clone(), ("10.5.9.0-24", vxlan("192.168.100.1", 9))],
            node("192.168.100.1", 1),
            &["leases 10.5.1.0-24 and 10.5.9.0-24 both", "192.168.100.1:"],
        ),
        (
            &[("10.6.1.0-24", vxlan("192.168.100.1", 1))],
            node("192.168.100.1", 1),
            &["lease 10.6.1.0-24: 10.6.1.0/24 is no part of the network 10.5.0.0/16"],
        ),
        (
            &[("10.5.0.0-16", vxlan("192.168.100.1", 1))],
            node("192.168.100.1", 1),
            &["is no part of"],
        ),
        (
            &[("10.5.1.0-24&fd00:5::-64", vxlan("192.168.100.1", 1))],
            node("192.168.100.1", 1),
            &["fd00:5::/64 is IPv6, which config does not enable"],
        ),
        (
            &leases,
            node("192.168.100.1", 9),
            &[
                "lease 10.5.1.0-24 says of this node BackendData.VtepMAC = 0e:00:00:00:00:01, where it is 0e:00:00:00:00:09",
                "delete the VXLAN device",
            ],
        ),
        (
            &[(first.0, other_vni("\"VNI\":7"))],
            node("192.168.100.1", 1),
            &[
                "BackendData.VNI = 7, where it is 1: other nodes go by the file, so correct it there",
            ],
        ),
        (
            &[(first.0, foreign)],
            node("192.168.100.1", 1),
            &["BackendType = host-gw, where it is vxlan"],
        ),
    ] {
        let error = judged(leases, &node).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn a_dual_stack_lease_is_compared_in_both_families() {
    let config = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"host-gw"}}"#;
    let config = NetworkConfig::parse_assigned(config.as_bytes()).unwrap();
    let lease = |name: &str, address| {
        let value = format!(
            r#"{{"PublicIP":"192.168.100.1","PublicIPv6":"{address}","BackendType":"host-gw"}}"#
        );
        BTreeMap::from([(name.to_owned(), crate::lease::entry(name, value.as_bytes()))])
    };
    let node = Attributes {
        addresses: PerFamily {
            v4: Some("192.168.100.1".parse().unwrap()),
            v6: Some("fd00:100::1".parse().unwrap()),
        },
        backend: BackendData::HostGw,
    };
    let both = "10.5.1.0-24&fd00:5:0:1::-64";
    assert!(judge(&config, &lease(both, "fd00:100::1"), &node).is_ok());
    for (leases, part) in [
        (
            lease(both, "fd00:100::2"),
            "PublicIPv6 = fd00:100::2, where it is fd00:100::1",
        ),
        (
            lease("10.5.1.0-24", "fd00:100::1"),
            "config has the IPv6 network fd00:5::/48: name a subnet of it",
        ),
    ] {
        let error = judge(&config, &leases, &node).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// The next event; a test that waits for one that does not come ends.
async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    tokio::time::timeout(REPORTED, events.recv())
        .await
        .expect("an event")
        .expect("the manager runs")
}

fn understood(event: Event) -> Vec<String> {
    let Event::Snapshot(entries) = event else {
        panic!("{event:?}");
    };
    let understood = entries.into_iter().filter(|(_, entry)| entry.is_ok());
    understood.map(|(name, _)| name).collect()
}

async fn wait_for_problem(board: &Board, part: &str) {
    let start = Instant::now();
    loop {
        let problems = board.status().problems.join("; ");
        if problems.contains(part) && (!part.is_empty() || problems.is_empty()) {
            return;
        }
        assert!(start.elapsed() < REPORTED, "{part:?}: {problems}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_file_is_followed_and_one_that_cannot_be_used_changes_nothing() {
    let path = std::env::temp_dir().join(format!("flannel-leases-{}", std::process::id()));
    let own = ("10.5.1.0-24", vxlan("192.168.100.1", 1));
    let peer = ("10.5.2.0-24", vxlan("192.168.100.2", 2));
    let write = |leases: &[(&str, String)]| fs::write(&path, document(leases)).unwrap();
    write(std::slice::from_ref(&own));
    let board = Board::default();
    let mut file = File {
        changes: Changes::by_looking_each(LOOK, vec![path.clone()]),
        ..File::new(Options {
            path: path.clone(),
            ..Options::default()
        })
    };
    let request = Request {
        config: file.network_config(&board).await,
        attributes: node("192.168.100.1", 1),
        previous: PerFamily::default(),
    };
    assert_eq!(request.config, config());
    let held = file.acquire(request, &board).await;
    assert_eq!(
        held,
        own_lease(PerFamily::v4("10.5.1.0/24".parse().unwrap()))
    );
    let (publish, published) = watch::channel(node("192.168.100.1", 1));
    let (sender, mut events) = mpsc::channel(8);
    let run = tokio::spawn(file.run(sender, published, board.clone()));
    assert_eq!(understood(next(&mut events).await), ["10.5.1.0-24"]);

    write(&[own.clone(), peer.clone()]);
    assert_eq!(
        understood(next(&mut events).await),
        ["10.5.1.0-24", "10.5.2.0-24"]
    );

    fs::write(&path, "{").unwrap();
    wait_for_problem(&board, "--lease-file = ").await;
    assert!(events.try_recv().is_err(), "half a file is no event");
    fs::remove_file(&path).unwrap();
    wait_for_problem(&board, "No such file").await;
    assert!(events.try_recv().is_err(), "no file is no event");

    // The others are followed although the own lease is not there.
    write(std::slice::from_ref(&peer));
    assert_eq!(understood(next(&mut events).await), ["10.5.2.0-24"]);
    wait_for_problem(&board, "no lease with PublicIP = 192.168.100.1").await;

    write(&[("10.5.7.0-24", own.1.clone()), peer.clone()]);
    assert_eq!(understood(next(&mut events).await).len(), 2);
    let Event::Own(moved) = next(&mut events).await else {
        panic!("another subnet is an event");
    };
    assert_eq!(moved.subnets, PerFamily::v4("10.5.7.0/24".parse().unwrap()));
    wait_for_problem(&board, "").await;

    // What the node has become and the file does not say.
    publish.send_replace(node("192.168.100.1", 9));
    wait_for_problem(
        &board,
        "VtepMAC = 0e:00:00:00:00:01, where it is 0e:00:00:00:00:09",
    )
    .await;
    publish.send_replace(node("192.168.100.1", 1));
    wait_for_problem(&board, "").await;

    fs::write(
        &path,
        document(&[("10.5.7.0-24", own.1.clone())]).replace("10.5.0.0/16", "10.4.0.0/15"),
    )
    .unwrap();
    wait_for_problem(&board, "config has changed").await;
    fs::remove_file(&path).unwrap();
    drop(events);
    tokio::time::timeout(REPORTED, run)
        .await
        .expect("an end")
        .unwrap();
}
