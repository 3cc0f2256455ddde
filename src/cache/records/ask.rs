//! Asks about a record: one question at a time, answered by the cache if fresh enough, else by the
//! store.

use std::sync::Arc;

use super::known::{Known, Slot, SlotState};
use super::{Before, Records};
use crate::base::clock::{Deadline, Wait};
use crate::cache::content::Content;
use crate::cache::freshness::Question;
use crate::disk::Patience;
use crate::listing::Found;
use crate::metrics::origin::{self, Origin};
use crate::store::wait::{Result, may_block, wait_until};
use crate::store::{ErrorKind, GetOutcome, GetRequest, Key, Priority, StoreError, Validator};

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Need {
    Attributes,
    Content,
    /// The content, for an open that will probably come.
    Ahead,
    /// The content, for the cache itself.
    Warm,
}

impl Records {
    pub(in crate::cache) fn resolve(
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
        let contradicted = self.contradicted(key, &slot);
        let mut state = slot.state.lock();
        let (known, candidate) = loop {
            if state
                .absent
                .is_some_and(|at| self.is_fresh(at) && contradicted != Some(at))
            {
                return Err(not_found(key).into());
            }
            let content = state
                .content
                .upgrade()
                .filter(|content| content.is_usable());
            let follows = need == Need::Content && state.is_unopened;
            let at_once =
                |was: &Known| (follows && self.is_fresh_name(was.validated)).then(|| was.clone());
            if let Some(was) = &state.known
                && !state.is_doubted
                && contradicted != Some(was.validated)
                && let Some(known) = &self.believed(was).or_else(|| at_once(was))
            {
                let content = content
                    .clone()
                    .or_else(|| self.memory_content(key, known.version));
                if need == Need::Attributes || content.is_some() {
                    if need == Need::Content {
                        self.metrics.cache_memory_hits.one();
                        state.is_unopened = false;
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
        let (changes, is_doubted) = (state.changes, state.is_doubted);
        drop(state);
        let flight = Flight(&slot);
        // An answer is as old as its question.
        let question = self.freshness.question();
        let asked = question.at;
        let result = self.revalidate(
            key,
            (known, is_doubted),
            candidate,
            need,
            question,
            deadline,
        );
        // What is listed is not taken for gone for ever because of one answer.
        let is_doubtful =
            self.config.ttl.is_none() && matches!(self.listing.find(key), Found::Listed(..));
        let mut state = slot.state.lock();
        if state.changes != changes {
            return Ok(None);
        }
        match &result {
            Ok((known, content)) => {
                state.absent = None;
                // A doubt that came after the question is for the next one.
                state.is_doubted &= !is_doubted;
                state.known = Some(known.clone());
                state.is_unopened = need == Need::Attributes;
                state.content = content.as_ref().map(Arc::downgrade).unwrap_or_default();
            }
            Err(error) if error.kind() == ErrorKind::NotFound && is_doubtful => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                *state = SlotState {
                    busy: state.busy,
                    absent: Some(asked),
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
    fn revalidate(
        self: &Arc<Self>,
        key: &Key,
        (known, is_doubted): (Option<Known>, bool),
        candidate: Option<Arc<Content>>,
        need: Need,
        question: Question,
        deadline: Deadline,
    ) -> Result<(Known, Option<Arc<Content>>), StoreError> {
        let asked = question.at;
        let from_memory = candidate.is_some();
        let mut is_marked = false;
        let candidate = candidate.or_else(|| {
            let (content, marked) = self.disk_content(key, known.as_ref(), deadline)?;
            is_marked = marked;
            Some(content)
        });
        let mut known = known.map(|known| self.renewed(key, &known));
        let mut trusted = match &known {
            Some(known) => !is_doubted && self.is_current(key, known),
            // What a mount cached for which the store could change says nothing of how it is now.
            None => {
                let read = candidate.as_ref().and_then(|content| content.read);
                let is_outdated = self.freshness.is_outdated(key, read);
                self.config.ttl.is_none() && is_marked && !is_outdated
            }
        };
        if !trusted
            && !is_doubted
            && let Some(current) =
                self.held_current(key, known.as_ref(), candidate.as_deref(), need, deadline)
        {
            if candidate.is_none() && need == Need::Attributes {
                return Ok((current, None));
            }
            known = Some(current);
            trusted = true;
        }
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
                self.known_of(content, known.map_or(asked, |known| known.validated)),
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
                if let Some(content) = candidate {
                    self.count_hit(from_memory, need);
                    if !from_memory {
                        self.mark(&content);
                    }
                    return Ok((self.known_of(&content, asked), Some(content)));
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
                        validated: asked,
                        ..known
                    },
                    None,
                ))
            }
            GetOutcome::Found(fetched) => {
                let read = Some(self.freshness.moment(&question).earliest);
                if need == Need::Content {
                    self.metrics.cache_misses.one();
                }
                let validator: Option<Validator> = fetched.meta.validator();
                self.note_validator(&fetched.meta);
                self.note_encoding(key, &fetched.meta);
                // Dates and weak tags do not tell versions of one second apart.
                let is_strong = fetched.meta.strong_etag().is_some();
                let same = known
                    .as_ref()
                    .filter(|known| is_strong && known.meta.validator() == validator);
                let (version, modified) = match same {
                    Some(known) => (known.version, known.modified),
                    None => {
                        let before = Before::of(known.as_ref(), candidate.as_deref());
                        let time = self.version_time(key, &fetched.meta, before.as_ref());
                        (self.new_version(), time)
                    }
                };
                let was_read = known
                    .as_ref()
                    .map_or_else(|| candidate.as_ref()?.read, |known| known.read);
                let fetched = (fetched, version, modified, read);
                let content = self.receive(key, fetched, candidate.as_ref(), need, deadline)?;
                self.note_compared(&content, candidate.as_ref(), was_read, read);
                if !from_memory && candidate.is_some_and(|old| Arc::ptr_eq(&old, &content)) {
                    self.mark(&content);
                }
                if need == Need::Ahead {
                    let ttl = self.config.ttl;
                    self.ahead
                        .fetched(key, content.version, asked, ttl, &self.metrics);
                    self.metrics.prefetched.one();
                    self.metrics
                        .prefetched_bytes
                        .add(content.meta.stored_size.unwrap_or(0));
                }
                let known = Known {
                    read,
                    ..self.known_of(&content, asked)
                };
                Ok((known, Some(content)))
            }
        }
    }

    /// Notes with what lies in the disk cache that it is current although nothing changes any more.
    fn mark(&self, content: &Content) {
        if self.config.ttl.is_none()
            && let Some(disk) = self.disk.clone()
        {
            let (key, meta) = (content.key.clone(), content.meta.clone());
            let patience = Arc::clone(disk.patience());
            patience.wait(Patience::MOMENT, move || disk.mark(&key, &meta));
        }
    }

    fn count_hit(&self, from_memory: bool, need: Need) {
        match (need, from_memory) {
            (Need::Attributes | Need::Ahead | Need::Warm, _) => {}
            (Need::Content, true) => self.metrics.cache_memory_hits.one(),
            (Need::Content, false) => self.metrics.cache_disk_hits.one(),
        }
    }
}

/// Ends a question, whatever came of it: a panic, too, wakes the waiting threads (C5).
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
