//! A disk that hangs: a folder shown by a filesystem of its own, in which one kind of call waits until
//! it is let go on. A dead network share and a failing disk look like this.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::{Condvar, Mutex};
use rustix::mount::UnmountFlags;
use tempfile::TempDir;

/// A kind of call to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskCall {
    /// Looking up a name, and attributes.
    Stat,
    /// Opening a file that exists.
    Open,
    Create,
    Read,
    Write,
    /// Cutting off, modes, times.
    Change,
    /// Names: folders, links, renames, deletions.
    Name,
    /// Names of a folder, and how much room there is.
    List,
    Sync,
}

impl DiskCall {
    pub const ALL: [Self; 9] = [
        Self::Stat,
        Self::Open,
        Self::Create,
        Self::Read,
        Self::Write,
        Self::Change,
        Self::Name,
        Self::List,
        Self::Sync,
    ];
}

/// A disk whose calls can be held up. Dropping it lets them go on and takes it away.
pub struct HangingDisk {
    gate: Arc<Gate>,
    session: Option<BackgroundSession>,
    mount_point: TempDir,
    _behind: TempDir,
}

#[derive(Default)]
struct Gate {
    hangs: Mutex<(Vec<DiskCall>, usize)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self, call: DiskCall) {
        let mut hangs = self.hangs.lock();
        if !hangs.0.contains(&call) {
            return;
        }
        hangs.1 += 1;
        while hangs.0.contains(&call) {
            self.changed.wait(&mut hangs);
        }
        hangs.1 -= 1;
    }
}

impl HangingDisk {
    pub fn new() -> Self {
        let folder = || tempfile::Builder::new().prefix("kvfs-test-").tempdir();
        let (behind, mount_point) = (folder().expect("a folder"), folder().expect("a folder"));
        let gate = Arc::<Gate>::default();
        let mut inodes = BTreeMap::new();
        let root = path_of(behind.path()).expect("a folder");
        inodes.insert(INodeNo::ROOT.0, Arc::new(root));
        let shown = Shown(Arc::new(Inner {
            gate: Arc::clone(&gate),
            inodes: Mutex::new(inodes),
            files: Mutex::default(),
        }));
        let config = fuser::Config::default();
        let session = fuser::spawn_mount(shown, mount_point.path(), &config).expect("a mount");
        Self {
            gate,
            session: Some(session),
            mount_point,
            _behind: behind,
        }
    }

    pub fn path(&self) -> &Path {
        self.mount_point.path()
    }

    /// Holds up these calls from now on.
    pub fn hang(&self, calls: &[DiskCall]) {
        self.gate.hangs.lock().0 = calls.to_vec();
    }

    /// Returns how many calls are held up.
    pub fn held_up(&self) -> usize {
        self.gate.hangs.lock().1
    }

    pub fn go_on(&self) {
        self.hang(&[]);
        self.gate.changed.notify_all();
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        self.go_on();
        if let Some(session) = self.session.take() {
            // By force: files that are still open on it end with the process, which would wait for
            // itself to answer.
            let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
            let _ = rustix::mount::unmount(self.path(), flags);
            drop(session);
        }
    }
}

struct Shown(Arc<Inner>);

struct Inner {
    gate: Arc<Gate>,
    /// A descriptor that only names the file, for each inode that was ever shown.
    inodes: Mutex<BTreeMap<u64, Arc<OwnedFd>>>,
    files: Mutex<BTreeMap<u64, Arc<File>>>,
}

fn path_of(path: &Path) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    Ok(file.into())
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

