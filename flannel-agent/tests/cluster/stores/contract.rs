//! What every subnet manager reports and publishes.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context as _, ensure};
use flannel_agent::netconf::NetworkConfig;
use lab::{ClusterConfig, Netns, NodeConfig};

use super::{
    Test,
    session::{FOLLOWS, Session},
    store::{Entry, NETWORK, OwnEntry, TestStore},
};
use crate::support::{Outcome, eventually, with_unready_cluster};

/// How long a store is away, and how long nothing is to happen where nothing should.
const WHILE: Duration = Duration::from_secs(3);

/// The tests of a store.
pub(crate) fn tests<S: TestStore>() -> Vec<Test> {
    vec![
        ("own_lease_is_acquired_and_published", own_lease::<S>),
        ("the_first_report_is_of_all_entries", first_report::<S>),
        ("peers_come_change_and_go", peers_come_and_go::<S>),
        ("garbage_concerns_one_entry", garbage::<S>),
        ("nothing_is_withdrawn_while_the_store_is_away", away::<S>),
        (
            "a_store_that_is_away_at_the_start_is_waited_for",
            away_at_start::<S>,
        ),
        (
            "a_restart_keeps_the_subnet_and_writes_nothing",
            restart::<S>,
        ),
        ("own_entry_is_put_right_or_complained_of", own_entry::<S>),
        (
            "what_the_node_becomes_is_published_or_complained_of",
            becomes::<S>,
        ),
        ("config_is_waited_for", config::<S>),
    ]
}

/// Runs a test with an empty store and a node's namespace.
fn with_store<S: TestStore>(test: impl FnOnce(&Arc<S>, &Netns) -> Outcome) -> Outcome {
    let config = ClusterConfig {
        nodes: vec![NodeConfig::default()],
        leases: S::IN_CLUSTER,
        ..ClusterConfig::default()
    };
    with_unready_cluster(config, |cluster| {
        let store = Arc::new(S::make(cluster)?);
        test(&store, cluster.node(1).netns())
    })
}

/// Waits until this node's entry says this.
fn wait_published<S: TestStore>(store: &S, entry: &Entry) -> Outcome {
    eventually("the node's entry", FOLLOWS, || {
        let own = store.own()?;
        let holds = own == Some(entry.attributes());
        Ok(holds.then_some(()).ok_or_else(|| format!("{own:?}")))
    })
}

fn own_lease<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let session = Session::start(store, netns);
        let subnets = session.wait_own()?;
        ensure!(subnets == Entry::own().lease().subnets, "{subnets:?}");
        wait_published(&**store, &Entry::own())?;
        // How long subnets are does not matter where somebody else assigns them.
        let config = session.known().config.context("no config")?;
        let wanted = NetworkConfig::parse(NETWORK.as_bytes())?;
        ensure!(
            config.networks() == wanted.networks() && config.backend == wanted.backend,
            "{config:?}"
        );
        session.wait_problem("")?;
        session.stop()
    })
}

fn first_report<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let peers = [1, 2, 3].map(Entry::peer);
        peers.iter().try_for_each(|peer| store.put(peer))?;
        store.spoil(&Entry::peer(4))?;
        let session = Session::start(store, netns);
        session.wait_peers("three peers", &peers.each_ref())?;
        let known = session.known();
        ensure!(
            known.begins_with_all == Some(true) && known.withdrawn.is_empty(),
            "begins with all: {:?}, withdrawn {:?}",
            known.begins_with_all,
            known.withdrawn
        );
        ensure!(known.skipped() == 1, "{} skipped", known.skipped());
        session.stop()
    })
}

fn peers_come_and_go<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let [first, second] = [1, 2].map(Entry::peer);
        store.put(&first)?;
        let session = Session::start(store, netns);
        session.wait_peers("one peer", &[&first])?;
        store.put(&second)?;
        session.wait_change::<S>("a new peer", &[&first, &second])?;

        let other_mac = second.clone().with_mac([0x0e, 1, 1, 1, 1, 1]);
        store.put(&other_mac)?;
        session.wait_change::<S>("another MAC", &[&first, &other_mac])?;
        let moved = Entry {
            address: Entry::peer(9).address,
            ..other_mac.clone()
        };
        store.put(&moved)?;
        session.wait_change::<S>("another address", &[&first, &moved])?;
        store.remove(&first)?;
        session.wait_change::<S>("a peer that goes", &[&moved])?;
        // Only what has changed has gone.
        let withdrawn = session.known().withdrawn;
        let gone = [second, other_mac, first].map(|peer| peer.lease());
        ensure!(withdrawn == gone, "{withdrawn:?}");
        session.stop()
    })
}

fn garbage<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let [first, second] = [1, 2].map(Entry::peer);
        store.put(&first)?;
        store.put(&second)?;
        let session = Session::start(store, netns);
        session.wait_peers("two peers", &[&first, &second])?;
        store.spoil(&first)?;
        session.wait_change::<S>("one that is understood", &[&second])?;
        ensure!(session.known().skipped() == 1, "the other is not reported");
        let withdrawn = session.known().withdrawn;
        ensure!(withdrawn == [first.lease()], "{withdrawn:?}");
        store.put(&first)?;
        session.wait_change::<S>("both again", &[&first, &second])?;
        ensure!(session.known().skipped() == 0, "still reported");
        session.stop()
    })
}

