//! Against bytes that upstream has written.
