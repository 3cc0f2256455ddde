//! Stores a staging file as a record: the one request, and what follows from it.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::MutexGuard;

use super::content_type;
use super::draft::{Begin, Draft, DraftFacts, Place, Ticket, Why};
use super::overlay::{Change, Name};
use super::{Overwrite, WriteSide};
use crate::base::clock::Deadline;
use crate::fs::inodes::InodeTable;
use crate::fs::read::Settling;
use crate::fs::types::Ino;
use crate::fs::{FsError, KvFs, Result};
use crate::staging::file::{Frozen, StagingFile};
use crate::staging::{Began, EntryId, Pending};
use crate::store::{ETag, Encoding, ErrorKind, Key, PutRequest, RecordMeta, StoreError};
use crate::upload::{Change as Changing, Entered, Submission, Upload};

/// Smaller contents are not compressed, in bytes.
const COMPRESS_FROM: u64 = 1024;

/// Encoded bytes, and how many.
pub(in crate::fs) type Packed = (Arc<StagingFile>, u64);

/// A closed file of which something is still to be stored, or to be dropped.
#[derive(Debug)]
pub struct Unfinished(pub(super) Arc<Draft>);

impl Unfinished {
    /// Returns whether something of it is still to be stored.
    pub fn has_rest(&self) -> bool {
        self.0.is_dirty() && !self.0.is_refused()
    }
}

impl KvFs {
    /// Stores a draft, unless the store has it or is not to have it: on this thread where a program
    /// waits for the store's verdict, else from the journal.
    ///
    /// # Errors
    /// The store's verdict, and errors of the local disk.
    pub(in crate::fs) fn commit(&self, draft: &Arc<Draft>, why: Why) -> Result<()> {
        let side = self.write_side()?;
        if let Some(how) = self.journals_first(side, draft, why) {
            return self.journal(side, draft, why, how);
        }
        let deadline = Deadline::after(side.config.deadline);
        loop {
            let Place::Record(key) = draft.place() else {
                return Ok(());
            };
            if draft.is_settled(why) {
                return Ok(());
            }
            let entered = side.uploader.enter(&[&key], Changing::Upload, deadline);
            let waited = entered.as_ref().map_or(true, Entered::waited);
            if draft.place() != Place::Record(key) {
                // The name has changed hands meanwhile.
                continue;
            }
            let ticket = match draft.begin(why, waited, || side.stamp()) {
                Begin::Nothing => return Ok(()),
                Begin::Refused(error) => return Err(error),
                Begin::Go(ticket) => *ticket,
            };
            // What a program was told has failed, and what it cannot close again, has not happened.
            let keep = why != Why::Now;
            return match entered {
                Ok(entered) => self.store(side, &entered, ticket, deadline, keep),
                Err(late) => self.end_late(side, ticket, late, keep),
            };
        }
    }

    /// Returns how a draft is journalled that is not sent on the thread of the closing program.
    fn journals_first(&self, side: &WriteSide, draft: &Draft, why: Why) -> Option<Submission> {
        let held_back =
            why != Why::Now && draft.is_temporary() && !side.config.scratch_delay.is_zero();
        let unasked = matches!(why, Why::Last | Why::Release);
        (side.config.write_back || held_back || unasked).then(|| Submission {
            durable: side.config.write_back || why == Why::Sync,
            not_before: held_back.then(|| self.clock.now() + side.config.scratch_delay),
            run_here: why == Why::Release && !side.config.write_back && !held_back,
        })
    }

    /// Sends the bytes of a ticket; the caller is inside the gate of its key.
    fn store(
        &self,
        side: &WriteSide,
        entered: &Entered,
        ticket: Ticket,
        deadline: Deadline,
        keep: bool,
    ) -> Result<()> {
        let sent = self.send_ticket(side, entered, &ticket, deadline, keep);
        match sent {
            Ok((meta, began)) => {
                self.stored(side, &ticket, &meta);
                ticket.set_began(began);
                ticket.end(Ok(&meta));
                Ok(())
            }
            Err(error) => {
                ticket.end(Err(&error));
                // Whatever it is, the program is told and the log: it is not that a name is absent.
                Err(FsError::Store(error))
            }
        }
    }

