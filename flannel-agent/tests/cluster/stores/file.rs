//! A file, which is written as an operator's tool would: whole, and put in its place. It is away while it bears another
//! name.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use flannel_agent::lease::{
    Attributes,
    file::{File as Manager, Options},
};
use lab::{Cluster, LeaseStore};

use super::store::{Entry, NETWORK, OwnEntry, TestStore};
use crate::support::Outcome;

pub(crate) struct File {
    path: PathBuf,
    content: Mutex<Content>,
}

/// What the file says.
struct Content {
    config: Option<String>,
    /// Values by name.
    leases: BTreeMap<String, String>,
    /// Whether it has its name.
    there: bool,
}

impl File {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> Outcome {
        let mut content = self.content();
        change(&mut content);
        if !content.there {
            return Ok(());
        }
        let leases: Vec<String> = content
            .leases
            .iter()
            .map(|(name, value)| format!("    \"{name}\": {value}"))
            .collect();
        let config = match &content.config {
            Some(config) => format!("  \"config\": {config},\n"),
            None => String::new(),
        };
        let text = format!(
            "{{\n{config}  \"leases\": {{\n{}\n  }}\n}}\n",
            leases.join(",\n")
        );
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &self.path)?;
        Ok(())
    }

    fn put_value(&self, name: String, value: String) -> Outcome {
        self.change(|content| {
            content.leases.insert(name, value);
        })
    }
}

impl TestStore for File {
    type Manager = Manager;
    const NAME: &'static str = "file";
    const OWN: OwnEntry = OwnEntry::Given;
    const CLUSTER: LeaseStore = LeaseStore::File;
    // Two looks must agree, a second apart.
    const SEEN_WITHIN: Duration = Duration::from_secs(8);

    fn make(cluster: &Cluster) -> anyhow::Result<Self> {
        let store = Self {
            path: cluster.id().directory().join("store.json"),
            content: Mutex::new(Content {
                config: Some(NETWORK.into()),
                leases: BTreeMap::new(),
                there: true,
            }),
        };
        store.put(&Entry::own())?;
        Ok(store)
    }

    fn manager(&self) -> anyhow::Result<Manager> {
        Ok(Manager::new(Options {
            path: self.path.clone(),
            ..Options::default()
        }))
    }

    fn options(&self) -> (Vec<String>, Vec<(String, String)>) {
        (
            vec![format!("--lease-file={}", self.path.display())],
            Vec::new(),
        )
    }

    fn set_config(&self, text: Option<&str>) -> Outcome {
        self.change(|content| content.config = text.map(str::to_owned))
    }

    fn put(&self, entry: &Entry) -> Outcome {
        self.put_value(entry.key(), entry.attributes().to_json())
    }

    fn spoil(&self, entry: &Entry) -> Outcome {
        self.put_value(entry.key(), "\"garbage\"".into())
    }

    fn remove(&self, entry: &Entry) -> Outcome {
        self.change(|content| {
            content.leases.remove(&entry.key());
        })
    }

    fn take_away(&self) -> Outcome {
        self.content().there = false;
        fs::remove_file(&self.path)?;
        Ok(())
    }

    fn bring_back(&self) -> Outcome {
        self.change(|content| content.there = true)
    }

    fn own(&self) -> anyhow::Result<Option<Attributes>> {
        let content = self.content();
        let value = content.leases.get(&Entry::own().key());
        Ok(value
            .map(|value| Attributes::parse(value.as_bytes()))
            .transpose()?)
    }

    fn overwrite_own(&self, entry: &Entry) -> Outcome {
        self.put_value(Entry::own().key(), entry.attributes().to_json())
    }

    fn delete_own(&self) -> Outcome {
        self.remove(&Entry::own())
    }

    fn own_revision(&self) -> anyhow::Result<String> {
        use std::os::unix::fs::MetadataExt as _;
        let file = fs::metadata(&self.path)?;
        Ok(format!(
            "{} {}.{}",
            file.ino(),
            file.mtime(),
            file.mtime_nsec()
        ))
    }
}
