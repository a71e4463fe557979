//! etcd: a real server, which nftables takes away.

use std::time::Duration;

use anyhow::Context as _;
use flannel_agent::lease::{
    Attributes,
    etcd::{Etcd as Manager, Options, TlsFiles},
};
use lab::{Cluster, LeaseStore, Netns, etcd as server, process};

use super::store::{Entry, NETWORK, OwnEntry, TestStore};
use crate::support::Outcome;

/// Upstream's margin.
const RENEW_MARGIN: Duration = Duration::from_secs(3600);
/// The rules that take it away: a connection is reset, so that the client need not find out by a ping.
const TABLE: &str = "inet store_away";

pub(crate) struct Etcd {
    endpoint: String,
    /// Where the server and `etcdctl` run.
    netns: Netns,
}

impl Etcd {
    fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = std::process::Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint])
            .args(arguments);
        Ok(process::run_command(Some(&self.netns), &mut command, "")?)
    }

    fn key(entry: &Entry) -> String {
        format!("{}/subnets/{}", server::PREFIX, entry.key())
    }

    fn put_value(&self, entry: &Entry, value: &str) -> Outcome {
        self.ctl(&["put", "--", &Self::key(entry), value]).map(drop)
    }

    /// Key, value and revisions of this node's entry.
    fn own_record(&self) -> anyhow::Result<serde_json::Value> {
        let text = self.ctl(&["get", "--write-out=json", "--", &Self::key(&Entry::own())])?;
        let answer: serde_json::Value = serde_json::from_str(&text).context("etcdctl's JSON")?;
        Ok(answer["kvs"][0].clone())
    }
}

impl TestStore for Etcd {
    type Manager = Manager;
    const NAME: &'static str = "etcd";
    const OWN: OwnEntry = OwnEntry::Published;
    const CLUSTER: LeaseStore = LeaseStore::Etcd;
    const IN_CLUSTER: LeaseStore = LeaseStore::Etcd;

    fn make(cluster: &Cluster) -> anyhow::Result<Self> {
        let store = Self {
            endpoint: cluster.etcd().endpoint(),
            netns: cluster.switch().clone(),
        };
        store.set_config(Some(NETWORK))?;
        Ok(store)
    }

    fn manager(&self) -> anyhow::Result<Manager> {
        let options = Options {
            endpoints: vec![self.endpoint.clone()],
            prefix: server::PREFIX.into(),
            tls: TlsFiles::default(),
            user: None,
        };
        Ok(Manager::new(options, RENEW_MARGIN))
    }

    fn options(&self) -> (Vec<String>, Vec<(String, String)>) {
        (
            vec![format!("--etcd-endpoints={}", self.endpoint)],
            Vec::new(),
        )
    }

    fn set_config(&self, text: Option<&str>) -> Outcome {
        let key = format!("{}/config", server::PREFIX);
        match text {
            Some(text) => self.ctl(&["put", "--", &key, text]),
            None => self.ctl(&["del", "--", &key]),
        }
        .map(drop)
    }

    fn put(&self, entry: &Entry) -> Outcome {
        self.put_value(entry, &entry.attributes().to_json())
    }

    fn spoil(&self, entry: &Entry) -> Outcome {
        self.put_value(entry, "{garbage")
    }

    fn remove(&self, entry: &Entry) -> Outcome {
        self.ctl(&["del", "--", &Self::key(entry)]).map(drop)
    }

    fn take_away(&self) -> Outcome {
        let (node, port) = (Entry::own().address, server::PORT);
        let rules = format!(
            "table {TABLE} {{\n\
             chain input {{\n type filter hook input priority 0\n\
             ip saddr {node} tcp dport {port} reject with tcp reset\n}}\n\
             chain output {{\n type filter hook output priority 0\n\
             ip daddr {node} tcp sport {port} reject with tcp reset\n}}\n}}\n"
        );
        process::run_with_input(Some(&self.netns), "nft", &["-f", "-"], &rules)?;
        // A connection that is idle would only notice at its next ping, as it does where the kernel closes none.
        let port = format!("( sport = :{} )", server::PORT);
        let _ = process::run(Some(&self.netns), "ss", &["-K", &port]);
        Ok(())
    }

    fn bring_back(&self) -> Outcome {
        process::run(
            Some(&self.netns),
            "nft",
            &[&format!("delete table {TABLE}")],
        )?;
        Ok(())
    }

    fn own(&self) -> anyhow::Result<Option<Attributes>> {
        let text = self.ctl(&["get", "--print-value-only", "--", &Self::key(&Entry::own())])?;
        match text.trim() {
            "" => Ok(None),
            value => Ok(Some(Attributes::parse(value.as_bytes())?)),
        }
    }

    fn overwrite_own(&self, entry: &Entry) -> Outcome {
        // As a stock node's renewal would: under the lease that is there.
        let lease = self.own_record()?["lease"].as_i64().unwrap_or_default();
        let lease = format!("--lease={lease:x}");
        let (key, value) = (Self::key(&Entry::own()), entry.attributes().to_json());
        self.ctl(&["put", &lease, "--", &key, &value]).map(drop)
    }

    fn delete_own(&self) -> Outcome {
        self.remove(&Entry::own())
    }

    fn own_revision(&self) -> anyhow::Result<String> {
        let record = self.own_record()?;
        Ok(format!("{} {}", record["version"], record["mod_revision"]))
    }
}
