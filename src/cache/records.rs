//! The records of a store as far as they are known: one question at a time per record, answers
//! remembered no longer than the metadata TTL, contents in memory over disk over the store.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use super::ahead::Ahead;
use super::content::{Content, Data, VersionId};
use super::disk::{DiskEntry, DiskTier, Spool};
use super::download::{Size, Tools, read_file};
use super::lru::LruBytes;
use super::sizes::ExactSizes;
use super::{Error, MIB, Result, may_block, wait_until};
use crate::clock::{Clock, Deadline, Wait};
use crate::metrics::Metrics;
use crate::observe::origin::{self, Origin};
use crate::store::{
    ErrorKind, GetOutcome, GetRequest, Key, Priority, RecordMeta, Store, StoreError, Validator,
};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex};
use crate::workers::Workers;

/// Records whose metadata is remembered: more than a scan at the full rate touches within a TTL.
const MOST_SLOTS: usize = 16_384;
/// The largest record that is read into memory whole when there is a disk cache for larger ones.
const MEMORY_RECORD: u64 = MIB;
/// Contents kept a moment longer than the memory cache would, so that a lookup's bytes are still
/// there for the open that follows it.
const RECENT: usize = 8;
/// What a content in memory is taken to cost beyond its bytes.
pub(super) const MEMORY_OVERHEAD: u64 = 256;
/// Threads that fill downloads; one that waits for its reader holds its thread.
const MOST_DOWNLOADS: usize = 256;
/// Downloads that nobody uses, kept for who comes back.
const MOST_PAUSED: usize = 4;

/// How records are remembered.
#[derive(Clone, Debug)]
pub struct RecordsConfig {
    /// Whether stored bytes are the content.
    pub raw: bool,
    /// How long an answer is believed; `None` for ever.
    pub ttl: Option<Duration>,
    /// Bytes of contents in memory.
    pub memory_capacity: u64,
}

/// The records of one store.
#[derive(Debug)]
pub struct Records {
    store: Arc<dyn Store>,
    config: RecordsConfig,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    slots: Mutex<LruCache<Key, Arc<Slot>>>,
    memory: Mutex<LruBytes<Key, Arc<Content>>>,
    recent: Mutex<VecDeque<Arc<Content>>>,
    ahead: Ahead,
    disk: Option<Arc<DiskTier>>,
    sizes: ExactSizes,
    versions: AtomicU64,
    opened: SystemTime,
    /// Downloads that nobody uses, oldest first.
    paused: Mutex<VecDeque<Arc<Content>>>,
    tools: Tools,
    writers: Arc<Workers>,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) state: Mutex<SlotState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct SlotState {
    /// Whether somebody is asking the store about this record now (C5).
    busy: bool,
    pub(super) known: Option<Known>,
    pub(super) absent: Option<Instant>,
    pub(super) content: Weak<Content>,
    /// How often this mount has stored or deleted the record: an answer to a question from
    /// before the last time says nothing any more.
    pub(super) changes: u64,
}

/// What is known of a record's current version.
#[derive(Clone, Debug)]
pub struct Known {
    /// What the store said of it.
    pub meta: RecordMeta,
    /// Which version.
    pub version: VersionId,
    /// When the store last confirmed it.
    pub validated: Instant,
    /// The time that its file shows.
    pub modified: SystemTime,
    /// The exact content size, once known.
    pub size: Option<u64>,
    /// The disk cache's entry of this version.
    pub(super) disk_id: Option<String>,
}

/// What memory knows of a record, without asking anybody.
#[derive(Clone, Debug)]
pub enum Peek {
    /// It exists.
    Present(Known),
    /// It did not exist a moment ago.
    Absent,
    /// Nothing that is fresh enough.
    Unknown,
}

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Attributes,
    Content,
    /// The content, for an open that will probably come.
    Ahead,
    /// The content, because somebody wants it in the cache.
    Warm,
}

impl Records {
    /// Returns the folder for other files that belong to the store; `None` without a disk cache.
    pub fn scope_dir(&self) -> Option<std::path::PathBuf> {
        Some(self.disk.as_ref()?.scope_dir())
    }

