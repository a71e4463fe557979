//! The name of a lease in the store: `10.5.1.0-24`, or `10.5.1.0-24&fd00:5::-64` for dual stack.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;

use crate::family::PerFamily;

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

/// The subnets that `key` names.
///
/// # Errors
/// When it does not follow the grammar.
pub fn parse(key: &str) -> Result<PerFamily<IpNet>, Error> {
    let (v4, v6) = match key.split_once('&') {
        Some((v4, v6)) => (v4, Some(v6)),
        None => (key, None),
    };
    let v4 = part::<Ipv4Addr>(key, "subnet", v4, "<a.b.c.d>", V4_LEN_MAX)?;
    let v6 = v6
        .map(|v6| part::<Ipv6Addr>(key, "IPv6 subnet", v6, "<address>", V6_LEN_MAX))
        .transpose()?;
    Ok(PerFamily { v4: Some(v4), v6 })
}

fn part<A: FromStr + Into<IpAddr>>(
    key: &str,
    part: &'static str,
    value: &str,
    form: &str,
    longest: u8,
) -> Result<IpNet, Error> {
    let fail = |rule| Error {
        key: key.to_owned(),
        part,
        value: value.to_owned(),
        rule,
    };
    let subnet = split(value)
        .filter(|(_, len)| *len <= longest)
        .and_then(|(address, len)| IpNet::new(address.parse::<A>().ok()?.into(), len).ok())
        .ok_or_else(|| fail(format!("must be {form}-<length>, length at most {longest}")))?;
    if subnet.addr() != subnet.network() {
        return Err(fail(format!(
            "has host bits; it would be {}",
            one(subnet.trunc())
        )));
    }
    Ok(subnet)
}

fn split(text: &str) -> Option<(&str, u8)> {
    let (address, len) = text.rsplit_once('-')?;
    let digits = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
    Some((address, len.parse().ok().filter(|_| digits)?))
}

/// The key of a lease.
pub fn name(subnets: &PerFamily<IpNet>) -> String {
    let parts: Vec<String> = subnets.values().copied().map(one).collect();
    parts.join("&")
}

fn one(subnet: IpNet) -> String {
    format!("{}-{}", subnet.network(), subnet.prefix_len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_name_a_subnet_of_each_family() {
        assert_eq!(
            parse("10.12.13.0-24&fd00:12:13::-56"),
            Ok(PerFamily {
                v4: Some("10.12.13.0/24".parse().unwrap()),
                v6: Some("fd00:12:13::/56".parse().unwrap()),
            })
        );
        assert_eq!(
            parse("10.5.15.64-26"),
            Ok(PerFamily::v4("10.5.15.64/26".parse().unwrap()))
        );
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
            "10.12.13.0-24&fd00::1-64",
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
        fn every_lease_has_a_name_that_parses(
            address: u32,
            len in 0u8..=V4_LEN_MAX,
            v6 in prop::option::of((any::<u128>(), 0u8..=V6_LEN_MAX)),
        ) {
            let subnet = |address: IpAddr, len| IpNet::new(address, len).unwrap().trunc();
            let subnets = PerFamily {
                v4: Some(subnet(Ipv4Addr::from(address).into(), len)),
                v6: v6.map(|(address, len)| subnet(Ipv6Addr::from(address).into(), len)),
            };
            prop_assert_eq!(parse(&name(&subnets)), Ok(subnets));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}
