//! Versions without validators that the store's clock holds to be current, and what contradicts it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::known::{Known, Peek};
use super::{Before, Need, Records};
use crate::base::clock::{Deadline, Wait};
use crate::base::content_type;
use crate::base::sync::atomic::Ordering;
use crate::cache::content::{Content, VersionId};
use crate::cache::freshness::{Advice, SMALL};
use crate::disk::Patience;
use crate::listing::Found;
use crate::metrics::origin::{self, Origin};
use crate::store::wait::{Result, may_block};
use crate::store::{ErrorKind, GetOutcome, GetRequest, Key, Priority, RecordMeta};

/// The longest that fetching a record to compare it may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(30);

impl Records {
    /// Returns a version that is older than the TTL as current, if the store's clock says so; asks
    /// about the store if that is worth it.
    pub(super) fn held_current(
        &self,
        key: &Key,
        known: Option<&Known>,
        candidate: Option<&Content>,
        need: Need,
        deadline: Deadline,
    ) -> Option<Known> {
        let known = match (known, candidate) {
            (Some(known), _) => known.clone(),
            (None, Some(content)) if self.is_listed_otherwise(content) => {
                self.contradict(content, deadline);
                return None;
            }
            (None, Some(content)) => self.known_of(content, self.clock.now()),
            (None, None) => return None,
        };
        let is_another = |content: &Content| known.version != content.version;
        if known.meta.validator().is_some() || candidate.is_some_and(is_another) {
            return None;
        }
        let read = known.read?;
        // A lookup of what was read before will be followed by an open; of others it need not.
        let is_read = need != Need::Attributes || candidate.is_some();
        let size = known.meta.stored_size.filter(|_| is_read);
        match self.freshness.advise(key, read, size, deadline) {
            Advice::Fetch => None,
            Advice::Current(_) if self.is_shown_another(key, &known, None) => {
                self.freshness.changed(read);
                None
            }
            Advice::Current(asked) => Some(Known {
                validated: asked,
                ..known
            }),
        }
    }

    /// Notes that the store's clock is wrong, if it holds a content to be current that is not.
    fn contradict(&self, content: &Content, deadline: Deadline) {
        let Some(read) = content.read.filter(|_| content.validator().is_none()) else {
            return;
        };
        let size = content.meta.stored_size;
        if let Advice::Current(_) = self.freshness.advise(&content.key, read, size, deadline) {
            self.freshness.changed(read);
        }
    }

    /// Returns whether a record is as well asked for itself as listed again: it has a validator, or is
    /// small and cached, and the first such record within the TTL.
    pub fn revalidates_alone(&self, key: &Key) -> bool {
        let Peek::Present(known) = self.recall(key) else {
            return false;
        };
        let is_small = known.meta.stored_size.is_some_and(|size| size <= SMALL);
        known.meta.validator().is_some()
            || (is_small
                && self.memory_content(key, known.version).is_some()
                && self.freshness.goes_alone(key))
    }

