//! Values that programs find by number: an array of values, and an index that says in which slot each number's lies.
//!
//! The kernel writes into an array's element while programs may read it. So a value is written into a slot that nothing
//! leads to, and then the index, a word, is turned to it: programs see the former value or the new one, whole. Each value
//! says whose it is, so that whatever else an index may lead to is not taken for what was looked for.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Instant;

use aya::maps::{Array, IterableMap as _, MapData, MapError};
use bytemuck::Pod;
use flannel_common::family::Family;
use flannel_common::maps::{
    LocalPod, LocalPod6, NO_SLOT, Peer, Peer6, PeerEntry, PodEntry, pod_number, subnet_number,
};

use super::plain::Plain;
use super::slots::Slots;
use super::sys;
use super::table::Entries;

/// A value that says whose it is.
pub trait Numbered: Pod {
    /// An address of its family.
    type Address: Family;

    /// Its address.
    fn address(&self) -> Self::Address;

    /// The number of an address, where subnets have that many bits for hosts.
    fn number(address: Self::Address, host_bits: u32) -> u32;
}

macro_rules! numbered {
    ($($peer:ident, $pod:ident;)*) => {$(
        impl Numbered for $peer {
            type Address = <Self as PeerEntry>::Address;

            fn address(&self) -> Self::Address {
                self.subnet
            }

            fn number(address: Self::Address, host_bits: u32) -> u32 {
                subnet_number(address, host_bits)
            }
        }

        impl Numbered for $pod {
            type Address = <Self as PodEntry>::Address;

            fn address(&self) -> Self::Address {
                self.address
            }

            fn number(address: Self::Address, _: u32) -> u32 {
                pod_number(address)
            }
        }
    )*};
}

numbered! {
    Peer, LocalPod;
    Peer6, LocalPod6;
}

/// An index and its values.
pub struct Indexed<V: Numbered> {
    index: Array<MapData, u32>,
    values: Array<MapData, Plain<V>>,
    host_bits: u32,
    /// The slot and the address of each number that is taken.
    entries: HashMap<u32, (u32, V::Address)>,
    slots: Slots,
}

impl<V: Numbered> Indexed<V> {
    /// The maps with what an earlier agent left in them, where subnets had that many bits for hosts. New ones are empty:
    /// looking through them would cost more than filling them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn adopt(
        mut index: Array<MapData, u32>,
        values: Array<MapData, Plain<V>>,
        host_bits: u32,
        new: bool,
    ) -> Result<Self, MapError> {
        let found = if new { Vec::new() } else { slots(&index)? };
        let taken = found.iter().map(|(_, slot)| *slot).collect();
        let mut slots = Slots::new(values.len(), &taken, Instant::now());
        let mut entries = HashMap::new();
        for (number, slot) in found {
            let address = values.get(&slot, 0)?.0.address();
            if V::number(address, host_bits) == number {
                entries.insert(number, (slot, address));
            } else {
                // Of an agent that ended while it numbered anew.
                index.set(number, NO_SLOT, 0)?;
                slots.give_back(slot, Instant::now());
            }
        }
        Ok(Self {
            host_bits,
            slots,
            index,
            values,
            entries,
        })
    }

    /// Numbers subnets with that many bits for hosts. The maps must be empty.
    pub fn renumber(&mut self, host_bits: u32) {
        self.host_bits = host_bits;
    }
}

impl<V, K> Entries<K, V> for Indexed<V>
where
    V: Numbered,
    K: Copy + Display + From<V::Address> + Into<V::Address>,
{
    fn all(&self) -> Result<Vec<(K, V)>, MapError> {
        self.entries
            .values()
            .map(|(slot, address)| Ok(((*address).into(), self.values.get(slot, 0)?.0)))
            .collect()
    }

    fn put(&mut self, key: &K, value: V) -> Result<(), MapError> {
        let address: V::Address = (*key).into();
        let number = V::number(address, self.host_bits);
        let old = self.entries.get(&number).copied();
        if let Some((_, other)) = old
            && other != address
        {
            let other = K::from(other);
            return Err(io::Error::other(format!("{key} and {other} have one number")).into());
        }
        let now = Instant::now();
        let full = || io::Error::other(format!("no slot is free for {key}"));
        let slot = self.slots.take(now).ok_or_else(full)?;
        let written = self
            .values
            .set(slot, Plain(value), 0)
            .and_then(|()| self.index.set(number, slot, 0));
        if let Err(error) = written {
            self.slots.give_back(slot, now);
            return Err(error);
        }
        if let Some((old, _)) = self.entries.insert(number, (slot, address)) {
            self.slots.give_back(old, now);
        }
        Ok(())
    }

    fn delete(&mut self, key: &K) -> Result<(), MapError> {
        let address: V::Address = (*key).into();
        let number = V::number(address, self.host_bits);
        match self.entries.get(&number).copied() {
            Some((slot, found)) if found == address => {
                self.index.set(number, NO_SLOT, 0)?;
                self.entries.remove(&number);
                self.slots.give_back(slot, Instant::now());
                Ok(())
            }
            _ => Err(MapError::KeyNotFound),
        }
    }
}

/// All values that an index leads to.
///
/// # Errors
/// What the kernel says.
pub fn read<V: Numbered>(
    index: &Array<MapData, u32>,
    values: &Array<MapData, Plain<V>>,
) -> Result<Vec<V>, MapError> {
    let taken = slots(index)?.into_iter();
    taken
        .map(|(_, slot)| values.get(&slot, 0).map(|value| value.0))
        .collect()
}

/// The numbers that lead to a slot, and the slots.
fn slots(index: &Array<MapData, u32>) -> io::Result<Vec<(u32, u32)>> {
    let mut taken = Vec::new();
    sys::visit_entries(
        index.map().fd().as_fd(),
        |numbers: &[u32], slots: &[u32]| {
            let both = numbers.iter().copied().zip(slots.iter().copied());
            taken.extend(both.filter(|&(_, slot)| slot != NO_SLOT));
        },
    )?;
    Ok(taken)
}
