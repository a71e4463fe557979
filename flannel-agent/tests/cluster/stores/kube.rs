//! The Kubernetes API: the lab's server, which closes its port to be away.

use std::{fs, io, path::PathBuf};

use flannel_agent::lease::{
    Attributes,
    kube::{Access, DEFAULT_PREFIX, Kube as Manager, Names, NodeName, Options},
    value::Parts,
};
use lab::{
    Cluster, Segment,
    kube::{
        lease::{PREFIX, annotations},
        mock::{self, ApiServer, Kind},
    },
    lease_store::LeaseStore,
};
use serde_json::{Value, json};

use super::store::{Entry, NETWORK, OwnEntry, TestStore};
use crate::support::Outcome;

/// The server's port.
const PORT: u16 = 8081;

pub(crate) struct Kube {
    server: ApiServer,
    net_config: PathBuf,
}

/// The annotations that publish an entry.
fn of(entry: &Entry) -> anyhow::Result<Vec<(String, String)>> {
    let value: Value = serde_json::from_str(&entry.attributes().to_json())?;
    Ok(annotations(&value))
}

impl Kube {
    /// A Node object as kubelet and the controller manager make it.
    fn node(entry: &Entry) -> Value {
        let subnet = entry.subnet.to_string();
        mock::node(&entry.name, &[entry.address.into()], &[&subnet])
    }

    fn annotate(&self, name: &str, annotations: &[(String, String)]) -> Outcome {
        let annotations: Vec<(&str, Option<&str>)> = annotations
            .iter()
            .map(|(key, value)| (key.as_str(), Some(value.as_str())))
            .collect();
        Ok(self.server.annotate(name, &annotations)?)
    }
}

impl TestStore for Kube {
    type Manager = Manager;
    const NAME: &'static str = "kube";
    const OWN: OwnEntry = OwnEntry::Published;
    const CLUSTER: LeaseStore = LeaseStore::ApiServer;

    fn make(cluster: &Cluster) -> anyhow::Result<Self> {
        let address = (Segment::First.gateway(), PORT).into();
        let server = ApiServer::start(Some(cluster.switch()), address, mock::Options::default())?;
        server.put_node(Self::node(&Entry::own()));
        let store = Self {
            server,
            net_config: cluster.id().directory().join("net-conf.json"),
        };
        store.set_config(Some(NETWORK))?;
        Ok(store)
    }

    fn manager(&self) -> anyhow::Result<Manager> {
        Ok(Manager::new(Options {
            access: Access::new("".as_ref(), &self.server.url())?,
            names: Names::new(DEFAULT_PREFIX)?,
            node: NodeName::Known(Entry::own().name),
            net_config: self.net_config.clone(),
            set_network_unavailable: true,
        }))
    }

    fn options(&self) -> (Vec<String>, Vec<(String, String)>) {
        (
            vec![
                "--kube-subnet-mgr".into(),
                format!("--kube-api-url={}", self.server.url()),
                format!("--net-config-path={}", self.net_config.display()),
            ],
            vec![("NODE_NAME".into(), Entry::own().name)],
        )
    }

    fn set_config(&self, text: Option<&str>) -> Outcome {
        match text {
            Some(text) => fs::write(&self.net_config, text)?,
            None => match fs::remove_file(&self.net_config) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            },
        }
        Ok(())
    }

    fn put(&self, entry: &Entry) -> Outcome {
        let mut node = Self::node(entry);
        for (key, value) in of(entry)? {
            node["metadata"]["annotations"][key] = json!(value);
        }
        self.server.put_node(node);
        Ok(())
    }

    fn spoil(&self, entry: &Entry) -> Outcome {
        self.put(entry)?;
        let garbage = [(format!("{PREFIX}backend-data"), "{garbage".to_owned())];
        self.annotate(&entry.name, &garbage)
    }

    fn remove(&self, entry: &Entry) -> Outcome {
        self.server.delete_node(&entry.name);
        Ok(())
    }

    fn take_away(&self) -> Outcome {
        self.server.stop_listening();
        Ok(())
    }

    fn bring_back(&self) -> Outcome {
        Ok(self.server.listen()?)
    }

    fn own(&self) -> anyhow::Result<Option<Attributes>> {
        let annotations = self.server.annotations(&Entry::own().name);
        let get = |name: &str| {
            annotations
                .get(&format!("{PREFIX}{name}"))
                .map(String::as_str)
        };
        if get("kube-subnet-manager") != Some("true") {
            return Ok(None);
        }
        Ok(Some(Attributes::from_parts(&Parts {
            public_ip: get("public-ip"),
            public_ipv6: get("public-ipv6"),
            backend_type: get("backend-type").unwrap_or_default(),
            backend_data: get("backend-data"),
            backend_v6_data: get("backend-v6-data"),
        })?))
    }

    fn overwrite_own(&self, entry: &Entry) -> Outcome {
        self.annotate(&Entry::own().name, &of(entry)?)
    }

    fn delete_own(&self) -> Outcome {
        let own = of(&Entry::own())?;
        let none: Vec<(&str, Option<&str>)> =
            own.iter().map(|(key, _)| (key.as_str(), None)).collect();
        Ok(self.server.annotate(&Entry::own().name, &none)?)
    }

    fn own_revision(&self) -> anyhow::Result<String> {
        // The object's version also counts what kubelet writes, and conditions.
        let is_of_annotations = |body: &Value| !body["metadata"]["annotations"].is_null();
        let patches = self.server.requests();
        let patches = patches
            .iter()
            .filter(|request| request.kind == Kind::Patch && is_of_annotations(&request.body));
        let annotations = self.server.annotations(&Entry::own().name);
        Ok(format!("{} patches, {annotations:?}", patches.count()))
    }
}
