//! How a node claims a subnet: adopt its own key, else its previous subnet, else a free one.
//!
//! The choice is pure; every write that follows is a compare-and-swap, and one that fails means to look again.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use etcd_client::KeyValue;
use ipnet::Ipv4Net;

use super::store::{Error, Store};
use crate::lease::{Attributes, OwnLease, Request, alloc, key};

/// Life of a lease without renewal, in seconds; upstream's.
pub const LEASE_TTL: i64 = 86_400;

/// A lease key that can be understood, whatever its value says.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The full key.
    pub key: String,
    /// The subnet that it names.
    pub subnet: Ipv4Net,
    /// The node that it belongs to, if the value can be understood.
    pub node: Option<Ipv4Addr>,
    /// The value.
    pub value: Vec<u8>,
    /// Revision of its last change.
    pub revision: i64,
    /// The etcd lease that it hangs on; 0 for a reservation.
    pub lease: i64,
}

impl Claim {
    /// Reads a claim from a listed key; none if the key names no subnet.
    pub fn read(prefix: &str, entry: &KeyValue) -> Option<Self> {
        let name = entry.key_str().ok()?;
        Some(Self {
            key: name.to_owned(),
            subnet: key::parse(name.strip_prefix(prefix)?).ok()?,
            node: Attributes::parse(entry.value())
                .ok()
                .map(|attributes| attributes.public_ip),
            value: entry.value().to_vec(),
            revision: entry.mod_revision(),
            lease: entry.lease(),
        })
    }
}

/// What to do next.
#[derive(Debug)]
enum Step<'a> {
    /// Take over a key that is this node's already.
    Adopt(&'a Claim),
    /// Delete this node's key: it does not fit the network config any more.
    Discard(&'a Claim),
    /// Create a key for a subnet that nobody has.
    Create(Ipv4Net),
    /// All subnets are taken.
    Exhausted,
}

fn decide<'a>(request: &Request, claims: &'a [Claim]) -> Step<'a> {
    let own = || {
        claims
            .iter()
            .filter(|claim| claim.node == Some(request.attributes.public_ip))
    };
    let fits = |claim: &&Claim| request.config.allows(claim.subnet);
    // With several, the one that pods already use.
    if let Some(claim) = own()
        .filter(fits)
        .find(|claim| Some(claim.subnet) == request.previous)
        .or_else(|| own().find(fits))
    {
        return Step::Adopt(claim);
    }
    if let Some(claim) = own().next() {
        return Step::Discard(claim);
    }
    let taken = || claims.iter().map(|claim| claim.subnet);
    if let Some(previous) = request.previous
        && request.config.allows(previous)
        && !alloc::overlaps(taken(), previous)
    {
        return Step::Create(previous);
    }
    match alloc::allocate(&request.config, taken(), &mut rand::rng()) {
        Some(subnet) => Step::Create(subnet),
        None => Step::Exhausted,
    }
}

/// This node's key as the manager keeps track of it.
#[derive(Clone, Debug)]
pub struct Own {
    /// The full key.
    pub key: String,
    /// The subnet.
    pub subnet: Ipv4Net,
    /// The etcd lease; 0 for a reservation.
    pub lease: i64,
    /// When the etcd lease expires.
    pub expires: Option<Instant>,
}

impl Own {
    /// As the rest of the agent sees it.
    pub fn public(&self) -> OwnLease {
        OwnLease {
            subnet: self.subnet,
            expires: self.expires,
        }
    }
}

/// The outcome of one attempt.
pub enum Outcome {
    /// The lease is this node's.
    Acquired(Own),
    /// Somebody else was faster: look again.
    Retry,
    /// All subnets between SubnetMin and SubnetMax are taken.
    Exhausted,
}

/// One attempt at acquiring a lease.
///
/// # Errors
/// When etcd does not answer.
pub async fn attempt(store: &mut Store, request: &Request) -> Result<Outcome, Error> {
    let listing = store.list().await?;
    let prefix = store.subnets_prefix();
    let claims: Vec<Claim> = listing
        .entries
        .iter()
        .filter_map(|entry| Claim::read(&prefix, entry))
        .collect();
    match decide(request, &claims) {
        Step::Adopt(claim) => adopt(store, request, claim).await,
        Step::Discard(claim) => {
            tracing::warn!(subnet = %claim.subnet, "own lease does not fit the network config; deleting it");
            store.delete(&claim.key, claim.revision).await?;
            Ok(Outcome::Retry)
        }
        Step::Create(subnet) => create(store, request, subnet).await,
        Step::Exhausted => Ok(Outcome::Exhausted),
    }
}

