//! What the rules of iptables say.

use super::super::{filler, tests::example};
use super::*;

fn count(rules: &str, text: &str) -> usize {
    rules.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn each_service_has_its_chains() {
    let rules = rules(&Proxy::default(), &filler(3));
    assert_eq!(count(&rules, ":KUBE-SVC-"), 3);
    assert_eq!(count(&rules, ":KUBE-SEP-"), 6);
    assert_eq!(
        count(&rules, "--probability 0.5000000000"),
        3,
        "the last endpoint takes what is left"
    );
    assert_eq!(count(&rules, "DNAT --to-destination"), 6);
    assert_eq!(count(&rules, "COMMIT"), 2);
    assert!(rules.contains("-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp"));
}

#[test]
fn what_comes_from_outside_is_masqueraded_or_stays_local() {
    let (proxy, service) = example(false);
    let rules_of = |service: Service| rules(&proxy, &[service]);
    let cluster = rules_of(service);
    assert_eq!(
        count(&cluster, "-j KUBE-EXT-"),
        3,
        "node port, external address, and who may use the load balancer"
    );
    assert_eq!(count(&cluster, "-j KUBE-FW-"), 1);
    assert_eq!(
        count(&cluster, "-A KUBE-PROXY-FIREWALL -d 203.0.113.2/32"),
        1
    );
    assert_eq!(count(&cluster, ":KUBE-SVL-"), 0);
    assert_eq!(
        count(&cluster, "-j KUBE-MARK-MASQ"),
        4,
        "not of the cluster, from outside, and two hairpins"
    );
    assert_eq!(count(&cluster, "--rcheck --seconds 600 --reap"), 2);
    assert_eq!(count(&cluster, "--set -m tcp -j DNAT"), 2);

    let (_, service) = example(true);
    let local = rules_of(service.clone());
    assert_eq!(count(&local, ":KUBE-SVL-"), 1);
    assert_eq!(count(&local, "-j KUBE-SVL-"), 2, "from outside and inside");
    assert_eq!(
        count(&local, "-j DROP"),
        2,
        "what is invalid, and who may not"
    );
    let elsewhere = Service {
        endpoints: service.endpoints[1..].to_vec(),
        ..service
    };
    let elsewhere = rules_of(elsewhere);
    assert_eq!(count(&elsewhere, ":KUBE-SVL-"), 0);
    assert_eq!(count(&elsewhere, "has no local endpoints"), 4);
}
