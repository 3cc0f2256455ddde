//! The filesystem, with no kernel and no kernel binding in sight.
//!
//! Every operation takes a [`Wait`]: with [`Wait::Never`] it answers from memory or returns
//! [`FsError::WouldBlock`], having changed nothing; with a deadline it may ask the store.
//!
//! Lock order: current listing, the pages of a listing, inodes, handles, then the other locks of
//! [`crate::cache`]; inodes before drafts, drafts before the overlay. None is held across I/O, but
//! for the one that orders the changes of one staging file (`draft`).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use crate::base::clock::{Clock, Wait};
use crate::base::text;
use crate::base::workers::Workers;
use crate::cache::records::Records;
use crate::listing::current::Current;
use crate::listing::saved::Index;
use crate::listing::{PAGES_AT_ONCE, Source};
use crate::metrics::trace::Event;
use crate::metrics::{ErrorEntry, Metrics, origin};
use crate::prefetch::Prefetcher;
use crate::store::{Key, ListQuery, Store};

mod absence;
pub mod attributes;
pub mod dir;
pub mod error;
mod glob;
pub mod handle;
pub mod inode;
pub mod inodes;
pub mod invalidate;
pub mod lookup;
pub mod name;
pub mod read;
pub mod types;
mod view;
pub mod warm;
pub mod write;
pub mod xattr;

pub use error::{FsError, Result};
use handle::HandleTable;
use inodes::InodeTable;
use types::{Ino, KernelCache, Programs};
use write::{WriteConfig, WriteSide};

/// How long the kernel may believe what never changes.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// How many names are remembered of which the kernel was told that they do not exist.
const MOST_ABSENT: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// What a filesystem shows of its store.
#[derive(Clone, Debug)]
pub struct FsConfig {
    /// Only keys that begin so.
    pub prefix: Option<Arc<str>>,
    /// Only keys of this collection.
    pub collection: Option<Arc<str>>,
    /// Whether sizes are exact already when they are listed.
    pub exact_sizes: bool,
    /// Whether the next records of a scan are fetched ahead, each no longer than this.
    pub prefetch: Option<Duration>,
    /// The longest that one page of a listing may take when several are fetched at once.
    pub page_deadline: Duration,
    /// How the store may be changed through the mount; `None`: not at all.
    pub write: Option<WriteConfig>,
}

/// The longest key or message that is logged and remembered, in characters; the platform's keys have
/// at most 256.
const LONGEST_TOLD: usize = 1024;

fn told(text: &str) -> Cow<'_, str> {
    text::short(text, LONGEST_TOLD)
}

impl Default for FsConfig {
    fn default() -> Self {
        Self {
            prefix: None,
            collection: None,
            exact_sizes: false,
            prefetch: None,
            page_deadline: Duration::from_secs(60),
            write: None,
        }
    }
}

/// The filesystem over one store.
#[derive(Debug)]
pub struct KvFs {
    store: Arc<dyn Store>,
    records: Arc<Records>,
    config: FsConfig,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    listing: Arc<Current>,
    /// Names that the kernel was told do not exist, the latest of them.
    absent: Mutex<LruCache<OsString, ()>>,
    /// Names that the store was asked for and does not have, the latest of them.
    misses: Mutex<absence::Misses>,
    inodes: Mutex<InodeTable>,
    /// When everything that was known was last to be forgotten, or a part of it: what was asked before
    /// and is answered now, the kernel is not to keep.
    forgotten: Mutex<Option<Instant>>,
    /// An inode is no longer settling.
    settled: Condvar,
    handles: Mutex<HandleTable>,
    kernel: OnceLock<Arc<dyn KernelCache>>,
    programs: OnceLock<Arc<dyn Programs>>,
    /// Whether the kernel may read whole contents from their files.
    direct: AtomicBool,
    prefetcher: Option<Prefetcher>,
    listers: Arc<Workers>,
    index: Option<Arc<Index>>,
    writing: Option<WriteSide>,
    status: OnceLock<StatusSource>,
}

/// Writes the JSON of `kvfs status`.
pub struct StatusSource(pub Box<dyn Fn() -> String + Send + Sync>);

impl std::fmt::Debug for StatusSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StatusSource")
    }
}

impl KvFs {
    /// Makes the filesystem of `store`; `records` caches its records.
    pub fn new(
        store: Arc<dyn Store>,
        records: Arc<Records>,
        config: FsConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let listers = Workers::new(
            "kvfs-list",
            PAGES_AT_ONCE,
            4 * PAGES_AT_ONCE,
            Arc::clone(&metrics),
        );
        let query = Self::query(&config);
        let index = records
            .scope_dir()
            .map(|dir| Index::new(&dir, &query, records.config().ttl.is_none()))
            .map(|index| Arc::new(index.on(records.disk_patience())));
        let writing = config
            .write
            .clone()
            .map(|config| WriteSide::new(config, &store, &clock, &metrics));
        let deadline = config.prefetch;
        let listing = Arc::clone(records.listing());
        let prefetcher = deadline.and_then(|deadline| {
            Prefetcher::new(Arc::clone(&records), Arc::clone(&metrics), deadline)
        });
        Self {
            store,
            records,
            config,
            clock,
            metrics,
            listing,
            absent: Mutex::new(LruCache::new(MOST_ABSENT)),
            misses: Mutex::default(),
            inodes: Mutex::default(),
            forgotten: Mutex::default(),
            settled: Condvar::new(),
            handles: Mutex::default(),
            kernel: OnceLock::new(),
            programs: OnceLock::new(),
            direct: AtomicBool::new(false),
            prefetcher,
            listers,
            index,
            writing,
            status: OnceLock::new(),
        }
    }

