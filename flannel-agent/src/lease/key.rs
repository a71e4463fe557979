//! The name of a lease in the store: `10.5.1.0-24`, or `10.5.1.0-24&fd00:5::-64` for dual stack.

use std::net::Ipv6Addr;

use ipnet::{Ipv4Net, Ipv6Net};

/// Longest IPv4 prefix that upstream's grammar can name.
const V4_LEN_MAX: u8 = 31;
/// Longest IPv6 prefix that upstream's grammar can name.
const V6_LEN_MAX: u8 = 127;

/// Why a key names no lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key = {key}: {part} = {value}: {rule}")]
pub struct Error {
    /// The last part of the key.
    key: String,
    /// Which part of it.
    part: &'static str,
    /// What that part says.
    value: String,
    /// What it should be.
    rule: String,
}

/// The IPv4 subnet that `key` names; its IPv6 part, if there is one, is checked and left out.
///
/// # Errors
/// When it does not follow the grammar.
pub fn parse(key: &str) -> Result<Ipv4Net, Error> {
    let (v4, v6) = match key.split_once('&') {
        Some((v4, v6)) => (v4, Some(v6)),
        None => (key, None),
    };
    let fail = |part, value: &str, rule: String| Error {
        key: key.to_owned(),
        part,
        value: value.to_owned(),
        rule,
    };
    if let Some(v6) = v6 {
        split(v6)
            .filter(|(_, len)| *len <= V6_LEN_MAX)
            .and_then(|(address, len)| Ipv6Net::new(address.parse::<Ipv6Addr>().ok()?, len).ok())
            .ok_or_else(|| {
                fail(
                    "IPv6 subnet",
                    v6,
                    format!("must be <address>-<length>, length at most {V6_LEN_MAX}"),
                )
            })?;
    }
    let subnet = split(v4)
        .filter(|(_, len)| *len <= V4_LEN_MAX)
        .and_then(|(address, len)| Ipv4Net::new(address.parse().ok()?, len).ok())
        .ok_or_else(|| {
            fail(
                "subnet",
                v4,
                format!("must be <a.b.c.d>-<length>, length at most {V4_LEN_MAX}"),
            )
        })?;
    if subnet.addr() != subnet.network() {
        return Err(fail(
            "subnet",
            v4,
            format!("has host bits; it would be {}", name(subnet.trunc())),
        ));
    }
    Ok(subnet)
}

fn split(text: &str) -> Option<(&str, u8)> {
    let (address, len) = text.rsplit_once('-')?;
    let digits = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
    Some((address, len.parse().ok().filter(|_| digits)?))
}

/// The key of a subnet.
pub fn name(subnet: Ipv4Net) -> String {
    format!("{}-{}", subnet.network(), subnet.prefix_len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dual_stack_keys_count_for_their_ipv4_part() {
        assert_eq!(
            parse("10.12.13.0-24&fd00:12:13::-56"),
            Ok("10.12.13.0/24".parse().unwrap())
        );
        assert_eq!(parse("10.5.15.64-26"), Ok("10.5.15.64/26".parse().unwrap()));
    }

    #[test]
    fn malformed_keys_are_refused_with_the_part_named() {
        for key in [
            "",
            "garbage",
            "10.12.13.0",
            "10.12.13.0-",
            "10.12.13.0-32",
            "10.12.13.0-+4",
            "10.12.13.1-24",
            "10.12.13-24",
            "10.12.13.0/24",
            "300.12.13.0-24",
            "10.12.13.0-24-",
            "10.12.13.0-24&",
            "10.12.13.0-24&fd00::",
            "10.12.13.0-24&fd00::-128",
            "10.12.13.0-24&10.1.0.0-16",
            "fd00:12:13::-56",
            "10.12.13.0-24/extra",
        ] {
            let error = parse(key).expect_err(key);
            assert_eq!(error.key, key);
            assert!(!error.rule.is_empty());
        }
        assert_eq!(
            parse("10.12.13.0-33").unwrap_err().to_string(),
            "key = 10.12.13.0-33: subnet = 10.12.13.0-33: must be <a.b.c.d>-<length>, length at most 31"
        );
    }

    proptest! {
        #[test]
        fn every_subnet_has_a_name_that_parses(address: u32, len in 0u8..=V4_LEN_MAX) {
            let subnet = Ipv4Net::new(address.into(), len).unwrap().trunc();
            prop_assert_eq!(parse(&name(subnet)), Ok(subnet));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}
