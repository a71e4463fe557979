//! One BPF map and what the agent has written into it.
//!
//! The mirror starts as what an earlier run left in the pinned map, so that entries of peers and pods that have gone
//! meanwhile are removed and those that are right are not touched.

use std::borrow::BorrowMut;
use std::collections::BTreeMap;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use flannel_common::wire::{Be32, Be128};
use ipnet::{Ipv4Net, Ipv6Net};

use super::Error;
use super::plain::Plain;

/// The calls that all maps have in common.
pub trait Entries<K, V> {
    /// All entries.
    fn all(&self) -> Result<Vec<(K, V)>, MapError>;
    /// Adds or replaces one, which no program ever sees half done.
    fn put(&mut self, key: &K, value: V) -> Result<(), MapError>;
    /// Removes one.
    fn delete(&mut self, key: &K) -> Result<(), MapError>;
}

/// A prefix as a key of a trie.
pub trait Prefix: Sized {
    /// An address in the map.
    type Address: bytemuck::Pod;

    /// The key.
    fn key(&self) -> Key<Plain<Self::Address>>;

    /// The prefix of a key; nothing for one that is none.
    fn from_key(key: &Key<Plain<Self::Address>>) -> Option<Self>;
}

impl Prefix for Ipv4Net {
    type Address = Be32;

    fn key(&self) -> Key<Plain<Be32>> {
        Key::new(self.prefix_len().into(), Plain(self.network().into()))
    }

    fn from_key(key: &Key<Plain<Be32>>) -> Option<Self> {
        let length = u8::try_from(key.prefix_len()).ok()?;
        Self::new(key.data().0.into(), length).ok()
    }
}

impl Prefix for Ipv6Net {
    type Address = Be128;

    fn key(&self) -> Key<Plain<Be128>> {
        Key::new(self.prefix_len().into(), Plain(self.network().into()))
    }

    fn from_key(key: &Key<Plain<Be128>>) -> Option<Self> {
        let length = u8::try_from(key.prefix_len()).ok()?;
        Self::new(key.data().0.into(), length).ok()
    }
}

impl<M, P, V> Entries<P, V> for LpmTrie<M, Plain<P::Address>, Plain<V>>
where
    M: BorrowMut<MapData>,
    P: Prefix,
    V: bytemuck::Pod,
{
    fn all(&self) -> Result<Vec<(P, V)>, MapError> {
        let mut entries = Vec::new();
        for entry in self.iter() {
            let (key, value) = entry?;
            entries.extend(P::from_key(&key).map(|subnet| (subnet, value.0)));
        }
        Ok(entries)
    }

    fn put(&mut self, key: &P, value: V) -> Result<(), MapError> {
        self.insert(&key.key(), Plain(value), 0)
    }

    fn delete(&mut self, key: &P) -> Result<(), MapError> {
        self.remove(&key.key())
    }
}

/// A map and its mirror.
pub struct Table<M, K, V> {
    name: &'static str,
    map: M,
    mirror: BTreeMap<K, V>,
}

impl<M: Entries<K, V>, K: Ord + Copy, V: PartialEq + Copy> Table<M, K, V> {
    /// Reads what the map holds.
    ///
    /// # Errors
    /// [`Error::Map`] if it cannot be read.
    pub fn adopt(name: &'static str, map: M) -> Result<Self, Error> {
        let mirror = map
            .all()
            .map_err(|source| failed(name, source))?
            .into_iter()
            .collect();
        Ok(Self { name, map, mirror })
    }

    /// The map itself, whose entries must stay as they are.
    pub fn map_mut(&mut self) -> &mut M {
        &mut self.map
    }

