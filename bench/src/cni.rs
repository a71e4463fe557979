//! Pods, attached as a container runtime and flannel's CNI plugin would do it: the real `bridge` and `host-local`
//! plugins, with the configuration that flannel generates from `subnet.env` (upstream cni-plugin, `flannel_linux.go`),
//! and behind them `portmap` for pods with host ports, as kube-flannel's manifest chains it, and `bandwidth` for pods
//! with limits.
//! A pod can also be attached by flannel's plugin itself, which then runs these.

mod chained;

use std::{
    env, fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use serde::Deserialize;
use serde_json::json;

use crate::{
    error::{Error, Result},
    lease::{Subnet, Subnet6},
    netns::Netns,
    process,
};
pub use chained::{Bandwidth, HostPort, Wishes};

/// Where distributions install the plugins.
const PLUGIN_DIRECTORIES: [&str; 4] = [
    "/usr/lib/cni",
    "/opt/cni/bin",
    "/usr/libexec/cni",
    "/usr/local/lib/cni",
];

/// What the agent tells CNI plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The whole cluster's network.
    pub network: Subnet,
    /// The node's subnet.
    pub subnet: Subnet,
    /// The same for IPv6, in dual stack.
    pub ipv6: Option<Env6>,
    /// MTU of pods, in bytes.
    pub mtu: u32,
    /// Whether the agent masquerades traffic that leaves the network.
    pub ip_masq: bool,
}

/// The IPv6 lines of `subnet.env`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Env6 {
    /// The whole cluster's network.
    pub network: Subnet6,
    /// The node's subnet.
    pub subnet: Subnet6,
}

impl FromStr for SubnetEnv {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let value = |name: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once('='));
            pairs
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
                .ok_or_else(|| bad(name, "missing", text))
        };
        let ipv6 = match (value("FLANNEL_IPV6_NETWORK"), value("FLANNEL_IPV6_SUBNET")) {
            (Err(_), Err(_)) => None,
            (network, subnet) => Some(Env6 {
                network: network?.parse()?,
                subnet: subnet?.parse()?,
            }),
        };
        Ok(Self {
            network: value("FLANNEL_NETWORK")?.parse()?,
            subnet: value("FLANNEL_SUBNET")?.parse()?,
            ipv6,
            mtu: value("FLANNEL_MTU")?
                .parse()
                .map_err(|_| bad("FLANNEL_MTU", "not a number", text))?,
            ip_masq: value("FLANNEL_IPMASQ")?
                .parse()
                .map_err(|_| bad("FLANNEL_IPMASQ", "not a boolean", text))?,
        })
    }
}

fn bad(field: &str, reason: &str, text: &str) -> Error {
    Error::Parse {
        what: format!("{field} in subnet.env"),
        reason: reason.to_owned(),
        text: text.to_owned(),
    }
}

impl fmt::Display for SubnetEnv {
    /// As flanneld writes the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "FLANNEL_NETWORK={}", self.network)?;
        writeln!(
            f,
            "FLANNEL_SUBNET={}/{}",
            self.subnet.host(1),
            self.subnet.length
        )?;
        if let Some(Env6 { network, subnet }) = self.ipv6 {
            writeln!(f, "FLANNEL_IPV6_NETWORK={network}")?;
            writeln!(
                f,
                "FLANNEL_IPV6_SUBNET={}/{}",
                subnet.host(1),
                subnet.length
            )?;
        }
        writeln!(f, "FLANNEL_MTU={}", self.mtu)?;
        writeln!(f, "FLANNEL_IPMASQ={}", self.ip_masq)
    }
}

/// The configuration that flannel's CNI plugin hands to `bridge`, for the kube-flannel manifest's `cni-conf.json`.
/// `data_directory` is where `host-local` remembers addresses.
pub fn delegate_config(env: &SubnetEnv, data_directory: &Path) -> serde_json::Value {
    let mut ranges = vec![json!([{ "subnet": env.subnet.to_string() }])];
    let mut routes = vec![json!({ "dst": env.network.to_string() })];
    if let Some(Env6 { network, subnet }) = env.ipv6 {
        ranges.push(json!([{ "subnet": subnet.to_string() }]));
        routes.push(json!({ "dst": network.to_string() }));
    }
    json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "bridge",
        "hairpinMode": true,
        "ipMasq": !env.ip_masq,
        "isDefaultGateway": true,
        "isGateway": true,
        "mtu": env.mtu,
        "ipam": {
            "type": "host-local",
            "ranges": ranges,
            "routes": routes,
            "dataDir": data_directory,
        },
    })
}

