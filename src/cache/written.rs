//! Records that this mount has stored or deleted: known at once, without asking the store.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::content::{Content, Data, VersionId};
use super::records::Records;
use crate::base::clock::Wait;
use crate::disk::Checksum;
use crate::staging::file::{self, Frozen};
use crate::store::{ErrorKind, Key, RecordMeta, StoreError, wait};
use crate::transfer::file::read_file;

/// Bytes read at once for a checksum.
const CHUNK: u64 = 256 << 10;

impl Records {
    /// Takes the `size` content bytes that have just been stored as the record's current version.
    ///
    /// What was asked of the store before this says nothing any more, even if it is answered
    /// later.
    pub fn adopt(
        self: &Arc<Self>,
        key: &Key,
        meta: RecordMeta,
        bytes: Frozen,
        size: u64,
        modified: SystemTime,
    ) -> VersionId {
        let version = self.new_version();
        let small = (size <= self.memory_record_max()).then(|| read_staged(&bytes, 0..size));
        let data = match small {
            Some(Ok(bytes)) => Data::Memory(bytes),
            _ => Data::Staged(bytes, size),
        };
        let content = Arc::new(Content {
            key: key.clone(),
            version,
            meta,
            modified,
            read: self.freshness().written(key),
            data,
        });
        self.forget_content(key);
        self.enter_written(key, Some(&content));
        self.keep_recent(&content);
        if content.in_memory().is_some() {
            self.keep_in_memory(&content);
            self.write_behind(&content);
        } else {
            self.publish_behind(&content);
        }
        version
    }

    /// Notes that a record was stored; its content is not at hand.
    pub fn stored_elsewhere(&self, key: &Key) {
        self.forget_content(key);
        let slot = self.slot(key);
        let mut state = slot.state.lock();
        state.changes += 1;
        state.known = None;
        state.described = None;
        state.absent = None;
        state.content = std::sync::Weak::new();
    }

    /// Notes that a record was deleted.
    pub fn removed(&self, key: &Key) {
        self.forget_content(key);
        self.enter_written(key, None);
    }

    fn enter_written(&self, key: &Key, content: Option<&Arc<Content>>) {
        let now = self.now();
        let known = content.map(|content| self.known_of(content, now));
        let slot = self.slot(key);
        let mut state = slot.state.lock();
        state.changes += 1;
        state.described = None;
        state.is_unopened = false;
        state.is_doubted = false;
        state.absent = content.is_none().then_some(now);
        state.known = known;
        state.content = content.map(Arc::downgrade).unwrap_or_default();
    }

    /// Copies a large content to the disk cache, later; not at all when the disk cannot keep up.
    fn publish_behind(self: &Arc<Self>, content: &Arc<Content>) {
        let Some(disk) = self.disk().cloned() else {
            return;
        };
        let (records, content) = (Arc::clone(self), Arc::clone(content));
        let queued = self.writers().spawn(move || {
            let Data::Staged(bytes, size) = &content.data else {
                return;
            };
            let Some(spool) = disk.spool(*size).filter(|spool| spool.room().take(*size)) else {
                return;
            };
            let copied = bytes
                .open()
                .and_then(|from| file::copy(&from, spool.file(), *size))
                .and_then(|()| {
                    let mut sum = Checksum::default();
                    let mut at = 0;
                    while at < *size {
                        let end = (at + CHUNK).min(*size);
                        let part =
                            read_file(spool.file(), at..end).map_err(std::io::Error::from)?;
                        sum.update(&part);
                        at = end;
                    }
                    Ok(sum.finish())
                });
            match copied {
                Ok(sum) => records.publish(&content, spool, *size, sum),
                Err(error) => {
                    tracing::warn!("cannot copy {} to the disk cache: {error}", content.key);
                }
            }
        });
        if queued.is_err() {
            tracing::debug!("the disk cache cannot keep up; a record stays out of it");
        }
    }
}

/// Reads a part of a content that was written here, if that need not wait or may.
///
/// # Errors
/// [`wait::Error::WouldBlock`], and those of the disk.
pub(super) fn read_staged_within(
    bytes: &Frozen,
    range: Range<u64>,
    wait: Wait,
) -> wait::Result<Bytes> {
    if wait == Wait::Never {
        let len = (range.end - range.start) as usize;
        let read = bytes.read_now(range.start, len).map_err(unreadable)?;
        let whole = read.filter(|read| read.len() == len);
        return whole.map(Bytes::from).ok_or(wait::Error::WouldBlock);
    }
    Ok(read_staged(bytes, range)?)
}

fn unreadable(error: std::io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, "cannot read the staging file").with_source(error)
}

fn read_staged(bytes: &Frozen, range: Range<u64>) -> Result<Bytes, StoreError> {
    read_file(&*bytes.open().map_err(unreadable)?, range)
}
