//! The maps, and safe lookups in them.
//!
//! The agent alone writes them, except the counters and the flows. Their names are what the agent pins them under.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use flannel_common::decide;
use flannel_common::family::Family;
use flannel_common::flow::{Clock, Flow, FlowKey, FlowKey6, Flows, SharedFlow};
use flannel_common::maps::{
    self, CONFIG_SLOTS, Config, Control, FLAG_OTHER_LENGTHS, FLAG_OTHER_LENGTHS_V6, LocalPod,
    LocalPod6, MAX_FLOWS, MAX_OTHER_SUBNETS, NO_SLOT, PEER_SLOTS, POD_NUMBERS, POD_SLOTS, Peer,
    Peer6, PeerEntry as _, PodEntry as _, SUBNET_NUMBERS,
};
use flannel_common::outcome::{self, Hook, Outcome};
use flannel_common::wire::{Be32, Be128};

use crate::kernel;
use crate::skb::{DROP, Skb};

/// Which slot of [`CONFIG`] is in use, and until when.
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// The node's interfaces and addresses, twice.
#[map]
static CONFIG: Array<Config> = Array::with_max_entries(CONFIG_SLOTS, 0);

/// The slot in [`PEERS`] of each subnet of the usual length, by number.
#[map]
static SUBNET_INDEX: Array<u32> = Array::with_max_entries(SUBNET_NUMBERS, 0);

/// Other nodes with a subnet of the usual length. An array: what the kernel's hash calls costs more than all else that a
/// fast packet needs to be known of.
#[map]
static PEERS: Array<Peer> = Array::with_max_entries(PEER_SLOTS, 0);

/// Other nodes by subnet, for all that [`SUBNET_INDEX`] has no place for.
#[map]
static SUBNETS_LPM: LpmTrie<Be32, Peer> =
    LpmTrie::with_max_entries(MAX_OTHER_SUBNETS, BPF_F_NO_PREALLOC);

/// The slot in [`PODS`] of each address of this node's subnet, by number.
#[map]
static POD_INDEX: Array<u32> = Array::with_max_entries(POD_NUMBERS, 0);

/// Pods of this node.
#[map]
static PODS: Array<LocalPod> = Array::with_max_entries(POD_SLOTS, 0);

/// What is remembered of flows. The programs write it.
#[map]
static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(MAX_FLOWS, 0);

/// As [`SUBNET_INDEX`], for IPv6. All maps of IPv6 have room for next to nothing where it is not served.
#[map]
static SUBNET_INDEX_V6: Array<u32> = Array::with_max_entries(SUBNET_NUMBERS, 0);

/// As [`PEERS`], for IPv6.
#[map]
static PEERS_V6: Array<Peer6> = Array::with_max_entries(PEER_SLOTS, 0);

/// As [`SUBNETS_LPM`], for IPv6.
#[map]
static SUBNETS_LPM_V6: LpmTrie<Be128, Peer6> =
    LpmTrie::with_max_entries(MAX_OTHER_SUBNETS, BPF_F_NO_PREALLOC);

/// As [`POD_INDEX`], for IPv6.
#[map]
static POD_INDEX_V6: Array<u32> = Array::with_max_entries(POD_NUMBERS, 0);

/// As [`PODS`], for IPv6.
#[map]
static PODS_V6: Array<LocalPod6> = Array::with_max_entries(POD_SLOTS, 0);

/// As [`FLOWS`], for IPv6.
#[map]
static FLOWS_V6: LruHashMap<FlowKey6, Flow> = LruHashMap::with_max_entries(MAX_FLOWS, 0);

/// Packets by hook and outcome.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(outcome::SLOTS, 0);

/// The maps as decisions see them, with the config that was in force when the program started.
pub struct Topology {
    config: &'static Config,
    control: &'static Control,
}

impl Topology {
    /// `None` cannot happen, since array elements always exist; the verifier wants it handled.
    #[inline(always)]
    pub fn load() -> Option<Self> {
        let control = CONTROL.get(0)?;
        Some(Self {
            config: CONFIG.get(control.slot)?,
            control,
        })
    }
}

impl decide::Topology for Topology {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }

    #[inline(always)]
    fn generation(&self) -> u32 {
        self.control.generation
    }

    #[inline(always)]
    fn expires(&self) -> u64 {
        self.control.expires
    }
}

