//! The loaded programs with maps of their own, and a namespace with the interfaces that the packets name.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{Program, SchedClassifier, TestRun as _, Xdp};
use aya::{Ebpf, TestRunOptions};
use bytemuck::{Pod, Zeroable, bytes_of};
use flannel_agent::fastpath::facts::Facts;
use flannel_agent::fastpath::indexed::{Indexed, Numbered};
use flannel_agent::fastpath::plain::Plain;
use flannel_agent::fastpath::table::Table;
use flannel_agent::fastpath::{Attest, Egress, object, tier};
use flannel_common::decide::Topology as _;
use flannel_common::flow::{Flow, FlowKey};
use flannel_common::maps::{CONFIG_SLOTS, Config, Control, LocalPod, MAX_FLOWS, Peer};
use flannel_common::outcome::{Hook, SLOTS};
use flannel_common::testing::fixtures::{Expected, Fixture};
use flannel_common::testing::memory::at;
use flannel_common::testing::model::To;
use flannel_common::testing::node::{self, DEVICES, Tables};
use flannel_common::wire::Be32;
use flannel_common::wire::vxlan;
use lab::{Netns, process};
use rustix::time::{ClockId, clock_gettime};

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT` and `TC_ACT_REDIRECT` of include/uapi/linux/pkt_cls.h.
pub const TC_ACT_UNSPEC: i32 = -1;
pub const TC_ACT_SHOT: i32 = 2;
pub const TC_ACT_REDIRECT: i32 = 7;

/// Room for the whole of it, which a test run writes, on any kernel.
const LARGEST_CONTEXT: usize = 512;

/// `XDP_DROP` and `XDP_PASS` of include/uapi/linux/bpf.h.
pub const XDP_DROP: i32 = 1;
pub const XDP_PASS: i32 = 2;

/// How long ago anything of a fixture happened at most, and some time to spare.
const OLDEST: Duration = Duration::from_secs(30);

/// A bit of the packet's mark that is somebody else's.
const OTHER_MARK: u32 = 1 << 20;

/// `struct __sk_buff` of include/uapi/linux/bpf.h, as far as a test run takes anything from it.
#[derive(Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct SkBuff {
    before_mark: [u32; 2],
    mark: u32,
    before_ingress_ifindex: [u32; 6],
    ingress_ifindex: u32,
    ifindex: u32,
    before_gso_segs: [u32; 30],
    gso_segs: u32,
    before_gso_size: [u32; 2],
    gso_size: u32,
    padding: u32,
}

const _: () = assert!(
    offset_of!(SkBuff, mark) == 8
        && offset_of!(SkBuff, ingress_ifindex) == 36
        && offset_of!(SkBuff, ifindex) == 40
        && offset_of!(SkBuff, gso_segs) == 164
        && offset_of!(SkBuff, gso_size) == 176
);

/// What a program made of a packet.
pub struct Ran {
    /// What it returned.
    pub verdict: i32,
    /// The packet afterwards.
    pub frame: Vec<u8>,
    /// Whether of its mark just what is somebody else's is left, and nothing of what goes into a pod.
    pub mark_is_clean: bool,
    /// Mean time of one run.
    pub duration: Duration,
}

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
    /// test run can set, while no packet in it has a conntrack entry.
    pub fn load(bytes: &[u8]) -> Result<Self> {
        // The oldest flows of the fixtures were attested when a machine that has just been booted was not there yet.
        if let Some(too_young) = OLDEST.checked_sub(Duration::from_nanos(monotonic())) {
            std::thread::sleep(too_young);
        }
        load(bytes, Attest::Auto)?;
        let mut bpf = load(bytes, Attest::Mark)?;
        let encapsulates = tier::egress(&mut bpf, Egress::Auto) == Egress::Encap;
        let sets_origin = sets_origin(&bpf)?;
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
    pub fn counters(&self) -> Result<Vec<u64>> {
        (0..SLOTS)
            .map(|slot| Ok(self.counters.get(&slot, 0)?.iter().sum()))
            .collect::<Result<_>>()
            .context("COUNTERS")
    }

    /// Runs the XDP program on a frame.
    fn run_xdp(&mut self, fixture: &Fixture, repeat: u32) -> Result<Ran> {
        let program: &Xdp = self
            .bpf
            .program(fixture.hook.name())
            .with_context(|| format!("no program {}", fixture.hook.name()))?
            .try_into()?;
        let mut frame = vec![0; fixture.frame.len()];
        let result = program
            .test_run(TestRunOptions {
                data_in: Some(&fixture.frame),
                data_out: Some(&mut frame),
                repeat,
                ..TestRunOptions::new()
            })
            .context("BPF_PROG_TEST_RUN")?;
        frame.truncate(result.data_size_out as usize);
        Ok(Ran {
            verdict: result.return_value as i32,
            frame,
            mark_is_clean: true,
            duration: result.duration,
        })
    }

    /// Runs the fixture's program on its packet `repeat` times. Runs after the first get what the one before left.
    pub fn run(&mut self, fixture: &Fixture, repeat: u32) -> Result<Ran> {
        if fixture.hook == Hook::NicXdp {
            return self.run_xdp(fixture, repeat);
        }
        let program: &SchedClassifier = self
            .bpf
            .program(fixture.hook.name())
            .with_context(|| format!("no program {}", fixture.hook.name()))?
            .try_into()?;
        let mark = if fixture.attested {
            fixture.tables.config.mark
        } else {
            0
        };
        let context = SkBuff {
            mark: mark | OTHER_MARK,
            ingress_ifindex: if self.sets_origin {
                fixture.came_from
            } else {
                0
            },
            ifindex: fixture.device.index,
            gso_size: fixture.gso_size,
            gso_segs: (fixture.frame.len() as u32)
                .checked_div(fixture.gso_size)
                .unwrap_or(0),
            ..SkBuff::default()
        };
        let mut frame = vec![0; fixture.frame.len() + vxlan::OVERHEAD];
        let mut after = [0; LARGEST_CONTEXT];
        let result = self
            .netns
            .run(|| {
                program.test_run(TestRunOptions {
                    data_in: Some(&fixture.frame),
                    data_out: Some(&mut frame),
                    ctx_in: Some(bytes_of(&context)),
                    ctx_out: Some(&mut after),
                    repeat,
                    ..TestRunOptions::new()
                })
            })?
            .context("BPF_PROG_TEST_RUN")?;
        frame.truncate(result.data_size_out as usize);
        let left: u32 = match fixture.expected {
            Expected::Fast {
                to: To::VethPeer(_),
                ..
            } if result.return_value as i32 == TC_ACT_REDIRECT => 0,
            _ => OTHER_MARK,
        };
        Ok(Ran {
            verdict: result.return_value as i32,
            frame,
            mark_is_clean: after[offset_of!(SkBuff, mark)..].starts_with(&left.to_ne_bytes()),
            duration: result.duration,
        })
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

/// Asks the kernel whether a test run takes the interface that a packet came in by.
fn sets_origin(bpf: &Ebpf) -> Result<bool> {
    /// The loopback interface of any namespace.
    const LOOPBACK: u32 = 1;
    /// Any frame of a sufficient length will do.
    const FRAME: [u8; 64] = [0; 64];
    let name = Hook::AttestOut.name();
    let program: &SchedClassifier = bpf
        .program(name)
        .with_context(|| format!("no program {name}"))?
        .try_into()?;
    let context = SkBuff {
        ingress_ifindex: LOOPBACK,
        ..SkBuff::default()
    };
    let options = TestRunOptions {
        data_in: Some(&FRAME),
        ctx_in: Some(bytes_of(&context)),
        ..TestRunOptions::new()
    };
    Ok(program.test_run(options).is_ok())
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
