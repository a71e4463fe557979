//! What is remembered of a flow between a pod of this node and a pod elsewhere.
//!
//! The kernel decides, this remembers. An entry is written by the hooks behind the kernel's forwarding and read by those
//! in front of it, on several processors at a time: every field is one word, read and written whole (LLVM's BPF has no
//! relaxed atomics, whose plain loads and stores these are), and none depends on another being written in the same
//! instant. An entry that is lost or late costs speed, never a packet.
//!
//! Only the key knows addresses; everything else is the same for any address family.

use core::cell::Cell;

use bytemuck::{Pod, Zeroable};

use crate::wire::{Be16, Be32, Be128};

/// The key of one family, as a plain structure: a generic one could not be shown to have no padding.
macro_rules! key {
    ($name:ident, $address:ty, $family:literal) => {
        #[doc = concat!("An ", $family, " flow by its addresses and ports, the pod of this node first.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
        #[repr(C)]
        pub struct $name {
            /// Address of the pod of this node.
            pub pod: $address,
            /// Address of the pod elsewhere.
            pub remote: $address,
            /// Port of the pod of this node.
            pub pod_port: Be16,
            /// Port of the pod elsewhere.
            pub remote_port: Be16,
            /// IP protocol number, widened: bytes that are always zero would be cleared by a call.
            pub protocol: u32,
        }
    };
}

key!(FlowKey, Be32, "IPv4");
key!(FlowKey6, Be128, "IPv6");

const _: () = assert!(size_of::<FlowKey>() == 16 && size_of::<FlowKey6>() == 40);

/// One direction of a flow on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Leg {
    /// From the pod of this node.
    Out = 0,
    /// To the pod of this node.
    In = 1,
}

impl Leg {
    /// The opposite direction.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Out => Self::In,
            Self::In => Self::Out,
        }
    }
}

/// Times of one leg, in nanoseconds of `CLOCK_MONOTONIC`; zero for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LegTimes {
    /// When the kernel last forwarded a packet of it that conntrack attests.
    pub attested: u64,
    /// When a probe was last sent.
    pub probed: u64,
    /// Not zero once a FIN was seen.
    pub closing: u64,
    /// What the source address was last found to be right for: the generation of the maps (upper half), and the interface
    /// or the node that the packet came from. Zero for never.
    pub checked: u64,
}

/// The value of a flow, at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// Times by [`Leg`].
    pub legs: [LegTimes; 2],
    /// When a packet to the pod was last handed to a queue that a faster one would overtake; zero for never.
    pub queued: u64,
    /// Not zero if that queue is the kernel path's, not merely the veth's.
    pub in_kernel: u64,
    /// TCP sequence number behind that packet.
    pub queued_end: u64,
    /// The latest TCP acknowledgment number that the pod sent while [`Self::queued`] was not zero.
    pub acknowledged: u64,
    /// The kernel's hash of packets from the pod that bring none along; zero until it was needed. It depends on the key
    /// alone, and costs more than all else that an encapsulated packet needs to be known of.
    pub hash: u64,
}

const _: () = assert!(size_of::<Flow>() == 104);

/// [`LegTimes`] in a map.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SharedLeg {
    attested: Cell<u64>,
    probed: Cell<u64>,
    closing: Cell<u64>,
    checked: Cell<u64>,
}

/// A [`Flow`] in a map, shared by the processors.
#[derive(Debug, Default)]
#[repr(C)]
pub struct SharedFlow {
    legs: [SharedLeg; 2],
    queued: Cell<u64>,
    in_kernel: Cell<u64>,
    queued_end: Cell<u64>,
    acknowledged: Cell<u64>,
    hash: Cell<u64>,
}

const _: () = assert!(
    size_of::<SharedFlow>() == size_of::<Flow>() && align_of::<SharedFlow>() == align_of::<Flow>()
);

impl SharedFlow {
    /// A copy; fields may be of different instants.
    pub fn snapshot(&self) -> Flow {
        let leg = |leg: &SharedLeg| LegTimes {
            attested: leg.attested.get(),
            probed: leg.probed.get(),
            closing: leg.closing.get(),
            checked: leg.checked.get(),
        };
        Flow {
            legs: [leg(&self.legs[0]), leg(&self.legs[1])],
            queued: self.queued.get(),
            in_kernel: self.in_kernel.get(),
            queued_end: self.queued_end.get(),
            acknowledged: self.acknowledged.get(),
            hash: self.hash.get(),
        }
    }

