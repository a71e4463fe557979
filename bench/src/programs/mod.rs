//! The agent's BPF programs, loaded by its own code, with maps of their own and a namespace with the interfaces that the
//! packets name: to be run on the named packets of `flannel_common`, for tests and measurements.

mod run;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, Map, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{Program, SchedClassifier},
};
use bytemuck::Pod;
use flannel_agent::fastpath::{
    Attest, Egress,
    facts::Facts,
    indexed::{Indexed, Numbered},
    object,
    plain::Plain,
    table::Table,
    tier,
};
use flannel_common::{
    decide::Topology as _,
    flow::{Flow, FlowKey},
    maps::{CONFIG_SLOTS, Config, Control, LocalPod, MAX_FLOWS, Peer},
    outcome::{Hook, SLOTS},
    testing::{
        fixtures::Fixture,
        memory::at,
        node::{self, DEVICES, Tables},
    },
    wire::Be32,
};
pub use run::{Ran, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, XDP_DROP, XDP_PASS};
use rustix::time::{ClockId, clock_gettime};

use crate::{netns::Netns, process};

/// Names the object to run, also to the agent's build script.
const OBJECT_VARIABLE: &str = "FLANNEL_EBPF_OBJECT";

/// The BPF object that `FLANNEL_EBPF_OBJECT` names, such as another toolchain's, or else the one that was built in, if
/// one was.
///
/// # Errors
/// If the file that is named cannot be read.
pub fn bytes() -> Result<Option<Cow<'static, [u8]>>> {
    let Some(path) = env::var_os(OBJECT_VARIABLE) else {
        return Ok(object::bytes().map(Cow::Borrowed));
    };
    let read = fs::read(&path);
    let read = read.with_context(|| format!("cannot read {OBJECT_VARIABLE}={}", path.display()))?;
    Ok(Some(read.into()))
}

/// How long ago anything of a fixture happened at most, and some time to spare.
const OLDEST: Duration = Duration::from_secs(30);

/// The programs, their maps and their interfaces.
pub struct Kernel {
    bpf: Ebpf,
    maps: BTreeSet<String>,
    slot: u32,
    control: Array<MapData, Plain<Control>>,
    config: Array<MapData, Plain<Config>>,
    subnets: Table<Indexed<Peer>, Ipv4Addr, Peer>,
    subnets_lpm: LpmTrie<MapData, Plain<Be32>, Plain<Peer>>,
    pods: Table<Indexed<LocalPod>, Ipv4Addr, LocalPod>,
    flows: HashMap<MapData, Plain<FlowKey>, Plain<Flow>>,
    counters: PerCpuArray<MapData, u64>,
    encapsulates: bool,
    sets_origin: bool,
    netns: Netns,
}

impl Kernel {
    /// Loads every program of the object, as this kernel would have them and with attestation by the mark: that is what a
    /// test run can set, while no packet in it has a conntrack entry. Waits on a machine that was booted just now.
    ///
    /// # Errors
    /// What the verifier says, or why there is no namespace.
    pub fn load(bytes: &[u8]) -> Result<Self> {
        // The oldest flows of the fixtures were attested when a machine that has just been booted was not there yet.
        if let Some(too_young) = OLDEST.checked_sub(Duration::from_nanos(monotonic())) {
            std::thread::sleep(too_young);
        }
        load(bytes, Attest::Auto)?;
        let mut bpf = load(bytes, Attest::Mark)?;
        let encapsulates = tier::egress(&mut bpf, Egress::Auto) == Egress::Encap;
        let name = Hook::AttestOut.name();
        let program = bpf.program(name);
        let program = program.with_context(|| format!("no program {name}"))?;
        let program: &SchedClassifier = program.try_into()?;
        let sets_origin = run::sets_origin(program);
        // Global variables are a map too, but not one of ours.
        let maps = bpf
            .maps()
            .filter(|(name, _)| !name.starts_with('.'))
            .map(|(name, _)| name.to_owned())
            .collect();
        let mut map = |name: &str| bpf.take_map(name).with_context(|| format!("no map {name}"));
        Ok(Self {
            maps,
            slot: 0,
            control: map("CONTROL")?.try_into()?,
            config: map("CONFIG")?.try_into()?,
            subnets: indexed(&mut map, "SUBNET_INDEX", "PEERS")?,
            subnets_lpm: map("SUBNETS_LPM")?.try_into()?,
            pods: indexed(&mut map, "POD_INDEX", "PODS")?,
            flows: map("FLOWS")?.try_into()?,
            counters: map("COUNTERS")?.try_into()?,
            encapsulates,
            sets_origin,
            netns: devices()?,
            bpf,
        })
    }

    /// Whether programs can encapsulate on this kernel, by the agent's own probe.
    pub fn encapsulates(&self) -> bool {
        self.encapsulates
    }

    /// Whether a test run can say by which interface a packet came in: before kernel 5.15 it cannot.
    pub fn sets_origin(&self) -> bool {
        self.sets_origin
    }

    /// The names of the object's programs.
    pub fn programs(&self) -> BTreeSet<&str> {
        self.bpf.programs().map(|(name, _)| name).collect()
    }

    /// The names of the object's maps.
    pub fn maps(&self) -> &BTreeSet<String> {
        &self.maps
    }

