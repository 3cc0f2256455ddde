//! Whole stores at once: copies from any store into any other, and comparisons of two.
//!
//! Kernel-free, over the store contract. Records travel as they are stored: bytes, content type and
//! encoding; nothing is decoded on the way. [`run`] decides what to copy, [`memory`] remembers it for
//! the next copy.

pub mod diff;
pub mod filter;
pub mod fingerprint;
pub mod memory;
pub mod pages;
pub mod record;
pub mod report;
pub mod run;
