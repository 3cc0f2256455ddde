//! Versions without validators that the store's clock holds to be current, and what contradicts it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::known::Known;
use super::{Need, Records};
use crate::base::clock::Deadline;
use crate::cache::content::{Content, VersionId};
use crate::cache::freshness::{Advice, SMALL};
use crate::store::{ErrorKind, GetOutcome, GetRequest, Key, Priority};

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

    /// Takes note of what comparing a fetched record with the one before it has shown.
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

    /// Fetches a small content that is believed, now and then, and compares it.
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

    /// Fetches a record and compares it with what is believed to be it.
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
        tracing::info!("{key} has changed and the store's modifiedAt does not tell yet");
        self.expire(key);
    }
}
