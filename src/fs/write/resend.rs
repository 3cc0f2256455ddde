//! Stores the bytes of a record again: under another key, or with other metadata under the same.

use std::io;
use std::sync::Arc;

use super::WriteSide;
use super::draft::Why as Commit;
use crate::base::caller;
use crate::base::clock::{Deadline, Wait};
use crate::cache::content::VersionId;
use crate::fs::types::Ino;
use crate::fs::{FsError, KvFs, Result};
use crate::metrics::origin::{self, Origin};
use crate::staging::file::StagingFile;
use crate::staging::{Began, Pending, UnansweredUploads, Why};
use crate::store::{
    Encoding, ErrorKind, GetOutcome, GetRequest, Key, PutRequest, RecordMeta, StoreError,
};
use crate::upload::{Change, Entered, Upload, may_have_arrived};

/// Bytes copied at once from the store to a staging file.
const CHUNK: usize = 256 << 10;

/// A record that was stored again.
pub(in crate::fs) struct Copied {
    /// The content's size if it is known.
    pub(in crate::fs) size: Option<u64>,
    /// The version that was copied.
    pub(in crate::fs) of: RecordMeta,
    /// The version that it became.
    pub(in crate::fs) now: RecordMeta,
    /// The bytes that were copied, where there is no version to name.
    pub(in crate::fs) began: Option<Began>,
    /// How many bytes are stored.
    pub(in crate::fs) stored_size: u64,
    /// The contents of both in the cache, where they are shown as they are stored.
    shown: Option<(VersionId, VersionId)>,
}

impl KvFs {
    /// Stores a record's stored bytes again, under the same key or another; the caller is inside
    /// their gates. `change` says what is to be different.
    pub(in crate::fs) fn store_again(
        &self,
        side: &WriteSide,
        entered: &Entered,
        (from, to): (&Key, &Key),
        change: impl FnOnce(&mut PutRequest),
        wait: Wait,
    ) -> Result<Copied> {
        let (file, size, meta, of) = self.stored_bytes(side, from, wait)?;
        let mut request = PutRequest {
            content_type: meta.content_type.clone(),
            encoding: meta.encoding.clone(),
            if_match: None,
            if_absent: false,
        };
        if from == to && side.config.overwrite == super::Overwrite::Unchanged {
            request.if_match = meta.etag.clone().filter(|etag| etag.is_strong());
        }
        change(&mut request);
        if !caller::waits() {
            return Err(FsError::Interrupted);
        }
        let opened = file
            .open()
            .map_err(|error| FsError::staging("cannot read", &error))?;
        let mut upload = Upload {
            id: side.stamp(),
            pending: Pending {
                key: to.clone(),
                content_type: request.content_type.clone(),
                encoding: request.encoding.clone(),
                if_match: request.if_match.clone(),
                if_absent: request.if_absent,
                size,
                is_new: false,
                closed_at: jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default(),
                why: Why::WriteBack,
                attempts: 0,
                unanswered: UnansweredUploads::default(),
                began: None,
            },
            file: &opened,
        };
        let deadline = Deadline::after(side.config.deadline);
        let stored = entered
            .run(&mut upload, deadline, false)
            .inspect_err(|error| {
                if may_have_arrived(error) {
                    self.records.invalidate(to);
                }
            });
        self.may_have_become(side, &upload.pending);
        let stored = stored?;
        let began = upload.pending.began.take();
        self.metrics.commits.one();
        let now = stored.clone();
        // What compressed bytes hold is known if they have been read.
        let content_size = self.records.exact_size(from, Some(size));
        let shows_stored = self.records.config().raw || request.encoding.is_identity();
        if shows_stored {
            let modified = stored.modified().unwrap_or_else(|| self.clock.wall());
            let version = self
                .records
                .adopt(to, stored, file.freeze(), size, modified);
            return Ok(Copied {
                size: Some(size),
                of: meta,
                now,
                began,
                stored_size: size,
                shown: of.map(|of| (of, version)),
            });
        }
        self.records.stored_elsewhere(to);
        Ok(Copied {
            size: content_size,
            of: meta,
            now,
            began,
            stored_size: size,
            shown: None,
        })
    }

    /// Lets the inode of a record show the same bytes as what it has become, unless another writer has
    /// changed them since it was opened last: the kernel has pages of what they were then.
    pub(in crate::fs) fn show_copied(&self, from: &Key, copied: &Copied) {
        let (Some((of, version)), Some(size)) = (copied.shown, copied.size) else {
            return;
        };
        let mut inodes = self.inodes.lock();
        let ino = inodes.ino_of(from.as_str());
        if let Some(inode) = ino.and_then(|ino| inodes.get_mut(ino))
            && inode.version().is_some_and(|(shown, _)| shown == of)
        {
            inode.set_version(Some((version, size)));
        }
    }

