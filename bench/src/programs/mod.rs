//! The agent's BPF programs, loaded by its own code, with maps of their own and a namespace with the interfaces that the
//! packets name: to be run on the named packets of `flannel_common`, for tests and measurements.

mod run;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Display,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
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
    flow::{Flow, FlowKey, FlowKey6},
    maps::{CONFIG_SLOTS, Config, Control, LocalPod, LocalPod6, Peer, Peer6},
    outcome::{Hook, SLOTS},
    testing::{
        fixtures::Fixture,
        memory::at,
        node::{DEVICES, Tables},
        node6::VTEP6,
    },
    wire::{Be32, Be128},
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

/// Subnets of any length.
type Trie<A, V> = LpmTrie<MapData, Plain<A>, Plain<V>>;

/// The programs, their maps and their interfaces.
pub struct Kernel {
    bpf: Ebpf,
    maps: BTreeSet<String>,
    slot: u32,
    control: Array<MapData, Plain<Control>>,
    config: Array<MapData, Plain<Config>>,
    subnets: Table<Indexed<Peer>, Ipv4Addr, Peer>,
    subnets_lpm: Trie<Be32, Peer>,
    pods: Table<Indexed<LocalPod>, Ipv4Addr, LocalPod>,
    flows: HashMap<MapData, Plain<FlowKey>, Plain<Flow>>,
    subnets6: Table<Indexed<Peer6>, Ipv6Addr, Peer6>,
    subnets6_lpm: Trie<Be128, Peer6>,
    pods6: Table<Indexed<LocalPod6>, Ipv6Addr, LocalPod6>,
    flows6: HashMap<MapData, Plain<FlowKey6>, Plain<Flow>>,
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
        let config = Tables::node().config;
        let mut map = |name: &str| bpf.take_map(name).with_context(|| format!("no map {name}"));
        Ok(Self {
            maps,
            slot: 0,
            control: map("CONTROL")?.try_into()?,
            config: map("CONFIG")?.try_into()?,
            subnets: indexed(&mut map, "SUBNET_INDEX", "PEERS", config.host_bits)?,
            subnets_lpm: map("SUBNETS_LPM")?.try_into()?,
            pods: indexed(&mut map, "POD_INDEX", "PODS", config.host_bits)?,
            flows: map("FLOWS")?.try_into()?,
            subnets6: indexed(&mut map, "SUBNET_INDEX_V6", "PEERS_V6", config.host6_bits)?,
            subnets6_lpm: map("SUBNETS_LPM_V6")?.try_into()?,
            pods6: indexed(&mut map, "POD_INDEX_V6", "PODS_V6", config.host6_bits)?,
            flows6: map("FLOWS_V6")?.try_into()?,
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
        replace_indexed(&mut self.subnets6, &tables.v6.subnets).context("PEERS_V6")?;
        replace_indexed(&mut self.pods6, &tables.v6.pods).context("PODS_V6")?;
        replace_flows(&mut self.flows, &tables.flows).context("FLOWS")?;
        replace_flows(&mut self.flows6, &tables.v6.flows).context("FLOWS_V6")?;
        replace_trie(&mut self.subnets_lpm, &tables.subnets_lpm).context("SUBNETS_LPM")?;
        replace_trie(&mut self.subnets6_lpm, &tables.v6.subnets_lpm).context("SUBNETS_LPM_V6")
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
    let mut bpf = object::load(bytes, &Facts::ask(attest), object::Room::default(), None)
        .context("creating maps")?;
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

/// An index and its values, where subnets have that many bits for hosts.
fn indexed<V, K>(
    map: &mut impl FnMut(&str) -> Result<Map>,
    index: &str,
    values: &'static str,
    host_bits: u32,
) -> Result<Table<Indexed<V>, K, V>>
where
    V: Numbered + PartialEq,
    K: Copy + Ord + Display + From<V::Address> + Into<V::Address>,
{
    let indexed = Indexed::adopt(
        map(index)?.try_into()?,
        map(values)?.try_into()?,
        host_bits,
        true,
    )?;
    Ok(Table::adopt(values, indexed)?)
}

fn replace_indexed<V, K>(
    table: &mut Table<Indexed<V>, K, V>,
    wanted: &std::collections::HashMap<V::Address, V>,
) -> Result<()>
where
    V: Numbered + PartialEq,
    K: Copy + Ord + Display + From<V::Address> + Into<V::Address>,
{
    let wanted: BTreeMap<K, V> = wanted.iter().map(|(k, v)| ((*k).into(), *v)).collect();
    table.prune(&wanted)?;
    Ok(table.fill(&wanted)?)
}

/// Makes a map hold flows whose times are given as ages.
fn replace_flows<K: Pod>(
    map: &mut HashMap<MapData, Plain<K>, Plain<Flow>>,
    wanted: &std::collections::HashMap<K, Flow>,
) -> Result<()> {
    let old: Vec<_> = map.keys().collect::<Result<_, _>>()?;
    for key in old {
        map.remove(&key)?;
    }
    let now = monotonic();
    for (key, ages) in wanted {
        map.insert(Plain(*key), Plain(at(ages, now)), 0)?;
    }
    Ok(())
}

fn replace_trie<A: Pod, V: Pod>(trie: &mut Trie<A, V>, wanted: &[(A, u32, V)]) -> Result<()> {
    let old: Vec<_> = trie.keys().collect::<Result<_, _>>()?;
    for key in old {
        trie.remove(&key)?;
    }
    for (first, length, value) in wanted {
        trie.insert(&Key::new(*length, Plain(*first)), Plain(*value), 0)?;
    }
    Ok(())
}

/// A namespace with a veth for every interface that a hook is attached to: its index and address decide what the
/// kernel says of a packet.
fn devices() -> Result<Netns> {
    /// Added to an index to make that of the other end.
    const OTHER_END: u32 = 100;
    let netns = Netns::create(&format!("programs-{}", std::process::id()))?;
    for device in DEVICES.into_iter().chain([VTEP6]) {
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
