//! The kernel's requests, a method each: short ones are answered here, the others in files of their
//! own.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::Adapter;
use super::answer::{Asked, Lane};
use super::attributes::{BLOCK, file_attr};
use crate::fs::types::{AttrReply, Fh, Ino};
use crate::fs::write::setattr::SetAttr;
use crate::fuse::adapter::write;
use crate::fuse::syscalls::Subject;

/// Space that `statfs` shows as the whole: the platform has no limit to show.
const BLOCKS: u64 = 1 << 38;

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.look_up(request, parent, name, reply);
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.fs.forget(Ino(ino.0), lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let appearance = self.appearance;
        let mut asked = Asked::new(request, "stat", ino);
        // The kernel looks at the root whenever it begins to walk a path, in the midst of a call too.
        if ino != INodeNo::ROOT {
            asked = asked.of_call(self, Subject::Ino(ino.0));
        }
        self.answer(
            asked,
            reply,
            move |fs, wait| fs.getattr(Ino(ino.0), wait),
            move |reply, AttrReply { attr, ttl }| reply.attr(&ttl, &file_attr(appearance, &attr)),
        );
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags.0 & libc::O_TRUNC != 0;
        if truncate || flags.acc_mode() != OpenAccMode::O_RDONLY {
            return self.open_to_write(request, ino, truncate, reply);
        }
        let (fs, passthrough) = (Arc::clone(&self.fs), Arc::clone(&self.passthrough));
        let asked = Asked::new(request, "open", ino).of_call(self, Subject::Ino(ino.0));
        self.answer_or_undo(
            asked,
            reply,
            move |fs, wait| {
                fs.check_name(Ino(ino.0), asked.resolved())?;
                fs.open_since(Ino(ino.0), asked.age(), wait)
            },
            move |mut reply, opened| {
                let fh = FileHandle(opened.fh.0);
                if opened.direct {
                    reply = match passthrough.open(ino, fh, opened.file.as_deref(), reply) {
                        Ok(()) => return,
                        Err(reply) => reply,
                    };
                    fs.refuse_direct(opened.fh);
                }
                let mut flags = FopenFlags::FOPEN_NOFLUSH;
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
                reply.opened(fh, flags);
            },
            |fs, opened| fs.release(opened.fh),
        );
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(
            Asked::new(request, "read", ino).for_bytes(offset, size),
            reply,
            move |fs, wait| fs.read(Fh(fh.0), offset, size as usize, wait),
            |reply, bytes| reply.data(&bytes),
        );
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.passthrough.release(fh);
        self.close(fh);
        reply.ok();
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.create_file(request, parent, name, mode, flags, reply);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // Mapped pages are written back to where they belong.
        let is_mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let appends = flags.0 & libc::O_APPEND != 0 && !is_mapped;
        self.write_bytes(request, ino, (fh, offset, appends), data, reply);
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.flush_descriptor(request, ino, fh, reply);
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.change(request, "fsync", ino, reply, move |fs, wait| {
            fs.fsync(Fh(fh.0), wait)
        });
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // Names are in the store before the call that makes or removes them returns.
        reply.ok();
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.change(request, "fallocate", ino, reply, move |fs, wait| {
            fs.fallocate(Fh(fh.0), offset, length, mode, wait)
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((fh_in, offset_in), (fh_out, offset_out));
        self.copy_range(request, ino_out, from, to, len, reply);
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.seek(request, ino, fh, offset, whence, reply);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            size,
            mode: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            accessed: atime.map(write::time),
            modified: mtime.map(write::time),
        };
        self.set_attributes(request, ino, set, fh, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.change(request, "unlink", parent, reply, move |fs, wait| {
            fs.unlink(Ino(parent.0), &name, wait)
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.rename_name(request, (parent, name), (newparent, newname), flags, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.change(request, "rmdir", parent, reply, move |fs, wait| {
            fs.rmdir(Ino(parent.0), &name, wait)
        });
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        write::never(self, "mkdir", "directories", reply);
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        write::never(self, "mknod", "special files", reply);
    }

    fn symlink(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        write::never(self, "symlink", "symbolic links", reply);
    }

    fn link(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _newparent: INodeNo,
        _newname: &OsStr,
        reply: ReplyEntry,
    ) {
        write::never(self, "link", "hard links", reply);
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.to_string_lossy().into_owned(), value.to_vec());
        let asked = Asked::new(request, "setxattr", ino).of_call(self, Subject::Ino(ino.0));
        self.answer(
            asked.in_lane(Lane::Upload),
            reply,
            move |fs, wait| {
                fs.check_name(Ino(ino.0), asked.resolved())?;
                fs.setxattr(Ino(ino.0), &name, &value, wait)
            },
            |reply, ()| reply.ok(),
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_string_lossy().into_owned();
        self.change(request, "removexattr", ino, reply, move |fs, wait| {
            fs.removexattr(Ino(ino.0), &name, wait)
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.answer(
            Asked::new(request, "opendir", ino),
            reply,
            move |fs, _| fs.opendir(Ino(ino.0)),
            |reply, fh| reply.opened(FileHandle(fh.0), FopenFlags::empty()),
        );
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.read_dir(request, ino, fh, offset, reply);
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.read_dir(request, ino, fh, offset, reply);
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.fs.releasedir(Fh(fh.0));
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(
            BLOCKS,
            BLOCKS,
            BLOCKS,
            u64::from(u32::MAX),
            u64::from(u32::MAX),
            BLOCK,
            self.fs.longest_name() as u32,
            BLOCK,
        );
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.get_xattr(request, ino, name, size, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.list_xattrs(request, ino, size, reply);
    }
}
