//! Map types of `flannel_common` as map types of aya.

/// A value that is its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

// SAFETY: aya asks for a type of which any bytes are a value, without padding: that is what `bytemuck::Pod` is.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}