async fn create(store: &mut Store, request: &Request, subnet: Ipv4Net) -> Result<Outcome, Error> {
    let key = format!("{}{}", store.subnets_prefix(), key::name(subnet));
    let lease = store.grant(LEASE_TTL).await?;
    if !store
        .create(&key, request.attributes.to_json(), lease)
        .await?
    {
        tracing::info!(%subnet, "another node took this subnet first; choosing another");
        if let Err(error) = store.revoke(lease).await {
            tracing::debug!(%error, "unused etcd lease is left to expire");
        }
        return Ok(Outcome::Retry);
    }
    tracing::info!(%subnet, "lease created");
    Ok(acquired(key, subnet, lease))
}

async fn adopt(store: &mut Store, request: &Request, claim: &Claim) -> Result<Outcome, Error> {
    let value = request.attributes.to_json();
    let mut lease = claim.lease;
    if lease != 0 {
        match store.keep_alive(lease).await? {
            // Expired between the listing and now.
            None => return Ok(Outcome::Retry),
            Some(granted) if granted < LEASE_TTL => lease = store.grant(LEASE_TTL).await?,
            Some(_) => {}
        }
    }
    if (value.as_bytes() != claim.value || lease != claim.lease)
        && !store
            .replace(&claim.key, claim.revision, value, lease)
            .await?
    {
        return Ok(Outcome::Retry);
    }
    tracing::info!(subnet = %claim.subnet, reservation = lease == 0, "own lease found; reusing it");
    Ok(acquired(claim.key.clone(), claim.subnet, lease))
}

fn acquired(key: String, subnet: Ipv4Net, lease: i64) -> Outcome {
    let expires =
        (lease != 0).then(|| Instant::now() + Duration::from_secs(LEASE_TTL.unsigned_abs()));
    Outcome::Acquired(Own {
        key,
        subnet,
        lease,
        expires,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lease::value::BackendData, netconf::NetworkConfig};

    const NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 1);

    fn request(previous: Option<&str>) -> Request {
        let config = br#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","Backend":{"Type":"host-gw"}}"#;
        Request {
            config: NetworkConfig::parse(config).unwrap(),
            attributes: Attributes {
                public_ip: NODE,
                backend: BackendData::HostGw,
            },
            previous: previous.map(|subnet| subnet.parse().unwrap()),
        }
    }

    fn claim(subnet: &str, node: Option<Ipv4Addr>) -> Claim {
        let subnet = subnet.parse().unwrap();
        Claim {
            key: key::name(subnet),
            subnet,
            node,
            value: Vec::new(),
            revision: 1,
            lease: 0,
        }
    }

    #[test]
    fn own_key_comes_before_previous_subnet() {
        let claims = [claim("10.5.2.0/24", None), claim("10.5.3.0/24", Some(NODE))];
        assert!(matches!(decide(&request(Some("10.5.1.0/24")), &claims),
            Step::Adopt(claim) if claim.subnet.to_string() == "10.5.3.0/24"));
    }

    #[test]
    fn of_several_own_keys_the_previous_subnet_is_taken() {
        let claims = [
            claim("10.5.2.0/24", Some(NODE)),
            claim("10.5.3.0/24", Some(NODE)),
        ];
        assert!(matches!(decide(&request(Some("10.5.3.0/24")), &claims),
            Step::Adopt(claim) if claim.subnet.to_string() == "10.5.3.0/24"));
    }

    #[test]
    fn own_key_outside_the_config_is_discarded() {
        let claims = [claim("10.5.9.0/24", Some(NODE))];
        assert!(matches!(decide(&request(None), &claims), Step::Discard(_)));
    }

    #[test]
    fn previous_subnet_is_taken_again_only_if_free_and_allowed() {
        let free = |previous, claims: &[Claim]| match decide(&request(previous), claims) {
            Step::Create(subnet) => subnet.to_string(),
            step => panic!("{step:?}"),
        };
        assert_eq!(free(Some("10.5.3.0/24"), &[]), "10.5.3.0/24");
        let all_but_4 = ["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"].map(|s| claim(s, None));
        assert_eq!(free(Some("10.5.3.0/24"), &all_but_4), "10.5.4.0/24");
        assert_eq!(free(Some("10.6.3.0/24"), &all_but_4), "10.5.4.0/24");
        assert_eq!(free(Some("10.5.4.0/25"), &all_but_4), "10.5.4.0/24");
    }

    #[test]
    fn a_full_network_is_reported() {
        assert!(matches!(
            decide(&request(None), &[claim("10.5.0.0/16", None)]),
            Step::Exhausted
        ));
    }
}
