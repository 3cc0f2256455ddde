//! The words of the filesystem core: numbers, attributes, replies. Nothing of any kernel binding.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// An inode number. The root is [`Ino::ROOT`]; numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The mount's root directory.
    pub const ROOT: Self = Self(1);
}

/// A handle of an open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fh(pub u64);

/// How the kernel came from a name to the inode that a request is about. The name may lead elsewhere by
/// then: the file was renamed while the request waited, or without the kernel's knowledge.
#[derive(Clone, Copy, Debug)]
pub enum Resolved {
    /// By an entry that it may have had for as long as entries hold; the request came then.
    Entry(Instant),
    /// By a look-up for the same system call, after an inode of the call was stale; it began then.
    LookedUp(Instant),
    /// Nothing is known of the thread that asked; the request came then.
    Unknown(Instant),
}

/// What a program has named a file by.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// A handle, which stays on its file.
    Handle(Fh),
    /// A name, from which the kernel came to the inode so.
    Name(Resolved),
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file: a record.
    File,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The inode number.
    pub ino: Ino,
    /// Bytes; provisional for a record in decoded mode that has never been fetched.
    pub size: u64,
    /// The one time a record has; shown as all of a file's times.
    pub modified: SystemTime,
    /// What it is.
    pub kind: FileKind,
    /// Names that it has: none once it was deleted.
    pub links: u32,
    /// What programs have set.
    pub shown: Shown,
}

/// Attributes that programs have set: kept in memory only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Time of the last change of the content.
    pub modified: Option<SystemTime>,
    /// Time of the last read.
    pub accessed: Option<SystemTime>,
    /// Time of the last change of these attributes.
    pub changed: Option<SystemTime>,
}

/// An attribute answer, and how long it is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttrReply {
    /// The attributes.
    pub attr: Attr,
    /// For so long.
    pub ttl: Duration,
}

/// The answer to a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The name exists; the kernel now holds one more reference to its inode.
    Found(AttrReply),
    /// The name does not exist, for so long.
    Absent(Duration),
}

/// An opened file.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its handle.
    pub fh: Fh,
    /// Whether what the page cache holds of this inode is of the opened version.
    pub keep_cache: bool,
    /// Whether, like all open handles of the inode, the kernel may read it from its file.
    pub direct: bool,
    /// That file, where this handle has one: the content, nothing else.
    pub file: Option<Arc<File>>,
}

/// A file made and opened.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its entry; the kernel now holds one more reference to its inode.
    pub entry: AttrReply,
    /// Its handle.
    pub opened: Opened,
}

/// Where a directory's entries go.
pub trait DirSink {
    /// Adds an entry; `next` is the offset that continues after it. Returns `true` when the
    /// entry did not fit and was not added.
    fn add(&mut self, ino: Ino, next: u64, kind: FileKind, name: &OsStr, attr: &AttrReply) -> bool;
}

/// A thread of a program, by the number that the kernel gives it; 0 is one outside this PID
/// namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thread(pub u32);

/// A program, by its process number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process(pub u32);

/// What the core must know of the programs that use it. Asking may take as long as reading a few
/// files of `/proc`.
pub trait Programs: Send + Sync + fmt::Debug {
    /// Returns the process that a thread belongs to; `None` if that cannot be told.
    fn process_of(&self, thread: Thread) -> Option<Process>;

    /// Returns whether a process has a file open for writing; `None` if that cannot be told. One
    /// that has ended has none.
    fn holds(&self, process: Process, ino: Ino) -> Option<bool>;
}

/// What the core tells the kernel about its caches.
///
/// All but names may be forgotten while an open is being answered, pages then only while no handle
/// of the inode is open, lest a read that holds a page waits for a thread that waits for the page.
/// On a thread that answers no request and holds no lock, everything may be forgotten at any time.
/// See docs/DESIGN.md on deadlocks.
pub trait KernelCache: Send + Sync + fmt::Debug {
    /// Puts bytes into the page cache; also raises the size the kernel believes.
    fn store(&self, ino: Ino, offset: u64, bytes: &[u8]);

    /// Drops the attributes that the kernel remembers, but no pages.
    fn invalidate_attributes(&self, ino: Ino);

    /// Drops what is remembered of a name of the root, its absence included.
    fn invalidate_name(&self, name: &OsStr);

    /// Drops all pages, and the attributes. Returns whether they are gone.
    fn invalidate_pages(&self, ino: Ino) -> bool;
}

/// A kernel that is not there: for tests, and until the mount is up.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoKernel;

impl KernelCache for NoKernel {
    fn store(&self, _ino: Ino, _offset: u64, _bytes: &[u8]) {}

    fn invalidate_attributes(&self, _ino: Ino) {}

    fn invalidate_name(&self, _name: &OsStr) {}

    fn invalidate_pages(&self, _ino: Ino) -> bool {
        true
    }
}
