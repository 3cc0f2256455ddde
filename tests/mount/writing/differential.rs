//! The same random system calls on a mount and on a folder of an ordinary filesystem: results,
//! errnos and contents are the same after each, and at the end the store has what the folder has.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use kvfs::mount::build::MountConfig;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use rustix::fs::{Advice, CWD, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;

use super::Writable;
use crate::support::cases;

/// Few names, so that everything happens to the same files; the last never becomes a record.
const NAMES: [&str; 5] = ["a", "b", "c.json", "a-b", ".a.swp"];
/// Where that is among them.
const SCRATCH: usize = 4;
/// At most so many descriptors at a time.
const OPEN: usize = 6;

/// How long the store may take to have what was closed.
const PATIENCE: Duration = Duration::from_secs(3);

/// How files are opened.
const FLAGS: [OFlags; 11] = [
    OFlags::RDONLY,
    OFlags::WRONLY,
    OFlags::RDWR,
    OFlags::RDWR.union(OFlags::CREATE),
    OFlags::RDWR.union(OFlags::CREATE).union(OFlags::TRUNC),
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::TRUNC),
    OFlags::RDWR.union(OFlags::CREATE).union(OFlags::EXCL),
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::APPEND),
    OFlags::RDWR.union(OFlags::APPEND),
    OFlags::RDWR.union(OFlags::TRUNC),
    OFlags::RDONLY.union(OFlags::CREATE),
];

#[derive(Clone, Debug)]
enum Op {
    Open {
        name: usize,
        flags: usize,
    },
    Close(usize),
    Dup(usize),
    Read {
        fd: usize,
        len: usize,
    },
    Pread {
        fd: usize,
        at: u64,
        len: usize,
    },
    Write {
        fd: usize,
        len: usize,
    },
    Pwrite {
        fd: usize,
        at: u64,
        len: usize,
    },
    Seek {
        fd: usize,
        to: i64,
        whence: usize,
    },
    Ftruncate {
        fd: usize,
        len: u64,
    },
    Truncate {
        name: usize,
        len: u64,
    },
    Allocate {
        fd: usize,
        at: u64,
        len: u64,
        how: usize,
    },
    Copy {
        from: usize,
        at: u64,
        to: usize,
        len: usize,
    },
    Drop(usize),
    Sync(usize),
    Unlink(usize),
    Rename {
        from: usize,
        to: usize,
        replace: bool,
    },
    Stat(usize),
    List,
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..NAMES.len();
    let fd = 0..OPEN;
    // Around pages, and small; sometimes past what one request carries.
    let at =
        prop_oneof![4 => 0u64..50, 3 => 4_080u64..4_110, 2 => 0u64..70_000, 1 => 0u64..1_300_000];
    let len = prop_oneof![4 => 0usize..50, 3 => 4_080usize..4_110, 2 => 0usize..70_000, 1 => 0usize..1_300_000];
    let flags = 0..FLAGS.len();
    prop_oneof![
        6 => (name.clone(), flags).prop_map(|(name, flags)| Op::Open { name, flags }),
        4 => fd.clone().prop_map(Op::Close),
        1 => fd.clone().prop_map(Op::Dup),
        3 => (fd.clone(), len.clone()).prop_map(|(fd, len)| Op::Read { fd, len }),
        3 => (fd.clone(), at.clone(), len.clone()).prop_map(|(fd, at, len)| Op::Pread { fd, at, len }),
        6 => (fd.clone(), len.clone()).prop_map(|(fd, len)| Op::Write { fd, len }),
        6 => (fd.clone(), at.clone(), len.clone()).prop_map(|(fd, at, len)| Op::Pwrite { fd, at, len }),
        2 => (fd.clone(), -100i64..5_000, 0usize..5).prop_map(|(fd, to, whence)| Op::Seek { fd, to, whence }),
        3 => (fd.clone(), at.clone()).prop_map(|(fd, len)| Op::Ftruncate { fd, len }),
        2 => (name.clone(), at.clone()).prop_map(|(name, len)| Op::Truncate { name, len }),
        2 => (fd.clone(), at.clone(), len.clone(), 0usize..3)
            .prop_map(|(fd, at, len, how)| Op::Allocate { fd, at, len: len as u64, how }),
        2 => (fd.clone(), at, fd.clone(), len).prop_map(|(from, at, to, len)| Op::Copy { from, at, to, len }),
        1 => fd.clone().prop_map(Op::Drop),
        2 => fd.prop_map(Op::Sync),
        2 => name.clone().prop_map(Op::Unlink),
        4 => (name.clone(), name.clone(), any::<bool>())
            .prop_map(|(from, to, replace)| Op::Rename { from, to, replace }),
        2 => name.prop_map(Op::Stat),
        2 => Just(Op::List),
    ]
}

