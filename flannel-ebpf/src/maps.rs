//! The maps, and safe lookups in them.
//!
//! The agent alone writes them, except the counters. Their names are what the agent pins them under.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray};
use flannel_common::decide;
use flannel_common::maps::{
    CONFIG_SLOTS, Config, FLAG_OTHER_LENGTHS, LocalPod, MAX_PODS, MAX_SUBNETS, Peer,
};
use flannel_common::outcome::{self, Hook, Outcome};
use flannel_common::wire::Be32;

/// Which slot of [`CONFIG`] is in use.
#[map]
static CONFIG_SLOT: Array<u32> = Array::with_max_entries(1, 0);

/// The node's interfaces and addresses, twice.
#[map]
static CONFIG: Array<Config> = Array::with_max_entries(CONFIG_SLOTS, 0);

/// Other nodes by the first address of their subnet, for subnets of the usual length.
#[map]
static SUBNETS: HashMap<Be32, Peer> = HashMap::with_max_entries(MAX_SUBNETS, BPF_F_NO_PREALLOC);

/// Other nodes by subnet, for subnets of any other length.
#[map]
static SUBNETS_LPM: LpmTrie<Be32, Peer> = LpmTrie::with_max_entries(MAX_SUBNETS, BPF_F_NO_PREALLOC);

/// Pods of this node by address.
#[map]
static PODS: HashMap<Be32, LocalPod> = HashMap::with_max_entries(MAX_PODS, BPF_F_NO_PREALLOC);

/// Packets by hook and outcome.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(outcome::SLOTS, 0);

/// The maps as decisions see them, with the config that was in force when the program started.
pub struct Topology {
    config: &'static Config,
}

impl Topology {
    /// `None` cannot happen, since array elements always exist; the verifier wants it handled.
    #[inline(always)]
    pub fn load() -> Option<Self> {
        let slot = *CONFIG_SLOT.get(0)?;
        Some(Self {
            config: CONFIG.get(slot)?,
        })
    }
}

impl decide::Topology for Topology {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }

    #[inline(always)]
    fn peer(&self, address: Be32) -> Option<&Peer> {
        let subnet = Be32::from_raw(address.raw() & self.config.subnet_mask.raw());
        // SAFETY: the kernel frees an element only after a grace period that this program's run holds up, and
        // replaces elements instead of writing into them.
        let peer = unsafe { SUBNETS.get(subnet) };
        if peer.is_none() && self.config.flags & FLAG_OTHER_LENGTHS != 0 {
            return SUBNETS_LPM.get(Key::new(u32::BITS, address));
        }
        peer
    }

    #[inline(always)]
    fn pod(&self, address: Be32) -> Option<&LocalPod> {
        // SAFETY: as for `SUBNETS`.
        unsafe { PODS.get(address) }
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
