//! `--write-back`: a closed file is journalled, and uploaded in the background.
//!
//! A journalled file keeps its draft until the store has it, so that everybody here sees what was
//! closed, also after a remount. Whoever deletes or renames such a file lets its uploads stand
//! still meanwhile, so that none comes after the deletion.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::WriteSide;
use super::draft::{Draft, DraftFacts, Place, Ticket};
use crate::base::clock::Deadline;
use crate::fs::types::Ino;
use crate::fs::{FsError, KvFs, Result};
use crate::staging::file::{Frozen, StagingFile};
use crate::staging::{JournalEntry, Pending, Why};
use crate::store::{Encoding, Key, RecordMeta, StoreError, codec};
use crate::upload::{Hold, UploadObserver, Uploader};

impl KvFs {
    /// Journals what a commit is to store. Returns when it is safe on the local disk.
    ///
    /// # Errors
    /// Those of the local disk.
    pub(in crate::fs) fn journal(
        &self,
        side: &WriteSide,
        uploader: &Arc<Uploader>,
        ticket: Ticket,
    ) -> Result<()> {
        let (request, packed) = match self.request_for(side, &ticket) {
            Ok(prepared) => prepared,
            Err(error) => {
                ticket.end(Err(&error));
                return Err(error.into());
            }
        };
        let (file, size) = packed
            .as_ref()
            .map_or((ticket.bytes.as_file(), ticket.size), |(file, size)| {
                (file.as_file(), *size)
            });
        let pending = Pending {
            key: ticket.key.clone(),
            content_type: request.content_type,
            encoding: request.encoding,
            if_match: request.if_match,
            if_absent: request.if_absent,
            size,
            closed_at: jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default(),
            why: Why::WriteBack,
            attempts: 0,
            unanswered: Default::default(),
        };
        let deadline = Deadline::after(side.config.deadline);
        // What was on its way when the ticket was made may be in the store by now.
        let conditions = |pending: &mut Pending| {
            (pending.if_match, pending.if_absent) = self.conditions(side, &ticket.facts_now());
        };
        let journalled = uploader.submit(file, pending, deadline, conditions, |id| {
            ticket.set_journalled(id.clone());
        });
        match journalled {
            Ok(_) => {
                if let Some(kept) = ticket.take_kept() {
                    self.forget_kept(side, kept);
                }
                ticket.end_journalled();
                Ok(())
            }
            Err(error) => {
                let failure = StoreError::new(
                    crate::store::ErrorKind::Disk,
                    format!("cannot write the journal: {error}"),
                )
                .with_key(&ticket.key);
                ticket.end(Err(&failure));
                Err(FsError::staging("cannot journal", &error))
            }
        }
    }

    /// Lets the uploads of `keys` stand still, if there are any.
    pub(in crate::fs) fn hold_uploads(
        &self,
        side: &WriteSide,
        keys: &[&Key],
    ) -> Result<Option<Hold>, StoreError> {
        let Some(uploader) = &side.config.uploader else {
            return Ok(None);
        };
        if !keys.iter().any(|key| uploader.has(key)) {
            return Ok(None);
        }
        uploader
            .hold(keys, Deadline::after(side.config.deadline))
            .map(Some)
    }

    /// Tells whether anything of `key` is on its way to the store.
    pub(in crate::fs) fn has_uploads(&self, key: &Key) -> bool {
        let uploader = self
            .writing
            .as_ref()
            .and_then(|side| side.config.uploader.as_ref());
        uploader.is_some_and(|uploader| uploader.has(key))
    }

    /// Waits until the store has what was journalled of a file.
    ///
    /// # Errors
    /// The store's verdict, also on what was uploaded before somebody asked.
    pub(in crate::fs) fn wait_uploaded(&self, ino: Ino) -> Result<()> {
        let side = self.write_side()?;
        let key = match self.draft(ino).map(|draft| draft.place()) {
            Some(Place::Record(key)) => key,
            Some(_) => return Ok(()),
            None => self.key_of(ino)?,
        };
        match &side.config.uploader {
            Some(uploader) => Ok(uploader.wait_key(&key, Deadline::after(side.config.deadline))?),
            None => Ok(()),
        }
    }

