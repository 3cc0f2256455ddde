//! The kernel's side: translates between [`crate::fs`] and `fuser`, and owns the mount.

pub mod adapter;
pub mod notify;
pub mod passthrough;
pub mod pending;
mod processes;
pub mod session;
mod slow_reads;
pub mod suspend;
mod syscalls;
