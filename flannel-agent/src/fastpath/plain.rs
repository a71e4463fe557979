//! Map types of `flannel_common` as map types of aya.

use flannel_common::flow::{Flow, FlowKey};
use flannel_common::maps::{Config, Control, LocalPod, Peer};
use flannel_common::wire::Be32;

/// A value that is its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

macro_rules! plain {
    ($($type:ty),*) => {
        $(
            const _: fn() = || {
                fn pod<T: bytemuck::Pod>() {}
                pod::<$type>();
            };
            // SAFETY: the type is `bytemuck::Pod` (checked above): any bytes are a value, and it has no padding.
            unsafe impl aya::Pod for Plain<$type> {}
        )*
    };
}

plain!(Be32, Config, Control, Flow, FlowKey, LocalPod, Peer);
