//! Putting a mount together: the store behind a reference, then everything above it.

pub mod build;
pub mod open;
