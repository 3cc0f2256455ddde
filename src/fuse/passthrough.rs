//! Lets the kernel read whole contents from their cache files without asking.
//!
//! The kernel wants all open handles of an inode to be of one kind, and those that read through
//! to share one registration of the file: the core decides the first, the registrations are kept
//! here. It needs CAP_SYS_ADMIN in the first user namespace and Linux 6.9; where it is refused,
//! files are opened as usual.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use fuser::{BackingId, FileHandle, FopenFlags, INodeNo, InitFlags, KernelConfig, ReplyOpen};
use parking_lot::Mutex;

/// `f_type` of an overlay filesystem (statfs(2)).
const OVERLAYFS: i64 = 0x794c_7630;

/// The files that the kernel reads by itself.
#[derive(Debug, Default)]
pub struct Passthrough {
    /// Filesystems below the cache files, this mount included; 0 where it is not wanted.
    depth: u32,
    enabled: AtomicBool,
    registered: Mutex<Registered>,
}

#[derive(Default)]
struct Registered {
    by_inode: HashMap<u64, Weak<BackingId>>,
    by_handle: HashMap<u64, (u64, Arc<BackingId>)>,
}

impl std::fmt::Debug for Registered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registered")
            .field("handles", &self.by_handle.len())
            .finish_non_exhaustive()
    }
}

impl Passthrough {
    /// Makes it for cache files in `dir`; without a folder it stays off.
    pub fn new(dir: Option<&Path>) -> Self {
        let depth = dir.map_or(0, |dir| match rustix::fs::statfs(dir) {
            // What lies on an overlay lies on two.
            Ok(stat) if stat.f_type == OVERLAYFS => 2,
            _ => 1,
        });
        Self {
            depth,
            ..Self::default()
        }
    }

    /// Asks the kernel for it; returns whether it may work.
    pub fn negotiate(&self, config: &mut KernelConfig) -> bool {
        let may = self.depth > 0
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(self.depth).is_ok();
        self.enabled.store(may, Ordering::Relaxed);
        may
    }

    /// Answers an open of a file with passthrough; gives the reply back, not answered, when that
    /// cannot be done. `file` may be missing where another handle is open.
    pub fn open(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        file: Option<&File>,
        reply: ReplyOpen,
    ) -> Result<(), ReplyOpen> {
        let mut registered = self.registered.lock();
        let known = registered.by_inode.get(&ino.0).and_then(Weak::upgrade);
        let file = file.filter(|_| self.enabled.load(Ordering::Relaxed));
        let id = match (known, file) {
            (Some(id), _) => id,
            (None, Some(file)) => match reply.open_backing(file) {
                Ok(id) => Arc::new(id),
                Err(error) => {
                    self.enabled.store(false, Ordering::Relaxed);
                    drop(registered);
                    Self::explain(&error);
                    return Err(reply);
                }
            },
            (None, None) => return Err(reply),
        };
        registered.by_inode.insert(ino.0, Arc::downgrade(&id));
        registered.by_handle.insert(fh.0, (ino.0, Arc::clone(&id)));
        drop(registered);
        reply.opened_passthrough(fh, FopenFlags::FOPEN_NOFLUSH, &id);
        Ok(())
    }

    fn explain(error: &io::Error) {
        tracing::debug!("the kernel does not read cache files by itself: {error}");
    }

    /// Forgets a handle.
    pub fn release(&self, fh: FileHandle) {
        if self.depth == 0 {
            return;
        }
        let mut registered = self.registered.lock();
        let Some((ino, id)) = registered.by_handle.remove(&fh.0) else {
            return;
        };
        if Arc::strong_count(&id) == 1 {
            registered.by_inode.remove(&ino);
        }
        drop(registered);
        // Notifies the kernel, so not under the lock.
        drop(id);
    }
}