    /// Returns a record's stored bytes, as they are now, in a staging file, and the version of which they
    /// are the content, if they are: from what is at hand where that is they.
    fn stored_bytes(
        &self,
        side: &WriteSide,
        key: &Key,
        wait: Wait,
    ) -> Result<(Arc<StagingFile>, u64, RecordMeta, Option<VersionId>)> {
        let meta = self.records.describe(key, wait)?.ok_or(FsError::NoEntry)?;
        if self.records.config().raw || meta.encoding.is_identity() {
            // Another writer may have changed it since it was asked for: those bytes must stay.
            self.records.doubt(key);
            let reader = self.records.content(key, wait)?.reader()?;
            let (meta, version) = (reader.content().meta.clone(), reader.content().version);
            if self.records.config().raw || meta.encoding.is_identity() {
                let (file, size) = self.copy_of(side, &reader)?;
                return Ok((file, size, meta, Some(version)));
            }
        }
        let failed = |error: io::Error| FsError::staging("cannot copy", &error);
        let deadline = wait
            .deadline()
            .unwrap_or_else(|| Deadline::after(side.config.deadline));
        origin::note(Origin::Network);
        let fetched = match self.store.get(key, &GetRequest::default(), deadline)? {
            GetOutcome::Found(fetched) => fetched,
            GetOutcome::NotModified => {
                let message = "the server answered 304 to a request without a condition";
                return Err(StoreError::new(ErrorKind::Protocol, message)
                    .with_key(key)
                    .into());
            }
        };
        let file = side.new_file()?;
        let (mut body, mut size, mut buffer) = (fetched.body, 0, vec![0; CHUNK]);
        loop {
            let n = match caller::asking(|| body.read(&mut buffer)) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(StoreError::from_io(error, ErrorKind::Network)
                        .with_key(key)
                        .into());
                }
            };
            file.write_at(size, &buffer[..n]).map_err(failed)?;
            size += n as u64;
        }
        Ok((file, size, fetched.meta, None))
    }

    /// Sets a record's content type or encoding: of what is being written, for its upload; else
    /// the record is stored again with it.
    pub(in crate::fs) fn set_stored_as(
        &self,
        ino: Ino,
        content_type: Option<Arc<str>>,
        encoding: Option<Encoding>,
        wait: Wait,
    ) -> Result<()> {
        let side = self.write_side()?;
        let says = |known: Option<&RecordMeta>| {
            known.is_some_and(|known| {
                (content_type.is_none() || content_type == known.content_type)
                    && encoding
                        .as_ref()
                        .is_none_or(|encoding| *encoding == known.encoding)
            })
        };
        if let Some(draft) = self.draft(ino) {
            let closed = self
                .inodes
                .lock()
                .get(ino)
                .is_none_or(|inode| inode.opens == 0);
            if closed && wait == Wait::Never {
                return Err(FsError::WouldBlock);
            }
            let facts = draft.facts();
            if !draft.is_dirty() && facts.content_type.is_none() && says(facts.base.as_ref()) {
                return Ok(());
            }
            if !caller::claim() {
                return Err(FsError::Interrupted);
            }
            draft.set_facts(|facts| {
                facts.content_type = content_type.or(facts.content_type.take());
                facts.encoding = encoding.or(facts.encoding.take());
            });
            // No program will close it.
            if closed {
                let why = if draft.is_temporary() {
                    Commit::Close
                } else {
                    Commit::Now
                };
                caller::leave_once_sent();
                let stored = self.commit(&draft, why);
                self.settle(&draft);
                stored?;
            }
            return Ok(());
        }
        if wait == Wait::Never {
            return Err(FsError::WouldBlock);
        }
        let key = self.key_of(ino)?;
        if says(self.records.describe(&key, wait)?.as_ref()) {
            return Ok(());
        }
        let deadline = Deadline::after(side.config.deadline);
        let entered = side.uploader.enter(&[&key], Change::Name, deadline)?;
        let copied = self.store_again(
            side,
            &entered,
            (&key, &key),
            |request| {
                if let Some(content_type) = content_type {
                    request.content_type = Some(content_type);
                }
                if let Some(encoding) = encoding {
                    request.encoding = encoding;
                }
            },
            wait,
        )?;
        self.show_copied(&key, &copied);
        // A change begun meanwhile is based on the version that this replaced.
        if let Some(draft) = side.drafts.of_key(&key) {
            draft.follows(&copied.of, &copied.now);
        }
        Ok(())
    }
}
