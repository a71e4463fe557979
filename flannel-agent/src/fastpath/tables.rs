//! The maps as a whole: what a topology puts into them, and in which order.

use std::io;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, Map, MapData, PerCpuArray};
use flannel_common::maps::{CONFIG_SLOTS, Config, Control, FLAG_ACTIVE, FLAG_IPV6};
use flannel_common::outcome::{self, Hook, Outcome};
use flannel_common::wire::{Be32, Be128};
use ipnet::IpNet;
use rustix::time::{ClockId, clock_gettime};

use super::Error;
use super::plain::Plain;
use super::routes::{Mapped as _, Routes, Wanted};
use super::topology::Peers;
use crate::status::Counters;

/// All maps.
pub struct Tables {
    control: Array<MapData, Plain<Control>>,
    config: Array<MapData, Plain<Config>>,
    v4: Routes<Be32>,
    v6: Routes<Be128>,
    counters: PerCpuArray<MapData, u64>,
}

/// What the maps should hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The config, without the flags that follow from the subnets ([`Wanted::flags`]).
    pub config: Config,
    /// What there is of IPv4.
    pub v4: Wanted<Be32>,
    /// What there is of IPv6.
    pub v6: Wanted<Be128>,
}

/// Takes a map out of a loaded object.
///
/// # Errors
/// [`Error::Missing`].
pub fn take(bpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    bpf.take_map(name).ok_or(Error::Missing { name })
}

impl Tables {
    /// Takes the maps out of a loaded object, with what they hold unless they are all `new`.
    ///
    /// # Errors
    /// [`Error::Missing`] or [`Error::Map`].
    pub fn adopt(bpf: &mut Ebpf, new: bool) -> Result<Self, Error> {
        let error = |name| move |source| map_error(name, source);
        let control = take(bpf, "CONTROL")?.try_into();
        let control = control.map_err(error("CONTROL"))?;
        let config = take(bpf, "CONFIG")?.try_into();
        let config = config.map_err(error("CONFIG"))?;
        let counters = take(bpf, "COUNTERS")?.try_into();
        let current = in_force(&control, &config)?;
        Ok(Self {
            control,
            config,
            v4: Routes::adopt(bpf, current.host_bits, new)?,
            v6: Routes::adopt(bpf, current.host6_bits, new)?,
            counters: counters.map_err(error("COUNTERS"))?,
        })
    }

    /// Brings all maps in line. What is no longer true goes first, so that nothing is sent where it does not belong;
    /// what is new is usable when the config, which is last, says so.
    ///
    /// # Errors
    /// [`Error::Map`] for the last entry that failed; all are tried.
    pub fn sync(&mut self, mut contents: Contents) -> Result<(), Error> {
        let now = nanoseconds(monotonic());
        self.v4.date(&mut contents.v4, now);
        self.v6.date(&mut contents.v6, now);
        let Contents { mut config, v4, v6 } = contents;
        config.flags |= v4.flags() | v6.flags();
        let current = self.current()?;
        // Numbers mean something else under another mask.
        let renumbers_v4 = current.subnet_mask != config.subnet_mask;
        let renumbers_v6 = current.subnet6_mask != config.subnet6_mask;
        if (renumbers_v4 || renumbers_v6) && current.flags & FLAG_ACTIVE != 0 {
            self.set_config(Config {
                flags: 0,
                ..current
            })?;
        }
        if renumbers_v4 {
            self.v4.renumber(config.host_bits)?;
        }
        if renumbers_v6 {
            self.v6.renumber(config.host6_bits)?;
        }
        let results = [
            self.v4.prune(&v4),
            self.v6.prune(&v6),
            self.v4.fill(&v4),
            self.v6.fill(&v6),
        ];
        self.next_generation()?;
        if self.current()? != config {
            self.set_config(config)?;
        }
        results.into_iter().collect()
    }

    /// After every change, so that nothing is taken for checked that was looked up before.
    fn next_generation(&mut self) -> Result<(), Error> {
        let mut control = self.control()?;
        control.generation = control.generation.checked_add(1).unwrap_or(1);
        self.set_control(control)
    }