/// The network config of kube-flannel's manifest for flannel's own CNI plugin, with all paths below a node's directory.
/// `data_directory` is where `host-local` remembers addresses.
pub fn flannel_config(node_directory: &Path, data_directory: &Path) -> serde_json::Value {
    json!({
        "cniVersion": "0.3.1",
        "name": "cbr0",
        "type": "flannel",
        "subnetFile": node_directory.join("subnet.env"),
        "dataDir": node_directory.join("flannel"),
        "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        "ipam": { "dataDir": data_directory },
    })
}

/// How a pod is attached.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// The plugin that attaches: `bridge`, or the path of flannel's own.
    pub plugin: PathBuf,
    /// What it is told, see [`delegate_config`] and [`flannel_config`].
    pub network: serde_json::Value,
    /// What the plugins behind it are to do.
    pub wishes: Wishes,
}

/// What a plugin answers to ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, in dual stack.
    pub address6: Option<Ipv6Addr>,
    /// Its default gateway, the bridge's address.
    pub gateway: Ipv4Addr,
    /// MAC address of the pod's `eth0`.
    pub mac: String,
    /// Name of the veth's end on the node.
    pub host_device: String,
}

/// Attaches the pod's namespace to the node's bridge by the plugin that `config` names, and has the plugins behind it do
/// what the pod wishes.
///
/// # Errors
/// What the plugins report.
pub fn add(node: &Netns, pod: &Netns, config: &PodConfig) -> Result<Attachment> {
    let first = invoke("ADD", &config.plugin, node, pod, &config.network)?;
    let mut result = first.clone();
    for (plugin, chained) in config.wishes.chain(&config.network) {
        let chained = chained::after(chained, &result);
        result = invoke("ADD", Path::new(plugin), node, pod, &chained)?;
    }
    parse_result(&first)
}

/// Has the plugins undo what they have done, the last first: the address is free then.
///
/// # Errors
/// What the plugins report.
pub fn delete(node: &Netns, pod: &Netns, config: &PodConfig) -> Result<()> {
    for (plugin, chained) in config.wishes.chain(&config.network).into_iter().rev() {
        invoke("DEL", Path::new(plugin), node, pod, &chained)?;
    }
    invoke("DEL", &config.plugin, node, pod, &config.network).map(drop)
}

fn invoke(
    operation: &str,
    plugin: &Path,
    node: &Netns,
    pod: &Netns,
    config: &serde_json::Value,
) -> Result<String> {
    let directory = plugin_directory()?;
    // A path that is absolute stays as it is.
    let mut command = Command::new(directory.join(plugin));
    command
        .env("CNI_COMMAND", operation)
        .env("CNI_CONTAINERID", pod.name())
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", &directory);
    process::run_command(Some(node), &mut command, &config.to_string())
}

/// The directory of the CNI plugins: the first of `CNI_PATH` and the usual places that holds `bridge`.
///
/// # Errors
/// If there is none.
pub fn plugin_directory() -> Result<PathBuf> {
    let chosen = env::var_os("CNI_PATH")
        .map(|paths| env::split_paths(&paths).collect::<Vec<_>>())
        .unwrap_or_default();
    let mut candidates = chosen
        .into_iter()
        .chain(PLUGIN_DIRECTORIES.map(PathBuf::from));
    candidates.find(|directory| directory.join("bridge").exists()).ok_or_else(|| {
        Error::Unsupported(format!(
            "no CNI plugin `bridge` in CNI_PATH or {}: install the package containernetworking-plugins",
            PLUGIN_DIRECTORIES.join(", ")
        ))
    })
}

