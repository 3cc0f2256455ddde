//! Stores that need no network: in a folder; for tests also in memory, and one that fails on
//! purpose.

use std::path::Path;
use std::sync::Arc;

pub mod directory;
#[cfg(feature = "testing")]
pub mod fault;
#[cfg(feature = "testing")]
pub mod memory;
mod transfer;

pub use directory::{Access, DirectoryStore};
#[cfg(feature = "testing")]
pub use fault::{Call, Cut, FaultStore};
#[cfg(feature = "testing")]
pub use memory::MemoryStore;

use crate::store::{Result, Store};

/// Opens a folder that holds one store in a local layout, for reading and writing.
///
/// # Errors
/// As [`open_directory`].
pub fn open_writable_directory(path: &Path) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(DirectoryStore::open(path, Access::ReadWrite)?))
}

/// Opens a folder that holds one store in a local layout, for reading.
///
/// # Errors
/// [`crate::store::ErrorKind::StoreNotFound`] if there is no such folder,
/// [`crate::store::ErrorKind::Denied`] if it may not be read.
pub fn open_directory(path: &Path) -> Result<Arc<dyn Store>> {
    Ok(Arc::new(DirectoryStore::open(path, Access::ReadOnly)?))
}
