//! Tests that mount for real: they need `/dev/fuse`.

mod access;
mod buckets;
mod clients;
mod daemon;
mod faults;
mod limits;
mod reading;
mod readme;
mod requests;
#[path = "../support/mod.rs"]
mod support;
mod system;
mod warm;
mod watching;
mod write_back;
mod writing;
