//! The chart: with its defaults the manifest, with values what they say.

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::{MANIFEST, Outcome, agent, documents::Documents, render};

/// The chart's description of itself.
const CHART: &str = include_str!("../../deploy/helm/Chart.yaml");
/// Where the agent's container is.
const AGENT: &str = "/spec/template/spec/containers/0";

/// Values, and what is then where in the DaemonSet; null for nothing.
fn cases() -> Vec<(Value, &'static str, Value)> {
    let flannel = |flannel: Value| json!({ "flannel": flannel });
    let pod = |path| format!("/spec/template/spec{path}").leak() as &str;
    let container = |path| format!("{AGENT}{path}").leak() as &str;
    vec![
        (
            flannel(json!({
                "args": ["--kube-subnet-mgr", "--iface=eth1"],
                "healthz": {"port": 9000},
                "fastPath": {"mode": "subnet", "flows": 4096, "mark": "0x80", "heartbeat": "1min"},
                "antiSpoof": "strict", "trafficRules": "nftables", "logFormat": "json",
            })),
            container("/args"),
            json!([
                "--kube-subnet-mgr",
                "--iface=eth1",
                "--healthz-port=9000",
                "--fast-path=subnet",
                "--fast-path-flows=4096",
                "--fast-path-heartbeat=1min",
                "--fast-path-mark=0x80",
                "--anti-spoof=strict",
                "--traffic-rules=nftables",
                "--log-format=json",
            ]),
        ),
        (
            flannel(json!({"healthz": {"port": 0}})),
            container("/livenessProbe"),
            Value::Null,
        ),
        (
            flannel(json!({"healthz": {"readinessProbe": {"periodSeconds": 7}}})),
            container("/readinessProbe/periodSeconds"),
            json!(7),
        ),
        (
            flannel(json!({"privileged": true})),
            container("/securityContext"),
            json!({
                "runAsUser": 0, "readOnlyRootFilesystem": true,
                "privileged": true, "allowPrivilegeEscalation": true,
            }),
        ),
        (
            flannel(json!({"capabilities": ["NET_ADMIN", "SYS_ADMIN"]})),
            container("/securityContext/capabilities/add"),
            json!(["NET_ADMIN", "SYS_ADMIN"]),
        ),
        (
            flannel(json!({"seccompProfile": "Unconfined"})),
            pod("/securityContext/seccompProfile/type"),
            json!("Unconfined"),
        ),
        (
            flannel(json!({"image": {"repository": "registry.example/f", "tag": "1"}})),
            pod("/initContainers/0/image"),
            json!("registry.example/f:1"),
        ),
        (
            flannel(json!({"flannel_cni": {"image": {"tag": "2"}}})),
            pod("/initContainers/0/image"),
            json!("flannel-agent:2"),
        ),
        (
            flannel(json!({"image": {"pullPolicy": "Always"}})),
            container("/imagePullPolicy"),
            json!("Always"),
        ),
        (
            flannel(json!({"skipCNIConfigInstallation": true})),
            pod("/initContainers/1"),
            Value::Null,
        ),
        (
            flannel(json!({"cniBinDir": "/opt/bin/cni"})),
            pod("/volumes/1/hostPath/path"),
            json!("/opt/bin/cni"),
        ),
        (
            flannel(json!({"resources": {"limits": {"memory": "200Mi"}}})),
            container("/resources/limits"),
            json!({"memory": "200Mi"}),
        ),
        (
            flannel(json!({"nodeSelector": {"a": "b"}, "podAnnotations": {"c": "d"}})),
            pod("/nodeSelector/a"),
            json!("b"),
        ),
        (
            flannel(json!({"podAnnotations": {"c": "d"}})),
            "/spec/template/metadata/annotations/c",
            json!("d"),
        ),
        (
            json!({"global": {"imagePullSecrets": [{"name": "s"}]}}),
            pod("/imagePullSecrets"),
            json!([{"name": "s"}]),
        ),
        (
            json!({"netpol": {"enabled": true}}),
            pod("/containers/1/command"),
            json!(["/bin/netpol"]),
        ),
    ]
}

/// Values, and the network config that they make.
fn networks() -> [(Value, Value); 5] {
    [
        (
            json!({"podCidr": "10.1.0.0/16", "podCidrv6": "fd00:1::/56", "flannel": {
                "enableNFTables": true, "vni": 7, "GBP": true, "mtu": 1400, "backendPort": 4789,
                "directRouting": true,
            }}),
            json!({
                "Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:1::/56", "EnableNFTables": true,
                "Backend": {
                    "Type": "vxlan", "VNI": 7, "GBP": true, "MTU": 1400, "Port": 4789, "DirectRouting": true,
                },
            }),
        ),
        (
            json!({"podCidr": "", "podCidrv6": "fd00:1::/56", "flannel": {"backend": "host-gw", "vni": 7}}),
            json!({
                "EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:1::/56", "EnableNFTables": false,
                "Backend": {"Type": "host-gw"},
            }),
        ),
        (
            json!({"flannel": {"backend": "udp", "backendPort": 8286}}),
            json!({
                "Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "udp", "Port": 8286},
            }),
        ),
        (
            json!({"flannel": {"backend": "ipip", "directRouting": true}}),
            json!({
                "Network": "10.244.0.0/16", "EnableNFTables": false,
                "Backend": {"Type": "ipip", "DirectRouting": true},
            }),
        ),
        (
            json!({"flannel": {"backend": "extension", "extension": {"SubnetAddCommand": "true"}}}),
            json!({
                "Network": "10.244.0.0/16", "EnableNFTables": false,
                "Backend": {"Type": "extension", "SubnetAddCommand": "true"},
            }),
        ),
    ]
}

