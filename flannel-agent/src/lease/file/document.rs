//! The lease file: the network config and all leases in one JSON document.
//!
//! ```json
//! {"config": {"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}},
//!  "leases": {"10.5.34.0-24": {"PublicIP": "192.168.100.1", "BackendType": "host-gw"}}}
//! ```
//!
//! The config, the leases' names and their values are those of etcd, to the letter; only SubnetLen, SubnetMin and
//! SubnetMax have no effect, because whoever writes the file assigns the subnets. A lease that is not understood
//! concerns that lease alone, as a key in etcd does; anything else that is wrong concerns the file, which is then not
//! used at all: a slip of an editor must not withdraw a fleet's routes.

use std::{collections::BTreeMap, fmt, fs, io, path::Path};

use serde::{
    Deserialize,
    de::{Deserializer, Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    lease::{self, Entry},
    netconf::{self, NetworkConfig},
};

/// Why a lease file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is not JSON of the expected shape.
    #[error(
        "{0}: it must be {{\"config\": {{…}}, \"leases\": {{\"10.5.34.0-24\": {{\"PublicIP\": …}}, …}}}}"
    )]
    Json(#[from] serde_json::Error),
    /// The network config in it breaks a rule.
    #[error("config: {0}")]
    Config(#[from] netconf::Error),
    /// The network config in it enables IPv6 alone.
    #[error(
        "config: EnableIPv4 = false: names of leases need an IPv4 subnet; enable it beside IPv6"
    )]
    NoIpv4,
}

/// What a lease file says.
#[derive(Debug)]
pub struct Document {
    /// The network config.
    pub config: NetworkConfig,
    /// All leases, by name.
    pub leases: BTreeMap<String, Entry>,
}

/// The document as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw<'a> {
    #[serde(borrow)]
    config: &'a RawValue,
    #[serde(borrow)]
    leases: Values<'a>,
}

/// The leases' values; a name that is there twice is an error, because nobody can tell which one was meant.
struct Values<'a>(BTreeMap<String, &'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Values<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = BTreeMap<String, &'de RawValue>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a lease under each subnet's name")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut values = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if values.insert(name.clone(), value).is_some() {
                        return Err(A::Error::custom(format!(
                            "leases: {name} is there more than once: leave one"
                        )));
                    }
                }
                Ok(values)
            }
        }
        deserializer.deserialize_map(Names).map(Self)
    }
}

impl Document {
    /// Reads a lease file.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::parse(&fs::read(path)?)
    }

    /// Reads a lease file's content.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let raw: Raw<'_> = serde_json::from_slice(json)?;
        let config = NetworkConfig::parse_assigned(raw.config.get().as_bytes())?;
        if config.pools.v4.is_none() {
            return Err(Error::NoIpv4);
        }
        let leases = raw.leases.0.into_iter().map(|(name, value)| {
            let entry = lease::entry(&name, value.get().as_bytes());
            (name, entry)
        });
        Ok(Self {
            config,
            leases: leases.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    const LEASE: &str = r#"{"PublicIP":"192.168.100.1","BackendType":"host-gw"}"#;

    #[test]
    fn a_file_says_what_etcd_would() {
        let text = format!(
            r#"{{"config": {CONFIG},
                 "leases": {{"10.5.34.0-24": {LEASE}, "garbage": {{}}, "10.5.35.0-24": {{"PublicIP": 7}}}}}}"#
        );
        let document = Document::parse(text.as_bytes()).unwrap();
        assert_eq!(
            document.config,
            NetworkConfig::parse_assigned(CONFIG.as_bytes()).unwrap()
        );
        assert_eq!(
            document.leases["10.5.34.0-24"],
            lease::entry("10.5.34.0-24", LEASE.as_bytes())
        );
        let skipped: Vec<&str> = document
            .leases
            .iter()
            .filter_map(|(name, entry)| entry.is_err().then_some(name.as_str()))
            .collect();
        assert_eq!(skipped, ["10.5.35.0-24", "garbage"]);
    }

    #[test]
    fn a_file_that_is_wrong_as_a_whole_says_where() {
        for (text, part) in [
            (String::new(), "EOF"),
            (format!(r#"{{"config": {CONFIG}}}"#), "missing field `leases`"),
            (r#"{"leases": {}}"#.to_owned(), "missing field `config`"),
            (
                format!(r#"{{"config": {CONFIG}, "leases": [{LEASE}]}}"#),
                "an object with a lease under each subnet's name",
            ),
            (
                format!(r#"{{"config": {CONFIG}, "leases": {{}}, "lease": {{}}}}"#),
                "unknown field `lease`",
            ),
            (
                format!(r#"{{"config": {CONFIG}, "config": {CONFIG}, "leases": {{}}}}"#),
                "duplicate field `config`",
            ),
            (
                format!(
                    r#"{{"config": {CONFIG}, "leases": {{"10.5.34.0-24": {LEASE}, "10.5.34.0-24": {LEASE}}}}}"#
                ),
                "leases: 10.5.34.0-24 is there more than once: leave one at line 1",
            ),
            (
                r#"{"config": {"Network": "here"}, "leases": {}}"#.to_owned(),
                "config: Network = \"here\": ",
            ),
            (
                r#"{"config": {"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "host-gw"}}, "leases": {}}"#
                    .to_owned(),
                "config: EnableIPv4 = false: ",
            ),
        ] {
            let error = Document::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
