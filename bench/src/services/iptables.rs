//! The rules of kube-proxy's iptables mode (`pkg/proxy/iptables/proxier.go`, v1.31), as input of `iptables-restore`.

use std::fmt::{Result, Write};

use super::{Proxy, Service, hash};

/// What the rules need beside the tables themselves: a name, and rules that are refused without it.
pub(super) const FEATURES: &[(&str, &str)] = &[
    (
        "table nat with MASQUERADE and DNAT",
        "*nat\n-A POSTROUTING -m mark --mark 1/1 -j MASQUERADE --random-fully\n\
         -A PREROUTING -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:80\nCOMMIT\n",
    ),
    (
        "match conntrack",
        "*filter\n-A FORWARD -m comment --comment try -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n",
    ),
    (
        "match addrtype",
        "*nat\n-A PREROUTING -m addrtype --dst-type LOCAL\nCOMMIT\n",
    ),
    (
        "match statistic",
        "*nat\n-A PREROUTING -m statistic --mode random --probability 0.5\nCOMMIT\n",
    ),
    (
        "match recent",
        "*nat\n-A PREROUTING -m recent --name try --set\n\
         -A PREROUTING -m recent --name try --rcheck --seconds 60 --reap\nCOMMIT\n",
    ),
];

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
"#;

const NAT: &str = r#"*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
"#;

const JUMPS: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
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
pub(super) fn rules(proxy: &Proxy, services: &[Service]) -> String {
    let mut text = Text::default();
    for service in services {
        text.service(proxy, service)
            .expect("a string takes all text");
    }
    let Text {
        filter,
        chains,
        nat,
    } = text;
    // Chains must be declared before a rule names them.
    format!("{FILTER}{filter}COMMIT\n{NAT}{chains}{JUMPS}{nat}{NODEPORTS}COMMIT\n")
}

/// What services add to the tables.
#[derive(Default)]
struct Text {
    filter: String,
    chains: String,
    nat: String,
}

impl Text {
    fn service(&mut self, proxy: &Proxy, service: &Service) -> Result {
        let Service { name, protocol, .. } = service;
        let (address, port) = (service.cluster.ip(), service.cluster.port());
        let key = format!("{name}{protocol}");
        let svc = chain("KUBE-SVC-", &key);
        let svl = chain("KUBE-SVL-", &key);
        let local = service.local_endpoints(proxy);
        let internal = if service.internal_local { &svl } else { &svc };
        writeln!(self.chains, ":{svc} - [0:0]")?;
        if service.internal_local && local.is_empty() {
            writeln!(
                self.filter,
                r#"-A KUBE-SERVICES -d {address}/32 -p {protocol} -m comment --comment "default/{name} has no local endpoints" -m {protocol} --dport {port} -j DROP"#
            )?;
        } else {
            writeln!(
                self.nat,
                r#"-A KUBE-SERVICES -d {address}/32 -p {protocol} -m comment --comment "default/{name} cluster IP" -m {protocol} --dport {port} -j {internal}"#
            )?;
        }
        if service.is_external() {
            self.external(proxy, service, &svc)?;
        }
        let uses_local = service.internal_local || (service.is_external() && service.local);
        if uses_local && !local.is_empty() {
            writeln!(self.chains, ":{svl} - [0:0]")?;
        }
        if let Some(pods) = proxy
            .pods
            .filter(|_| !service.internal_local || !local.is_empty())
        {
            writeln!(
                self.nat,
                r#"-A {internal} ! -s {pods} -d {address}/32 -p {protocol} -m comment --comment "default/{name} cluster IP" -m {protocol} --dport {port} -j KUBE-MARK-MASQ"#
            )?;
        }
        self.choice(service, &svc, &service.endpoints)?;
        if uses_local && !local.is_empty() {
            self.choice(service, &svl, &local)?;
        }
        for endpoint in &service.endpoints {
            let sep = endpoint_chain(service, endpoint);
            let pod = endpoint.ip();
            let remember = match service.affinity {
                Some(_) => format!(" -m recent --name {sep} --set"),
                None => String::new(),
            };
            writeln!(self.chains, ":{sep} - [0:0]")?;
            writeln!(
                self.nat,
                r#"-A {sep} -s {pod}/32 -m comment --comment "default/{name}" -j KUBE-MARK-MASQ"#
            )?;
            writeln!(
                self.nat,
                r#"-A {sep} -p {protocol} -m comment --comment "default/{name}"{remember} -m {protocol} -j DNAT --to-destination {endpoint}"#
            )?;
        }
        Ok(())
    }

    /// One endpoint of several: the client's own if it has one, else any.
    fn choice(
        &mut self,
        service: &Service,
        from: &str,
        endpoints: &[std::net::SocketAddrV4],
    ) -> Result {
        let name = &service.name;
        if let Some(time) = service.affinity {
            for endpoint in endpoints {
                let sep = endpoint_chain(service, endpoint);
                writeln!(
                    self.nat,
                    r#"-A {from} -m comment --comment "default/{name} -> {endpoint}" -m recent --name {sep} --rcheck --seconds {} --reap -j {sep}"#,
                    time.as_secs()
                )?;
            }
        }
        for (n, endpoint) in endpoints.iter().enumerate() {
            let sep = endpoint_chain(service, endpoint);
            write!(
                self.nat,
                r#"-A {from} -m comment --comment "default/{name} -> {endpoint}""#
            )?;
            let left = endpoints.len() - n;
            if left > 1 {
                let probability = 1.0 / f64::from(u32::try_from(left).expect("few endpoints"));
                write!(
                    self.nat,
                    " -m statistic --mode random --probability {probability:.10}"
                )?;
            }
            writeln!(self.nat, " -j {sep}")?;
        }
        Ok(())
    }

