//! The translator: every method turns arguments into the core's, calls the one core method of
//! that name and turns the answer into a reply. No state and no policy of its own.
//!
//! The kernel's threads only try: what would wait is repeated on the pool with a deadline, so
//! that a slow record never stops the mount. A handler that panics costs its request an EIO.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::passthrough::Passthrough;
use super::pending::{Count, Watcher};
use super::processes::Processes;
use super::session;
use super::syscalls::Calls;
use crate::base::workers::Workers;
use crate::fs::KvFs;

mod answer;
mod attributes;
mod filesystem;
mod lookups;
mod names;
mod negotiate;
mod write;
mod xattr;

pub(super) use answer::{Asked, Lane, Tried, fail};
pub use attributes::Appearance;
pub(super) use attributes::file_attr;
use lookups::Lookups;

/// The core, as `fuser` wants it.
#[derive(Clone, Debug)]
pub struct Adapter {
    fs: Arc<KvFs>,
    pool: Arc<Workers>,
    watcher: Arc<Watcher>,
    passthrough: Arc<Passthrough>,
    /// Where uploads run.
    uploads: Arc<Workers>,
    appearance: Appearance,
    deadline: Duration,
    calls: Arc<Calls>,
    lookups: Arc<Lookups>,
    /// Requests of each lane that were answered too late while threads work on them still.
    late: [Count; 2],
    /// How many of the kernel's threads may be at work with the local disk.
    staging: Arc<AtomicUsize>,
}

impl Adapter {
    /// Makes the adapter of `fs`; what waits runs on `pool`, no longer than `deadline`, and what
    /// changes the store on `uploads`.
    pub fn new(
        fs: Arc<KvFs>,
        pool: Arc<Workers>,
        uploads: Arc<Workers>,
        watcher: Arc<Watcher>,
        passthrough: Passthrough,
        appearance: Appearance,
        deadline: Duration,
    ) -> Self {
        fs.connect_programs(Arc::new(Processes));
        Self {
            fs,
            pool,
            uploads,
            watcher,
            passthrough: Arc::new(passthrough),
            appearance,
            deadline,
            calls: Arc::new(Calls::new(deadline)),
            lookups: Arc::default(),
            late: Default::default(),
            staging: Arc::new(AtomicUsize::new(session::threads() / 2)),
        }
    }

    pub(super) fn fs(&self) -> &Arc<KvFs> {
        &self.fs
    }

    pub(super) fn pool(&self) -> &Arc<Workers> {
        &self.pool
    }

    pub(super) fn uploads(&self) -> &Arc<Workers> {
        &self.uploads
    }

    pub(super) fn appearance(&self) -> Appearance {
        self.appearance
    }
}
