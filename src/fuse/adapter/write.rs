//! Requests that change something: the same translation as in `adapter`, which hands them here.
//!
//! Requests that may upload run on a pool of their own, so that no read waits behind uploads. Their
//! deadline is that of whatever does not get on: the store ends an upload that makes no progress, and
//! besides asking the store nothing takes long unless the local disk hangs.

use std::ffi::OsStr;
use std::sync::Arc;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyWrite, Request, TimeOrNow,
};

use crate::base::clock::Wait;
use crate::fs::types::{AttrReply, By, Created, Fh, Ino, Thread};
use crate::fs::write::setattr::{SetAttr, Time};
use crate::fs::{FsError, KvFs};
use crate::fuse::adapter::{Adapter, Asked, Lane, Tried, fail, file_attr};
use crate::fuse::pending::Refuse;
use crate::fuse::syscalls::Subject;

impl Adapter {
    pub(super) fn create_file(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, appearance) = (name.to_owned(), self.appearance());
        let (exclusive, truncate) = (flags & libc::O_EXCL != 0, flags & libc::O_TRUNC != 0);
        let process = self.fs().process_of(Thread(request.pid()));
        self.answer_or_undo(
            Asked::new(request, "create", parent)
                .in_lane(Lane::Upload)
                .staging(),
            reply,
            move |fs, wait| {
                let parent = Ino(parent.0);
                let created = fs.create(parent, &name, mode, exclusive, truncate, wait)?;
                fs.opened_by(created.opened.fh, process);
                Ok(created)
            },
            move |reply, Created { entry, opened }| {
                let mut flags = FopenFlags::empty();
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
                reply.created(
                    &entry.ttl,
                    &file_attr(appearance, &entry.attr),
                    Generation(0),
                    FileHandle(opened.fh.0),
                    flags,
                );
            },
            |fs, Created { entry, opened }| {
                fs.release(opened.fh);
                fs.forget(entry.attr.ino, 1);
            },
        );
    }

    pub(super) fn open_to_write(
        &self,
        request: &Request,
        ino: INodeNo,
        truncate: bool,
        reply: ReplyOpen,
    ) {
        let process = self.fs().process_of(Thread(request.pid()));
        let asked = Asked::new(request, "open", ino)
            .of_call(self, Subject::Ino(ino.0))
            .staging();
        self.answer_or_undo(
            asked,
            reply,
            move |fs, wait| {
                let how = (truncate, asked.was_stale());
                let opened = fs.open_to_write(Ino(ino.0), asked.resolved(), how, wait)?;
                fs.opened_by(opened.fh, process);
                Ok(opened)
            },
            |reply, opened| {
                let mut flags = FopenFlags::empty();
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
                reply.opened(FileHandle(opened.fh.0), flags);
            },
            |fs, opened| fs.release(opened.fh),
        );
    }

    /// Writes bytes at an offset, or appends them if the descriptor does. Tries at once with the kernel's
    /// own buffer; only what waits gets a copy of it.
    pub(super) fn write_bytes(
        &self,
        request: &Request,
        ino: INodeNo,
        (fh, offset, appends): (FileHandle, u64, bool),
        data: &[u8],
        reply: ReplyWrite,
    ) {
        let fh = Fh(fh.0);
        let written = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.fs().written_by(fh, Thread(request.pid()));
        let write = move |fs: &KvFs, data: &[u8], wait| match appends {
            true => fs.append(fh, offset, data, wait),
            false => fs.write(fh, offset, data, wait).map(|()| None),
        };
        let (fs, pool) = (Arc::clone(self.fs()), Arc::clone(self.pool()));
        let forget = move |misplaced: Option<Ino>| {
            let Some(ino) = misplaced else { return };
            let job = Arc::clone(&fs);
            if pool.spawn(move || job.forget_misplaced(ino)).is_err() {
                fs.forget_misplaced(ino);
            }
        };
        let forgets = forget.clone();
        let answer = move |reply: ReplyWrite, misplaced: Option<Ino>| {
            reply.written(written);
            forgets(misplaced);
        };
        let asked = Asked::new(request, "write", ino);
        let reply = match self.stage_at_once(asked, reply, |fs| write(fs, data, Wait::Never)) {
            Tried::Waits(reply) => reply,
            Tried::Done(Some(reply), Ok(misplaced)) => return answer(reply, misplaced),
            Tried::Done(Some(reply), Err(error)) => {
                return fail(self.fs(), "write", Ino(ino.0), reply, &error);
            }
            Tried::Done(None, misplaced) => return forget(misplaced.ok().flatten()),
            Tried::Answered => return,
        };
        let data: Arc<[u8]> = data.into();
        self.answer_or_undo(
            asked.in_lane(Lane::Upload).staging(),
            reply,
            move |fs, wait| write(fs, &data, wait),
            answer,
            |fs, misplaced| {
                if let Some(ino) = misplaced {
                    fs.forget_misplaced(ino);
                }
            },
        );
    }

    /// Closes one of possibly many descriptors of an open file.
    pub(super) fn flush_descriptor(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        reply: ReplyEmpty,
    ) {
        // Now: a program that is ended while it waits may be gone later.
        let process = self.fs().process_of(Thread(request.pid()));
        self.change(request, "close", ino, reply, move |fs, wait| {
            fs.flush_by(Fh(fh.0), process, wait)
        });
    }

    /// For requests that are answered only with success or an error.
    pub(super) fn change(
        &self,
        request: &Request,
        operation: &'static str,
        ino: INodeNo,
        reply: ReplyEmpty,
        work: impl Fn(&KvFs, Wait) -> Result<(), FsError> + Send + 'static,
    ) {
        self.answer(
            Asked::new(request, operation, ino)
                .in_lane(Lane::Upload)
                .staging(),
            reply,
            work,
            |reply, ()| reply.ok(),
        );
    }

    pub(super) fn copy_range(
        &self,
        request: &Request,
        ino: INodeNo,
        from: (FileHandle, u64),
        to: (FileHandle, u64),
        len: u64,
        reply: ReplyWrite,
    ) {
        self.answer(
            Asked::new(request, "copy_file_range", ino).in_lane(Lane::Upload),
            reply,
            move |fs, wait| {
                fs.copy_file_range((Fh(from.0.0), from.1), (Fh(to.0.0), to.1), len, wait)
            },
            |reply, copied| reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
        );
    }

    pub(super) fn seek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        self.answer(
            Asked::new(request, "lseek", ino),
            reply,
            move |fs, wait| fs.seek_data(Fh(fh.0), offset, data, wait),
            |reply, at| reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
        );
    }

    pub(super) fn set_attributes(
        &self,
        request: &Request,
        ino: INodeNo,
        set: SetAttr,
        fh: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let appearance = self.appearance();
        let mut asked = Asked::new(request, "setattr", ino).in_lane(Lane::Upload);
        if fh.is_none() {
            asked = asked.of_call(self, Subject::Ino(ino.0));
        }
        let by = fh.map_or(By::Name(asked.resolved()), |fh| By::Handle(Fh(fh.0)));
        self.answer(
            asked.staging(),
            reply,
            move |fs, wait| fs.setattr_by(Ino(ino.0), &set, by, wait),
            move |reply, AttrReply { attr, ttl }| reply.attr(&ttl, &file_attr(appearance, &attr)),
        );
    }

    pub(super) fn rename_name(
        &self,
        request: &Request,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let keep_existing = flags.contains(RenameFlags::RENAME_NOREPLACE);
        // Two names cannot be exchanged in one step, and there are no whiteouts.
        if flags.intersects(!RenameFlags::RENAME_NOREPLACE) {
            return reply.error(Errno::EINVAL);
        }
        let (parent, name) = (Ino(from.0.0), from.1.to_owned());
        let (new_parent, new_name) = (Ino(to.0.0), to.1.to_owned());
        self.change(request, "rename", from.0, reply, move |fs, wait| {
            fs.rename(parent, &name, new_parent, &new_name, keep_existing, wait)
        });
    }

    /// Answers a request for something that a key-value store has none of.
    pub(super) fn refuse_to_make<R: Refuse>(&self, operation: &'static str, what: &str, reply: R) {
        match self.fs().refuse(what) {
            Ok(()) => reply.refuse(Errno::EPERM),
            Err(error) => fail(self.fs(), operation, Ino::ROOT, reply, &error),
        }
    }

    /// Closes a file. The kernel does not wait for this; the rest is stored later.
    pub(super) fn close(&self, fh: FileHandle) {
        let Some(unfinished) = self.fs().release_begin(Fh(fh.0)) else {
            return;
        };
        // At once where that is all: a program that opens the file next finds what the store has.
        if !unfinished.has_rest()
            && let Some(_turn) = self.stages()
        {
            return self.fs().release_end(unfinished);
        }
        let fs = Arc::clone(self.fs());
        let unfinished = Arc::new(parking_lot::Mutex::new(Some(unfinished)));
        let job = Arc::clone(&unfinished);
        let queued = self.uploads().spawn(move || {
            let unfinished = job.lock().take();
            if let Some(unfinished) = unfinished {
                fs.release_end(unfinished);
            }
        });
        if queued.is_err()
            && let Some(unfinished) = unfinished.lock().take()
        {
            self.fs().release_end(unfinished);
        }
    }
}

/// Returns a time to set, as the core wants it.
pub(super) fn time(time: TimeOrNow) -> Time {
    match time {
        TimeOrNow::Now => Time::Now,
        TimeOrNow::SpecificTime(at) => Time::At(at),
    }
}

/// Answers an entry request that is always refused.
pub(super) fn never(adapter: &Adapter, operation: &'static str, what: &str, reply: ReplyEntry) {
    adapter.refuse_to_make(operation, what, reply);
}