    /// Sends what a ticket is for. With `keep` bytes that the store does not take are kept. Returns what
    /// the record is now, and the bytes that the next change of it begins from.
    pub(in crate::fs) fn send_ticket(
        &self,
        side: &WriteSide,
        entered: &Entered,
        ticket: &Ticket,
        deadline: Deadline,
        keep: bool,
    ) -> Result<(RecordMeta, Option<Began>), StoreError> {
        let mut begun = false;
        let mut sent = self.with_upload(side, ticket, |upload| {
            begun = true;
            let sent = entered.run(upload, deadline, keep);
            if keep {
                ticket.set_unanswered(upload.pending.unanswered.clone());
            } else {
                self.may_have_become(side, &upload.pending);
            }
            sent.map(|meta| (meta, upload.pending.began.take()))
        });
        if !begun && keep {
            sent = sent.map_err(|error| {
                let Ok(file) = ticket.bytes.open() else {
                    return error;
                };
                let as_it_is = (&*file, ticket.size);
                let mut upload = self.as_it_is(ticket, PutRequest::default(), as_it_is);
                side.uploader.keep_failed(&mut upload, error)
            });
        }
        match &sent {
            Ok(_) => self.metrics.commits.one(),
            Err(_) => self.metrics.commits_failed.one(),
        }
        sent
    }

    /// Notes, for the file that has the name, what an upload of another may have made of its record.
    pub(in crate::fs) fn may_have_become(&self, side: &WriteSide, pending: &Pending) {
        if let Some(draft) = side.drafts.of_key(&pending.key) {
            draft.may_have_become(&pending.unanswered);
        }
    }

    /// Ends a commit that has waited for its turn until the deadline; with `keep` its bytes are kept.
    fn end_late(
        &self,
        side: &WriteSide,
        ticket: Ticket,
        late: StoreError,
        keep: bool,
    ) -> Result<()> {
        self.metrics.commits_failed.one();
        let error = if keep {
            let kept = self.with_upload(side, &ticket, |upload| {
                Ok(side.uploader.keep_failed(upload, late))
            });
            kept.unwrap_or_else(|error| error)
        } else {
            late
        };
        ticket.end(Err(&error));
        Err(FsError::Store(error))
    }

    /// Makes the upload of a ticket, encoded for storing, and does something with it.
    fn with_upload<T>(
        &self,
        side: &WriteSide,
        ticket: &Ticket,
        work: impl FnOnce(&mut Upload<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (request, packed) = self.request_for(side, ticket)?;
        let (bytes, size) = match &packed {
            Some((file, size)) => (file, *size),
            None => (&*ticket.bytes, ticket.size),
        };
        let file = bytes.open().map_err(unreadable)?;
        work(&mut self.as_it_is(ticket, request, (&file, size)))
    }

    fn as_it_is<'a>(
        &self,
        ticket: &Ticket,
        request: PutRequest,
        (file, size): (&'a File, u64),
    ) -> Upload<'a> {
        Upload {
            id: ticket.id.clone(),
            pending: Pending {
                key: ticket.key.clone(),
                content_type: request.content_type,
                encoding: request.encoding,
                if_match: request.if_match,
                if_absent: request.if_absent,
                size,
                is_new: ticket.facts.base.is_none(),
                closed_at: jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default(),
                why: crate::staging::Why::WriteBack,
                attempts: 0,
                unanswered: ticket.unanswered(),
                began: ticket.began.clone(),
            },
            file,
        }
    }

    /// Journals a draft, so that the queue uploads it. Returns when it is safe on the local disk.
    ///
    /// # Errors
    /// Those of the local disk, and of what was refused before.
    fn journal(
        &self,
        side: &WriteSide,
        draft: &Arc<Draft>,
        why: Why,
        how: Submission,
    ) -> Result<()> {
        loop {
            let ticket = match draft.begin(why, false, || side.stamp()) {
                Begin::Nothing => return Ok(()),
                Begin::Refused(error) => return Err(error),
                Begin::Go(ticket) => *ticket,
            };
            // A program has opened it again, and may have emptied it to write it again: no half of
            // that may show. Its close stores it.
            if why == Why::Release && self.is_open(draft.ino) {
                ticket.give_back();
                return Ok(());
            }
            let wanted = |pending: &mut Pending, first: bool| {
                // What was on its way when the ticket was made may be in the store by now.
                if first {
                    (pending.if_match, pending.if_absent) =
                        self.conditions(side, &ticket.facts_now());
                    pending.began = ticket.began_now();
                }
                ticket.is_wanted() && !side.drafts.is_taken(&ticket.key, ticket.ino())
            };
            match self.submit(side, &ticket, how, wanted, |id| ticket.set_journalled(id)) {
                Ok(Some(_)) => {
                    ticket.give_back();
                    return Ok(());
                }
                // Its name has changed hands, or something newer of it is journalled.
                Ok(None) => {
                    let is_taken = side.drafts.is_taken(&ticket.key, ticket.ino());
                    ticket.give_back();
                    if is_taken {
                        return Ok(());
                    }
                }
                Err(error) => {
                    let failure = StoreError::new(
                        ErrorKind::Disk,
                        format!("cannot write the journal: {error}"),
                    )
                    .with_key(&ticket.key);
                    self.metrics.commits_failed.one();
                    ticket.end(Err(&failure));
                    return Err(FsError::staging("cannot journal", &error));
                }
            }
        }
    }

