//! How a node claims a subnet: adopt its own key, else its previous subnet, else a free one.
//!
//! The choice is pure; every write that follows is a compare-and-swap, and one that fails means to look again.

use std::time::{Duration, Instant};

use etcd_client::KeyValue;
use ipnet::IpNet;

use super::{error::Error, store::Store};
use crate::{
    family::{Family, PerFamily},
    lease::{Attributes, OwnLease, Request, alloc, key},
};

/// Life of a lease without renewal, in seconds; upstream's.
pub const LEASE_TTL: i64 = 86_400;

/// A lease key that can be understood, whatever its value says.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The full key.
    pub key: String,
    /// The subnets that it names.
    pub subnets: PerFamily<IpNet>,
    /// What the node that it belongs to has published, if that can be understood.
    pub attributes: Option<Attributes>,
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
            subnets: key::parse(name.strip_prefix(prefix)?).ok()?,
            attributes: Attributes::parse(entry.value()).ok(),
            value: entry.value().to_vec(),
            revision: entry.mod_revision(),
            lease: entry.lease(),
        })
    }

    /// Whether it is the node's that asks.
    pub fn is_of(&self, request: &Request) -> bool {
        let asking = &request.attributes.addresses;
        self.attributes
            .as_ref()
            .is_some_and(|attributes| attributes.is_of(asking))
    }
}

/// What to do next.
#[derive(Debug)]
enum Step<'a> {
    /// Take over a key that is this node's already.
    Adopt(&'a Claim),
    /// Delete this node's key: it does not fit the network config any more.
    Discard(&'a Claim),
    /// Create a key for subnets that nobody has.
    Create(PerFamily<IpNet>),
    /// All subnets are taken.
    Exhausted,
}

fn decide<'a>(request: &Request, claims: &'a [Claim]) -> Step<'a> {
    let own = || claims.iter().filter(|claim| claim.is_of(request));
    let fits = |claim: &&Claim| request.config.allows(&claim.subnets);
    // With several, the one that pods already use.
    if let Some(claim) = own()
        .filter(fits)
        .find(|claim| claim.subnets == request.previous)
        .or_else(|| own().find(fits))
    {
        return Step::Adopt(claim);
    }
    if let Some(claim) = own().next() {
        return Step::Discard(claim);
    }
    let mut subnets = PerFamily::default();
    for family in Family::ALL {
        let Some(pool) = request.config.pools.get(family) else {
            continue;
        };
        let taken = || {
            claims
                .iter()
                .filter_map(|claim| claim.subnets.get(family).copied())
        };
        // Each family by itself, so that a node keeps its IPv4 subnet when IPv6 is switched on.
        let previous = request
            .previous
            .get(family)
            .filter(|previous| pool.allows(previous) && !alloc::overlaps(taken(), previous));
        let subnet = previous
            .copied()
            .or_else(|| alloc::allocate(pool, taken(), &mut rand::rng()));
        if subnet.is_none() {
            return Step::Exhausted;
        }
        *subnets.get_mut(family) = subnet;
    }
    Step::Create(subnets)
}

/// This node's key as the manager keeps track of it.
#[derive(Clone, Debug)]
pub struct Own {
    /// The full key.
    pub key: String,
    /// The subnets.
    pub subnets: PerFamily<IpNet>,
    /// The etcd lease; 0 for a reservation.
    pub lease: i64,
    /// When the etcd lease expires.
    pub expires: Option<Instant>,
}

impl Own {
    /// As the rest of the agent sees it.
    pub fn public(&self) -> OwnLease {
        OwnLease {
            subnets: self.subnets,
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
            tracing::warn!(
                subnet = claim.subnets.join(),
                "own lease does not fit the network config; deleting it"
            );
            store.delete(&claim.key, claim.revision).await?;
            Ok(Outcome::Retry)
        }
        Step::Create(subnets) => create(store, request, subnets).await,
        Step::Exhausted => Ok(Outcome::Exhausted),
    }
}

async fn create(
    store: &mut Store,
    request: &Request,
    subnets: PerFamily<IpNet>,
) -> Result<Outcome, Error> {
    let subnet = subnets.join();
    let key = format!("{}{}", store.subnets_prefix(), key::name(&subnets));
    let lease = store.grant(LEASE_TTL).await?;
    if !store
        .create(&key, request.attributes.to_json(), lease)
        .await?
    {
        tracing::info!(
            subnet,
            "another node took this subnet first; choosing another"
        );
        if let Err(error) = store.revoke(lease).await {
            tracing::debug!(%error, "unused etcd lease is left to expire");
        }
        return Ok(Outcome::Retry);
    }
    tracing::info!(subnet, "lease created");
    Ok(acquired(key, subnets, lease))
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
    tracing::info!(
        subnet = claim.subnets.join(),
        reservation = lease == 0,
        "own lease found; reusing it"
    );
    Ok(acquired(claim.key.clone(), claim.subnets, lease))
}