    /// Makes the maps hold exactly `tables`. The config goes into the slot that is not in use.
    ///
    /// # Errors
    /// If a map refuses it.
    pub fn fill(&mut self, tables: &Tables) -> Result<()> {
        self.slot = (self.slot + 1) % CONFIG_SLOTS;
        self.config
            .set(self.slot, Plain(tables.config), 0)
            .context("CONFIG")?;
        let control = Control {
            slot: self.slot,
            generation: tables.generation,
            expires: tables.expires(),
        };
        self.control.set(0, Plain(control), 0).context("CONTROL")?;
        replace_indexed(&mut self.subnets, &tables.subnets).context("PEERS")?;
        replace_indexed(&mut self.pods, &tables.pods).context("PODS")?;
        let now = monotonic();
        let flows = tables.flows.iter();
        let flows = flows.map(|(key, ages)| (*key, at(ages, now))).collect();
        replace(&mut self.flows, &flows).context("FLOWS")?;
        let old: Vec<_> = self
            .subnets_lpm
            .keys()
            .collect::<Result<_, _>>()
            .context("SUBNETS_LPM")?;
        for key in old {
            self.subnets_lpm.remove(&key).context("SUBNETS_LPM")?;
        }
        for (first, length, peer) in &tables.subnets_lpm {
            self.subnets_lpm
                .insert(&Key::new(*length, Plain(*first)), Plain(*peer), 0)
                .context("SUBNETS_LPM")?;
        }
        Ok(())
    }

    /// All counters, summed over the processors.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<Vec<u64>> {
        (0..SLOTS)
            .map(|slot| Ok(self.counters.get(&slot, 0)?.iter().sum()))
            .collect::<Result<_>>()
            .context("COUNTERS")
    }

    /// Runs the fixture's program on its packet `repeat` times. Runs after the first get what the one before left.
    ///
    /// # Errors
    /// If the kernel does not run it.
    pub fn run(&self, fixture: &Fixture, repeat: u32) -> Result<Ran> {
        let mut ran = self.runs(fixture, repeat, 1)?;
        ran.pop().context("BPF_PROG_TEST_RUN")
    }

    /// The same several times, each with the packet as it was at first.
    ///
    /// # Errors
    /// If the kernel does not run it.
    pub fn runs(&self, fixture: &Fixture, repeat: u32, times: usize) -> Result<Vec<Ran>> {
        let hook = fixture.hook.name();
        let program = self.bpf.program(hook);
        let program = program.with_context(|| format!("no program {hook}"))?;
        let sets_origin = self.sets_origin;
        let once = || run::once(program, fixture, sets_origin, repeat);
        self.netns
            .run(|| (0..times).map(|_| once()).collect::<Result<_>>())?
    }
}

fn load(bytes: &[u8], attest: Attest) -> Result<Ebpf> {
    let mut bpf =
        object::load(bytes, &Facts::ask(attest), MAX_FLOWS, None).context("creating maps")?;
    for (name, program) in bpf.programs_mut() {
        let loaded = match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => anyhow::bail!("program {name} is of a type that is not expected"),
        };
        loaded.with_context(|| format!("loading program {name}, attestation by {attest:?}"))?;
    }
    Ok(bpf)
}

/// The time on the clock of the programs.
fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32).as_nanos() as u64
}

/// An index and its values, for the subnets of the fixtures.
fn indexed<V: Numbered + PartialEq>(
    map: &mut impl FnMut(&str) -> Result<Map>,
    index: &str,
    values: &'static str,
) -> Result<Table<Indexed<V>, Ipv4Addr, V>> {
    let host_bits = node::config().host_bits;
    let indexed = Indexed::adopt(map(index)?.try_into()?, map(values)?.try_into()?, host_bits)?;
    Ok(Table::adopt(values, indexed)?)
}

fn replace_indexed<V: Numbered + PartialEq>(
    table: &mut Table<Indexed<V>, Ipv4Addr, V>,
    wanted: &std::collections::HashMap<Be32, V>,
) -> Result<()> {
    let wanted: BTreeMap<Ipv4Addr, V> = wanted.iter().map(|(k, v)| ((*k).into(), *v)).collect();
    table.prune(&wanted)?;
    Ok(table.fill(&wanted)?)
}

fn replace<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, Plain<K>, Plain<V>>,
    wanted: &std::collections::HashMap<K, V>,
) -> Result<()> {
    let old: Vec<_> = map.keys().collect::<Result<_, _>>()?;
    for key in old {
        map.remove(&key)?;
    }
    for (key, value) in wanted {
        map.insert(Plain(*key), Plain(*value), 0)?;
    }
    Ok(())
}

/// A namespace with a veth for every interface that a hook is attached to: its index and address decide what the
/// kernel says of a packet.
fn devices() -> Result<Netns> {
    /// Added to an index to make that of the other end.
    const OTHER_END: u32 = 100;
    let netns = Netns::create(&format!("programs-{}", std::process::id()))?;
    for device in DEVICES {
        let index = device.index.to_string();
        let other = (device.index + OTHER_END).to_string();
        let mac = device.mac.to_string();
        let arguments = [
            "link",
            "add",
            device.name,
            "index",
            &index,
            "address",
            &mac,
            "type",
            "veth",
            "peer",
            "index",
            &other,
        ];
        process::run(Some(&netns), "ip", &arguments)?;
    }
    Ok(netns)
}