impl decide::Routes<Be32> for Topology {
    #[inline(always)]
    fn peer(&self, address: Be32) -> Option<&Peer> {
        let number = maps::subnet_number(address, self.config.host_bits);
        let peer = in_slot(&SUBNET_INDEX, number, &PEERS)
            .filter(|peer| peer.holds(address, self.config.subnet_mask));
        if peer.is_none() && self.config.flags & FLAG_OTHER_LENGTHS != 0 {
            return SUBNETS_LPM.get(Key::new(u32::BITS, address));
        }
        peer
    }

    #[inline(always)]
    fn pod(&self, address: Be32) -> Option<&LocalPod> {
        pod(&POD_INDEX, &PODS, address)
    }
}

impl decide::Routes<Be128> for Topology {
    #[inline(always)]
    fn peer(&self, address: Be128) -> Option<&Peer6> {
        let number = maps::subnet_number(address, self.config.host6_bits);
        let peer = in_slot(&SUBNET_INDEX_V6, number, &PEERS_V6)
            .filter(|peer| peer.holds(address, self.config.subnet6_mask));
        if peer.is_none() && self.config.flags & FLAG_OTHER_LENGTHS_V6 != 0 {
            return SUBNETS_LPM_V6.get(Key::new(u128::BITS, address));
        }
        peer
    }

    #[inline(always)]
    fn pod(&self, address: Be128) -> Option<&LocalPod6> {
        pod(&POD_INDEX_V6, &PODS_V6, address)
    }
}

#[inline(always)]
fn pod<A: Family>(
    index: &Array<u32>,
    pods: &'static Array<A::Pod>,
    address: A,
) -> Option<&'static A::Pod> {
    in_slot(index, maps::pod_number(address), pods).filter(|pod| pod.address() == address)
}

/// The value that an index leads to, of whatever address. The agent does not write into a slot that an index has led to a
/// moment ago, so a program never sees half a value.
#[inline(always)]
fn in_slot<V>(index: &Array<u32>, number: u32, values: &'static Array<V>) -> Option<&'static V> {
    match *index.get(number)? {
        NO_SLOT => None,
        slot => values.get(slot),
    }
}

/// The maps of flows as decisions see them.
pub struct Remembered;

/// The map of flows of one family, by its keys.
trait Keyed: Sized + 'static {
    fn flows() -> &'static LruHashMap<Self, Flow>;
}

impl Keyed for FlowKey {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<Self, Flow> {
        &FLOWS
    }
}

impl Keyed for FlowKey6 {
    #[inline(always)]
    fn flows() -> &'static LruHashMap<Self, Flow> {
        &FLOWS_V6
    }
}

impl<K: Keyed> Flows<K> for Remembered {
    #[inline(always)]
    fn find(&self, key: &K) -> Option<&SharedFlow> {
        let flow = K::flows().get_ptr_mut(key)?;
        // SAFETY: the types have one layout (asserted where they are defined), the fields are words that are read
        // and written whole, and the kernel keeps the element's memory valid for this program's run. Should the element be used for another flow
        // meanwhile, what is read and written is as wrong as an entry that is out of date, which revalidation ends.
        Some(unsafe { &*flow.cast::<SharedFlow>() })
    }

    #[inline(always)]
    fn create(&self, key: &K, flow: &Flow) {
        // Failing costs speed only: the next attested packet tries again.
        let _ = K::flows().insert(key, flow, BPF_NOEXIST as u64);
    }

    #[inline(always)]
    fn forget(&self, key: &K) {
        // Somebody else may have been faster.
        let _ = K::flows().remove(key);
    }
}

impl Clock for Remembered {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no pointer is involved.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn tick(&self) -> u64 {
        if kernel::has_coarse_clock() {
            // SAFETY: no pointer is involved.
            unsafe { bpf_ktime_get_coarse_ns() }
        } else {
            self.now()
        }
    }
}

/// Counts a packet.
#[inline(always)]
pub fn count(hook: Hook, outcome: Outcome) {
    if let Some(counter) = COUNTERS.get_ptr_mut(outcome::slot(hook, outcome)) {
        // SAFETY: the element is this CPU's own, and programs of one hook do not interrupt each other on a CPU.
        unsafe { *counter += 1 };
    }
}

/// Counts what became of a packet, and returns the verdict that says so to the kernel.
#[inline(always)]
pub fn verdict(ctx: &TcContext, hook: Hook, result: Result<i32, Outcome>) -> i32 {
    match result {
        Ok(verdict) => {
            count(hook, Outcome::Fast);
            verdict
        }
        Err(outcome) => {
            count(hook, outcome);
            if outcome.drops() {
                return DROP;
            }
            Skb::as_it_is(ctx).clear_fast();
            TC_ACT_UNSPEC
        }
    }
}
