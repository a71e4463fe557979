//! The config for the plugin that does the work: upstream's `doCmdAdd` and `getDelegateIPAM` (cni-plugin
//! `flannel_linux.go`), to the byte. A pure function.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{env::SubnetEnv, error::Error, go_json, netconf::NetConf};

/// The delegate, unless the config names another.
const DEFAULT_TYPE: &str = "bridge";
/// The address plugin, unless the config names another.
const DEFAULT_IPAM: &str = "host-local";
/// This plugin's own name, which a delegate must not have.
const OWN_TYPE: &str = "flannel";
/// A range for DEL when nobody knows the real one. host-local wants some range, and releases by container and interface
/// whatever it is. TEST-NET-1 (RFC 5737): nobody's.
const ANY_RANGE: &str = "192.0.2.0/24";

/// A config for the delegate.
#[derive(Clone, Debug, PartialEq)]
pub struct Delegate {
    /// The plugin.
    pub plugin: String,
    fields: BTreeMap<String, Field>,
}

/// A field of the config.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum Field {
    Json(Value),
    Ipam(BTreeMap<String, IpamField>),
}

/// A field of `ipam`. Go writes maps by key but routes by their declaration, so these are kept apart.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
enum IpamField {
    Json(Value),
    Routes(Vec<Route>),
}

/// A route, in the order of `types.Route` of the reference library.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Route {
    /// The destination; host bits stay.
    dst: IpNet,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "gateway"
    )]
    gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    advmss: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
}

/// Go reads an empty text as no address.
fn gateway<'de, D: serde::Deserializer<'de>>(decoder: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(decoder)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(serde::de::Error::custom))
        .transpose()
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Route {
    fn to(dst: IpNet) -> Self {
        Self {
            dst,
            gw: None,
            mtu: 0,
            advmss: 0,
            priority: 0,
            table: None,
            scope: None,
        }
    }
}

impl Delegate {
    /// The config for a network and a node.
    ///
    /// # Errors
    /// If the network config's `delegate` or `ipam` breaks a rule, in upstream's order and words.
    pub fn new(conf: &NetConf, env: &SubnetEnv) -> Result<Self, Error> {
        let mut fields = checked(conf)?;
        let default = |fields: &mut Map<String, Value>, key: &str, value: Value| {
            fields.entry(key).or_insert(value);
        };
        default(&mut fields, "ipMasq", json!(!env.ip_masq));
        default(&mut fields, "mtu", json!(env.mtu));
        let ranges = env.subnets.values().map(ToString::to_string).collect();
        let networks = env.networks.values().flatten();
        Self::assemble(
            conf,
            fields,
            ranges,
            networks.map(|net| Route::to(*net)).collect(),
        )
    }

    /// A config that is good for DEL alone, when neither a state file nor `subnet.env` says what ADD was told: ranges are
    /// those of the addresses in `prevResult`, or any.
    ///
    /// # Errors
    /// As [`Delegate::new`].
    pub fn guess(conf: &NetConf) -> Result<Self, Error> {
        let addresses = conf
            .previous_result
            .as_ref()
            .and_then(|result| result["ips"].as_array());
        let nets = addresses.into_iter().flatten().filter_map(|ip| {
            let net = ip["address"].as_str()?.parse::<IpNet>().ok()?;
            Some(net.trunc().to_string())
        });
        let mut ranges: Vec<String> = nets.collect();
        if ranges.is_empty() {
            ranges.push(ANY_RANGE.to_owned());
        }
        Self::assemble(conf, checked(conf)?, ranges, Vec::new())
    }

    fn assemble(
        conf: &NetConf,
        mut fields: Map<String, Value>,
        ranges: Vec<String>,
        networks: Vec<Route>,
    ) -> Result<Self, Error> {
        let plugin = match fields.entry("type").or_insert(DEFAULT_TYPE.into()) {
            Value::String(plugin) => plugin.clone(),
            // `checked` has seen to it.
            other => other.to_string(),
        };
        if plugin == DEFAULT_TYPE {
            fields.entry("isGateway").or_insert(Value::Bool(true));
        }
        fields.insert("name".into(), conf.name.clone().into());
        if !conf.version.is_empty() {
            fields.insert("cniVersion".into(), conf.version.clone().into());
        }
        if let Some(config) = &conf.runtime_config {
            fields.insert("runtimeConfig".into(), config.clone().into());
        }
        if let Some(result) = &conf.previous_result {
            fields.insert("prevResult".into(), result.clone());
        }
        let mut fields: BTreeMap<_, _> = fields
            .into_iter()
            .map(|(key, value)| (key, Field::Json(value)))
            .collect();
        fields.insert("ipam".into(), Field::Ipam(ipam(conf, ranges, networks)?));
        Ok(Self { plugin, fields })
    }

    /// The same with another field.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.fields.insert(key.to_owned(), Field::Json(value));
        self
    }

    /// The config's text.
    pub fn to_json(&self) -> Vec<u8> {
        go_json::to_vec(&self.fields)
    }
}

/// A list of objects as Go's decoder takes them: keys in any case, `null` as if absent.
fn go_fields(list: &Value) -> Value {
    let Value::Array(members) = list else {
        return list.clone();
    };
    let member = |member: &Value| match member {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.to_ascii_lowercase(), value.clone()))
            .collect(),
        other => other.clone(),
    };
    members.iter().map(member).collect()
}

/// `delegate` of the network config, if it breaks no rule.
fn checked(conf: &NetConf) -> Result<Map<String, Value>, Error> {
    let fields = conf.delegate.clone().unwrap_or_default();
    let kind = fields.get("type");
    let problem = if kind.is_some_and(|kind| !kind.is_string()) {
        "'delegate' dictionary, if present, must have (string) 'type' field"
    } else if fields.contains_key("name") {
        "'delegate' dictionary must not have 'name' field, it'll be set by flannel"
    } else if fields.contains_key("ipam") {
        "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel"
    } else if kind.is_some_and(|kind| kind == OWN_TYPE) {
        "'delegate' dictionary must not have 'flannel' as its 'type' field: it would wait for itself"
    } else {
        return Ok(fields);
    };
    Err(Error::Config {
        problem: problem.to_owned(),
        details: format!("delegate = {}", Value::Object(fields)),
    })
}

/// `ipam` of the network config, completed.
fn ipam(
    conf: &NetConf,
    ranges: Vec<String>,
    networks: Vec<Route>,
) -> Result<BTreeMap<String, IpamField>, Error> {
    let mut fields = conf.ipam.clone().unwrap_or_default();
    fields.entry("type").or_insert(DEFAULT_IPAM.into());
    let ranges: Vec<Value> = ranges
        .into_iter()
        .map(|subnet| json!([{ "subnet": subnet }]))
        .collect();
    fields.insert("ranges".into(), ranges.into());
    let mut routes = match fields.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(routes) => Vec::<Route>::deserialize(go_fields(&routes)).map_err(|error| Error::Config {
            problem: format!(
                "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: {error}"
            ),
            details: format!("ipam.routes = {routes}"),
        })?,
    };
    routes.extend(networks);
    let mut ipam: BTreeMap<_, _> = fields
        .into_iter()
        .map(|(key, value)| (key, IpamField::Json(value)))
        .collect();
    ipam.insert("routes".into(), IpamField::Routes(routes));
    Ok(ipam)
}