fn acquired(key: String, subnets: PerFamily<IpNet>, lease: i64) -> Outcome {
    let expires =
        (lease != 0).then(|| Instant::now() + Duration::from_secs(LEASE_TTL.unsigned_abs()));
    Outcome::Acquired(Own {
        key,
        subnets,
        lease,
        expires,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lease::value::BackendData, netconf::NetworkConfig};

    const V4: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","Backend":{"Type":"host-gw"}}"#;
    const DUAL: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.4.0","EnableIPv6":true,"IPv6Network":"fd00:5::/48","IPv6SubnetMax":"fd00:5:0:4::","Backend":{"Type":"host-gw"}}"#;

    fn node() -> Attributes {
        Attributes {
            addresses: PerFamily::v4([192, 168, 100, 1].into()),
            backend: BackendData::HostGw,
        }
    }

    fn request_for(config: &str, previous: Option<&str>) -> Request {
        Request {
            config: NetworkConfig::parse(config.as_bytes()).unwrap(),
            attributes: node(),
            previous: previous.map(subnets).unwrap_or_default(),
        }
    }

    fn request(previous: Option<&str>) -> Request {
        request_for(V4, previous)
    }

    fn subnets(key: &str) -> PerFamily<IpNet> {
        key::parse(key).unwrap()
    }

    fn claim(key: &str, attributes: Option<Attributes>) -> Claim {
        Claim {
            key: key.to_owned(),
            subnets: subnets(key),
            attributes,
            value: Vec::new(),
            revision: 1,
            lease: 0,
        }
    }

    fn created(request: &Request, claims: &[Claim]) -> String {
        match decide(request, claims) {
            Step::Create(subnets) => key::name(&subnets),
            step => panic!("{step:?}"),
        }
    }

    #[test]
    fn own_key_comes_before_previous_subnet() {
        let claims = [
            claim("10.5.2.0-24", None),
            claim("10.5.3.0-24", Some(node())),
        ];
        assert!(matches!(decide(&request(Some("10.5.1.0-24")), &claims),
            Step::Adopt(claim) if claim.key == "10.5.3.0-24"));
    }

    #[test]
    fn of_several_own_keys_the_previous_subnet_is_taken() {
        let claims = ["10.5.2.0-24", "10.5.3.0-24"].map(|key| claim(key, Some(node())));
        assert!(matches!(decide(&request(Some("10.5.3.0-24")), &claims),
            Step::Adopt(claim) if claim.key == "10.5.3.0-24"));
    }

    #[test]
    fn own_key_outside_the_config_is_discarded() {
        for key in ["10.5.9.0-24", "10.5.2.0-24&fd00:5:0:2::-64"] {
            let claims = [claim(key, Some(node()))];
            assert!(matches!(decide(&request(None), &claims), Step::Discard(_)));
        }
        let claims = [claim("10.5.2.0-24", Some(node()))];
        assert!(matches!(
            decide(&request_for(DUAL, None), &claims),
            Step::Discard(_)
        ));
    }

    #[test]
    fn previous_subnet_is_taken_again_only_if_free_and_allowed() {
        let free = |previous, claims: &[Claim]| created(&request(Some(previous)), claims);
        assert_eq!(free("10.5.3.0-24", &[]), "10.5.3.0-24");
        let all_but_4 = ["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24"].map(|key| claim(key, None));
        for previous in ["10.5.3.0-24", "10.6.3.0-24", "10.5.4.0-25"] {
            assert_eq!(free(previous, &all_but_4), "10.5.4.0-24");
        }
    }

    #[test]
    fn each_family_keeps_its_previous_subnet() {
        let all_but_4 =
            ["1", "2", "3"].map(|n| claim(&format!("10.5.{n}.0-24&fd00:5:0:{n}::-64"), None));
        assert_eq!(
            created(&request_for(DUAL, None), &all_but_4),
            "10.5.4.0-24&fd00:5:0:4::-64"
        );
        let previous = request_for(DUAL, Some("10.5.2.0-24"));
        assert!(created(&previous, &[]).starts_with("10.5.2.0-24&fd00:5:0:"));
        let previous = request_for(DUAL, Some("10.5.2.0-24&fd00:5:0:3::-64"));
        assert_eq!(created(&previous, &[]), "10.5.2.0-24&fd00:5:0:3::-64");
    }

    #[test]
    fn a_full_network_is_reported() {
        let everything = [claim("10.5.0.0-16&fd00:5::-48", None)];
        for request in [request(None), request_for(DUAL, None)] {
            assert!(matches!(decide(&request, &everything), Step::Exhausted));
        }
    }
}
