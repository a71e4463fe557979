//! The text of a stock node's lease, byte by byte as flanneld writes it.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::netconf::{Kind, NetConf};

/// What a node publishes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published<'a> {
    pub(super) address: Ipv4Addr,
    pub(super) address6: Option<Ipv6Addr>,
    /// MAC addresses of the VXLAN devices, IPv4's and IPv6's.
    pub(super) macs: [&'a str; 2],
}

/// The value for the config's backend. IPv6 is published if the network has it.
pub(super) fn text(config: &NetConf, published: Published<'_>) -> String {
    let ipv6 = config.networks.ipv6.and(published.address6);
    let public6 = ipv6.map_or("null".to_owned(), |address| format!("\"{address}\""));
    let mut text = format!(
        r#"{{"PublicIP":"{}","PublicIPv6":{public6}"#,
        published.address
    );
    if let Some(kind) = config.kind.lease_type() {
        text += &format!(r#","BackendType":"{kind}""#);
    }
    if config.kind == Kind::Vxlan {
        let data = |mac: &str| format!(r#"{{"VNI":{},"VtepMAC":"{mac}"}}"#, config.backend.vni());
        let [mac, mac6] = published.macs;
        text += &format!(r#","BackendData":{}"#, data(mac));
        if ipv6.is_some() {
            text += &format!(r#","BackendV6Data":{}"#, data(mac6));
        }
    }
    text + "}"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What flanneld v0.28.9 wrote, by network config.
    const RECORDED: [(&str, &str, Published<'_>); 6] = [
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#,
            r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:de:d4:9c:3c:d8"}}"#,
            published(["0e:de:d4:9c:3c:d8", ""]),
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":42,"Port":4789,"GBP":true}}"#,
            r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":42,"VtepMAC":"4a:2d:89:fa:b9:d7"}}"#,
            published(["4a:2d:89:fa:b9:d7", ""]),
        ),
        (
            r#"{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan"}}"#,
            r#"{"PublicIP":"192.168.100.2","PublicIPv6":"fd00:100::2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"62:34:4b:1e:ca:fb"},"BackendV6Data":{"VNI":1,"VtepMAC":"2e:e0:dc:ee:f3:c6"}}"#,
            published(["62:34:4b:1e:ca:fb", "2e:e0:dc:ee:f3:c6"]),
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#,
            r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"host-gw"}"#,
            published(["", ""]),
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#,
            r#"{"PublicIP":"192.168.100.2","PublicIPv6":null,"BackendType":"ipip"}"#,
            published(["", ""]),
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#,
            r#"{"PublicIP":"192.168.100.2","PublicIPv6":null}"#,
            published(["", ""]),
        ),
    ];

    const fn published(macs: [&'static str; 2]) -> Published<'static> {
        Published {
            address: Ipv4Addr::new(192, 168, 100, 2),
            address6: Some(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 2)),
            macs,
        }
    }

    #[test]
    fn leases_are_those_that_flanneld_wrote() {
        for (config, value, published) in RECORDED {
            let config = NetConf::parse(config).unwrap();
            assert_eq!(text(&config, published), value);
        }
    }
}
