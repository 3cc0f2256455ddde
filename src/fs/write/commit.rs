//! From a staging file to a record: the one request that stores it, and what follows from that.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::content_type;
use super::draft::{Begin, Draft, DraftFacts, Place, Ticket, Why};
use super::overlay::{Change, Name};
use super::{Overwrite, WriteSide};
use crate::base::clock::Deadline;
use crate::fs::types::Ino;
use crate::fs::{FsError, KvFs, Result};
use crate::metrics::origin::{self, Origin};
use crate::staging::file::{Frozen, StagingFile};
use crate::staging::{EntryId, Pending};
use crate::store::{ETag, Encoding, ErrorKind, Key, PutRequest, RecordMeta, StoreError, Upload};

/// Smaller contents are not compressed, in bytes.
const COMPRESS_FROM: u64 = 1024;
/// Files stored at once when the mount ends.
const AT_ONCE: usize = 16;

/// Encoded bytes, and how many.
pub(in crate::fs) type Packed = (Arc<StagingFile>, u64);

/// A closed file that is still to be stored.
#[derive(Debug)]
pub struct Unfinished(pub(super) Arc<Draft>);

impl KvFs {
    /// Stores a draft, unless the store has it or is not to have it.
    ///
    /// # Errors
    /// The store's verdict.
    pub(in crate::fs) fn commit(&self, draft: &Arc<Draft>, why: Why) -> Result<()> {
        let side = self.write_side()?;
        let ticket = match draft.begin(why) {
            Begin::Nothing => return Ok(()),
            Begin::Refused(error) => return Err(error),
            Begin::Go(ticket) => *ticket,
        };
        self.store_ticket(side, ticket)
    }

    /// Stores what a ticket is for.
    fn store_ticket(&self, side: &WriteSide, ticket: Ticket) -> Result<()> {
        if side.config.write_back
            && let Some(uploader) = &side.config.uploader
        {
            return self.journal(side, uploader, ticket);
        }
        // What an earlier mount left of this record must not come after this.
        let stored = self
            .hold_uploads(side, &[&ticket.key])
            .and_then(|hold| Ok((self.upload(side, &ticket)?, hold)));
        match stored {
            Ok((meta, hold)) => {
                if let Some(hold) = hold {
                    hold.discard(&ticket.key);
                }
                ticket.forget_journalled();
                self.stored(side, &ticket, &meta);
                if let Some(kept) = ticket.take_kept() {
                    self.forget_kept(side, kept);
                }
                ticket.end(Ok(&meta));
                Ok(())
            }
            Err(error) => {
                self.metrics.commits_failed.one();
                let error = self.keep(side, &ticket, explain(error.with_key(&ticket.key)));
                ticket.end(Err(&error));
                // Whatever it is, the program is told and the log: it is not that a name is absent.
                Err(FsError::Store(error))
            }
        }
    }