    /// Makes the cache of `store`.
    pub fn new(
        store: Arc<dyn Store>,
        config: RecordsConfig,
        disk: Option<Arc<DiskTier>>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let sizes = ExactSizes::open(
            disk.as_ref()
                .filter(|_| !config.raw)
                .map(|disk| disk.scope_dir().join("sizes.jsonl")),
        );
        Arc::new(Self {
            opened: clock.wall(),
            slots: Mutex::new(LruCache::unbounded()),
            memory: Mutex::new(LruBytes::new(config.memory_capacity)),
            recent: Mutex::default(),
            ahead: Ahead::default(),
            versions: AtomicU64::new(1),
            paused: Mutex::default(),
            tools: Tools {
                blocks: Arc::default(),
                fillers: Workers::new("kvfs-download", MOST_DOWNLOADS, 64, Arc::clone(&metrics)),
            },
            writers: Workers::new("kvfs-writer", 1, 512, Arc::clone(&metrics)),
            store,
            config,
            clock,
            metrics,
            disk,
            sizes,
        })
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

    pub(super) fn tools(&self) -> &Tools {
        &self.tools
    }

    /// Returns how many downloads that nobody uses are kept.
    pub fn kept_downloads(&self) -> usize {
        self.paused.lock().len()
    }

    /// Keeps what has arrived of a download for who comes back.
    pub(super) fn keep_paused(&self, content: Arc<Content>) {
        self.forget_paused(&content.key);
        let mut paused = self.paused.lock();
        paused.push_back(content);
        let oldest = (paused.len() > MOST_PAUSED)
            .then(|| paused.pop_front())
            .flatten();
        drop(paused);
        // Deletes its file: not under the lock.
        drop(oldest);
    }

    /// Gives up what is kept of another version of a record, or of one that is fetched again.
    pub(super) fn forget_paused(&self, key: &Key) {
        let mut paused = self.paused.lock();
        let at = paused.iter().position(|content| content.key == *key);
        let found = at.and_then(|at| paused.remove(at));
        drop(paused);
        drop(found);
    }

    pub(super) fn forget_all_paused(&self) {
        let all = std::mem::take(&mut *self.paused.lock());
        drop(all);
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

    pub(super) fn memory_record_max(&self) -> u64 {
        if self.disk.is_some() {
            MEMORY_RECORD
        } else {
            MEMORY_RECORD.max(self.config.memory_capacity / 4)
        }
    }

    /// Returns the time shown for a version that tells none itself: when the store was last
    /// changed for the first version seen, now for later ones.
    pub(super) fn modified_now(&self, before: Option<&Arc<Content>>) -> SystemTime {
        if before.is_some() {
            self.clock.wall()
        } else {
            self.store_modified()
        }
    }

    /// Returns the time shown for records whose own time is not known.
    pub fn store_modified(&self) -> SystemTime {
        self.store.info().modified.unwrap_or(self.opened)
    }

    /// Tells whether an answer of that age is still believed.
    pub fn is_fresh(&self, at: Instant) -> bool {
        self.config
            .ttl
            .is_none_or(|ttl| self.clock.now().saturating_duration_since(at) < ttl)
    }

    /// Returns the clock that ages answers.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Returns what memory knows of a record.
    pub fn peek(&self, key: &Key) -> Peek {
        let Some(slot) = self.slots.lock().peek(key).cloned() else {
            return Peek::Unknown;
        };
        let state = slot.state.lock();
        if state.absent.is_some_and(|at| self.is_fresh(at)) {
            return Peek::Absent;
        }
        match &state.known {
            Some(known) if self.is_fresh(known.validated) => Peek::Present(known.clone()),
            _ => Peek::Unknown,
        }
    }

    /// Returns the exact content size of a record that a listing shows with `stored` bytes, if
    /// it is known: from what is fresh in memory, or from an earlier decoding.
    pub fn exact_size(&self, key: &Key, stored: Option<u64>) -> Option<u64> {
        if let Peek::Present(known) = self.peek(key)
            && (stored.is_none()
                || known.meta.stored_size.is_none()
                || known.meta.stored_size == stored)
        {
            return known.size;
        }
        if self.config.raw {
            stored
        } else {
            self.sizes.get(key, stored?)
        }
    }

    /// Returns what is known of a record, asking the store if memory is not fresh enough.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and other errors of the store.
    pub fn attributes(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<Known> {
        Ok(self.resolve(key, Need::Attributes, wait)?.0)
    }

    /// Returns the current version's content; its exact size is known.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] and other errors of the store.
    pub fn content(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<Arc<Content>> {
        let (_, content) = self.resolve(key, Need::Content, wait)?;
        let content = content
            .ok_or_else(|| StoreError::new(ErrorKind::Protocol, "no content").with_key(key))?;
        if self.ahead.used(key, content.version, &self.metrics) {
            origin::note(Origin::Prefetch);
        }
        match content.size(wait)? {
            Size::Exact(size) => {
                self.note_size(&content, size);
                self.resume(&content)?;
                Ok(content)
            }
            Size::Unkept(size) => {
                self.note_size(&content, size);
                let streamed = self.unkept(&content, size);
                self.slot(key).state.lock().content = Arc::downgrade(&streamed);
                self.keep_recent(&streamed);
                Ok(streamed)
            }
        }
    }

    /// Fetches a record because somebody will probably open it.
    ///
    /// # Errors
    /// Those of the store, for the log only.
    pub fn prefetch(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<()> {
        self.resolve(key, Need::Ahead, wait).map(drop)
    }

    /// Tells whether an open of this record would be answered from memory.
    pub fn is_at_hand(&self, key: &Key) -> bool {
        match self.peek(key) {
            Peek::Present(known) => self.memory_content(key, known.version).is_some(),
            Peek::Absent => true,
            Peek::Unknown => false,
        }
    }

    pub(super) fn sizes(&self) -> &ExactSizes {
        &self.sizes
    }

    pub(super) fn recent(&self) -> &Mutex<VecDeque<Arc<Content>>> {
        &self.recent
    }

    pub(super) fn is_in_memory(&self, key: &Key) -> bool {
        self.memory.lock().get(key).is_some()
    }

    /// Drops all contents in memory and all that is known; returns how many contents there were.
    pub(super) fn drop_memory(&self) -> u64 {
        let slots: Vec<Arc<Slot>> = {
            let mut slots = self.slots.lock();
            std::iter::from_fn(|| slots.pop_lru().map(|(_, slot)| slot)).collect()
        };
        for slot in slots {
            *slot.state.lock() = SlotState::default();
        }
        let dropped = self.memory.lock().clear();
        self.metrics.cache_memory_bytes.set(0);
        dropped.len() as u64
    }

    pub(super) fn forget_content(&self, key: &Key) {
        let dropped = self.memory.lock().remove(key);
        drop(dropped);
        self.forget_paused(key);
        if let Some(disk) = &self.disk {
            disk.remove(key);
        }
    }

    /// Drops what is known of a record, so that the next question goes to the store.
    pub fn expire(&self, key: &Key) {
        if let Some(slot) = self.slots.lock().pop(key) {
            *slot.state.lock() = SlotState::default();
        }
        self.memory.lock().remove(key);
    }

    pub(super) fn slot(&self, key: &Key) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let slot = Arc::clone(slots.get_or_insert(key.clone(), Arc::default));
        if slots.len() > MOST_SLOTS {
            slots.pop_lru();
        }
        slot
    }

    pub(super) fn resolve(
        self: &Arc<Self>,
        key: &Key,
        need: Need,
        wait: Wait,
    ) -> Result<(Known, Option<Arc<Content>>)> {
        loop {
            if let Some(answer) = self.resolve_once(key, need, wait)? {
                return Ok(answer);
            }
        }
    }

    /// Asks once; `None` when this mount has changed the record meanwhile.
    fn resolve_once(
        self: &Arc<Self>,
        key: &Key,
        need: Need,
        wait: Wait,
    ) -> Result<Option<(Known, Option<Arc<Content>>)>> {
        let slot = self.slot(key);
        let mut state = slot.state.lock();
        let (known, candidate) = loop {
            if state.absent.is_some_and(|at| self.is_fresh(at)) {
                return Err(not_found(key).into());
            }
            let content = state
                .content
                .upgrade()
                .filter(|content| content.is_usable());
            if let Some(known) = &state.known
                && self.is_fresh(known.validated)
            {
                let content = content
                    .clone()
                    .or_else(|| self.memory_content(key, known.version));
                if need == Need::Attributes || content.is_some() {
                    if need == Need::Content {
                        self.metrics.cache_memory_hits.one();
                    }
                    return Ok(Some((known.clone(), content)));
                }
            }
            if !state.busy {
                let known = state.known.clone();
                let memory = known
                    .as_ref()
                    .and_then(|known| self.memory_content(key, known.version));
                break (known, content.or(memory));
            }
            let deadline = may_block(wait)?;
            origin::note(Origin::Network);
            wait_until(
                &slot.changed,
                &mut state,
                deadline,
                "another request for this record",
            )?;
        };
        let deadline = may_block(wait)?;
        state.busy = true;
        let changes = state.changes;
        drop(state);
        let flight = Flight(&slot);
        let result = self.refresh(key, known, candidate, need, deadline);
        let mut state = slot.state.lock();
        if state.changes != changes {
            return Ok(None);
        }
        match &result {
            Ok((known, content)) => {
                state.absent = None;
                state.known = Some(known.clone());
                state.content = content.as_ref().map(Arc::downgrade).unwrap_or_default();
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                *state = SlotState {
                    absent: Some(self.clock.now()),
                    changes,
                    ..SlotState::default()
                };
            }
            Err(_) => {}
        }
        drop(state);
        drop(flight);
        if let Ok((_, Some(content))) = &result {
            self.keep_recent(content);
        }
        Ok(Some(result?))
    }

    /// Asks the store, or the disk cache where that is enough. No lock is held.
    fn refresh(
        self: &Arc<Self>,
        key: &Key,
        known: Option<Known>,
        candidate: Option<Arc<Content>>,
        need: Need,
        deadline: Deadline,
    ) -> Result<(Known, Option<Arc<Content>>), StoreError> {
        let from_memory = candidate.is_some();
        let candidate = candidate.or_else(|| self.disk_content(key, known.as_ref()));
        let trusted = match &known {
            Some(known) => self.is_fresh(known.validated),
            None => self.config.ttl.is_none(),
        };
        let same = |content: &Content| {
            known
                .as_ref()
                .is_none_or(|known| known.version == content.version)
        };
        if let Some(content) = candidate
            .as_ref()
            .filter(|content| trusted && same(content))
        {
            self.count_hit(from_memory, need);
            if !from_memory {
                origin::note(Origin::Disk);
            }
            return Ok((
                self.known_of(
                    content,
                    known.map_or_else(|| self.clock.now(), |known| known.validated),
                ),
                candidate,
            ));
        }
        // The version to ask about: bytes at hand, or for attributes alone what was known of it.
        let condition = match (&candidate, &known) {
            (Some(content), _) => content.validator(),
            (None, Some(known)) if need == Need::Attributes => known.meta.validator(),
            _ => None,
        };
        let priority = match (need, &condition) {
            (Need::Ahead | Need::Warm, _) => Priority::Prefetch,
            (_, Some(_)) => Priority::Revalidation,
            (_, None) => Priority::Foreground,
        };
        let request = GetRequest {
            if_none_match: condition,
            priority,
            ..GetRequest::default()
        };
        origin::note(Origin::Network);
        match self.store.get(key, &request, deadline)? {
            GetOutcome::NotModified => {
                let now = self.clock.now();
                if let Some(content) = candidate {
                    self.count_hit(from_memory, need);
                    return Ok((self.known_of(&content, now), Some(content)));
                }
                let known = known
                    .filter(|_| request.if_none_match.is_some())
                    .ok_or_else(|| {
                        StoreError::new(
                            ErrorKind::Protocol,
                            "the server answered 304 to a request without a condition",
                        )
                        .with_key(key)
                    })?;
                Ok((
                    Known {
                        validated: now,
                        ..known
                    },
                    None,
                ))
            }
            GetOutcome::Found(fetched) => {
                if need == Need::Content {
                    self.metrics.cache_misses.one();
                }
                let validator: Option<Validator> = fetched.meta.validator();
                let version = match &known {
                    Some(known) if validator.is_some() && known.meta.validator() == validator => {
                        known.version
                    }
                    _ => self.new_version(),
                };
                let content = self.receive(key, fetched, version, candidate.as_ref(), deadline)?;
                if need == Need::Ahead {
                    let (now, ttl) = (self.clock.now(), self.config.ttl);
                    self.ahead
                        .fetched(key, content.version, now, ttl, &self.metrics);
                    self.metrics.prefetched.one();
                    self.metrics
                        .prefetched_bytes
                        .add(content.meta.stored_size.unwrap_or(0));
                }
                Ok((self.known_of(&content, self.clock.now()), Some(content)))
            }
        }
    }

    fn count_hit(&self, from_memory: bool, need: Need) {
        match (need, from_memory) {
            (Need::Attributes | Need::Ahead | Need::Warm, _) => {}
            (Need::Content, true) => self.metrics.cache_memory_hits.one(),
            (Need::Content, false) => self.metrics.cache_disk_hits.one(),
        }
    }

    /// Returns the name of a version that nobody has seen so far.
    pub fn new_version(&self) -> VersionId {
        VersionId(self.versions.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn known_of(&self, content: &Content, validated: Instant) -> Known {
        let size = content.known_size();
        if let Some(size) = size {
            self.remember_size(content, size);
        }
        let disk_id = match &content.data {
            Data::File { id, .. } => Some(id.clone()),
            _ => None,
        };
        Known {
            meta: content.meta.clone(),
            version: content.version,
            validated,
            modified: content.modified,
            size,
            disk_id,
        }
    }

    fn remember_size(&self, content: &Content, size: u64) {
        if let Some(stored) = content.meta.stored_size.filter(|stored| *stored != size) {
            self.sizes.remember(&content.key, stored, size);
        }
    }

    fn note_size(&self, content: &Content, size: u64) {
        self.remember_size(content, size);
        let slot = self.slot(&content.key);
        let mut state = slot.state.lock();
        if let Some(known) = state
            .known
            .as_mut()
            .filter(|known| known.version == content.version)
        {
            known.size = Some(size);
        }
    }

    fn memory_content(&self, key: &Key, version: VersionId) -> Option<Arc<Content>> {
        self.memory
            .lock()
            .get(key)
            .filter(|content| content.version == version)
            .cloned()
    }

    fn disk_content(&self, key: &Key, known: Option<&Known>) -> Option<Arc<Content>> {
        let entry = self.disk.as_ref()?.lookup(key)?;
        let same = |known: &&Known| {
            known.disk_id.as_ref() == Some(&entry.id)
                || (entry.meta.validator().is_some()
                    && known.meta.validator() == entry.meta.validator())
        };
        let version = known
            .filter(same)
            .map_or_else(|| self.new_version(), |known| known.version);
        let DiskEntry {
            meta,
            file,
            size,
            modified,
            id,
        } = entry;
        let data = match (size <= MEMORY_RECORD).then(|| read_file(&file, 0..size)) {
            Some(Ok(bytes)) => Data::Memory(bytes),
            Some(Err(error)) => {
                tracing::warn!(
                    "cannot read {key} from the disk cache ({error}); fetching it again"
                );
                return None;
            }
            None => Data::File { file, size, id },
        };
        let content = Arc::new(Content {
            key: key.clone(),
            version,
            meta,
            modified,
            data,
        });
        self.keep_in_memory(&content);
        Some(content)
    }

    pub(super) fn keep_in_memory(&self, content: &Arc<Content>) {
        let Some(bytes) = content.in_memory() else {
            return;
        };
        let size = bytes.len() as u64 + MEMORY_OVERHEAD;
        let mut memory = self.memory.lock();
        let victims = memory.insert(content.key.clone(), Arc::clone(content), size);
        self.metrics.cache_memory_bytes.set(memory.used());
        drop(memory);
        drop(victims);
    }

    pub(super) fn keep_recent(&self, content: &Arc<Content>) {
        let mut recent = self.recent.lock();
        let dropped = if recent.len() >= RECENT {
            recent.pop_front()
        } else {
            None
        };
        recent.push_back(Arc::clone(content));
        drop(recent);
        // Dropping a content may close a connection: not under the lock.
        drop(dropped);
    }

    /// Makes a whole content an entry of the disk cache.
    pub(super) fn publish(&self, content: &Content, spool: Spool, size: u64, checksum: String) {
        self.remember_size(content, size);
        match spool.publish(
            &content.key,
            &content.meta,
            size,
            checksum,
            content.modified,
        ) {
            Ok(id) => {
                let slot = self.slot(&content.key);
                let mut state = slot.state.lock();
                if let Some(known) = state
                    .known
                    .as_mut()
                    .filter(|known| known.version == content.version)
                {
                    known.disk_id = Some(id);
                    known.size = Some(size);
                }
            }
            Err(error) => tracing::warn!("cannot keep {} in the disk cache: {error}", content.key),
        }
    }
}

/// Ends a question, whatever came of it: also a panic wakes those who wait (C5).
struct Flight<'a>(&'a Slot);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.state.lock().busy = false;
        self.0.changed.notify_all();
    }
}

fn not_found(key: &Key) -> StoreError {
    StoreError::new(ErrorKind::NotFound, "there is no such record").with_key(key)
}

impl Error {
    /// Returns the kind of a failure.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::WouldBlock => None,
            Self::Failed(error) => Some(error.kind()),
        }
    }
}