    /// Journals the bytes of a ticket, if they are `wanted` once no other thread can journal anything
    /// of the key (see [`crate::upload::Uploader::submit`]); `named` gets the entry's name.
    pub(in crate::fs) fn submit(
        &self,
        side: &WriteSide,
        ticket: &Ticket,
        how: Submission,
        wanted: impl FnOnce(&mut Pending, bool) -> bool,
        named: impl FnOnce(&EntryId),
    ) -> io::Result<Option<EntryId>> {
        let deadline = Deadline::after(side.config.deadline);
        let submitted = self.with_upload(side, ticket, |upload| {
            Ok(side.uploader.submit(upload, how, deadline, wanted, |id| {
                side.drafts.note_entry(id, ticket.ino());
                named(id);
            }))
        });
        submitted.map_err(io::Error::other)?
    }

    /// Returns how the bytes are to be stored, and the encoded ones where they are to be.
    pub(in crate::fs) fn request_for(
        &self,
        side: &WriteSide,
        ticket: &Ticket,
    ) -> Result<(PutRequest, Option<Packed>), StoreError> {
        let base = ticket.facts.base.as_ref();
        let kept = base.and_then(|meta| {
            let known = meta.content_type.as_deref();
            let says_nothing = content_type::says_nothing(known, meta.stored_size);
            meta.content_type.clone().filter(|_| !says_nothing)
        });
        let content_type = match ticket.facts.content_type.clone().or(kept) {
            Some(known) => known,
            None => content_type::guess(ticket.key.as_str(), &ticket.bytes, ticket.size)
                .map_err(unreadable)?
                .into(),
        };
        let (encoding, packed) = self.encode(side, ticket, &content_type)?;
        let (if_match, if_absent) = self.conditions(side, &ticket.facts);
        let request = PutRequest {
            content_type: Some(content_type),
            encoding,
            if_match,
            if_absent,
        };
        Ok((request, packed))
    }

    /// Returns the version that an upload is to replace, and whether there must be none.
    pub(in crate::fs) fn conditions(
        &self,
        side: &WriteSide,
        facts: &DraftFacts,
    ) -> (Option<ETag>, bool) {
        if side.config.overwrite != Overwrite::Unchanged {
            return (None, false);
        }
        let etag = facts.base.as_ref().and_then(|meta| meta.etag.clone());
        (etag.filter(ETag::is_strong), facts.exclusive)
    }

    /// Returns how the bytes are to be stored, and the encoded ones where that is another way.
    fn encode(
        &self,
        side: &WriteSide,
        ticket: &Ticket,
        content_type: &str,
    ) -> Result<(Encoding, Option<Packed>), StoreError> {
        if self.records.config().raw {
            let facts = &ticket.facts;
            let kept = facts.base.as_ref().map(|meta| meta.encoding.clone());
            return Ok((facts.encoding.clone().or(kept).unwrap_or_default(), None));
        }
        let Some(encoding) = side.config.compress.clone().filter(|_| {
            ticket.size >= COMPRESS_FROM && content_type::is_compressible(content_type)
        }) else {
            return Ok((Encoding::Identity, None));
        };
        let packed = StagingFile::new(side.folder())
            .and_then(|file| compress(&ticket.bytes, ticket.size, &encoding, file))
            .map_err(|error| {
                StoreError::new(ErrorKind::Disk, "cannot write the compressed record")
                    .with_source(error)
            })?;
        // What does not become smaller is better stored as it is.
        Ok(if packed.1 < ticket.size {
            (encoding, Some(packed))
        } else {
            (Encoding::Identity, None)
        })
    }