fn parse_result(text: &str) -> Result<Attachment> {
    #[derive(Deserialize)]
    struct Answer {
        interfaces: Vec<Interface>,
        ips: Vec<Ip>,
    }
    #[derive(Deserialize)]
    struct Interface {
        name: String,
        mac: String,
        #[serde(default)]
        sandbox: String,
    }
    #[derive(Deserialize)]
    struct Ip {
        address: String,
        gateway: IpAddr,
    }
    let bad = |reason: &str| Error::Parse {
        what: "result of the CNI plugin".to_owned(),
        reason: reason.to_owned(),
        text: text.to_owned(),
    };
    let answer: Answer = serde_json::from_str(text).map_err(|error| bad(&error.to_string()))?;
    let inside = answer
        .interfaces
        .iter()
        .find(|interface| !interface.sandbox.is_empty());
    let host = answer
        .interfaces
        .iter()
        .find(|interface| interface.sandbox.is_empty() && interface.name != "cni0");
    let (mut ipv4, mut address6) = (None, None);
    for ip in &answer.ips {
        let address = ip.address.split('/').next().unwrap_or_default();
        match (address.parse(), ip.gateway) {
            (Ok(IpAddr::V4(address)), IpAddr::V4(gateway)) => ipv4 = Some((address, gateway)),
            (Ok(IpAddr::V6(address)), IpAddr::V6(_)) => address6 = Some(address),
            _ => return Err(bad("an address and its gateway are not of one family")),
        }
    }
    let (address, gateway) = ipv4.ok_or_else(|| bad("no IPv4 address"))?;
    Ok(Attachment {
        address,
        address6,
        gateway,
        mac: inside
            .ok_or_else(|| bad("no interface in the pod"))?
            .mac
            .clone(),
        host_device: host
            .ok_or_else(|| bad("no interface on the node"))?
            .name
            .clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.9.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn subnet_env_round_trips() {
        let env: SubnetEnv = ENV.parse().unwrap();
        assert_eq!(
            (env.subnet.to_string().as_str(), env.mtu, env.ip_masq),
            ("10.5.9.0/24", 1450, true)
        );
        assert_eq!(env.to_string(), ENV);
        let error = ENV.replace("1450", "big").parse::<SubnetEnv>().unwrap_err();
        assert!(error.to_string().contains("FLANNEL_MTU"), "{error}");
        assert!(
            "FLANNEL_NETWORK=10.5.0.0/16\n"
                .parse::<SubnetEnv>()
                .unwrap_err()
                .to_string()
                .contains("FLANNEL_SUBNET")
        );
    }

    #[test]
    fn dual_stack_subnet_env_round_trips() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.91.1/24\nFLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:16::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let env: SubnetEnv = text.parse().unwrap();
        assert_eq!(env.to_string(), text);
        let config = delegate_config(&env, Path::new("/data"));
        assert_eq!(
            config["ipam"]["ranges"][1],
            json!([{ "subnet": "fd00:5:0:16::/64" }])
        );
        assert_eq!(config["ipam"]["routes"][1], json!({ "dst": "fd00:5::/48" }));
        let half = text.replace("FLANNEL_IPV6_SUBNET=fd00:5:0:16::1/64\n", "");
        assert!(half.parse::<SubnetEnv>().is_err());
    }

    #[test]
    fn delegate_config_is_the_recorded_one() {
        let recorded = r#"{"cniVersion":"0.3.1","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.5.9.0/24"}]],"routes":[{"dst":"10.5.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#;
        let mut ours = delegate_config(&ENV.parse().unwrap(), Path::new("/data"));
        ours["ipam"]
            .as_object_mut()
            .unwrap()
            .remove("dataDir")
            .unwrap();
        assert_eq!(
            ours,
            serde_json::from_str::<serde_json::Value>(recorded).unwrap()
        );
    }

    #[test]
    fn recorded_result_is_understood() {
        let text = r#"{"cniVersion":"0.3.1","interfaces":[{"name":"cni0","mac":"5a:f7:16:23:9e:3c"},
            {"name":"vetha4719a2d","mac":"26:c3:ae:45:e1:df"},
            {"name":"eth0","mac":"1e:22:ed:af:00:f4","sandbox":"/run/netns/c1a"}],
            "ips":[{"version":"4","interface":2,"address":"10.5.21.2/24","gateway":"10.5.21.1"}],
            "routes":[{"dst":"10.5.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.5.21.1"}],"dns":{}}"#;
        let expected = Attachment {
            address: Ipv4Addr::new(10, 5, 21, 2),
            address6: None,
            gateway: Ipv4Addr::new(10, 5, 21, 1),
            mac: "1e:22:ed:af:00:f4".to_owned(),
            host_device: "vetha4719a2d".to_owned(),
        };
        assert_eq!(parse_result(text).unwrap(), expected);
        assert!(parse_result("{}").is_err());
    }
}
