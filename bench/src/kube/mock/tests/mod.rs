//! Tests of the server, over HTTP as its clients use it.

mod client;
mod faults;
mod lists;
mod patches;
mod recorded;
mod watches;
