//! The cached records of a store: one question at a time per record, answers valid no longer than
//! the metadata TTL, contents in memory over disk over the store.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::ahead::Ahead;
use super::behind::SmallWaiting;
use super::content::Content;
use super::freshness::Freshness;
use super::sizes::ExactSizes;
use crate::base::clock::{Clock, Deadline, Wait};
use crate::base::sync::Mutex;
use crate::base::sync::atomic::{AtomicBool, AtomicU64};
use crate::base::workers::Workers;
use crate::disk::lru::LruBytes;
use crate::disk::{self, DiskTier, Patience};
use crate::listing::current::Current;
use crate::metrics::Metrics;
use crate::metrics::origin::{self, Origin};
use crate::store::wait::Result;
use crate::store::{ErrorKind, Key, Store, StoreError};
use crate::transfer::download::Size;
use crate::transfer::tools::Tools;

mod ask;
mod exact;
mod held;
mod kept;
mod known;
mod listed;
mod times;

pub(super) use ask::Need;
pub(super) use kept::MEMORY_OVERHEAD;
use known::Slot;
pub use known::{Known, Peek};
pub(super) use times::Before;

/// Threads that fill downloads; one that waits for its reader holds its thread.
const MOST_DOWNLOADS: usize = 256;

/// With a shorter TTL, questions within this long of another share its answer.
const BURST: Duration = Duration::from_secs(1);

/// How records are remembered.
#[derive(Clone, Debug)]
pub struct RecordsConfig {
    /// Whether stored bytes are the content.
    pub raw: bool,
    /// How large a decoded content may be, in bytes; `None` for as large as honest ones of what is
    /// stored.
    pub max_content: Option<u64>,
    /// How long an answer stays valid; `None` for ever.
    pub ttl: Option<Duration>,
    /// Bytes of contents in memory.
    pub memory_capacity: u64,
    /// How much later than a write the store's `modifiedAt` may tell of it; `None` never looks at it.
    pub clock_lag: Option<Duration>,
    /// Whether every question is asked, also those of one burst: where records are changed, a name that
    /// another client has removed is not to be taken for one that is there.
    pub asks_each_time: bool,
    /// Whether exact sizes are remembered also of records that are not encoded.
    pub keeps_plain_sizes: bool,
}

/// The records of one store.
#[derive(Debug)]
pub struct Records {
    me: Weak<Self>,
    store: Arc<dyn Store>,
    freshness: Arc<Freshness>,
    config: RecordsConfig,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    slots: Mutex<LruCache<Key, Arc<Slot>>>,
    memory: Mutex<LruBytes<Key, Arc<Content>>>,
    recent: Mutex<VecDeque<Arc<Content>>>,
    ahead: Ahead,
    disk: Option<Arc<DiskTier>>,
    /// Small contents that wait to be written to disk.
    small_waiting: Mutex<SmallWaiting>,
    sizes: Arc<ExactSizes>,
    /// Whether records are listed, and as what.
    listing: Arc<Current>,
    /// Whether the last record that was asked about had no validator.
    lacks_validators: AtomicBool,
    versions: AtomicU64,
    heads: exact::Heads,
    opened: SystemTime,
    /// Unused downloads, oldest first.
    paused: Mutex<VecDeque<Arc<Content>>>,
    tools: Tools,
    writers: Arc<Workers>,
    /// Closes files.
    closers: Arc<Workers>,
}

impl Records {
    /// Returns the folder for other files that belong to the store; `None` without a disk cache.
    pub fn scope_dir(&self) -> Option<std::path::PathBuf> {
        Some(self.disk.as_ref()?.scope_dir())
    }

    /// Returns what waits for the disk cache; `None` without one.
    pub fn disk_patience(&self) -> Option<Arc<Patience>> {
        Some(Arc::clone(self.disk.as_ref()?.patience()))
    }

