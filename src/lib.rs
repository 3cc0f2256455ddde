//! kvfs mounts an Apify key-value store as a directory: every record is a file.
//!
//! Layers, each importing only from those above it (`scripts/layers.py` checks this):
//!
//! 1. words and tools: [`units`], [`clock`], [`content_type`], [`folders`], [`redact`],
//!    [`signature`], [`observe`], [`metrics`], [`sync`], [`workers`]
//! 2. the store contract: [`store`]
//! 3. what stands behind it: [`apify`], [`local`], [`bucket`], [`codec`], [`open`]
//! 4. caches, what fills them ahead, and what is on its way to the store: [`cache`],
//!    [`prefetch`], [`staging`]
//! 5. the filesystem, with no kernel in sight: [`fs`]
//! 6. adapters: [`fuse`] (kernel) and [`server`] (the Apify-compatible API)
//! 7. the process: [`setup`], [`daemon`], [`registry`], [`control`], [`exporter`]
//! 8. the command line: [`cli`]

pub mod clock;
pub mod content_type;
pub mod folders;
pub mod metrics;
pub mod observe;
pub mod redact;
pub mod signature;
pub mod sync;
pub mod units;
pub mod workers;

pub mod store;

pub mod apify;
pub mod bucket;
pub mod codec;
pub mod local;
pub mod open;

pub mod cache;
pub mod prefetch;
pub mod staging;

pub mod fs;

pub mod fuse;
pub mod server;

pub mod control;
pub mod daemon;
pub mod exporter;
pub mod registry;
pub mod setup;

pub mod cli;