    /// The entry of `key` as it was written.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.mirror.get(key)
    }

    /// Removes what is not wanted. An entry that is gone already is as it should be.
    ///
    /// # Errors
    /// [`Error::Map`] for the last entry that failed; all are tried.
    pub fn prune(&mut self, wanted: &BTreeMap<K, V>) -> Result<(), Error> {
        let stale: Vec<K> = self
            .mirror
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .copied()
            .collect();
        let mut result = Ok(());
        for key in stale {
            if let Err(source) = self.remove(&key) {
                result = Err(failed(self.name, source));
            }
        }
        result
    }

    /// Sets or removes one entry.
    ///
    /// # Errors
    /// [`Error::Map`]; the entry is then gone.
    pub fn change(&mut self, key: K, value: Option<V>) -> Result<(), Error> {
        let result = match value {
            Some(value) => self.set(key, value),
            None => self.remove(&key),
        };
        result.map_err(|source| failed(self.name, source))
    }

    fn set(&mut self, key: K, value: V) -> Result<(), MapError> {
        if self.mirror.get(&key) == Some(&value) {
            return Ok(());
        }
        match self.map.put(&key, value) {
            Ok(()) => {
                self.mirror.insert(key, value);
                Ok(())
            }
            // Rather nothing than what is no longer true.
            Err(source) => Err(self.remove(&key).err().unwrap_or(source)),
        }
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        if !self.mirror.contains_key(key) {
            return Ok(());
        }
        match self.map.delete(key) {
            Ok(()) | Err(MapError::KeyNotFound) => {
                self.mirror.remove(key);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Adds what is missing and replaces what differs.
    ///
    /// # Errors
    /// [`Error::Map`] for the last entry that failed, such as when the map is full; all are tried.
    pub fn fill(&mut self, wanted: &BTreeMap<K, V>) -> Result<(), Error> {
        let mut result = Ok(());
        for (&key, &value) in wanted {
            if let Err(source) = self.set(key, value) {
                result = Err(failed(self.name, source));
            }
        }
        result
    }
}

fn failed(map: &'static str, source: MapError) -> Error {
    Error::Map {
        map,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A map of limited size in memory.
    #[derive(Default)]
    struct Memory {
        entries: BTreeMap<u8, u32>,
        limit: usize,
        refuses: bool,
    }

    impl Entries<u8, u32> for Memory {
        fn all(&self) -> Result<Vec<(u8, u32)>, MapError> {
            Ok(self.entries.clone().into_iter().collect())
        }

        fn put(&mut self, key: &u8, value: u32) -> Result<(), MapError> {
            if self.refuses || !self.entries.contains_key(key) && self.entries.len() >= self.limit {
                return Err(MapError::KeyNotFound);
            }
            self.entries.insert(*key, value);
            Ok(())
        }

        fn delete(&mut self, key: &u8) -> Result<(), MapError> {
            self.entries
                .remove(key)
                .map(drop)
                .ok_or(MapError::KeyNotFound)
        }
    }

    proptest! {
        #[test]
        fn whatever_was_left_becomes_what_is_wanted(
            left: BTreeMap<u8, u32>,
            wanted: Vec<BTreeMap<u8, u32>>,
        ) {
            let map = Memory { entries: left, limit: usize::MAX, ..Memory::default() };
            let mut table = Table::adopt("test", map).expect("memory can be read");
            for wanted in &wanted {
                table.prune(wanted).expect("entries can be removed");
                table.fill(wanted).expect("there is room");
                prop_assert_eq!(&table.map.entries, wanted);
            }
        }

        #[test]
        fn a_full_map_holds_what_fits_and_takes_the_rest_later(wanted: BTreeMap<u8, u32>, limit in 0usize..300) {
            let mut table = Table::adopt("test", Memory { limit, ..Memory::default() }).expect("memory can be read");
            let fits = wanted.len() <= limit;
            prop_assert_eq!(table.fill(&wanted).is_ok(), fits);
            prop_assert_eq!(table.map.entries.len(), wanted.len().min(limit));
            table.map.limit = usize::MAX;
            table.fill(&wanted).expect("there is room");
            prop_assert_eq!(&table.map.entries, &wanted);
        }

        #[test]
        fn what_cannot_be_replaced_is_removed(left: BTreeMap<u8, u32>, other: u32) {
            let mut table = Table::adopt("test", Memory { entries: left.clone(), ..Memory::default() }).expect("memory can be read");
            table.map.refuses = true;
            let wanted: BTreeMap<u8, u32> = left.keys().map(|key| (*key, other)).collect();
            prop_assert_eq!(table.fill(&wanted).is_ok(), left == wanted);
            let kept = left.into_iter().filter(|(_, value)| *value == other).collect::<BTreeMap<_, _>>();
            prop_assert_eq!(&table.map.entries, &kept);
            prop_assert_eq!(&table.mirror, &kept);
        }

        #[test]
        fn an_entry_that_somebody_removed_is_no_error(left: BTreeMap<u8, u32>) {
            let mut table = Table::adopt("test", Memory { entries: left, limit: usize::MAX, ..Memory::default() }).expect("memory can be read");
            table.map.entries.clear();
            prop_assert!(table.prune(&BTreeMap::new()).is_ok());
            prop_assert!(table.mirror.is_empty());
        }
    }
}