    /// Makes a stored record known to this mount, before a program can ask.
    pub(in crate::fs) fn stored(&self, side: &WriteSide, ticket: &Ticket, meta: &RecordMeta) {
        // Not what the server says: the time of a file must not change without a write.
        let modified = ticket.modified;
        let (bytes, size) = (ticket.bytes.freeze(), ticket.size);
        self.adopt_stored(
            side,
            (ticket.ino(), &ticket.key),
            bytes,
            size,
            modified,
            meta,
        );
    }

    /// Makes known what a file's record has become in the store.
    pub(in crate::fs) fn adopt_stored(
        &self,
        side: &WriteSide,
        (ino, key): (Ino, &Key),
        bytes: Frozen,
        size: u64,
        modified: SystemTime,
        meta: &RecordMeta,
    ) {
        let version = self.records.adopt(key, meta.clone(), bytes, size, modified);
        if let Some(inode) = self.inodes.lock().get_mut(ino) {
            inode.set_version(Some((version, size)));
            inode.follow_size(size);
        }
        let name = Name::Record(key.clone());
        let shown = side.overlay.lock().get(&name, None).map(|found| found.1);
        // Unless the name has gone to another file meanwhile.
        if shown.is_none_or(|change| matches!(change, Change::Present { ino: of, .. } if of == ino))
        {
            let change = Change::Present {
                ino,
                size,
                modified,
            };
            self.note_quietly(side, name, change);
        }
    }

    /// Stores what is left of a closed file, from the journal. An error reaches no program: it is in
    /// the log and in `kvfs status`.
    pub fn release_end(&self, unfinished: Unfinished) {
        let has_rest = unfinished.has_rest();
        let Unfinished(draft) = unfinished;
        if has_rest && let Err(error) = self.commit(&draft, Why::Release) {
            self.report("close", Some(draft.ino), &error);
        }
        self.settle(&draft);
        self.count_open();
    }

    pub(in crate::fs) fn is_open(&self, ino: Ino) -> bool {
        let inodes = self.inodes.lock();
        inodes.get(ino).is_some_and(|inode| inode.opens > 0)
    }

    /// Closes the bytes of a file that only waits for its upload, where many do.
    fn park(&self, side: &WriteSide, draft: &Arc<Draft>) {
        if !side.uploader.is_crowded() || self.is_open(draft.ino) {
            return;
        }
        let journal = side.folder().journal();
        let entry = draft.to_park().and_then(|id| journal.get(&id));
        if let Some(entry) = entry {
            let decode = self.decoding(side, &entry.pending);
            draft.park(
                &entry.id,
                StagingFile::of_entry(&entry.id, decode, side.folder()),
            );
        }
    }

    /// Drops a draft that is no longer needed.
    pub(in crate::fs) fn settle(&self, draft: &Arc<Draft>) {
        let Ok(side) = self.write_side() else { return };
        self.park(side, draft);
        let mut given_up = None;
        let inodes = self.inodes.lock();
        if inodes.get(draft.ino).is_some_and(|inode| inode.opens > 0) {
            return;
        }
        if draft.is_refused() && !draft.is_committing() && draft.go_back() {
            // What is journalled was promised; what came after it could not be, and was refused.
            let size = draft.size();
            let telling = self.begin_telling(inodes, draft);
            self.note_present(side, draft);
            if telling.is_some() && size > 0 {
                // It may believe a smaller size; the byte is dropped with its page.
                self.kernel().store(draft.ino, size - 1, &[0]);
            }
            self.end_telling(telling);
            return;
        }
        let removed = side.drafts.remove_if(draft, |draft| {
            let place = draft.place();
            let unneeded = match &place {
                Place::Gone => true,
                Place::Scratch(_) => false,
                Place::Record(_) => !draft.is_dirty() || draft.is_refused(),
            } && !draft.is_committing();
            if unneeded && draft.is_dirty() {
                given_up = Some(place);
            }
            unneeded
        });
        if !removed {
            return;
        }
        let Some(Place::Record(key)) = given_up else {
            return;
        };
        // The kernel's pages, and the size that it believes, are of something that the store never got.
        let telling = self.begin_telling(inodes, draft);
        side.overlay.lock().forget(&Name::Record(key.clone()));
        if !draft.is_stored() || draft.may_be_stored() {
            self.records.invalidate(&key);
        }
        self.end_telling(telling);
    }

