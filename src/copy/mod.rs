//! Whole stores at once: copies from any store into any other, and comparisons of two.
//!
//! Kernel-free, over the store contract. Records travel as they are stored: bytes, content type and
//! encoding; nothing is decoded on the way. What a copy decided by is in [`run`], what it remembers for
//! the next one in [`memory`].

pub mod diff;
pub mod filter;
pub mod fingerprint;
pub mod memory;
pub mod pages;
pub mod record;
pub mod run;