    /// Sends the bytes.
    fn upload(&self, side: &WriteSide, ticket: &Ticket) -> Result<RecordMeta, StoreError> {
        let (request, packed) = self.request_for(side, ticket)?;
        let (file, size) = packed
            .as_ref()
            .map_or((ticket.bytes.as_file(), ticket.size), |(file, size)| {
                (file.as_file(), *size)
            });
        let mut unanswered = ticket.unanswered();
        let body = (file, size);
        let sent = self.send_surely(side, &ticket.key, request, body, &mut unanswered);
        ticket.set_unanswered(unanswered);
        sent
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
                .map_err(|error| {
                    StoreError::new(ErrorKind::Disk, "cannot read the staging file")
                        .with_source(error)
                })?
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

    /// Sends a file's bytes as a record. It may take longer than the deadline while bytes go out.
    pub(in crate::fs) fn send(
        &self,
        key: &Key,
        request: &PutRequest,
        (file, size): (&File, u64),
        deadline: Deadline,
    ) -> Result<RecordMeta, StoreError> {
        origin::note(Origin::Network);
        let meta = self
            .store
            .put(key, request, Upload::File(file, size), deadline)?;
        self.metrics.commits.one();
        Ok(RecordMeta {
            content_type: meta.content_type.or_else(|| request.content_type.clone()),
            encoding: request.encoding.clone(),
            stored_size: Some(size),
            ..meta
        })
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

    /// Keeps the bytes that the store did not take, for `kvfs recover`; the error says so.
    fn keep(&self, side: &WriteSide, ticket: &Ticket, error: StoreError) -> StoreError {
        let facts = &ticket.facts;
        let base = facts.base.as_ref();
        let pending = Pending {
            key: ticket.key.clone(),
            content_type: facts
                .content_type
                .clone()
                .or_else(|| base.and_then(|meta| meta.content_type.clone())),
            encoding: if self.records.config().raw {
                let kept = base.map(|meta| meta.encoding.clone());
                facts.encoding.clone().or(kept).unwrap_or_default()
            } else {
                Encoding::Identity
            },
            if_match: base.and_then(|meta| meta.etag.clone()),
            if_absent: facts.exclusive,
            size: ticket.size,
            closed_at: jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default(),
            why: crate::staging::Why::failed(&error),
            attempts: 1,
            unanswered: ticket.unanswered(),
        };
        let journal = side.folder().journal();
        match journal.keep(ticket.bytes.as_file(), pending, true) {
            Ok(id) => {
                if let Some(before) = ticket.set_kept(id) {
                    self.forget_kept(side, before);
                }
                let hint = error
                    .hint()
                    .map(|hint| format!("{hint}; "))
                    .unwrap_or_default();
                error.with_hint(format!("{hint}the bytes are kept: see kvfs recover"))
            }
            Err(failure) => {
                tracing::error!(
                    "the bytes of {} are lost: they could neither be stored nor kept in {} ({failure})",
                    ticket.key,
                    side.folder().path().display()
                );
                error
            }
        }
    }

    pub(in crate::fs) fn forget_kept(&self, side: &WriteSide, id: EntryId) {
        if let Err(error) = side.folder().journal().remove(&id) {
            tracing::warn!("cannot remove a kept upload that is in the store by now: {error}");
        }
    }

    /// Makes what was stored known to everybody here, before anybody can ask.
    fn stored(&self, side: &WriteSide, ticket: &Ticket, meta: &RecordMeta) {
        // Not what the server says: the time of a file that nobody writes to must not change.
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

    /// Stores what is left of a closed file. An error reaches no program: it is in the log and
    /// in `kvfs status`.
    pub fn release_end(&self, unfinished: Unfinished) {
        let Unfinished(draft) = unfinished;
        let stored = self.write_side().and_then(|side| {
            match draft.begin(Why::Release) {
                Begin::Nothing => Ok(()),
                Begin::Refused(error) => Err(error),
                // Somebody has opened it again, and may have emptied it to write it anew: that is
                // not to be seen half way. Whoever closes it then stores it.
                Begin::Go(ticket) if self.is_open(draft.ino) => {
                    ticket.give_back();
                    Ok(())
                }
                Begin::Go(ticket) => self.store_ticket(side, *ticket),
            }
        });
        if let Err(error) = stored {
            self.report("close", Some(draft.ino), &error);
        }
        self.settle(&draft);
    }

    fn is_open(&self, ino: Ino) -> bool {
        let inodes = self.inodes.lock();
        inodes.get(ino).is_some_and(|inode| inode.opens > 0)
    }

    /// Forgets a draft that nobody needs any more.
    pub(in crate::fs) fn settle(&self, draft: &Arc<Draft>) {
        let Ok(side) = self.write_side() else { return };
        let mut given_up = None;
        let mut inodes = self.inodes.lock();
        if inodes.get(draft.ino).is_some_and(|inode| inode.opens > 0) {
            return;
        }
        let removed = side.drafts.remove_if(draft, |draft| {
            let place = draft.place();
            let unneeded = match &place {
                Place::Gone => true,
                Place::Scratch(_) => false,
                Place::Record(_) => !draft.is_dirty() || draft.is_refused(),
            } && !draft.is_committing()
                && draft.due().is_none();
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
        // The kernel's pages are of something that the store never got.
        let version = self.records.new_version();
        if let Some(inode) = inodes.get_mut(draft.ino) {
            inode.set_version(Some((version, draft.size())));
        }
        drop(inodes);
        side.overlay.lock().forget(&Name::Record(key.clone()));
        if !draft.is_stored() || draft.may_be_stored() {
            self.records.expire(&key);
        }
    }

    /// Stores what was held back and is due.
    pub fn commit_due(self: &Arc<Self>) {
        let Ok(side) = self.write_side() else { return };
        for draft in side.drafts.take_due(self.clock.now()) {
            // Whoever has it open again holds it back again when it is closed.
            if self.is_open(draft.ino) {
                continue;
            }
            let (fs, unfinished) = (Arc::clone(self), Unfinished(Arc::clone(&draft)));
            let queued = self.committers.spawn(move || fs.release_end(unfinished));
            if queued.is_err() {
                side.drafts
                    .hold(&draft, self.clock.now() + side.config.scratch_delay);
            }
        }
    }

    /// Waits until something held back is due, or `span` has passed.
    pub fn wait_due(&self, span: Duration) {
        match self.write_side() {
            Ok(side) => side.drafts.wait_held(Instant::now() + span),
            Err(_) => thread::park_timeout(span),
        }
    }

    /// Stores everything that the store does not have, because the mount ends. Returns how many
    /// files could not be stored.
    pub fn finish_writes(&self) -> usize {
        let Ok(side) = self.write_side() else {
            return 0;
        };
        let left = Mutex::new(side.drafts.all());
        let failed = Mutex::new(0);
        thread::scope(|scope| {
            let threads = left.lock().len().min(AT_ONCE);
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let Some(draft) = left.lock().pop() else {
                            return;
                        };
                        if let Err(error) = self.commit(&draft, Why::Release) {
                            *failed.lock() += 1;
                            self.report("unmount", Some(draft.ino), &error);
                        }
                    }
                });
            }
        });
        failed.into_inner()
    }
}

/// Says what a refused upload means for whoever wrote the file.
fn explain(error: StoreError) -> StoreError {
    match error.kind() {
        ErrorKind::Changed => error.with_hint(
            "somebody else has changed the record since it was opened here; open it again and make the change anew, or mount with --overwrite=always to let the last writer win",
        ),
        ErrorKind::Denied => {
            error.with_hint("check that the account of the token may write to the store")
        }
        ErrorKind::NotFound => {
            error.with_hint("the server does not know the store any more: was it deleted?")
        }
        ErrorKind::TooLarge => error.with_hint("the server takes no records of that size"),
        ErrorKind::Quota => error.with_hint("the account is out of quota: see its limits in Apify Console"),
        _ => error,
    }
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