/// What a system call answered: bytes, names or a number, else the errno.
type Outcome = Result<Answer, Errno>;

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Number(u64),
    Bytes(Vec<u8>),
    Names(BTreeMap<String, u64>),
}

/// One of the two folders with its descriptors.
struct Side {
    folder: PathBuf,
    open: Vec<OwnedFd>,
}

impl Side {
    fn path(&self, name: usize) -> PathBuf {
        self.folder.join(NAMES[name])
    }

    fn step(&mut self, op: &Op, written: &[u8]) -> Outcome {
        let done = |()| Answer::Done;
        let number = |number: usize| Answer::Number(number as u64);
        match *op {
            Op::Open { name, flags } => {
                if self.open.len() == OPEN {
                    return Ok(Answer::Done);
                }
                let mode = Mode::from_raw_mode(0o644);
                let opened =
                    rustix::fs::open(self.path(name), FLAGS[flags] | OFlags::CLOEXEC, mode)?;
                self.open.push(opened);
                Ok(Answer::Done)
            }
            Op::Truncate { name, len } => truncate(&self.path(name), len).map(done),
            Op::Unlink(name) => rustix::fs::unlink(self.path(name)).map(done),
            Op::Rename { from, to, replace } => {
                let flags = match replace {
                    true => RenameFlags::empty(),
                    false => RenameFlags::NOREPLACE,
                };
                rustix::fs::renameat_with(CWD, self.path(from), CWD, self.path(to), flags).map(done)
            }
            Op::Stat(name) => {
                rustix::fs::stat(self.path(name)).map(|stat| Answer::Number(stat.st_size as u64))
            }
            Op::List => Ok(Answer::Names(self.list())),
            _ if self.open.is_empty() => Ok(Answer::Done),
            Op::Close(fd) => {
                let at = fd % self.open.len();
                drop(self.open.swap_remove(at));
                Ok(Answer::Done)
            }
            Op::Dup(fd) => {
                if self.open.len() < OPEN {
                    // Not for the programs that other tests start meanwhile: it would be open as
                    // long as they run.
                    let twin = rustix::io::fcntl_dupfd_cloexec(self.fd(fd), 0)?;
                    self.open.push(twin);
                }
                Ok(Answer::Done)
            }
            Op::Read { fd, len } => {
                let mut bytes = vec![0; len];
                let read = rustix::io::read(self.fd(fd), &mut bytes)?;
                bytes.truncate(read);
                Ok(Answer::Bytes(bytes))
            }
            Op::Pread { fd, at, len } => {
                let mut bytes = vec![0; len];
                let read = rustix::io::pread(self.fd(fd), &mut bytes, at)?;
                bytes.truncate(read);
                Ok(Answer::Bytes(bytes))
            }
            Op::Write { fd, len } => rustix::io::write(self.fd(fd), &written[..len]).map(number),
            Op::Pwrite { fd, at, len } => {
                rustix::io::pwrite(self.fd(fd), &written[..len], at).map(number)
            }
            Op::Seek { fd, to, whence } => {
                let to = match whence {
                    0 => SeekFrom::Start(to.unsigned_abs()),
                    1 => SeekFrom::Current(to),
                    2 => SeekFrom::End(to),
                    // Where there are holes is the filesystem's own business; the file's end and
                    // what lies past it are not.
                    3 => SeekFrom::Hole(i64::MAX as u64),
                    _ => SeekFrom::Data(i64::MAX as u64),
                };
                rustix::fs::seek(self.fd(fd), to).map(Answer::Number)
            }
            Op::Ftruncate { fd, len } => rustix::fs::ftruncate(self.fd(fd), len).map(done),
            Op::Allocate { fd, at, len, how } => {
                let how = [
                    FallocateFlags::empty(),
                    FallocateFlags::KEEP_SIZE,
                    FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
                ][how];
                rustix::fs::fallocate(self.fd(fd), how, at, len).map(done)
            }
            Op::Copy { from, at, to, len } => {
                let (mut from_at, mut to_at) = (at / 2, at);
                let (from, to) = (self.fd(from), self.fd(to));
                let mut copied = 0;
                // A kernel may copy less than it is asked to.
                loop {
                    let (from_at, to_at) = (Some(&mut from_at), Some(&mut to_at));
                    match rustix::fs::copy_file_range(from, from_at, to, to_at, len - copied)? {
                        0 => return Ok(number(copied)),
                        more => copied += more,
                    }
                    if copied == len {
                        return Ok(number(copied));
                    }
                }
            }
            Op::Drop(fd) => rustix::fs::fadvise(self.fd(fd), 0, None, Advice::DontNeed).map(done),
            Op::Sync(fd) => rustix::fs::fsync(self.fd(fd)).map(done),
        }
    }