/// The chart has all that the manifest has, but for the namespace, which Helm makes if it is to.
pub(crate) fn default_is_the_manifest() -> Outcome {
    let rendered = render::chart(&json!({}))?;
    rendered.are_typed()?;
    agent::runs_from(&rendered)?;
    let mut manifest = Documents::parse(MANIFEST)?;
    manifest
        .0
        .retain(|document| document["kind"] != "Namespace");
    let [rendered, manifest] = [rendered, manifest].map(|documents| {
        let mut documents = documents.sorted();
        documents.iter_mut().for_each(read_configs);
        documents
    });
    for (rendered, manifest) in rendered.iter().zip(&manifest) {
        ensure!(
            rendered == manifest,
            "the chart has\n{rendered:#}\nand the manifest\n{manifest:#}"
        );
    }
    ensure!(rendered.len() == manifest.len(), "documents");
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        format!("\nversion: {version}\n"),
        format!("\nappVersion: {version}\n"),
    ] {
        ensure!(CHART.contains(&line), "Chart.yaml lacks {line:?}");
    }
    Ok(())
}

/// Replaces JSON in a ConfigMap's texts by what it says.
fn read_configs(document: &mut Value) {
    let data = document.get_mut("data").and_then(Value::as_object_mut);
    for value in data.into_iter().flat_map(|data| data.values_mut()) {
        if let Some(Ok(parsed)) = value.as_str().map(serde_json::from_str) {
            *value = parsed;
        }
    }
}

/// Each value is where it belongs, and what is made with it is as sound as with the defaults.
pub(crate) fn values_come_through() -> Outcome {
    for (values, pointer, expected) in cases() {
        let rendered = render::chart(&values).with_context(|| values.to_string())?;
        rendered.are_typed().with_context(|| values.to_string())?;
        let found = rendered.one("DaemonSet")?.pointer(pointer);
        let found = found.cloned().unwrap_or_default();
        ensure!(found == expected, "{values}: {pointer} is {found}");
    }
    for (values, expected) in networks() {
        let rendered = render::chart(&values).with_context(|| values.to_string())?;
        agent::runs_from(&rendered).with_context(|| values.to_string())?;
        let text = rendered.one("ConfigMap")?["data"]["net-conf.json"].clone();
        let config: Value = serde_json::from_str(text.as_str().context("net-conf.json")?)?;
        ensure!(config == expected, "{values}: {config}");
    }
    Ok(())
}

/// A file with all keys of upstream's chart is taken; what is only for another backend or system is without effect.
pub(crate) fn upstreams_values_are_taken() -> Outcome {
    let values = json!({
        "global": {"imagePullSecrets": null},
        "podCidr": "10.244.0.0/16",
        "podCidrv6": "",
        "flannel": {
            "image": {"repository": "registry.example/flannel", "tag": "v0.28.9"},
            "flannel_cni": {"image": {"repository": "registry.example/flannel-cni-plugin", "tag": "v1.9.1-flannel3"}},
            "cniBinDir": "/opt/cni/bin",
            "cniConfDir": "/etc/cni/net.d",
            "skipCNIConfigInstallation": false,
            "enableNFTables": false,
            "args": ["--ip-masq", "--kube-subnet-mgr"],
            "backend": "vxlan",
            "backendPort": 0,
            "mtu": 1500,
            "vni": 1,
            "GBP": false,
            "directRouting": false,
            "macPrefix": "0E-2A",
            "backendPortv6": 51821,
            "psk": 0,
            "tunnelMode": "separate",
            "keepaliveInterval": 0,
            "cniConf": r#"{"name": "cbr0", "cniVersion": "0.3.1", "plugins": [{"type": "flannel"}]}"#,
            "resources": {"requests": {"cpu": "100m", "memory": "50Mi"}},
            "healthz": {
                "port": 8081,
                "livenessProbe": {"initialDelaySeconds": 10, "periodSeconds": 30},
                "readinessProbe": {"initialDelaySeconds": 5, "periodSeconds": 10},
            },
            "tolerations": [
                {"effect": "NoExecute", "operator": "Exists"},
                {"effect": "NoSchedule", "operator": "Exists"},
            ],
            "nodeSelector": {},
        },
        "netpol": {
            "enabled": true,
            "args": ["--hostname-override=$(MY_NODE_NAME)", "--v=2"],
            "image": {"repository": "registry.example/kube-network-policies", "tag": "v1.0.0"},
        },
    });
    render::chart(&values)?.are_typed()
}

/// What cannot be meant is refused, with the name of the value and what it may be.
pub(crate) fn wrong_values_are_refused() -> Outcome {
    for (values, complaint) in [
        (
            json!({"flannel": {"backend": "wireguard"}}),
            "flannel.backend: wireguard: this agent has vxlan",
        ),
        (
            json!({"flannel": {"fastPath": {"mode": "fast"}}}),
            "'/flannel/fastPath/mode'",
        ),
        (json!({"flannel": {"bakend": "vxlan"}}), "'bakend'"),
        (json!({"flannel": {"vni": 16_777_216}}), "'/flannel/vni'"),
        (
            json!({"flannel": {"capabilities": ["net_admin"]}}),
            "'/flannel/capabilities/0'",
        ),
        (json!({"podCIDR": "10.0.0.0/8"}), "'podCIDR'"),
    ] {
        let error = match render::chart(&values) {
            Ok(_) => bail!("{values} is taken"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(error.contains(complaint), "{values}: {error}");
    }
    Ok(())
}
