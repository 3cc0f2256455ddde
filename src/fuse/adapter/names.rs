//! Names: looks up one, or reads those of a directory.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fuser::{
    Errno, FileHandle, FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEntry, Request,
};

use super::Adapter;
use super::answer::{Asked, fail};
use super::attributes::{Appearance, file_attr};
use super::lookups::WaitingLookup;
use crate::fs::FsError;
use crate::fs::types::{Attr, AttrReply, DirSink, Fh, FileKind, Ino, Lookup, Shown};
use crate::fuse::pending::Refuse;
use crate::metrics::origin;

/// How often the next entry of a directory is waited for again because it was deleted meanwhile.
const TRIES: u32 = 100;

/// A reply that takes in directory entries, straight into the kernel's buffer.
pub(super) trait Entries: Refuse {
    /// Whether attributes go with the names.
    const WITH_ATTRIBUTES: bool;

    /// Adds an entry; returns whether the buffer is full without it.
    fn add(
        &mut self,
        appearance: Appearance,
        ino: INodeNo,
        next: u64,
        kind: FileKind,
        name: &OsStr,
        reply: &AttrReply,
    ) -> bool;

    /// Sends what has been added.
    fn send(self);
}

impl Entries for ReplyDirectory {
    const WITH_ATTRIBUTES: bool = false;

    fn add(
        &mut self,
        _appearance: Appearance,
        ino: INodeNo,
        next: u64,
        kind: FileKind,
        name: &OsStr,
        _reply: &AttrReply,
    ) -> bool {
        let file_type = match kind {
            FileKind::Directory => FileType::Directory,
            FileKind::File => FileType::RegularFile,
        };
        Self::add(self, ino, next, file_type, name)
    }

    fn send(self) {
        self.ok();
    }
}

impl Entries for ReplyDirectoryPlus {
    const WITH_ATTRIBUTES: bool = true;

    fn add(
        &mut self,
        appearance: Appearance,
        ino: INodeNo,
        next: u64,
        _kind: FileKind,
        name: &OsStr,
        reply: &AttrReply,
    ) -> bool {
        let attr = file_attr(appearance, &reply.attr);
        Self::add(self, ino, next, name, &reply.ttl, &attr, Generation(0))
    }

    fn send(self) {
        self.ok();
    }
}

/// The kernel's buffer, as the core fills it.
struct Sink<'a, R>(&'a mut R, Appearance);

impl<R: Entries> DirSink for Sink<'_, R> {
    fn add(
        &mut self,
        ino: Ino,
        next: u64,
        kind: FileKind,
        name: &OsStr,
        reply: &AttrReply,
    ) -> bool {
        let Self(buffer, appearance) = self;
        Entries::add(
            *buffer,
            *appearance,
            INodeNo(ino.0),
            next,
            kind,
            name,
            reply,
        )
    }
}

/// Answers a lookup.
pub(super) fn send(reply: ReplyEntry, found: Lookup, appearance: Appearance) {
    match found {
        Lookup::Found(AttrReply { attr, ttl }) => {
            reply.entry(&ttl, &file_attr(appearance, &attr), Generation(0));
        }
        Lookup::Absent(ttl) if ttl.is_zero() => reply.error(Errno::ENOENT),
        // Inode 0 is a negative entry, which the kernel remembers (fuse.h, fuse_entry_out).
        Lookup::Absent(ttl) => {
            let nothing = Attr {
                ino: Ino(0),
                size: 0,
                modified: SystemTime::UNIX_EPOCH,
                kind: FileKind::File,
                links: 0,
                shown: Shown::default(),
            };
            reply.entry(&ttl, &file_attr(appearance, &nothing), Generation(0));
        }
    }
}

impl Adapter {
    pub(super) fn look_up(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let (name, appearance) = (name.to_owned(), self.appearance);
        let asked = Asked::new(request, "lookup", parent).of_call(self, self.calls.name(&name));
        let (calls, thread) = (Arc::clone(&self.calls), request.pid());
        let waiting = WaitingLookup {
            asked,
            parent: Ino(parent.0),
            name: name.clone(),
        };
        self.answer_watched(
            asked,
            reply,
            move |fs, wait| {
                if asked.was_stale() {
                    // Else the open waits for the same change, and is stale a second time.
                    fs.await_settled(&name, wait)?;
                }
                let at = Instant::now();
                let found = fs.lookup(Ino(parent.0), &name, wait)?;
                match &found {
                    Lookup::Found(reply) => calls.found(thread, reply.attr.ino.0, at),
                    Lookup::Absent(_) => origin::absent(),
                }
                Ok(found)
            },
            move |reply, found| send(reply, found, appearance),
            |fs, found| {
                if let Lookup::Found(reply) = found {
                    fs.forget(reply.attr.ino, 1);
                }
            },
            |ticket| self.lookups.add(waiting, ticket),
        );
    }

    /// Answers with the entries of a directory from a place on, as many as the reply takes in.
    pub(super) fn read_dir<R: Entries>(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: R,
    ) {
        let asked = Asked::new(request, "readdir", ino);
        self.read_dir_from(asked, Fh(fh.0), offset, reply, TRIES);
    }

    fn read_dir_from<R: Entries>(&self, asked: Asked, fh: Fh, offset: u64, reply: R, tries: u32) {
        let adapter = self.clone();
        self.answer(
            asked,
            reply,
            move |fs, wait| fs.await_dir(fh, offset, R::WITH_ATTRIBUTES, wait),
            move |mut reply, ()| {
                // The kernel takes no entry with attributes while it looks that name up.
                adapter.lookups.answer_known(&adapter);
                let mut sink = Sink(&mut reply, adapter.appearance);
                match adapter
                    .fs
                    .fill_dir(fh, offset, R::WITH_ATTRIBUTES, &mut sink)
                {
                    Ok(_) => reply.send(),
                    // What there was to hand out has just been deleted.
                    Err(FsError::WouldBlock) if tries > 0 => {
                        adapter.read_dir_from(asked, fh, offset, reply, tries - 1);
                    }
                    Err(error) => fail(&adapter.fs, "readdir", asked.ino(), reply, &error),
                }
            },
        );
    }
}