    fn fd(&self, fd: usize) -> &OwnedFd {
        &self.open[fd % self.open.len()]
    }

    fn list(&self) -> BTreeMap<String, u64> {
        let entries = fs::read_dir(&self.folder).expect("a folder");
        entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                let name = entry.file_name().into_string().expect("a name");
                (name, entry.metadata().expect("metadata").len())
            })
            .collect()
    }

    /// Returns what all open files and all names have.
    fn contents(&self) -> Vec<Result<Vec<u8>, Option<i32>>> {
        let named = (0..NAMES.len()).map(|name| fs::read(self.path(name)));
        named
            .map(|read| read.map_err(|error| error.raw_os_error()))
            .collect()
    }

    fn sizes(&self) -> Vec<i64> {
        let stats = self
            .open
            .iter()
            .map(|fd| rustix::fs::fstat(fd).expect("fstat"));
        stats.map(|stat| stat.st_size).collect()
    }

    fn clear(&mut self) {
        self.open.clear();
        for name in self.list().into_keys() {
            fs::remove_file(self.folder.join(name)).expect("a removal");
        }
    }
}

/// `truncate(2)`, which the standard library does not have.
#[expect(unsafe_code, reason = "no safe binding")]
fn truncate(path: &Path, len: u64) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: the path is a string that ends in NUL and lives until the call returns.
    match unsafe { libc::truncate(path.as_ptr(), len as libc::off_t) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("an errno")),
    }
}

/// Fails a case without a panic, which would be printed for each simplification of it.
fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), TestCaseError> {
    match holds {
        true => Ok(()),
        false => Err(TestCaseError::fail(what())),
    }
}

/// The system calls of one case on both sides.
fn compare(
    writable: &Writable,
    mount: &mut Side,
    plain: &mut Side,
    ops: &[Op],
) -> Result<(), TestCaseError> {
    for (index, op) in ops.iter().enumerate() {
        let written = vec![b'A' + (index % 58) as u8; 1_300_000];
        let (got, expected) = (mount.step(op, &written), plain.step(op, &written));
        check(got == expected, || {
            format!(
                "{index}: {op:?}: {} instead of {}",
                shown(&got),
                shown(&expected)
            )
        })?;
        let (got, expected) = (mount.sizes(), plain.sizes());
        check(got == expected, || {
            format!("open files after {index}: {op:?}: sizes {got:?} instead of {expected:?}")
        })?;
        same_contents(mount, plain).map_err(|wrong| {
            TestCaseError::fail(format!("contents after {index}: {op:?}: {wrong}"))
        })?;
    }
    mount.open.clear();
    plain.open.clear();
    let (got, expected) = (mount.list(), plain.list());
    check(got == expected, || {
        format!(
            "{got:?} instead of {expected:?} at the end; the store has {:?} {:?}",
            writable.keys(),
            writable
                .seen()
                .split_off(writable.seen().len().saturating_sub(6))
        )
    })?;
    same_contents(mount, plain)
        .map_err(|wrong| TestCaseError::fail(format!("contents at the end: {wrong}")))
}

