//! Stores that need no network: in memory, in a folder, and one that breaks on purpose.

use std::path::Path;
use std::sync::Arc;

pub mod directory;
pub mod fault;
pub mod memory;
mod transfer;

pub use directory::{Access, DirectoryStore};
pub use fault::{Call, Cut, FaultStore};
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