    /// Returns what is to be told of a large record without validators that is older than the TTL,
    /// without fetching it; `None` for any other.
    pub(super) fn glance(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<Option<Known>> {
        let size = match (self.recall(key), self.listing.find(key)) {
            (Peek::Present(known), _) if known.meta.validator().is_some() => return Ok(None),
            (Peek::Present(known), _) if self.is_fresh(known.validated) => return Ok(None),
            (Peek::Present(known), _) => known.meta.stored_size,
            (_, Found::Listed(entry, _)) => entry.stored_size,
            _ => None,
        };
        if size.is_none_or(|size| size <= SMALL) {
            return Ok(None);
        }
        let deadline = may_block(wait)?;
        let old = match self.recall(key) {
            Peek::Present(known) => Some(known),
            _ => None,
        };
        if let Some(held) = self.held_current(key, old.as_ref(), None, Need::Attributes, deadline) {
            return Ok(Some(held));
        }
        origin::note(Origin::Network);
        let asked = self.clock.now();
        let meta = self.store.head(key, deadline)?;
        // Nothing costs nothing to read, and not all servers send the length with this answer.
        if meta.stored_size == Some(0) {
            return Ok(None);
        }
        let before = Before::of(old.as_ref(), None);
        let size = if self.config.raw {
            meta.stored_size
        } else {
            self.heads.size(&meta, self.listed_size(key))
        };
        let size = size.or_else(|| self.exact_size(key, meta.stored_size));
        Ok(Some(Known {
            version: self.new_version(),
            validated: asked,
            modified: self.version_time(key, &meta, before.as_ref()),
            read: None,
            size,
            listed: self.listed_size(key),
            disk_id: None,
            meta,
        }))
    }

    /// Returns what is known of a record's type and encoding, asking for no more than that.
    ///
    /// # Errors
    /// Those of the store.
    pub fn described(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<RecordMeta> {
        if let Some(meta) = self.seen(key, wait)? {
            return Ok(meta);
        }
        let described = self.slot(key).state.lock().described.clone();
        if let Some((meta, at)) = described
            && self.is_fresh_name(at)
        {
            return Ok(meta);
        }
        match self.recall(key) {
            Peek::Present(known) if known.meta.validator().is_some() => {
                Ok(self.resolve(key, Need::Attributes, wait)?.0.meta)
            }
            _ => Ok(self.ask_description(key, wait)?),
        }
    }

    /// Returns what was seen of a record before, as far as it may still be believed: for as long as
    /// a fresh listing shows the same stored size, where records have no validators.
    fn seen(&self, key: &Key, wait: Wait) -> Result<Option<RecordMeta>> {
        let listed = self.listed_size(key);
        if let Peek::Present(known) = self.recall(key)
            && (self.is_fresh(known.validated)
                || (known.meta.validator().is_none()
                    && listed.is_some()
                    && known.has_stored_size(listed)))
        {
            return Ok(Some(known.meta));
        }
        let described = self.slot(key).state.lock().described.clone();
        if let Some((meta, at)) = described
            && meta.validator().is_none()
            && (self.is_fresh_name(at) || (listed.is_some() && meta.stored_size == listed))
        {
            return Ok(Some(meta));
        }
        let deadline = may_block(wait)?;
        let kept = self.disk.clone().and_then(|disk| {
            let (patience, key) = (Arc::clone(disk.patience()), key.clone());
            patience.wait(Patience::of(deadline), move || disk.describe(&key))?
        });
        Ok(kept
            .filter(|(meta, read)| {
                meta.validator().is_none()
                    && !self.freshness.is_outdated(key, *read)
                    && ((listed.is_some() && listed == meta.stored_size)
                        || self.freshness.vouched(*read).is_some())
            })
            .map(|(meta, _)| meta))
    }

    /// Asks the store for what it says of a record, and no more.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) fn ask_description(&self, key: &Key, wait: Wait) -> Result<RecordMeta> {
        let deadline = may_block(wait)?;
        origin::note(Origin::Network);
        let slot = self.slot(key);
        let asked = self.clock.now();
        let changes = slot.state.lock().changes;
        let meta = self.store.head(key, deadline)?;
        self.note_validator(&meta);
        let mut state = slot.state.lock();
        if state.changes == changes {
            state.described = Some((meta.clone(), asked));
        }
        Ok(meta)
    }

    /// Returns what is known of a record, asking for no more than its metadata; `None` when it
    /// does not exist.
    ///
    /// # Errors
    /// Those of the store.
    pub fn describe(&self, key: &Key, wait: Wait) -> Result<Option<RecordMeta>> {
        match self.peek(key) {
            Peek::Present(known) => return Ok(Some(known.meta)),
            Peek::Absent(_) => return Ok(None),
            Peek::Unknown => {}
        }
        if let Some(meta) = self.seen(key, wait)? {
            return Ok(Some(meta));
        }
        match self.ask_description(key, wait) {
            Ok(meta) => Ok(Some(meta)),
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn note_validator(&self, meta: &RecordMeta) {
        let lacks = meta.validator().is_none();
        self.lacks_validators.store(lacks, Ordering::Relaxed);
    }

    /// Returns what is known of a record that is to be replaced in whole; `None` when it does not
    /// exist.
    ///
    /// A listed one is not asked about where that could tell its type only, and the name tells one: a
    /// record without a validator can't be told from later versions anyway.
    ///
    /// # Errors
    /// Those of the store.
    pub fn describe_replaced(&self, key: &Key, wait: Wait) -> Result<Option<RecordMeta>> {
        let is_needless = !self.config.raw
            && self.lacks_validators.load(Ordering::Relaxed)
            && content_type::is_told_by(key.as_str());
        if is_needless
            && let Some(size) = self.listed_size(key)
            && matches!(self.peek(key), Peek::Unknown)
            && self.seen(key, wait)?.is_none()
        {
            return Ok(Some(RecordMeta {
                stored_size: Some(size),
                ..RecordMeta::default()
            }));
        }
        self.describe(key, wait)
    }

    /// Notes what comparing a fetched record with the one before it has shown.
    pub(super) fn note_compared(
        &self,
        content: &Arc<Content>,
        before: Option<&Arc<Content>>,
        was_read: Option<SystemTime>,
        read: Option<SystemTime>,
    ) {
        let (Some(before), Some(was_read)) = (before, was_read) else {
            return;
        };
        if before.validator().is_some() || content.validator().is_some() {
            return;
        }
        if !Arc::ptr_eq(before, content) {
            // A large one may be the same; what is not compared contradicts nothing.
            if before.in_memory().is_some() && content.in_memory().is_some() {
                self.freshness.changed(was_read);
            }
        } else if let Some(disk) = self.disk.clone()
            && let Some(read) = read
        {
            // So that it can be believed when the store is mounted again.
            let key = content.key.clone();
            let noted = self
                .writers
                .spawn(move || disk.confirm(&key, was_read, read));
            if noted.is_err() {
                tracing::debug!("the disk cannot keep up; a record will be fetched again");
            }
        }
    }

    /// Fetches a trusted small content, now and then, and compares it.
    pub(super) fn check_now_and_then(&self, key: &Key, known: &Known) {
        let is_small = known.meta.stored_size.is_some_and(|size| size <= SMALL);
        if !is_small || !self.freshness.is_check_due() {
            return;
        }
        let (me, key, version) = (self.me.clone(), key.clone(), known.version);
        let checking = self.tools.fillers.spawn(move || {
            if let Some(records) = me.upgrade() {
                records.check(&key, version);
            }
        });
        if checking.is_err() {
            tracing::debug!("too much to do to check a record");
        }
    }

    /// Fetches a record and compares it with the trusted content.
    fn check(self: &Arc<Self>, key: &Key, version: VersionId) {
        let Some(content) = self.memory_content(key, version) else {
            return;
        };
        let slot = self.slot(key);
        let changes = slot.state.lock().changes;
        let deadline = Deadline::after(CHECK_DEADLINE);
        let request = GetRequest {
            priority: Priority::Prefetch,
            ..GetRequest::default()
        };
        let question = self.freshness.question();
        let got = match self.store.get(key, &request, deadline) {
            Ok(GetOutcome::Found(fetched)) => {
                let read = Some(self.freshness.moment(&question).earliest);
                let fetched = (fetched, self.new_version(), self.clock.wall(), read);
                self.receive(key, fetched, Some(&content), Need::Ahead, deadline)
            }
            Ok(GetOutcome::NotModified) => return,
            Err(error) => Err(error),
        };
        let is_other = match got {
            Ok(got) => !Arc::ptr_eq(&got, &content),
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        if !is_other || slot.state.lock().changes != changes {
            return;
        }
        if let Some(read) = content.read {
            self.freshness.changed(read);
        }
        tracing::info!("{key} has changed and the store's modifiedAt does not show it yet");
        self.invalidate(key);
    }
}