    /// Makes the cache of `store`.
    pub fn new(
        store: Arc<dyn Store>,
        config: RecordsConfig,
        disk: Option<Arc<DiskTier>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        if config.ttl.is_none()
            && let Some(disk) = &disk
        {
            disk.set_immutable();
        }
        let sizes = ExactSizes::open(
            disk.as_ref()
                .map(|disk| disk.scope_dir().join("sizes.jsonl")),
            config.keeps_plain_sizes,
        );
        let files = disk.as_ref().zip(store.server()).map(|(disk, server)| {
            let server = disk
                .root()
                .join(format!("clock-{}.json", disk::hash(&server)));
            (disk.scope_dir().join("clock.json"), server)
        });
        let freshness = Freshness::new(
            Arc::clone(&store),
            Arc::clone(&clock),
            config.ttl,
            config.clock_lag,
            files,
        );
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            freshness,
            heads: exact::Heads::default(),
            opened: clock.wall(),
            slots: Mutex::new(LruCache::unbounded()),
            memory: Mutex::new(LruBytes::new(config.memory_capacity)),
            recent: Mutex::default(),
            ahead: Ahead::default(),
            versions: AtomicU64::new(1),
            paused: Mutex::default(),
            small_waiting: Mutex::default(),
            tools: Tools::new(Workers::new(
                "kvfs-download",
                MOST_DOWNLOADS,
                64,
                Arc::clone(&metrics),
            )),
            writers: Workers::new("kvfs-writer", 1, 512, Arc::clone(&metrics)),
            closers: Workers::new("kvfs-closer", 1, 1 << 16, Arc::clone(&metrics)),
            store,
            config,
            clock,
            metrics,
            disk,
            sizes: Arc::new(sizes),
            listing: Arc::default(),
            lacks_validators: AtomicBool::new(false),
        })
    }

    /// Returns by what contents are held to be current.
    pub fn freshness(&self) -> &Arc<Freshness> {
        &self.freshness
    }

    /// Returns the configuration.
    pub fn config(&self) -> &RecordsConfig {
        &self.config
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(super) fn disk(&self) -> Option<&Arc<DiskTier>> {
        self.disk.as_ref()
    }

    pub(super) fn small_waiting(&self) -> &Mutex<SmallWaiting> {
        &self.small_waiting
    }

    pub(super) fn tools(&self) -> &Tools {
        &self.tools
    }

    pub(super) fn writers(&self) -> &Arc<Workers> {
        &self.writers
    }

    /// Waits until what was read is in the disk cache, as far as it will be; not past the deadline.
    pub fn finish_writing(&self, deadline: Deadline) {
        if !self.writers.wait_idle(deadline) {
            tracing::debug!("the disk cache cannot keep up; some records are not in it");
        }
    }

    /// Returns when the store was last changed, as of the beginning of the mount.
    pub fn store_modified(&self) -> SystemTime {
        self.store.info().modified.unwrap_or(self.opened)
    }

    /// Returns whether an answer of that age is still valid.
    pub fn is_fresh(&self, at: Instant) -> bool {
        self.config
            .ttl
            .is_none_or(|ttl| self.clock.now().saturating_duration_since(at) < ttl)
    }

    /// Returns whether an answer of that age is still valid for names, sizes and times. Where
    /// everything is asked for every time, one answer serves what programs ask in one go.
    pub fn is_fresh_name(&self, at: Instant) -> bool {
        match self.config.ttl {
            Some(ttl) if !self.config.asks_each_time && ttl < BURST => {
                self.clock.now().saturating_duration_since(at) < BURST
            }
            _ => self.is_fresh(at),
        }
    }

    /// Returns the clock that ages answers.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Returns what is known of a record, asking the store if memory is not fresh enough.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and other errors of the store.
    pub fn attributes(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<Known> {
        if let Some(known) = self.glance(key, wait)? {
            return Ok(known);
        }
        Ok(self.resolve(key, Need::Attributes, wait)?.0)
    }

    /// Returns the current version's content; its exact size is known.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and other errors of the store.
    pub fn content(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<Arc<Content>> {
        Ok(self.content_asked(key, wait)?.0)
    }

    /// The same, and when the store was asked whether it is the current one.
    ///
    /// # Errors
    /// As [`Records::content`].
    pub fn content_asked(
        self: &Arc<Self>,
        key: &Key,
        wait: Wait,
    ) -> Result<(Arc<Content>, Instant)> {
        let (known, content) = self.resolve(key, Need::Content, wait)?;
        let asked = known.validated;
        let content = content
            .ok_or_else(|| StoreError::new(ErrorKind::Protocol, "no content").with_key(key))?;
        if self.ahead.used(key, content.version, &self.metrics) {
            origin::note(Origin::Prefetch);
        }
        match content.size(wait)? {
            Size::Exact(size) => {
                self.note_size(&content, size);
                self.resume(&content)?;
                Ok((content, asked))
            }
            Size::Unkept(size) => {
                self.note_size(&content, size);
                let streamed = self.unkept(&content, size);
                self.slot(key).state.lock().content = Arc::downgrade(&streamed);
                self.keep_recent(&streamed);
                Ok((streamed, asked))
            }
        }
    }

    /// Fetches a record that will probably be opened soon.
    ///
    /// # Errors
    /// Those of the store, for the log only.
    pub fn prefetch(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<()> {
        self.resolve(key, Need::Ahead, wait).map(drop)
    }

    pub(super) fn sizes(&self) -> &ExactSizes {
        &self.sizes
    }

    /// Returns the mount's listing, shared with the readers of the directory.
    pub fn listing(&self) -> &Arc<Current> {
        &self.listing
    }
}
