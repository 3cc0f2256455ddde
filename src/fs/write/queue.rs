//! Journalled files of this filesystem, from this mount and earlier ones.
//!
//! A journalled file keeps its draft until the store has it, so that the mount shows closed files
//! at once, also after a remount.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::WriteSide;
use super::draft::{Draft, DraftFacts, Place};
use crate::base::clock::Deadline;
use crate::fs::types::Ino;
use crate::fs::{KvFs, Result};
use crate::staging::adopted::Decode;
use crate::staging::file::StagingFile;
use crate::staging::{Began, JournalEntry, Pending, StagingFolder};
use crate::store::codec::{DecoderMemory, Turn, expansion};
use crate::store::{Encoding, Key, RecordMeta, StoreError};
use crate::upload::UploadObserver;

/// How long a journalled file waits to be decoded.
const DECODING: Duration = Duration::from_secs(60);

impl KvFs {
    /// Waits until the store has what was journalled of a file.
    ///
    /// # Errors
    /// The store's verdict, also on uploads that ended before the question.
    pub(in crate::fs) fn wait_uploaded(&self, ino: Ino) -> Result<()> {
        let side = self.write_side()?;
        let key = match self.draft(ino).map(|draft| draft.place()) {
            Some(Place::Record(key)) => key,
            Some(_) => return Ok(()),
            None => self.key_of(ino)?,
        };
        let deadline = Deadline::after(side.config.deadline);
        Ok(side.uploader.wait_key(&key, deadline)?)
    }

    /// Shows and uploads what earlier mounts have journalled and not uploaded, and from now on what
    /// this one journals. To be called once, before anything is changed.
    pub fn start_uploads(self: &Arc<Self>) {
        let Ok(side) = self.write_side() else { return };
        self.adopt_journal();
        let observer: Arc<dyn UploadObserver> = Arc::<Self>::clone(self);
        side.uploader.start(Arc::downgrade(&observer));
    }

    /// Shows what earlier mounts have journalled and not uploaded.
    fn adopt_journal(&self) {
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
                    "earlier writes to {} do not show until they are uploaded: {error}",
                    entry.pending.key
                );
            }
        }
    }

    /// Returns how the content of a journalled upload is made of its bytes, where they are not it.
    pub(in crate::fs) fn decoding(&self, side: &WriteSide, pending: &Pending) -> Option<Decode> {
        if self.records.config().raw || pending.encoding.is_identity() {
            return None;
        }
        let folder = Arc::downgrade(&side.config.staging);
        let encoding = pending.encoding.clone();
        let most = self.records.config().max_content;
        Some(Box::new(move |data| {
            let folder = folder.upgrade().ok_or(io::ErrorKind::NotFound)?;
            decoded(&folder, data, &encoding, most)
        }))
    }

    fn adopt_entry(&self, side: &WriteSide, entry: &JournalEntry) -> io::Result<()> {
        let pending = &entry.pending;
        let decode = self.decoding(side, pending);
        let size = match &decode {
            None => pending.size,
            Some(decode) => decode(side.folder().journal().open(&entry.id)?)?
                .metadata()?
                .len(),
        };
        let bytes = StagingFile::of_entry(&entry.id, decode, side.folder());
        let facts = DraftFacts {
            // Perhaps there is such a record: it is deleted and renamed as if there was.
            // What is made of it is made of what it was made of.
            base: Some(RecordMeta {
                content_type: pending.content_type.clone(),
                encoding: pending.encoding.clone(),
                etag: pending.if_match.clone(),
                ..RecordMeta::default()
            }),
            exclusive: pending.if_absent,
            ..DraftFacts::default()
        };
        let mut unanswered = pending.unanswered.clone();
        unanswered.add(entry.as_sent.clone());
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
        draft.set_unanswered(unanswered);
        draft.set_began(pending.began.clone());
        side.drafts.note_entry(&entry.id, ino);
        side.drafts.insert(&draft);
        self.note_present(side, &draft);
        Ok(())
    }
}

/// Undoes the encoding of a journalled upload, as far as that of a record in the store.
fn decoded(
    folder: &StagingFolder,
    data: File,
    encoding: &Encoding,
    most: Option<u64>,
) -> io::Result<File> {
    let mut file = folder.new_file()?;
    let turn = Turn::Reader(Deadline::after(DECODING));
    let memory = DecoderMemory::of_process();
    let mut decoder = expansion::decoder(encoding, Box::new(data), most, memory, turn)?;
    io::copy(&mut decoder, &mut file)?;
    Ok(file)
}

impl UploadObserver for KvFs {
    fn uploaded(&self, entry: &JournalEntry, _: &Arc<File>, meta: &RecordMeta) {
        let Ok(side) = self.write_side() else { return };
        let key = &entry.pending.key;
        self.metrics.commits.one();
        // First, or a thread that finds the draft settled would take the old version for the
        // current.
        let draft = side.drafts.take_entry(&entry.id);
        let own = draft.as_ref().and_then(|draft| draft.journalled(&entry.id));
        match (&draft, own) {
            (Some(draft), Some((bytes, size, modified))) => {
                bytes.pin();
                let modified = meta.modified().unwrap_or(modified);
                self.adopt_stored(side, (draft.ino, key), bytes, size, modified, meta);
            }
            // What comes after it may fail, and then this is the record.
            _ => self.records.stored_elsewhere(key),
        }
        let compares = side.uploader.compares(meta, entry.pending.size);
        let began = compares.then(|| Began {
            bytes: entry.as_sent.clone(),
            decoded: false,
        });
        let named = side.drafts.of_key(key);
        let named = named.filter(|named| draft.as_ref().is_none_or(|own| !Arc::ptr_eq(own, named)));
        for draft in draft.into_iter().chain(named) {
            draft.uploaded(&entry.id, meta, began.clone());
            self.settle(&draft);
        }
    }

    fn superseded(&self, entry: &JournalEntry) {
        let Ok(side) = self.write_side() else { return };
        if let Some(draft) = side.drafts.take_entry(&entry.id) {
            draft.pin();
            draft.superseded(&entry.id);
            self.settle(&draft);
        }
    }

    fn journal_closed(&self) {
        Self::journal_closed(self);
    }

    fn bytes(&self, entry: &JournalEntry) -> Option<(File, u64, Encoding)> {
        let side = self.write_side().ok()?;
        let draft = side.drafts.of_entry(&entry.id)?;
        let (bytes, size, _) = draft.journalled(&entry.id)?;
        let encoding = if self.records.config().raw {
            entry.pending.encoding.clone()
        } else {
            Encoding::Identity
        };
        Some((bytes.open().ok()?.try_clone().ok()?, size, encoding))
    }

    fn failed(&self, entry: &JournalEntry, error: &StoreError) {
        let Ok(side) = self.write_side() else { return };
        self.metrics.commits_failed.one();
        if let Some(draft) = side.drafts.take_entry(&entry.id)
            && draft.refused(&entry.id, error)
        {
            self.report("close", Some(draft.ino), &error.duplicate().into());
            self.settle(&draft);
        }
    }
}
