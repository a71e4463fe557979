//! What the rules of nftables say.

use super::super::tests::example;
use super::*;

fn count(rules: &str, text: &str) -> usize {
    rules.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn what_comes_from_outside_is_masqueraded_or_stays_local() {
    let (proxy, service) = example(false);
    let cluster = rules(&proxy, &[service]);
    assert_eq!(count(&cluster, ": goto external-"), 3);
    assert_eq!(count(&cluster, "dnat to 10.5."), 2);
    assert_eq!(
        count(&cluster, "jump mark-for-masquerade"),
        4,
        "not of the cluster, from outside, and two hairpins"
    );
    assert_eq!(count(&cluster, "flags dynamic,timeout ; timeout 600s"), 2);
    assert_eq!(count(&cluster, "update @affinity-"), 2);
    assert!(cluster.contains("nodeport-ips { 192.168.100.1 }"));
    assert_eq!(count(&cluster, ": goto firewall-"), 1);
    assert_eq!(count(&cluster, "ip saddr != { 203.0.113.128/25 } drop"), 1);

    let (_, service) = example(true);
    let local = rules(&proxy, std::slice::from_ref(&service));
    assert_eq!(count(&local, "numgen random mod 1 "), 1);
    assert_eq!(count(&local, " goto local-"), 2, "from outside and inside");
    assert_eq!(count(&local, ": drop"), 0);
    let elsewhere = Service {
        endpoints: service.endpoints[1..].to_vec(),
        ..service
    };
    let elsewhere = rules(&proxy, &[elsewhere]);
    assert_eq!(count(&elsewhere, ": drop"), 4);
}
