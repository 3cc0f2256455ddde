//! Putting a mount together: the store behind a reference, then everything above it.

pub mod account;
pub mod build;
pub mod config;
pub mod open;
pub mod status;
pub mod storage;