/// Says which file reads otherwise on the mount, and from where on.
fn same_contents(mount: &Side, plain: &Side) -> Result<(), String> {
    for (name, (got, expected)) in NAMES
        .iter()
        .zip(mount.contents().iter().zip(plain.contents()))
    {
        if *got == expected {
            continue;
        }
        let shown = |read: &Result<Vec<u8>, Option<i32>>| match read {
            Ok(bytes) => format!("{} bytes", bytes.len()),
            Err(errno) => format!("errno {errno:?}"),
        };
        let at = match (got, &expected) {
            (Ok(got), Ok(expected)) => got
                .iter()
                .zip(expected)
                .position(|(got, expected)| got != expected),
            _ => None,
        };
        let (got, expected) = (shown(got), shown(&expected));
        return Err(format!(
            "{name} has {got} instead of {expected}, first different at {at:?}"
        ));
    }
    Ok(())
}

fn shown(outcome: &Outcome) -> String {
    match outcome {
        Ok(Answer::Bytes(bytes)) => format!("{} bytes {:?}…", bytes.len(), bytes.first()),
        other => format!("{other:?}"),
    }
}

fn differential(few: u32, many: u32, change: impl FnOnce(&mut MountConfig)) {
    let writable = Writable::mounted(change);
    let folder = tempfile::Builder::new();
    let plain = folder.tempdir_in("/dev/shm").expect("a folder in memory");
    let sides = std::cell::RefCell::new((
        Side {
            folder: writable.mount.path(),
            open: Vec::new(),
        },
        Side {
            folder: plain.path().to_owned(),
            open: Vec::new(),
        },
    ));
    let config = ProptestConfig {
        cases: cases(few, many),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    };
    let ran = TestRunner::new(config).run(&proptest::collection::vec(op(), 1..60), |ops| {
        let (mount, plain) = &mut *sides.borrow_mut();
        mount.clear();
        plain.clear();
        compare(&writable, mount, plain, &ops)?;
        // A record renamed to a scratch name stays in the store until that is deleted.
        mount.step(&Op::Unlink(SCRATCH), &[]).ok();
        plain.step(&Op::Unlink(SCRATCH), &[]).ok();
        // An empty file is stored when the kernel has told the daemon of its last close.
        let records = plain
            .list()
            .into_keys()
            .filter(|name| !name.starts_with('.'));
        let records: BTreeMap<String, Vec<u8>> = records
            .map(|name| {
                let bytes = fs::read(plain.folder.join(&name)).expect("a file");
                (name, bytes)
            })
            .collect();
        let start = Instant::now();
        let wrong = || {
            let stored = records
                .keys()
                .map(|name| writable.stored(name).map(|found| found.0));
            let wrong = records
                .iter()
                .zip(stored)
                .find(|((_, bytes), stored)| stored.as_ref() != Some(bytes));
            let wrong = wrong.map(|((name, bytes), stored)| {
                let stored = stored.map(|stored| stored.len());
                format!(
                    "the store has {stored:?} bytes as {name} instead of {}",
                    bytes.len()
                )
            });
            let (keys, expected) = (writable.keys(), records.keys());
            let others = || {
                (!keys.iter().eq(expected)).then(|| {
                    format!(
                        "{keys:?} are stored {:?}",
                        writable
                            .seen()
                            .split_off(writable.seen().len().saturating_sub(8))
                    )
                })
            };
            wrong.or_else(others)
        };
        while let Some(wrong) = wrong() {
            check(start.elapsed() < PATIENCE, || wrong)?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}

#[test]
fn random_system_calls_answer_as_on_an_ordinary_filesystem() {
    differential(60, 5_000, |_| {});
}

#[test]
fn random_system_calls_answer_the_same_when_nothing_is_believed_for_long() {
    // Everything is fetched again and again: each costs several times what it costs above.
    differential(20, 2_000, |config| {
        config.ttl = Some(std::time::Duration::ZERO);
        config.memory_cache = kvfs::base::units::ByteSize(4096);
        config.disk_cache = None;
    });
}