    /// Begins to tell the kernel that what was written to a file is given up. No program has it open,
    /// and opens wait until it has been told.
    fn begin_telling(
        &self,
        mut inodes: MutexGuard<'_, InodeTable>,
        draft: &Draft,
    ) -> Option<Settling<'_>> {
        let version = self.records.new_version();
        let inode = inodes.get_mut(draft.ino)?;
        inode.set_version(Some((version, draft.size())));
        inode.set_settling(true);
        Some(Settling(self, draft.ino))
    }

    fn end_telling(&self, telling: Option<Settling<'_>>) {
        if let Some(Settling(_, ino)) = telling {
            self.kernel().invalidate_pages(ino);
            if let Some(inode) = self.inodes.lock().get_mut(ino) {
                inode.lose_size();
            }
        }
    }

    /// Uploads what was held back and is due by now; for clocks that are moved by hand.
    #[cfg(feature = "testing")]
    pub fn commit_due(&self) {
        if let Ok(side) = self.write_side() {
            side.uploader.look();
        }
    }

    /// Journals what was closed and is not yet in the journal: its last handle is just being released.
    pub fn journal_closed(&self) {
        let Ok(side) = self.write_side() else { return };
        for draft in side.drafts.all() {
            if draft.needs_commit(Why::Release) && !self.is_open(draft.ino) {
                self.release_end(Unfinished(draft));
            }
        }
    }

    /// Stores everything that the store does not have, because the mount ends: all that is open, too.
    /// Returns how many files could not be stored, or, with `--write-back`, not be journalled.
    pub fn finish_writes(&self) -> usize {
        let Ok(side) = self.write_side() else {
            return 0;
        };
        let mut failed = 0;
        let how = Submission {
            durable: side.config.write_back,
            ..Submission::default()
        };
        for draft in side.drafts.all() {
            if let Err(error) = self.journal(side, &draft, Why::Last, how) {
                failed += 1;
                self.report("unmount", Some(draft.ino), &error);
            }
        }
        if side.config.write_back {
            return failed;
        }
        let kept = side.folder().journal().kept().len();
        let left = side
            .uploader
            .wait_all(Deadline::after(side.config.deadline))
            .len();
        failed + left + side.folder().journal().kept().len().saturating_sub(kept)
    }
}

fn unreadable(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, "cannot read the staging file").with_source(error)
}

fn compress(
    bytes: &StagingFile,
    size: u64,
    encoding: &Encoding,
    into: Arc<StagingFile>,
) -> io::Result<(Arc<StagingFile>, u64)> {
    let mut source = content_type::Reader::new(bytes, size);
    let mut packed = Appended {
        file: &into,
        len: 0,
    };
    match encoding {
        Encoding::Brotli => {
            // Quality 5: near the best in size for text, at a tenth of the time.
            let mut encoder = brotli::CompressorWriter::new(&mut packed, 64 << 10, 5, 22);
            io::copy(&mut source, &mut encoder)?;
            encoder.flush()?;
            let _ = encoder.into_inner();
        }
        _ => {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::GzEncoder::new(&mut packed, level);
            io::copy(&mut source, &mut encoder)?;
            encoder.finish()?;
        }
    }
    let len = packed.len;
    Ok((into, len))
}

/// Writes to the end of a staging file.
struct Appended<'a> {
    file: &'a StagingFile,
    len: u64,
}

impl Write for Appended<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_at(self.len, bytes)?;
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FsError {
    /// Returns the error of a staging file.
    pub(in crate::fs) fn staging(what: &str, error: &io::Error) -> Self {
        let errno = match error.raw_os_error() {
            Some(libc::EROFS) => libc::EROFS,
            Some(libc::ENOSPC | libc::EDQUOT) => libc::ENOSPC,
            Some(libc::EFBIG) => libc::EFBIG,
            _ if error.kind() == io::ErrorKind::StorageFull => libc::ENOSPC,
            _ => libc::EIO,
        };
        let hint = if errno == libc::ENOSPC {
            "make room there, or mount with another --staging-dir"
        } else {
            "check the disk of the staging folder, or mount with another --staging-dir"
        };
        Self::refused(
            errno,
            format!("{what} in the staging folder: {error}"),
            hint,
        )
    }
}