    /// The hash of packets from the pod that bring none along; `compute` asks the kernel, once.
    #[inline(always)]
    pub fn hash(&self, compute: impl FnOnce() -> u32) -> u32 {
        let known = self.hash.get() as u32;
        if known != 0 {
            return known;
        }
        let hash = compute();
        self.hash.set(u64::from(hash));
        hash
    }

    #[inline(always)]
    pub(crate) fn attested(&self, leg: Leg) -> u64 {
        self.legs[leg as usize].attested.get()
    }

    #[inline(always)]
    pub(crate) fn set_attested(&self, leg: Leg, now: u64) {
        self.legs[leg as usize].attested.set(now);
    }

    #[inline(always)]
    pub(crate) fn probed(&self, leg: Leg) -> u64 {
        self.legs[leg as usize].probed.get()
    }

    #[inline(always)]
    pub(crate) fn set_probed(&self, leg: Leg, now: u64) {
        self.legs[leg as usize].probed.set(now);
    }

    #[inline(always)]
    pub(crate) fn closing(&self, leg: Leg) -> bool {
        self.legs[leg as usize].closing.get() != 0
    }

    #[inline(always)]
    pub(crate) fn set_closing(&self, leg: Leg) {
        self.legs[leg as usize].closing.set(1);
    }

    #[inline(always)]
    pub(crate) fn checked(&self, leg: Leg) -> u64 {
        self.legs[leg as usize].checked.get()
    }

    #[inline(always)]
    pub(crate) fn set_checked(&self, leg: Leg, checked: u64) {
        self.legs[leg as usize].checked.set(checked);
    }

    /// When a packet to the pod was last handed to a queue.
    #[inline(always)]
    pub(crate) fn queued(&self) -> u64 {
        self.queued.get()
    }

    #[inline(always)]
    pub(crate) fn set_drained(&self) {
        self.queued.set(0);
    }

    #[inline(always)]
    pub(crate) fn set_queued(&self, now: u64, end: u32, in_kernel: bool) {
        if self.queued.get() == 0 {
            // What the pod acknowledged before is out of date, and was never noted if the other leg made the entry: it
            // must not pass for an acknowledgment of this packet.
            self.set_acknowledged(end.wrapping_sub(1));
        }
        self.queued_end.set(u64::from(end));
        self.in_kernel.set(u64::from(in_kernel));
        self.queued.set(now);
    }

    #[inline(always)]
    pub(crate) fn in_kernel(&self) -> bool {
        self.in_kernel.get() != 0
    }

    /// Whether the pod has acknowledged all that was queued for it.
    #[inline(always)]
    pub(crate) fn all_acknowledged(&self) -> bool {
        let ahead = self.acknowledged.get().wrapping_sub(self.queued_end.get());
        (ahead as u32).cast_signed() >= 0
    }

    #[inline(always)]
    pub(crate) fn set_acknowledged(&self, number: u32) {
        self.acknowledged.set(u64::from(number));
    }
}

impl From<Flow> for SharedFlow {
    fn from(flow: Flow) -> Self {
        let leg = |leg: LegTimes| SharedLeg {
            attested: leg.attested.into(),
            probed: leg.probed.into(),
            closing: leg.closing.into(),
            checked: leg.checked.into(),
        };
        Self {
            legs: flow.legs.map(leg),
            queued: flow.queued.into(),
            in_kernel: flow.in_kernel.into(),
            queued_end: flow.queued_end.into(),
            acknowledged: flow.acknowledged.into(),
            hash: flow.hash.into(),
        }
    }
}

/// The clock that times of flows are of.
pub trait Clock {
    /// The time in nanoseconds, exactly.
    fn now(&self) -> u64;

    /// The time in nanoseconds of the last timer tick, which costs less.
    fn tick(&self) -> u64;
}

/// A map of flows with keys of one family.
pub trait Flows<K>: Clock {
    /// The entry of a flow, if there is one.
    fn find(&self, key: &K) -> Option<&SharedFlow>;

    /// Adds an entry unless there is one. A full map drops the least recently used.
    fn create(&self, key: &K, flow: &Flow);

    /// Removes an entry.
    fn forget(&self, key: &K);
}
