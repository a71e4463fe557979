//! The rules of kube-proxy's nftables mode (`pkg/proxy/nftables/proxier.go`, v1.31), as input of `nft -f`.

use std::{
    fmt::{Result, Write},
    net::SocketAddrV4,
};

use super::{Proxy, Service, hash};

/// What the rules need: a name, and rules that are refused without it.
pub(super) const FEATURES: &[(&str, &str)] = &[
    (
        "nat with masquerade",
        "table ip try { chain c { type nat hook postrouting priority 100; mark and 1 == 1 masquerade fully-random; }; }\n",
    ),
    (
        "verdict map",
        "table ip try { map m { type ipv4_addr . inet_proto . inet_service : verdict; };\n\
         chain d { ip daddr . meta l4proto . th dport vmap @m; }; }\n",
    ),
    (
        "number generator",
        "table ip try { chain e { }; chain f { numgen random mod 1 vmap { 0 : goto e }; }; }\n",
    ),
    (
        "route lookup",
        "table ip try { chain g { fib saddr type local return; }; }\n",
    ),
    (
        "set with timeouts",
        "table ip try { set s { type ipv4_addr; flags dynamic,timeout; timeout 60s; };\n\
         chain h { update @s { ip saddr }; }; }\n",
    ),
];

/// What there is without any service. The first two lines make way for it, whatever was there.
const BASE: &str = r#"add table ip kube-proxy
delete table ip kube-proxy
add table ip kube-proxy { comment "rules for kube-proxy" ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; comment "Active ClusterIPs" ; }
add set ip kube-proxy nodeport-ips { type ipv4_addr ; comment "IPs that accept NodePort traffic" ; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "destinations that are subject to LoadBalancerSourceRanges" ; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; comment "vmap to drop or reject packets to service nodeports with no endpoints" ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; comment "vmap to drop or reject packets to services with no endpoints" ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "ClusterIP, ExternalIP and LoadBalancer IP traffic" ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; comment "NodePort traffic" ; }
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }
add chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110 ; }
add chain ip kube-proxy filter-forward { type filter hook forward priority 0 ; }
add chain ip kube-proxy filter-input { type filter hook input priority 0 ; }
add chain ip kube-proxy filter-output { type filter hook output priority 0 ; }
add chain ip kube-proxy firewall-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy reject-chain { comment "helper for @no-endpoint-services / @no-endpoint-nodeports" ; }
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
add rule ip kube-proxy cluster-ips-check ip daddr { 10.96.0.0/12 } drop comment "Drop traffic to unallocated ClusterIPs"
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
"#;

/// The input of `nft -f`.
pub(super) fn rules(proxy: &Proxy, services: &[Service]) -> String {
    let mut text = Text::default();
    if let Some(node) = proxy.node {
        text.elements += &element("nodeport-ips", &node.to_string());
    }
    for service in services {
        text.service(proxy, service)
            .expect("a string takes all text");
    }
    let Text {
        chains,
        rules,
        elements,
    } = text;
    format!("{BASE}{chains}{rules}{elements}")
}

/// What services add to the table; what a rule or an element names must be there before it.
#[derive(Default)]
struct Text {
    chains: String,
    rules: String,
    elements: String,
}

impl Text {
    fn service(&mut self, proxy: &Proxy, service: &Service) -> Result {
        let protocol = service.protocol;
        let (address, port) = (service.cluster.ip(), service.cluster.port());
        let chain = name("service", service);
        self.chain(&chain)?;
        let local = service.local_endpoints(proxy);
        let uses_local = service.internal_local || (service.is_external() && service.local);
        let own = name("local", service);
        if uses_local && !local.is_empty() {
            self.chain(&own)?;
        }
        let closed = service.internal_local && local.is_empty();
        let internal = if service.internal_local { &own } else { &chain };
        if let Some(pods) = proxy.pods.filter(|_| !closed) {
            self.rule(
                internal,
                format_args!("ip daddr {address} ip saddr != {pods} jump mark-for-masquerade"),
            )?;
        }
        self.choice(service, &chain, &service.endpoints)?;
        if uses_local && !local.is_empty() {
            self.choice(service, &own, &local)?;
        }
        if service.is_external() {
            self.external(proxy, service, &chain)?;
        }
        for endpoint in &service.endpoints {
            self.endpoint(service, endpoint)?;
        }
        self.elements += &element("cluster-ips", &address.to_string());
        let reached = format!("{address} . {protocol} . {port}");
        self.elements += &if closed {
            element("no-endpoint-services", &format!("{reached} : drop"))
        } else {
            element("service-ips", &format!("{reached} : goto {internal}"))
        };
        Ok(())
    }

    fn endpoint(&mut self, service: &Service, endpoint: &SocketAddrV4) -> Result {
        let chain = endpoint_name("endpoint", service, endpoint);
        self.chain(&chain)?;
        let pod = endpoint.ip();
        self.rule(
            &chain,
            format_args!("ip saddr {pod} jump mark-for-masquerade"),
        )?;
        if let Some(time) = service.affinity {
            let set = endpoint_name("affinity", service, endpoint);
            writeln!(
                self.chains,
                "add set ip kube-proxy {set} {{ type ipv4_addr ; flags dynamic,timeout ; timeout {}s ; }}",
                time.as_secs()
            )?;
            self.rule(&chain, format_args!("update @{set} {{ ip saddr }}"))?;
        }
        let protocol = service.protocol;
        self.rule(
            &chain,
            format_args!("meta l4proto {protocol} dnat to {endpoint}"),
        )
    }

