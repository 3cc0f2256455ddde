//! Types and tools that every room uses; nothing about stores or filesystems.

pub mod caller;
pub mod clock;
pub mod content_type;
pub mod descriptors;
pub mod folders;
pub mod in_use;
#[cfg(feature = "testing")]
pub mod manual_clock;
pub mod page_cache;
pub mod proxies;
pub mod random;
pub mod redact;
pub mod signature;
pub mod sync;
pub mod text;
pub mod units;
pub mod workers;