    /// Connects the kernel's caches; the first call counts.
    pub fn connect_kernel(&self, kernel: Arc<dyn KernelCache>) {
        let _ = self.kernel.set(kernel);
    }

    /// Connects what tells of the programs that use the filesystem; the first call counts. Until
    /// then all are taken for one.
    pub fn connect_programs(&self, programs: Arc<dyn Programs>) {
        let _ = self.programs.set(programs);
    }

    /// Connects what the root's `user.kvfs.stats` shows; the first call counts.
    pub fn connect_status(&self, status: StatusSource) {
        let _ = self.status.set(status);
    }

    /// Returns what is remembered of the store's records.
    pub fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// Returns the counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Sends an answered operation to the followers.
    pub fn tell(&self, operation: &str, ino: Ino, pid: u32, took: Duration, errno: Option<i32>) {
        let key = origin::take_subject()
            .or_else(|| self.key_of(ino).ok().map(|key| key.as_str().to_owned()));
        let at = self.clock.wall().duration_since(SystemTime::UNIX_EPOCH);
        self.metrics.tracer.tell(&Event {
            at_unix_us: at.map_or(0, |at| u64::try_from(at.as_micros()).unwrap_or(u64::MAX)),
            operation: operation.to_owned(),
            key,
            result: match errno {
                None if origin::is_absent() => "ENOENT",
                None => "ok",
                Some(errno) => error::errno_name(errno),
            }
            .to_owned(),
            duration_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            origin: origin::current(),
            pid,
        });
    }

    /// Notes for traces which name the operation on this thread is about.
    fn about(&self, name: &OsStr) {
        if self.metrics.tracer.is_active() {
            origin::about(name.to_string_lossy().into_owned());
        }
    }

    /// Returns what a listing of this mount lists.
    fn source(&self) -> Source {
        Source {
            store: Arc::clone(&self.store),
            query: Self::query(&self.config),
            deadline: self.config.page_deadline,
            clock: Arc::clone(&self.clock),
            workers: Arc::clone(&self.listers),
            index: self.index.clone(),
        }
    }

    fn query(config: &FsConfig) -> ListQuery {
        ListQuery {
            prefix: config.prefix.clone(),
            collection: config.collection.clone(),
            ..ListQuery::default()
        }
    }

    /// Returns the key of an inode in use.
    fn key_of(&self, ino: Ino) -> Result<Key> {
        self.inodes
            .lock()
            .get(ino)
            .map(|inode| inode.key.clone())
            .ok_or(FsError::Stale)
    }

    /// Returns how long a name can be, in bytes: longer ones may exist, but cannot be made.
    pub fn longest_name(&self) -> usize {
        match &self.writing {
            Some(_) => crate::store::record::MAX_KEY_LEN,
            None => name::MAX_NAME,
        }
    }

    /// Logs an error that a program is about to get and remembers it for `kvfs status`.
    ///
    /// Every errno but "no such file", "no such attribute" and their like leaves one line.
    pub fn report(&self, operation: &str, ino: Option<Ino>, error: &FsError) {
        if let FsError::Refused(refusal) = error {
            let errno = error::errno_name(error.errno());
            let message = told(&refusal.message);
            let hint = refusal.hint;
            tracing::warn!("{operation}: {message} [{errno}]; {hint}");
            self.remember(errno, operation, None, message, Some(hint));
            return;
        }
        let FsError::Store(failure) = error else {
            if error.is_remarkable() {
                tracing::warn!("{operation}: {}", error::errno_name(error.errno()));
            }
            return;
        };
        let key = failure
            .key()
            .cloned()
            .or_else(|| ino.and_then(|ino| self.key_of(ino).ok()));
        let errno = error::errno_name(error.errno());
        let shown = key
            .as_ref()
            .map(|key| format!(" {}", told(key.as_str())))
            .unwrap_or_default();
        let mut causes = failure.to_string();
        let mut source = std::error::Error::source(failure);
        while let Some(cause) = source {
            causes.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        let message = told(&causes);
        let hint = failure.hint();
        match hint {
            Some(hint) => {
                let hint = told(hint);
                tracing::warn!("{operation}{shown}: {message} [{errno}]; {hint}");
            }
            None => tracing::warn!("{operation}{shown}: {message} [{errno}]"),
        }
        self.remember(errno, operation, key.as_ref(), message, hint);
    }

    fn remember(
        &self,
        errno: &str,
        operation: &str,
        key: Option<&Key>,
        message: Cow<'_, str>,
        hint: Option<&str>,
    ) {
        let entry = ErrorEntry {
            at_unix_s: 0,
            errno: errno.into(),
            operation: operation.into(),
            key: key.map(|key| told(key.as_str()).into_owned()),
            message: message.into_owned(),
            hint: hint.map(|hint| told(hint).into_owned()),
            count: 1,
        };
        self.metrics.remember_error(self.clock.wall(), entry);
    }

    /// Panics unless the invariants of the core hold. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        self.inodes.lock().check_invariants();
    }

    fn no_wait(wait: Wait) -> bool {
        wait == Wait::Never
    }
}
