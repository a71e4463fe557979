//! The network config's defaults and rules, and what reads `subnet.env`.

use anyhow::{Context as _, ensure};
use flannel_agent::netconf::NetworkConfig;
use lab::process;
use serde_json::{Value, json};

use crate::setting::{self, agents};
use crate::support::{Outcome, with_unready_cluster};

/// The effective config of a document, as the status shows it.
fn effective(document: &str) -> anyhow::Result<Value> {
    let config = NetworkConfig::parse(document.as_bytes()).context(document.to_owned())?;
    Ok(serde_json::to_value(config)?)
}

fn has(document: &str, expected: &Value) -> Outcome {
    let effective = effective(document)?;
    for (name, value) in expected.as_object().context("an object")? {
        ensure!(
            effective[name] == *value,
            "{document}: {name} must be {value}: {effective}"
        );
    }
    Ok(())
}

/// Upstream's `TestConfigDefaults` and `TestConfigOverrides`.
pub(crate) fn ipv4() -> Outcome {
    has(
        r#"{ "network": "10.3.0.0/16", "backend": {"type": "vxlan"} }"#,
        &json!({ "Network": "10.3.0.0/16", "SubnetLen": 24, "SubnetMin": "10.3.1.0", "SubnetMax": "10.3.255.0" }),
    )?;
    has(
        r#"{ "Network": "10.3.0.0/16", "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0", "SubnetLen": 28,
             "Backend": {"Type": "vxlan"} }"#,
        &json!({ "Network": "10.3.0.0/16", "SubnetLen": 28, "SubnetMin": "10.3.5.0", "SubnetMax": "10.3.8.0" }),
    )
}

/// Upstream's `TestIPv6ConfigDefaults` and `TestIPv6ConfigOverrides`: without IPv4, and with it beside.
pub(crate) fn ipv6() -> Outcome {
    for ipv4 in [r#""enableIPv4": false"#, r#""network": "10.3.0.0/16""#] {
        has(
            &format!(
                r#"{{ "enableIPv6": true, "ipv6Network": "fc00::/48", {ipv4}, "backend": {{"type": "vxlan"}} }}"#
            ),
            &json!({ "IPv6Network": "fc00::/48", "IPv6SubnetLen": 64, "IPv6SubnetMin": "fc00:0:0:1::",
                     "IPv6SubnetMax": "fc00:0:0:ffff::" }),
        )?;
        has(
            &format!(
                r#"{{ "EnableIPv6": true, "IPv6Network": "fc00::/48", "IPv6SubnetMin": "fc00:0:0:1::",
                      "IPv6SubnetMax": "fc00:0:0:f::", "IPv6SubnetLen": 124, {ipv4},
                      "Backend": {{"Type": "vxlan"}} }}"#
            ),
            &json!({ "IPv6SubnetLen": 124, "IPv6SubnetMin": "fc00:0:0:1::", "IPv6SubnetMax": "fc00:0:0:f::" }),
        )?;
    }
    Ok(())
}

/// A shell that sources `subnet.env` has what upstream's `mk-docker-opts.sh` makes Docker's options of, and nothing else.
pub(crate) fn sourced_by_a_shell() -> Outcome {
    const SCRIPT: &str = r#"set -eu; . "$0"
        printf -- '--bip=%s --mtu=%s ' "$FLANNEL_SUBNET" "$FLANNEL_MTU"
        [ "$FLANNEL_IPMASQ" = true ] && printf -- '--ip-masq=false '; set | grep -c '^FLANNEL_'"#;
    with_unready_cluster(agents(1, 0, &setting::vxlan().network()), |cluster| {
        let node = cluster.node(1);
        let file = node.agent().subnet_file().display().to_string();
        let subnet = node.subnet_env()?.subnet;
        let options = process::run(None, "env", &["-i", "sh", "-c", SCRIPT, &file])?;
        let expected = format!("--bip={}/24 --mtu=1450 --ip-masq=false 4", subnet.host(1));
        ensure!(
            options.trim_end() == expected,
            "{options:?}, not {expected:?}"
        );
        let text = std::fs::read_to_string(&file)?;
        let names: Vec<_> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .collect();
        let names: Vec<_> = names.iter().map(|(name, _)| *name).collect();
        ensure!(
            names
                == [
                    "FLANNEL_NETWORK",
                    "FLANNEL_SUBNET",
                    "FLANNEL_MTU",
                    "FLANNEL_IPMASQ"
                ],
            "{text}"
        );
        Ok(())
    })
}
