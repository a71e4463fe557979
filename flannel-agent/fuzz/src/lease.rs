//! Names and values of leases, as they lie in etcd, and files of them.

use flannel_agent::lease::{self, Attributes, file::Document, key, value};

/// A key names subnets that have one name only, or its error says what is wrong with which part.
pub(crate) fn key(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match key::parse(&text) {
        Ok(subnets) => {
            let name = key::name(&subnets);
            assert_eq!(key::parse(&name), Ok(subnets), "{name}");
            for net in subnets.values() {
                assert_eq!(net.addr(), net.network(), "{net} has host bits");
            }
            if name != text {
                // Other spellings of the same: a length with zeros before it, an IPv6 address written otherwise.
                let zeros = text.replace("-0", "-").replace("-0", "-");
                assert!(
                    text.contains('&') || zeros.len() < text.len(),
                    "{text}: {name}"
                );
            }
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with(&format!("key = {text}: ")), "{error}");
            assert!(
                ["subnet = ", "IPv6 subnet = "]
                    .iter()
                    .any(|part| error.contains(part)),
                "{error}"
            );
        }
    }
}

/// A value that is understood is written as one that says the same, or its error names the field.
pub(crate) fn value(bytes: &[u8]) {
    match Attributes::parse(bytes) {
        Ok(attributes) => {
            let json = attributes.to_json();
            assert_eq!(Attributes::parse(json.as_bytes()), Ok(attributes), "{json}");
        }
        Err(value::Error::Json { reason, .. }) => assert!(!reason.is_empty()),
        Err(error @ value::Error::Field { .. }) => {
            let error = error.to_string();
            let fields = [
                "PublicIP = ",
                "PublicIPv6 = ",
                "BackendData",
                "BackendV6Data",
            ];
            assert!(
                fields.iter().any(|field| error.starts_with(field)) && error.contains(": must "),
                "{error}"
            );
        }
    }
}

/// A file's leases are those that their names and values are in etcd, or its error says what is wrong with all of it.
pub(crate) fn file(bytes: &[u8]) {
    match Document::parse(bytes) {
        Ok(document) => {
            assert!(document.config.pools.v4.is_some());
            for (name, entry) in document.leases {
                match entry {
                    Ok(found) => {
                        let json = found.attributes.to_json();
                        assert_eq!(lease::entry(&name, json.as_bytes()), Ok(found), "{name}");
                    }
                    Err(reason) => assert!(reason.contains(&name), "{name}: {reason}"),
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
