//! kvfs mounts an Apify key-value store as a directory: every record is a file.
//!
//! Layers, each importing only from those above it (`scripts/layers.py` checks this):
//!
//! 1. words and tools: [`base`], [`metrics`]
//! 2. the store contract, and what a store's clock proves: [`store`]
//! 3. what stands behind it: [`apify`], [`local`], [`bucket`]
//! 4. bytes on their way, the directory, caches, what fills them ahead, and what waits for the
//!    store: [`disk`], [`transfer`], [`listing`], [`cache`], [`prefetch`], [`staging`],
//!    [`upload`]; whole stores at once: [`copy`]
//! 5. the filesystem, with no kernel in sight: [`fs`]
//! 6. adapters: [`fuse`] (kernel) and [`server`] (the Apify-compatible API)
//! 7. a mount put together, and the process around it: [`mount`], [`daemon`]
//! 8. the command line: [`cli`]

pub mod base;
pub mod metrics;

pub mod store;

pub mod apify;
pub mod bucket;
pub mod local;

pub mod cache;
pub mod copy;
pub mod disk;
pub mod listing;
pub mod prefetch;
pub mod staging;
pub mod transfer;
pub mod upload;

pub mod fs;

pub mod fuse;
pub mod server;

pub mod daemon;
pub mod mount;

pub mod cli;
