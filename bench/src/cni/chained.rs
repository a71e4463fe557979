//! The plugins that run behind the one that attaches a pod, with what a runtime tells each by `runtimeConfig`: `portmap`
//! for `hostPort`, `bandwidth` for the annotations `kubernetes.io/{ingress,egress}-bandwidth`.

use serde_json::{Value, json};

use crate::services::Protocol;

/// A port of a pod that its node opens too (`hostPort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The port on all of the node's addresses.
    pub host: u16,
    /// The pod's port.
    pub pod: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// Limits of a pod's traffic. Runtimes set no limit to bursts, so that a limit is felt after gigabytes only; here they are
/// limited too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// What the pod may receive, in bits per second.
    pub ingress: Option<u64>,
    /// What it may send, in bits per second.
    pub egress: Option<u64>,
    /// How much may pass at once, in bits.
    pub burst: u64,
}

/// What a pod asks of the plugins that are chained behind the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// What `portmap` is to open.
    pub ports: Vec<HostPort>,
    /// What `bandwidth` is to limit.
    pub bandwidth: Option<Bandwidth>,
}

impl Wishes {
    /// The plugins that are needed, in their order, and the config of each.
    pub(super) fn chain(&self, network: &Value) -> Vec<(&'static str, Value)> {
        let mut chain = Vec::new();
        let mut push = |plugin: &'static str, capability: &str, wish: Value| {
            let config = json!({
                "cniVersion": network["cniVersion"],
                "name": network["name"],
                "type": plugin,
                "capabilities": { capability: true },
                "runtimeConfig": { capability: wish },
            });
            chain.push((plugin, config));
        };
        if !self.ports.is_empty() {
            let ports = self.ports.iter().map(|port| {
                json!({
                    "hostPort": port.host,
                    "containerPort": port.pod,
                    "protocol": port.protocol.to_string(),
                })
            });
            push("portmap", "portMappings", ports.collect());
        }
        if let Some(bandwidth) = self.bandwidth {
            let mut limits = json!({});
            for (side, rate) in [("ingress", bandwidth.ingress), ("egress", bandwidth.egress)] {
                if let Some(rate) = rate {
                    limits[format!("{side}Rate")] = rate.into();
                    limits[format!("{side}Burst")] = bandwidth.burst.into();
                }
            }
            push("bandwidth", "bandwidth", limits);
        }
        chain
    }
}

/// The config with what the plugin before has answered.
pub(super) fn after(mut config: Value, result: &str) -> Value {
    config["prevResult"] = serde_json::from_str(result).unwrap_or_default();
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_follow_in_their_order() {
        let network = json!({ "cniVersion": "0.3.1", "name": "cbr0" });
        let wishes = Wishes {
            ports: vec![HostPort {
                host: 8080,
                pod: 80,
                protocol: Protocol::Udp,
            }],
            bandwidth: Some(Bandwidth {
                egress: Some(1_000_000),
                burst: 8_000,
                ..Bandwidth::default()
            }),
        };
        let chain = wishes.chain(&network);
        assert_eq!(
            chain.iter().map(|(plugin, _)| *plugin).collect::<Vec<_>>(),
            ["portmap", "bandwidth"]
        );
        let (ports, bandwidth) = (&chain[0].1, &chain[1].1);
        assert_eq!(
            ports["runtimeConfig"]["portMappings"],
            json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "udp" }])
        );
        assert_eq!(
            bandwidth["runtimeConfig"]["bandwidth"],
            json!({ "egressRate": 1_000_000, "egressBurst": 8_000 })
        );
        assert_eq!(bandwidth["name"], network["name"]);
        let second = after(bandwidth.clone(), r#"{"ips":[]}"#);
        assert_eq!(second["prevResult"], json!({ "ips": [] }));
        assert!(Wishes::default().chain(&network).is_empty());
    }
}
