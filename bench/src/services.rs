//! Service rules as kube-proxy's iptables mode writes them (`pkg/proxy/iptables/proxier.go`, v1.31), loaded by one
//! `iptables-restore`: what pod packets meet on a real node's kernel path.

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddrV4},
};

use crate::{error::Result, netns::Netns, process};

/// A TCP service with a cluster address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, of letters, digits and dashes.
    pub name: String,
    /// The address and port that clients use.
    pub cluster: SocketAddrV4,
    /// Where connections are sent, each with the same probability.
    pub endpoints: Vec<SocketAddrV4>,
}

/// `count` services with two endpoints each that no traffic of a test uses: they are there to be passed by.
pub fn filler(count: usize) -> Vec<Service> {
    /// Kubernetes' usual service network, and a pod network that no lab uses.
    const SERVICES: u32 = u32::from_be_bytes([10, 96, 0, 0]);
    const ENDPOINTS: u32 = u32::from_be_bytes([10, 200, 0, 0]);
    let address =
        |base: u32, n: usize| Ipv4Addr::from(base + 1 + u32::try_from(n).expect("few services"));
    (0..count)
        .map(|n| Service {
            name: format!("filler-{n}"),
            cluster: SocketAddrV4::new(address(SERVICES, n), 80),
            endpoints: [2 * n, 2 * n + 1]
                .map(|n| SocketAddrV4::new(address(ENDPOINTS, n), 8080))
                .to_vec(),
        })
        .collect()
}

/// Replaces kube-proxy's chains in a namespace by those for `services`; other chains stay. None at all for no service.
///
/// # Errors
/// If `iptables-restore` refuses the rules.
pub fn install(netns: &Netns, services: &[Service]) -> Result<()> {
    if services.is_empty() {
        return Ok(());
    }
    let rules = rules(services);
    process::run_with_input(
        Some(netns),
        "iptables-restore",
        &["--noflush", "--wait"],
        &rules,
    )
    .map(drop)
}

const FILTER: &str = r#"*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

const NAT: &str = r#"*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
"#;

const NODEPORTS: &str = r#"-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
"#;

/// The input of `iptables-restore`.
fn rules(services: &[Service]) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for service in services {
        write_service(service, &mut chains, &mut rules).expect("a string takes all text");
    }
    // Chains must be declared before a rule names them.
    let (declarations, jumps) = NAT.split_at(NAT.find("-A ").expect("the text has rules"));
    format!("{FILTER}{declarations}{chains}{jumps}{rules}{NODEPORTS}COMMIT\n")
}

fn write_service(service: &Service, chains: &mut String, rules: &mut String) -> std::fmt::Result {
    let Service {
        name,
        cluster,
        endpoints,
    } = service;
    let (address, port) = (cluster.ip(), cluster.port());
    let svc = chain("KUBE-SVC-", name);
    writeln!(chains, ":{svc} - [0:0]")?;
    writeln!(
        rules,
        r#"-A KUBE-SERVICES -d {address}/32 -p tcp -m comment --comment "default/{name} cluster IP" -m tcp --dport {port} -j {svc}"#
    )?;
    for (n, endpoint) in endpoints.iter().enumerate() {
        let sep = chain("KUBE-SEP-", &format!("{name}{endpoint}"));
        let pod = endpoint.ip();
        writeln!(chains, ":{sep} - [0:0]")?;
        write!(
            rules,
            r#"-A {svc} -m comment --comment "default/{name} -> {endpoint}""#
        )?;
        let left = endpoints.len() - n;
        if left > 1 {
            let probability = 1.0 / f64::from(u32::try_from(left).expect("few endpoints"));
            write!(
                rules,
                " -m statistic --mode random --probability {probability:.10}"
            )?;
        }
        writeln!(rules, " -j {sep}")?;
        writeln!(
            rules,
            r#"-A {sep} -s {pod}/32 -m comment --comment "default/{name}" -j KUBE-MARK-MASQ"#
        )?;
        writeln!(
            rules,
            r#"-A {sep} -p tcp -m comment --comment "default/{name}" -m tcp -j DNAT --to-destination {endpoint}"#
        )?;
    }
    Ok(())
}

/// A chain name: as in kube-proxy a prefix and 16 characters that depend on what the chain is for.
fn chain(prefix: &str, what: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    format!("{prefix}{:016X}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_has_its_chains() {
        let rules = rules(&filler(3));
        let count = |text: &str| rules.lines().filter(|line| line.contains(text)).count();
        assert_eq!(count(":KUBE-SVC-"), 3);
        assert_eq!(count(":KUBE-SEP-"), 6);
        assert_eq!(
            count("--probability 0.5000000000"),
            3,
            "the last endpoint takes what is left"
        );
        assert_eq!(count("DNAT --to-destination"), 6);
        assert_eq!(count("COMMIT"), 2);
        assert!(rules.contains("-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp"));
    }
}
