//! `subnet.env`, as the agent reads what an earlier run wrote, and as the CNI plugin reads it.

use flannel_agent::{
    cni::env::{self, SubnetEnv},
    family::{Family, PerFamily},
    subnet_file::{self, Previous, SubnetFile},
};

/// What is understood has no host bits, is of its family, and is written so that both readers find it again.
pub(crate) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let previous = subnet_file::parse(&text);
    for of in [&previous.networks, &previous.subnets] {
        for (family, net) in of.iter() {
            assert_eq!(Family::of_net(net), family);
            assert_eq!(net.addr(), net.network());
        }
    }
    written_is_read(&previous);
    match SubnetEnv::parse(&text, "subnet.env") {
        Ok(env) => {
            assert!(!env.subnets.is_empty());
            assert!(env.networks.values().all(|list| !list.is_empty()));
        }
        Err(error @ env::Error::Missing { .. }) => {
            assert!(
                error
                    .to_string()
                    .starts_with("subnet.env is missing FLANNEL_")
            );
        }
        Err(error) => assert!(
            error.to_string().starts_with("subnet.env: FLANNEL_"),
            "{error}"
        ),
    }
}

fn written_is_read(previous: &Previous) {
    let both = |of: &PerFamily<ipnet::IpNet>| {
        of.filter_map(|family, net| {
            let both =
                previous.networks.get(family).is_some() && previous.subnets.get(family).is_some();
            both.then_some(*net)
        })
    };
    let file = SubnetFile {
        networks: both(&previous.networks),
        subnets: both(&previous.subnets),
        mtu: 1450,
        ip_masq: true,
    };
    let text = file.text();
    let again = subnet_file::parse(&text);
    assert_eq!(
        (again.networks, again.subnets),
        (file.networks, file.subnets),
        "{text}"
    );
    match SubnetEnv::parse(&text, "subnet.env") {
        Ok(env) => {
            assert_eq!(env.subnets, file.subnets, "{text}");
            assert_eq!(
                env.networks,
                file.networks.map(|_, net| vec![*net]),
                "{text}"
            );
            assert_eq!((env.mtu, env.ip_masq), (file.mtu, file.ip_masq));
        }
        Err(error) => assert!(file.subnets.is_empty(), "{error}"),
    }
}