    /// A client goes where it has been before.
    fn affinity(&mut self, service: &Service, from: &str, endpoints: &[SocketAddrV4]) -> Result {
        for endpoint in endpoints {
            let set = endpoint_name("affinity", service, endpoint);
            let chain = endpoint_name("endpoint", service, endpoint);
            self.rule(from, format_args!("ip saddr @{set} goto {chain}"))?;
        }
        Ok(())
    }

    /// One endpoint of several: the client's own if it has one, else any.
    fn choice(&mut self, service: &Service, from: &str, endpoints: &[SocketAddrV4]) -> Result {
        if service.affinity.is_some() {
            self.affinity(service, from, endpoints)?;
        }
        let chain = |endpoint| endpoint_name("endpoint", service, endpoint);
        let choices = endpoints.iter().enumerate();
        let choices: Vec<_> = choices
            .map(|(n, endpoint)| format!("{n} : goto {}", chain(endpoint)))
            .collect();
        let (count, choices) = (choices.len(), choices.join(" , "));
        self.rule(
            from,
            format_args!("numgen random mod {count} vmap {{ {choices} }}"),
        )
    }

    /// What leads to the service from outside of the cluster.
    fn external(&mut self, proxy: &Proxy, service: &Service, to: &str) -> Result {
        let protocol = service.protocol;
        let chain = name("external", service);
        self.chain(&chain)?;
        let local = service.local_endpoints(proxy);
        if service.local {
            if let Some(pods) = proxy.pods {
                self.rule(
                    &chain,
                    format_args!(
                        r#"ip saddr {pods} goto {to} comment "short-circuit pod traffic""#
                    ),
                )?;
            }
            self.rule(
                &chain,
                format_args!(
                    r#"fib saddr type local jump mark-for-masquerade comment "masquerade local traffic""#
                ),
            )?;
            self.rule(
                &chain,
                format_args!(
                    r#"fib saddr type local goto {to} comment "short-circuit local traffic""#
                ),
            )?;
            if !local.is_empty() {
                self.rule(&chain, format_args!("goto {}", name("local", service)))?;
            }
        } else {
            self.rule(&chain, format_args!("jump mark-for-masquerade"))?;
            self.rule(&chain, format_args!("goto {to}"))?;
        }
        let closed = service.local && local.is_empty();
        let port = service.cluster.port();
        self.firewall(service)?;
        for address in service.external_addresses() {
            let reached = format!("{address} . {protocol} . {port}");
            self.elements += &element("service-ips", &format!("{reached} : goto {chain}"));
            if closed {
                self.elements += &element("no-endpoint-services", &format!("{reached} : drop"));
            }
        }
        if let Some(port) = service.node_port {
            let reached = format!("{protocol} . {port}");
            self.elements += &element("service-nodeports", &format!("{reached} : goto {chain}"));
            if closed {
                self.elements += &element("no-endpoint-nodeports", &format!("{reached} : drop"));
            }
        }
        Ok(())
    }

    /// Who may use the addresses of the load balancer.
    fn firewall(&mut self, service: &Service) -> Result {
        if service.source_ranges.is_empty() || service.load_balancer.is_empty() {
            return Ok(());
        }
        let chain = name("firewall", service);
        self.chain(&chain)?;
        let ranges: Vec<_> = service
            .source_ranges
            .iter()
            .map(ToString::to_string)
            .collect();
        self.rule(
            &chain,
            format_args!("ip saddr != {{ {} }} drop", ranges.join(" , ")),
        )?;
        for address in &service.load_balancer {
            let reached = format!(
                "{address} . {} . {}",
                service.protocol,
                service.cluster.port()
            );
            self.elements += &element("firewall-ips", &format!("{reached} : goto {chain}"));
        }
        Ok(())
    }

    fn chain(&mut self, name: &str) -> Result {
        writeln!(self.chains, "add chain ip kube-proxy {name}")
    }

    fn rule(&mut self, chain: &str, rule: std::fmt::Arguments<'_>) -> Result {
        writeln!(self.rules, "add rule ip kube-proxy {chain} {rule}")
    }
}

fn element(set: &str, element: &str) -> String {
    format!("add element ip kube-proxy {set} {{ {element} }}\n")
}

/// As kube-proxy names what belongs to a service: kind, 8 characters, and what it is.
fn name(kind: &str, service: &Service) -> String {
    let what = format!("default/{}/{}/", service.name, service.protocol);
    format!("{kind}-{}-{what}", &hash(&what)[..8])
}

fn endpoint_name(kind: &str, service: &Service, endpoint: &SocketAddrV4) -> String {
    let what = format!(
        "default/{}/{}/__{}/{}",
        service.name,
        service.protocol,
        endpoint.ip(),
        endpoint.port()
    );
    format!("{kind}-{}-{what}", &hash(&what)[..8])
}

#[cfg(test)]
mod tests;
