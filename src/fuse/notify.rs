//! Fills and invalidates the kernel's caches.

use std::ffi::OsStr;

use fuser::{INodeNo, Notifier};

use crate::fs::types::{Ino, KernelCache};

/// The kernel's caches, through the session's notifier.
pub struct Kernel(pub Notifier);

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kernel")
    }
}

impl KernelCache for Kernel {
    fn store(&self, ino: Ino, offset: u64, bytes: &[u8]) {
        if let Err(error) = self.0.store(INodeNo(ino.0), offset, bytes) {
            // The kernel then asks for the bytes as usual.
            tracing::debug!("the kernel took no pages of inode {}: {error}", ino.0);
        }
    }

    fn invalidate_attributes(&self, ino: Ino) {
        // A negative offset means attributes only: that never waits for a page (fuse.rst).
        if let Err(error) = self.0.inval_inode(INodeNo(ino.0), -1, 0) {
            tracing::debug!("the kernel did not drop inode {}: {error}", ino.0);
        }
    }

    fn invalidate_name(&self, name: &OsStr) {
        if let Err(error) = self.0.inval_entry(INodeNo::ROOT, name) {
            tracing::debug!("the kernel did not drop a name: {error}");
        }
    }

    fn invalidate_pages(&self, ino: Ino) -> bool {
        match self.0.inval_inode(INodeNo(ino.0), 0, 0) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!("the kernel kept the pages of inode {}: {error}", ino.0);
                false
            }
        }
    }
}