fn attr(ino: u64, meta: &fs::Metadata) -> FileAttr {
    let modified = meta.modified().unwrap_or(std::time::UNIX_EPOCH);
    FileAttr {
        ino: INodeNo(ino),
        size: meta.len(),
        blocks: meta.blocks(),
        atime: meta.accessed().unwrap_or(modified),
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: if meta.is_dir() {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Inner {
    fn path(&self, ino: INodeNo) -> io::Result<PathBuf> {
        let inodes = self.inodes.lock();
        let fd = inodes.get(&ino.0);
        let fd = fd.ok_or(io::Error::from_raw_os_error(libc::ESTALE))?;
        Ok(format!("/proc/self/fd/{}", fd.as_raw_fd()).into())
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    fn enter(&self, path: &Path) -> io::Result<FileAttr> {
        let fd = path_of(path)?;
        let meta = File::from(fd.try_clone()?).metadata()?;
        let root = self.path(INodeNo::ROOT).and_then(fs::metadata)?;
        let ino = if meta.ino() == root.ino() {
            INodeNo::ROOT.0
        } else {
            meta.ino()
        };
        self.inodes.lock().insert(ino, Arc::new(fd));
        Ok(attr(ino, &meta))
    }

    fn attributes(&self, ino: INodeNo) -> io::Result<FileAttr> {
        Ok(attr(ino.0, &fs::metadata(self.path(ino)?)?))
    }

    fn keep(&self, file: File) -> FileHandle {
        let number = file.as_raw_fd() as u64;
        self.files.lock().insert(number, Arc::new(file));
        FileHandle(number)
    }

    fn file(&self, fh: FileHandle) -> io::Result<Arc<File>> {
        let file = self.files.lock().get(&fh.0).map(Arc::clone);
        file.ok_or(io::Error::from_raw_os_error(libc::EBADF))
    }
}

impl Shown {
    /// Answers on a thread of its own, once calls of this kind go on.
    fn answer<T: 'static>(
        &self,
        call: DiskCall,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
        done: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let inner = Arc::clone(&self.0);
        thread::spawn(move || {
            inner.gate.pass(call);
            done(work(&inner).map_err(|error| errno(&error)));
        });
    }

    fn entry(
        &self,
        call: DiskCall,
        reply: ReplyEntry,
        work: impl FnOnce(&Inner) -> io::Result<FileAttr> + Send + 'static,
    ) {
        self.answer(call, work, |done| match done {
            Ok(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
            Err(error) => reply.error(error),
        });
    }

    fn empty(
        &self,
        call: DiskCall,
        reply: ReplyEmpty,
        work: impl FnOnce(&Inner) -> io::Result<()> + Send + 'static,
    ) {
        self.answer(call, work, |done| match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        });
    }
}

impl Filesystem for Shown {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.entry(DiskCall::Stat, reply, move |inner| {
            inner.enter(&inner.child(parent, &name)?)
        });
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            DiskCall::Stat,
            move |inner| inner.attributes(ino),
            |done| match done {
                Ok(attr) => reply.attr(&Duration::ZERO, &attr),
                Err(error) => reply.error(error),
            },
        );
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let work = move |inner: &Inner| {
            let path = inner.path(ino)?;
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            if let Some(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            if uid.is_some() || gid.is_some() {
                chown(&path, uid, gid)?;
            }
            if let Some(modified) = modified {
                let at = match modified {
                    TimeOrNow::SpecificTime(at) => at,
                    TimeOrNow::Now => std::time::SystemTime::now(),
                };
                File::open(&path)?.set_modified(at)?;
            }
            inner.attributes(ino)
        };
        self.answer(DiskCall::Change, work, |done| match done {
            Ok(attr) => reply.attr(&Duration::ZERO, &attr),
            Err(error) => reply.error(error),
        });
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let name = name.to_owned();
        self.entry(DiskCall::Name, reply, move |inner| {
            let path = inner.child(parent, &name)?;
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            inner.enter(&path)
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.empty(DiskCall::Name, reply, move |inner| {
            fs::remove_file(inner.child(parent, &name)?)
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.empty(DiskCall::Name, reply, move |inner| {
            fs::remove_dir(inner.child(parent, &name)?)
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.empty(DiskCall::Name, reply, move |inner| {
            if !flags.is_empty() {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            fs::rename(
                inner.child(parent, &name)?,
                inner.child(new_parent, &new_name)?,
            )
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.entry(DiskCall::Name, reply, move |inner| {
            let (from, to) = (inner.path(ino)?, inner.child(parent, &name)?);
            let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
            rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, &to, follow)?;
            inner.enter(&to)
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let work = move |inner: &Inner| {
            let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
            let reads = flags.0 & libc::O_ACCMODE != libc::O_WRONLY;
            let file = OpenOptions::new()
                .read(reads)
                .write(writes)
                .open(inner.path(ino)?)?;
            Ok(inner.keep(file))
        };
        self.answer(DiskCall::Open, work, |done| match done {
            Ok(fh) => reply.opened(fh, FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        });
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.to_owned();
        let work = move |inner: &Inner| {
            let path = inner.child(parent, &name)?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .custom_flags(flags & libc::O_EXCL)
                .mode(mode)
                .open(&path)?;
            Ok((inner.enter(&path)?, inner.keep(file)))
        };
        self.answer(DiskCall::Create, work, |done| match done {
            Ok((attr, fh)) => {
                let flags = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&Duration::ZERO, &attr, Generation(0), fh, flags);
            }
            Err(error) => reply.error(error),
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let work = move |inner: &Inner| {
            let (file, mut bytes) = (inner.file(fh)?, vec![0; size as usize]);
            let mut read = 0;
            while read < bytes.len() {
                match file.read_at(&mut bytes[read..], offset + read as u64)? {
                    0 => break,
                    more => read += more,
                }
            }
            bytes.truncate(read);
            Ok(bytes)
        };
        self.answer(DiskCall::Read, work, |done| match done {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        let work = move |inner: &Inner| {
            inner.file(fh)?.write_all_at(&data, offset)?;
            Ok(data.len() as u32)
        };
        self.answer(DiskCall::Write, work, |done| match done {
            Ok(size) => reply.written(size),
            Err(error) => reply.error(error),
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.files.lock().remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        self.empty(DiskCall::Sync, reply, move |inner| {
            inner.file(fh)?.sync_all()
        });
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let work = move |inner: &Inner| {
            let mut names = Vec::new();
            for entry in fs::read_dir(inner.path(ino)?)? {
                let entry = entry?;
                let kind = if entry.file_type()?.is_dir() {
                    FileType::Directory
                } else {
                    FileType::RegularFile
                };
                names.push((entry.metadata()?.ino(), kind, entry.file_name()));
            }
            names.sort_by(|a, b| a.2.cmp(&b.2));
            Ok(names)
        };
        self.answer(DiskCall::List, work, move |done| match done {
            Ok(names) => {
                let rest = names.into_iter().enumerate().skip(offset as usize);
                for (at, (ino, kind, name)) in rest {
                    if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(error),
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let work = move |inner: &Inner| Ok(rustix::fs::statvfs(inner.path(ino)?)?);
        self.answer(DiskCall::List, work, |done| match done {
            Ok(room) => reply.statfs(
                room.f_blocks,
                room.f_bfree,
                room.f_bavail,
                room.f_files,
                room.f_ffree,
                room.f_bsize as u32,
                room.f_namemax as u32,
                room.f_frsize as u32,
            ),
            Err(error) => reply.error(error),
        });
    }
}
