//! The network config on standard input, as upstream decodes it: keys in any case, `null` as if absent, no type coerced,
//! unknown keys ignored (cni-plugin `flannel.go`, `NetConf`).

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{error::Error, request::is_plain_name};

/// Where the agent writes what pods need to know.
const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Where attachments are remembered.
const DEFAULT_DATA_DIRECTORY: &str = "/var/lib/cni/flannel";
/// The key with which the runtime tells GC what is still there (specification 1.1, section 2).
pub const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// The network config.
#[derive(Clone, Debug, PartialEq)]
pub struct NetConf {
    /// The network's name.
    pub name: String,
    /// `cniVersion`; empty if there is none.
    pub version: String,
    /// `subnetFile`.
    pub subnet_file: PathBuf,
    /// `dataDir`.
    pub data_directory: PathBuf,
    /// `delegate`: further keys for the delegate's config.
    pub delegate: Option<Map<String, Value>>,
    /// `ipam`: further keys for the address plugin's.
    pub ipam: Option<Map<String, Value>>,
    /// `runtimeConfig`: what the runtime adds for this attachment.
    pub runtime_config: Option<Map<String, Value>>,
    /// `prevResult`: what plugins before this one made, or what ADD has made.
    pub previous_result: Option<Value>,
    /// The attachments that are still there; none but for GC.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

/// An attachment that GC is to leave alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// `CNI_CONTAINERID` of its ADD.
    #[serde(rename = "containerID")]
    pub container: String,
    /// `CNI_IFNAME` of its ADD.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl NetConf {
    /// Understands the config.
    ///
    /// # Errors
    /// If it is no JSON object, a field has another type than it should, or the name is missing or none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let object =
            serde_json::from_slice(bytes).map_err(|error| Error::NotJson(error.to_string()))?;
        let mut fields = Fields(object);
        let conf = Self {
            name: fields.text("name")?.unwrap_or_default(),
            version: fields.text("cniVersion")?.unwrap_or_default(),
            subnet_file: fields.path("subnetFile", DEFAULT_SUBNET_FILE)?,
            data_directory: fields.path("dataDir", DEFAULT_DATA_DIRECTORY)?,
            delegate: fields.object("delegate")?,
            ipam: fields.object("ipam")?,
            runtime_config: fields.object("runtimeConfig")?,
            previous_result: fields.object("prevResult")?.map(Value::Object),
            valid_attachments: fields.attachments()?,
        };
        let problem = if conf.name.is_empty() {
            "missing network name"
        } else if !is_plain_name(&conf.name) {
            "invalid characters found in network name"
        } else {
            return Ok(conf);
        };
        Err(Error::Config {
            problem: problem.to_owned(),
            details: conf.name,
        })
    }
}

/// The fields that are left of an object.
struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a field: the one that is spelled so, else one that differs in case only, as Go's decoder does.
    fn take(&mut self, name: &str) -> Option<Value> {
        let spelled = |key: &&String| key.eq_ignore_ascii_case(name);
        let key = if self.0.contains_key(name) {
            name.to_owned()
        } else {
            self.0.keys().find(spelled)?.clone()
        };
        self.0.remove(&key).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, &other, "a string")),
        }
    }

    fn path(&mut self, name: &str, default: &str) -> Result<PathBuf, Error> {
        let text = self.text(name)?;
        Ok(text.unwrap_or_else(|| default.to_owned()).into())
    }

    fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(wrong_type(name, &other, "an object")),
        }
    }

    /// Go writes an empty list that was never filled as `null`.
    fn attachments(&mut self) -> Result<Option<Vec<ValidAttachment>>, Error> {
        match self.0.remove(VALID_ATTACHMENTS) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(Vec::new())),
            Some(list) => serde_json::from_value(list)
                .map(Some)
                .map_err(|error| Error::NotJson(format!("{VALID_ATTACHMENTS}: {error}"))),
        }
    }
}

fn wrong_type(name: &str, value: &Value, expected: &str) -> Error {
    Error::NotJson(format!("{name} = {value}: must be {expected}"))
}