    /// What leads to the service from outside of the cluster.
    fn external(&mut self, proxy: &Proxy, service: &Service, svc: &str) -> Result {
        let Service { name, protocol, .. } = service;
        let port = service.cluster.port();
        let key = format!("{name}{protocol}");
        let ext = chain("KUBE-EXT-", &key);
        writeln!(self.chains, ":{ext} - [0:0]")?;
        for address in &service.external {
            writeln!(
                self.nat,
                r#"-A KUBE-SERVICES -d {address}/32 -p {protocol} -m comment --comment "default/{name} external IP" -m {protocol} --dport {port} -j {ext}"#
            )?;
        }
        self.load_balancer(service, &ext)?;
        if let Some(port) = service.node_port {
            writeln!(
                self.nat,
                r#"-A KUBE-NODEPORTS -p {protocol} -m comment --comment "default/{name}" -m {protocol} --dport {port} -j {ext}"#
            )?;
        }
        if !service.local {
            writeln!(
                self.nat,
                r#"-A {ext} -m comment --comment "masquerade traffic for default/{name} external destinations" -j KUBE-MARK-MASQ"#
            )?;
            return writeln!(self.nat, "-A {ext} -j {svc}");
        }
        if let Some(pods) = proxy.pods {
            writeln!(
                self.nat,
                r#"-A {ext} -s {pods} -m comment --comment "pod traffic for default/{name} external destinations" -j {svc}"#
            )?;
        }
        for (purpose, target) in [("masquerade", "KUBE-MARK-MASQ"), ("route", svc)] {
            writeln!(
                self.nat,
                r#"-A {ext} -m comment --comment "{purpose} LOCAL traffic for default/{name} external destinations" -m addrtype --src-type LOCAL -j {target}"#
            )?;
        }
        let local = service.local_endpoints(proxy);
        if local.is_empty() {
            return self.nothing_local(service);
        }
        writeln!(self.nat, "-A {ext} -j {}", chain("KUBE-SVL-", &key))
    }

    /// What leads to it by the addresses of its load balancer, from whom it may.
    fn load_balancer(&mut self, service: &Service, ext: &str) -> Result {
        let Service { name, protocol, .. } = service;
        let port = service.cluster.port();
        let firewall = chain("KUBE-FW-", &format!("{name}{protocol}"));
        let restricted = !service.source_ranges.is_empty();
        let target = if restricted { &firewall } else { ext };
        for address in &service.load_balancer {
            writeln!(
                self.nat,
                r#"-A KUBE-SERVICES -d {address}/32 -p {protocol} -m comment --comment "default/{name} loadbalancer IP" -m {protocol} --dport {port} -j {target}"#
            )?;
            if restricted {
                writeln!(
                    self.filter,
                    r#"-A KUBE-PROXY-FIREWALL -d {address}/32 -p {protocol} -m comment --comment "default/{name} traffic not accepted by {firewall}" -m {protocol} --dport {port} -j DROP"#
                )?;
            }
        }
        if restricted && !service.load_balancer.is_empty() {
            writeln!(self.chains, ":{firewall} - [0:0]")?;
            for range in &service.source_ranges {
                writeln!(
                    self.nat,
                    r#"-A {firewall} -s {range} -m comment --comment "default/{name} loadbalancer IP" -j {ext}"#
                )?;
            }
        }
        Ok(())
    }

    /// Without a pod of this node, nothing from outside is let in.
    fn nothing_local(&mut self, service: &Service) -> Result {
        let Service { name, protocol, .. } = service;
        let comment = format!(r#"-m comment --comment "default/{name} has no local endpoints""#);
        if let Some(port) = service.node_port {
            writeln!(
                self.filter,
                "-A KUBE-EXTERNAL-SERVICES -p {protocol} {comment} -m addrtype --dst-type LOCAL -m {protocol} --dport {port} -j DROP"
            )?;
        }
        let port = service.cluster.port();
        for address in service.external_addresses() {
            writeln!(
                self.filter,
                "-A KUBE-EXTERNAL-SERVICES -d {address}/32 -p {protocol} {comment} -m {protocol} --dport {port} -j DROP"
            )?;
        }
        Ok(())
    }
}

fn endpoint_chain(service: &Service, endpoint: &std::net::SocketAddrV4) -> String {
    let Service { name, protocol, .. } = service;
    chain("KUBE-SEP-", &format!("{name}{protocol}{endpoint}"))
}

/// A chain name: as in kube-proxy a prefix and 16 characters.
fn chain(prefix: &str, what: &str) -> String {
    format!("{prefix}{}", hash(what))
}

#[cfg(test)]
mod tests;