fn away<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let [first, second, third] = [1, 2, 3].map(Entry::peer);
        store.put(&first)?;
        store.put(&second)?;
        let session = Session::start(store, netns);
        session.wait_peers("two peers", &[&first, &second])?;
        let own = store.own_revision()?;
        store.take_away()?;
        store.remove(&second)?;
        store.put(&third)?;
        session.wait_any_problem()?;
        thread::sleep(WHILE);
        let known = session.known();
        let (peers, withdrawn) = (known.peers(), known.withdrawn);
        ensure!(
            peers == [first.lease(), second.lease()] && withdrawn.is_empty(),
            "away: {peers:?}, withdrawn {withdrawn:?}"
        );
        store.bring_back()?;
        session.wait_peers("what has changed meanwhile", &[&first, &third])?;
        session.wait_problem("")?;
        let withdrawn = session.known().withdrawn;
        ensure!(withdrawn == [second.lease()], "{withdrawn:?}");
        if S::OWN == OwnEntry::Published {
            let after = store.own_revision()?;
            ensure!(own == after, "own entry written anew: {own}, {after}");
        }
        session.stop()
    })
}

fn away_at_start<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let peer = Entry::peer(1);
        store.put(&peer)?;
        store.take_away()?;
        let session = Session::start(store, netns);
        session.wait_any_problem()?;
        ensure!(session.known().own.is_none(), "a lease from nowhere");
        store.bring_back()?;
        session.wait_peers("the store", &[&peer])?;
        session.wait_problem("")?;
        session.stop()
    })
}

fn restart<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let peer = Entry::peer(1);
        store.put(&peer)?;
        let session = Session::start(store, netns);
        let before = session.wait_own()?;
        wait_published(&**store, &Entry::own())?;
        let revision = store.own_revision()?;
        session.stop()?;
        for _ in 0..2 {
            let session = Session::start(store, netns);
            let after = session.wait_own()?;
            ensure!(before == after, "{before:?} became {after:?}");
            session.wait_peers("the peer", &[&peer])?;
            session.stop()?;
        }
        let after = store.own_revision()?;
        ensure!(revision == after, "written: {revision} became {after}");
        Ok(())
    })
}

fn own_entry<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let (own, peer) = (Entry::own(), Entry::peer(1));
        store.put(&peer)?;
        let session = Session::start(store, netns);
        let subnets = session.wait_own()?;
        wait_published(&**store, &own)?;
        let other = own.clone().with_mac([0x0e, 2, 2, 2, 2, 2]);
        store.overwrite_own(&other)?;
        match S::OWN {
            OwnEntry::Published => wait_published(&**store, &own)?,
            OwnEntry::Given => {
                session
                    .wait_problem("VtepMAC = 0e:02:02:02:02:02, where it is 0e:de:d4:9c:3c:d8")?;
                ensure!(store.own()? == Some(other.attributes()), "written");
                store.put(&own)?;
                session.wait_problem("")?;
            }
        }
        store.delete_own()?;
        match S::OWN {
            OwnEntry::Published => wait_published(&**store, &own)?,
            OwnEntry::Given => {
                session.wait_problem("no lease with PublicIP = 192.168.100.1")?;
                ensure!(store.own()?.is_none(), "written");
                store.put(&own)?;
                session.wait_problem("")?;
            }
        }
        session.wait_peers("the peer", &[&peer])?;
        let known = session.known();
        let held = known.own.as_ref().map(|own| own.subnets);
        ensure!(
            held == Some(subnets) && known.withdrawn.is_empty(),
            "{subnets:?} became {held:?}, withdrawn {:?}",
            known.withdrawn
        );
        // It is written once, and not again and again.
        let revision = store.own_revision()?;
        thread::sleep(WHILE);
        let after = store.own_revision()?;
        ensure!(revision == after, "written: {revision} became {after}");
        session.stop()
    })
}

fn becomes<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        let session = Session::start(store, netns);
        session.wait_own()?;
        wait_published(&**store, &Entry::own())?;
        let other = Entry::own().with_mac([0x0e, 3, 3, 3, 3, 3]);
        session.publish(&other);
        match S::OWN {
            OwnEntry::Published => wait_published(&**store, &other)?,
            OwnEntry::Given => {
                session
                    .wait_problem("VtepMAC = 0e:de:d4:9c:3c:d8, where it is 0e:03:03:03:03:03")?;
                ensure!(store.own()? == Some(Entry::own().attributes()), "written");
                session.publish(&Entry::own());
            }
        }
        session.wait_problem("")?;
        session.stop()
    })
}

fn config<S: TestStore>() -> Outcome {
    with_store::<S>(|store, netns| {
        store.set_config(None)?;
        let session = Session::start(store, netns);
        session.wait_problem("config")?;
        for bad in [
            r#"{"Network":"here","Backend":{"Type":"vxlan"}}"#,
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"pigeon"}}"#,
        ] {
            store.set_config(Some(bad))?;
            session.wait_problem(if bad.contains("here") {
                "here"
            } else {
                "pigeon"
            })?;
        }
        ensure!(session.known().config.is_none(), "a config that is bad");
        store.set_config(Some(NETWORK))?;
        session.wait_own()?;
        session.wait_problem("")?;
        session.stop()
    })
}