    /// Shows what earlier mounts have journalled and not uploaded. To be called once, before the
    /// uploads begin.
    pub fn adopt_journal(&self) {
        let Ok(side) = self.write_side() else { return };
        let mut newest: std::collections::BTreeMap<Key, JournalEntry> = Default::default();
        for entry in side.folder().journal().entries() {
            if !entry.pending.why.is_failed() {
                newest.insert(entry.pending.key.clone(), entry);
            }
        }
        for entry in newest.into_values() {
            if let Err(error) = self.adopt_entry(side, &entry) {
                tracing::warn!(
                    "what was written to {} before is not shown until it is uploaded: {error}",
                    entry.pending.key
                );
            }
        }
    }

    fn adopt_entry(&self, side: &WriteSide, entry: &JournalEntry) -> io::Result<()> {
        let pending = &entry.pending;
        let data = side.folder().journal().open(&entry.id)?;
        let shows_stored = self.records.config().raw || pending.encoding.is_identity();
        let (bytes, size) = if shows_stored {
            (StagingFile::of_entry(data, side.folder()), pending.size)
        } else {
            decoded(side, data, pending)?
        };
        let facts = DraftFacts {
            // Perhaps there is such a record: it is deleted and renamed as if there was.
            base: Some(RecordMeta {
                content_type: pending.content_type.clone(),
                encoding: pending.encoding.clone(),
                ..RecordMeta::default()
            }),
            ..DraftFacts::default()
        };
        let ino = self.inodes.lock().fresh();
        let draft = Draft::new(
            ino,
            Place::Record(pending.key.clone()),
            Arc::clone(&bytes),
            size,
            facts,
            pending.closed_at.into(),
        );
        draft.set_journalled(entry.id.clone(), bytes);
        side.drafts.insert(&draft);
        self.note_present(side, &draft);
        Ok(())
    }
}

/// Undoes the encoding of a journalled upload.
fn decoded(side: &WriteSide, data: File, pending: &Pending) -> io::Result<(Frozen, u64)> {
    let file = StagingFile::new(side.folder())?;
    let mut decoder = codec::decoder(&pending.encoding, Box::new(data))?;
    let mut size = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match io::Read::read(&mut decoder, &mut buffer)? {
            0 => return Ok((file.freeze(), size)),
            n => {
                file.write_at(size, &buffer[..n])?;
                size += n as u64;
            }
        }
    }
}

impl UploadObserver for KvFs {
    fn uploaded(&self, entry: &JournalEntry, _: &Arc<File>, meta: &RecordMeta) {
        let Ok(side) = self.write_side() else { return };
        let key = &entry.pending.key;
        self.metrics.commits.one();
        let meta = RecordMeta {
            content_type: meta
                .content_type
                .clone()
                .or_else(|| entry.pending.content_type.clone()),
            encoding: entry.pending.encoding.clone(),
            stored_size: Some(entry.pending.size),
            ..meta.clone()
        };
        let Some(draft) = side.drafts.of_key(key) else {
            self.records.stored_elsewhere(key);
            return;
        };
        // First, or somebody who finds the draft settled would take the old version for the current.
        if let Some((bytes, size, modified)) = draft.journalled(&entry.id) {
            let modified = meta.modified().unwrap_or(modified);
            self.adopt_stored(side, (draft.ino, key), bytes, size, modified, &meta);
        } else {
            // What comes after it may fail, and then this is the record.
            self.records.stored_elsewhere(key);
        }
        draft.uploaded(&entry.id, &meta);
        self.settle(&draft);
    }

    fn bytes(&self, entry: &JournalEntry) -> Option<(File, u64, Encoding)> {
        let side = self.write_side().ok()?;
        let draft = side.drafts.of_key(&entry.pending.key)?;
        let (bytes, size, _) = draft.journalled(&entry.id)?;
        let encoding = if self.records.config().raw {
            entry.pending.encoding.clone()
        } else {
            Encoding::Identity
        };
        Some((bytes.as_file().try_clone().ok()?, size, encoding))
    }

    fn failed(&self, entry: &JournalEntry, error: &StoreError) {
        let Ok(side) = self.write_side() else { return };
        self.metrics.commits_failed.one();
        if let Some(draft) = side.drafts.of_key(&entry.pending.key)
            && draft.refused(&entry.id, error)
        {
            self.report("close", Some(draft.ino), &error.duplicate().into());
            self.settle(&draft);
        }
    }
}