    /// Brings these subnets in line with `peers`. Says whether that was possible without looking at the others.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn change_peers(&mut self, peers: &Peers, subnets: &[IpNet]) -> Result<bool, Error> {
        let config = self.current()?;
        let now = nanoseconds(monotonic());
        for subnet in subnets {
            let other_lengths = match subnet {
                IpNet::V4(_) => Be32::OTHER_LENGTHS,
                IpNet::V6(_) => Be128::OTHER_LENGTHS,
            };
            if config.flags & other_lengths != 0 {
                return Ok(false);
            }
            let changed = match subnet {
                IpNet::V4(_) => {
                    let length = config.subnet_mask.get().leading_ones() as u8;
                    self.v4.change(peers, subnet, length, now)
                }
                // Without it there is nothing to be changed.
                IpNet::V6(_) if config.flags & FLAG_IPV6 == 0 => true,
                IpNet::V6(_) => {
                    let length = config.subnet6_mask.get().leading_ones() as u8;
                    self.v6.change(peers, subnet, length, now)
                }
            };
            if !changed {
                return Ok(false);
            }
        }
        self.next_generation()?;
        Ok(true)
    }

    /// Tells programs that the agent is alive, and so until when they may believe it.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn beat(&mut self, until: Duration) -> Result<(), Error> {
        let mut control = self.control()?;
        control.expires = nanoseconds(until);
        self.set_control(control)
    }

    /// Tells the programs to leave everything to the kernel.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn deactivate(&mut self) -> Result<(), Error> {
        let current = self.current()?;
        self.set_config(Config {
            flags: current.flags & !FLAG_ACTIVE,
            ..current
        })
    }

    /// How many flows are remembered.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn flows(&self) -> io::Result<u64> {
        Ok(self.v4.flows()? + self.v6.flows()?)
    }

    /// The age from which the programs probe a flow; zero if there is none.
    pub fn revalidation(&self) -> Duration {
        let config = self.current().unwrap_or_default();
        Duration::from_nanos(config.revalidate_after)
    }

    fn current(&self) -> Result<Config, Error> {
        in_force(&self.control, &self.config)
    }

    fn set_config(&mut self, config: Config) -> Result<(), Error> {
        let mut control = self.control()?;
        control.slot = (control.slot + 1) % CONFIG_SLOTS;
        self.config
            .set(control.slot, Plain(config), 0)
            .map_err(|source| map_error("CONFIG", source))?;
        self.set_control(control)
    }

    fn control(&self) -> Result<Control, Error> {
        control(&self.control)
    }

    fn set_control(&mut self, control: Control) -> Result<(), Error> {
        self.control
            .set(0, Plain(control), 0)
            .map_err(|source| map_error("CONTROL", source))
    }

    /// The counters, summed over the CPUs.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn counters(&self) -> Result<Counters, Error> {
        let mut counters = Counters::default();
        for hook in Hook::ALL {
            for &outcome in Outcome::ALL {
                let values = self
                    .counters
                    .get(&outcome::slot(hook, outcome), 0)
                    .map_err(|source| map_error("COUNTERS", source))?;
                let packets = values.iter().sum();
                match (outcome, hook) {
                    (Outcome::Fast, Hook::PodEgress | Hook::BridgeEgress) => {
                        counters.fast_egress += packets
                    }
                    (Outcome::Fast, Hook::NicIngress | Hook::VtepIngress) => {
                        counters.fast_ingress += packets
                    }
                    (Outcome::Decapsulated, _) => counters.decapsulated += packets,
                    _ if packets > 0 => {
                        let counters = if Hook::ATTESTING.contains(&hook) {
                            &mut counters.attest
                        } else {
                            &mut counters.declined
                        };
                        counters.insert(format!("{}/{}", hook.name(), outcome.name()), packets);
                    }
                    _ => {}
                }
            }
        }
        Ok(counters)
    }
}

fn control(map: &Array<MapData, Plain<Control>>) -> Result<Control, Error> {
    let control = map.get(&0, 0);
    let control = control.map_err(|source| map_error("CONTROL", source))?;
    Ok(control.0)
}

/// The config that the programs go by.
fn in_force(
    map: &Array<MapData, Plain<Control>>,
    configs: &Array<MapData, Plain<Config>>,
) -> Result<Config, Error> {
    let config = configs.get(&control(map)?.slot, 0);
    let config = config.map_err(|source| map_error("CONFIG", source))?;
    Ok(config.0)
}

/// The present, on the clock of the maps' times.
pub fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

/// A duration as the maps hold it.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An error of a map.
pub fn map_error(map: &'static str, source: aya::maps::MapError) -> Error {
    Error::Map {
        map,
        source: Box::new(source),
    }
}
