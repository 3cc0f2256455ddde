//! Exact sizes of records before they are read (`--exact-sizes`), for as few bytes as possible.
//!
//! A listed record is asked about with HEAD. If that names no encoding and the length that is listed,
//! the content is as long; no body is sent. What is encoded is read, unless its size is remembered, and
//! so is what HEAD tells nothing of: some servers refuse it, send no length, 0, or that of something
//! else. A server that names no encoding where there is one is found out by the first such record that
//! is read; then no size that was learnt so is believed any more.

use std::sync::Arc;

use super::known::Known;
use super::{Peek, Records};
use crate::base::clock::Wait;
use crate::base::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::cache::sizes::Remembered;
use crate::listing::{Entry, Found};
use crate::store::wait::Result;
use crate::store::{ErrorKind, Key, RecordMeta};

/// After so many answers in a row that told nothing, HEAD is not tried again.
const MOST_USELESS: u32 = 3;

/// What the server's answers to HEAD are good for.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// How many in a row told nothing of the size.
    useless: AtomicU32,
    hide_encodings: AtomicBool,
}

impl Heads {
    fn are_useless(&self) -> bool {
        self.hide_encodings.load(Ordering::Relaxed)
            || self.useless.load(Ordering::Relaxed) >= MOST_USELESS
    }

    /// Returns the content size that an answer tells of a record that is listed with `listed` bytes.
    ///
    /// Zero bytes cost nothing to read, and some servers send 0 for any record.
    pub(super) fn size(&self, meta: &RecordMeta, listed: Option<u64>) -> Option<u64> {
        let is_plain = meta.encoding.is_identity() && !self.hide_encodings.load(Ordering::Relaxed);
        let stored = meta.stored_size.filter(|size| is_plain && *size > 0)?;
        (listed.is_none() || listed == Some(stored)).then_some(stored)
    }
}

impl Records {
    /// Learns the exact size of a record, as far as that can be learnt. Returns what is known of it
    /// then; `None` if that is no more than what is listed and [`Records::exact_size`].
    ///
    /// # Errors
    /// Those of the store.
    pub fn learn_size(self: &Arc<Self>, key: &Key, wait: Wait) -> Result<Option<Known>> {
        let is_listed = match self.listing.find(key) {
            Found::Listed(entry, at) if self.is_fresh_name(at) => {
                if self.is_told_by_head(&entry, wait)? {
                    return Ok(None);
                }
                true
            }
            _ => false,
        };
        // Its headers may tell the size.
        if !is_listed {
            let known = self.attributes(key, wait)?;
            if known.size.is_some() {
                return Ok(Some(known));
            }
        }
        let content = self.content(key, wait)?;
        match self.recall(key) {
            Peek::Present(known) if known.version == content.version => Ok(Some(known)),
            _ => Ok(Some(self.attributes(key, wait)?)),
        }
    }

    /// Asks with HEAD, and remembers the size if that tells it.
    fn is_told_by_head(&self, entry: &Entry, wait: Wait) -> Result<bool> {
        let key = &entry.key;
        let Some(listed) = entry.stored_size.filter(|size| *size > 0) else {
            return Ok(false);
        };
        if self.heads.are_useless() || !self.store.answers_head() {
            return Ok(false);
        }
        let slot = self.slot(key);
        let changes = slot.state.lock().changes;
        let meta = match self.ask_description(key, wait) {
            Ok(meta) => meta,
            // Reading it will tell, and that is remembered.
            Err(error) if error.kind() == Some(ErrorKind::NotFound) => return Ok(false),
            Err(error) => return Err(error),
        };
        if !meta.encoding.is_identity() {
            return Ok(false);
        }
        let size = self.heads.size(&meta, Some(listed));
        match size {
            Some(_) => self.heads.useless.store(0, Ordering::Relaxed),
            None => {
                self.heads.useless.fetch_add(1, Ordering::Relaxed);
            }
        }
        if size.is_none() || slot.state.lock().changes != changes {
            return Ok(false);
        }
        let modified = self.listed_time(key, Some(listed), entry.modified);
        let version = Remembered {
            stored: listed,
            listed,
            content: size,
            modified: (modified != self.unknown_time()).then_some(modified),
        };
        if self.sizes.note(key, version) {
            self.write_sizes_behind();
        }
        Ok(true)
    }

    /// Compares how a record was sent with what HEAD said of it.
    pub(super) fn note_encoding(&self, key: &Key, meta: &RecordMeta) {
        let (false, Some(stored)) = (meta.encoding.is_identity(), meta.stored_size) else {
            return;
        };
        if !self.config.keeps_plain_sizes || self.heads.hide_encodings.load(Ordering::Relaxed) {
            return;
        }
        let slot = self.slots.lock().peek(key).cloned();
        let was_described = slot.is_some_and(|slot| {
            let state = slot.state.lock();
            let described = state.described.as_ref().map(|(meta, _)| meta);
            described
                .is_some_and(|meta| meta.encoding.is_identity() && meta.stored_size == Some(stored))
        });
        let is_plain = |version: &Remembered| version.content == Some(version.stored);
        let was_remembered = self.sizes.version(key, stored);
        if !was_described && !was_remembered.as_ref().is_some_and(is_plain) {
            return;
        }
        self.heads.hide_encodings.store(true, Ordering::Relaxed);
        tracing::warn!(
            "the server does not tell before a record is read that it is encoded; exact sizes are read from the records themselves"
        );
        let forget = |key: &Key| {
            if let Some(version) = self.sizes.get(key).filter(is_plain) {
                let unknown = Remembered {
                    content: None,
                    ..version
                };
                self.sizes.note(key, unknown);
            }
            false
        };
        self.listing.find_key(&forget);
        self.write_sizes_behind();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Encoding;

    #[test]
    fn a_head_tells_the_size_of_what_is_not_encoded_and_listed_alike() {
        let meta = |encoding, stored_size| RecordMeta {
            encoding,
            stored_size,
            ..RecordMeta::default()
        };
        let heads = Heads::default();
        let plain = |size| meta(Encoding::Identity, size);
        assert_eq!(heads.size(&plain(Some(5)), Some(5)), Some(5));
        assert_eq!(heads.size(&plain(Some(5)), None), Some(5));
        assert_eq!(heads.size(&plain(Some(5)), Some(6)), None);
        assert_eq!(heads.size(&plain(Some(0)), Some(6)), None);
        assert_eq!(heads.size(&plain(Some(0)), None), None);
        assert_eq!(heads.size(&plain(None), Some(6)), None);
        assert_eq!(heads.size(&meta(Encoding::Gzip, Some(5)), Some(5)), None);
        heads.hide_encodings.store(true, Ordering::Relaxed);
        assert_eq!(heads.size(&plain(Some(5)), Some(5)), None);
    }
}
