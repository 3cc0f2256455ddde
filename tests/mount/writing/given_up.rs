//! Writes that the store refuses or that find no room: what is written to the file after that is put
//! where the file ends, and nothing of what was given up shows.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use kvfs::base::units::ByteSize;
use kvfs::local::fault::{Call, FaultStore};
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use super::writing;
use crate::support::mounted::{MountedSession, close, eventually, make_writable};

/// What is in every record at first.
const BASE: &str = "base line\n";
/// What is refused.
const LONG: &str = "a line that is refused and is long enough to be seen\n";

/// A mount of a store that fails on purpose, in which nothing expires and little can be staged.
struct Refusing {
    mount: MountedSession,
    faults: Arc<FaultStore>,
    store: Arc<MemoryStore>,
}

impl Refusing {
    fn new(etags: bool, write_back: bool) -> Self {
        let store = Arc::new(MemoryStore::new().with_etags(etags));
        let faults = Arc::new(FaultStore::new(Arc::<MemoryStore>::clone(&store)));
        let mount = MountedSession::with(Arc::<FaultStore>::clone(&faults), |config| {
            make_writable(config);
            config.ttl = Some(Duration::from_secs(3600));
            config.deadline = Duration::from_secs(3);
            let write = writing(config);
            write.write_back = write_back;
            write.staging_size = Some(ByteSize(64 << 10));
        });
        Self {
            mount,
            faults,
            store,
        }
    }

    fn put(&self, name: &str) {
        self.store
            .insert(name, "text/plain", Encoding::Identity, BASE.as_bytes());
    }

    fn stored(&self, name: &str) -> String {
        let bytes = self.store.bytes(name).expect("a record");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn append(file: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(file)?;
    let written = file.write_all(text);
    close(file).and(written)
}

fn rewrite(file: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(file)?;
    let written = file.write_all(text);
    close(file).and(written)
}

#[test]
fn what_is_appended_after_a_write_was_given_up_follows_the_end() {
    type Act = fn(&Path, &[u8]) -> std::io::Result<()>;
    let large = vec![b'x'; 200 << 10];
    let kinds = [
        Some(ErrorKind::Denied),
        Some(ErrorKind::TooLarge),
        Some(ErrorKind::Changed),
        Some(ErrorKind::Timeout),
        None,
    ];
    for (etags, write_back) in [(true, false), (false, false), (true, true), (false, true)] {
        let refusing = Refusing::new(etags, write_back);
        // All at first: a listing counts for an hour.
        for how in ["appended", "rewritten"] {
            for kind in kinds {
                refusing.put(&format!("{how}-{kind:?}"));
            }
        }
        for (act, how) in [(append as Act, "appended"), (rewrite, "rewritten")] {
            for kind in kinds {
                // An upload in the background is tried again.
                if write_back && kind == Some(ErrorKind::Timeout) {
                    continue;
                }
                let name = format!("{how}-{kind:?}");
                let file = refusing.mount.file(&name);
                let failed = refusing.mount.counters().commits_failed;
                let given_up = match kind {
                    Some(kind) => {
                        // Until the deadline it is tried again.
                        let times = if kind == ErrorKind::Timeout {
                            100_000
                        } else {
                            1
                        };
                        refusing.faults.fail_next(Call::Put, times, kind);
                        let done = act(&file, LONG.as_bytes());
                        if kind == ErrorKind::Timeout {
                            refusing.faults.clear_faults(Call::Put);
                        }
                        done
                    }
                    None => act(&file, &large),
                };
                let about = format!("{name}, {etags}, {write_back}");
                assert_eq!(given_up.is_err(), !write_back || kind.is_none(), "{about}");
                if write_back && kind.is_some() {
                    eventually("the upload is refused", || {
                        refusing.mount.counters().commits_failed > failed
                    });
                }
                // A moment after the close returns, the file shows the store's record (54).
                eventually("the daemon knows of the close", || {
                    refusing.mount.counters().open_files == 0
                });
                append(&file, b"two\n").expect("stored");
                eventually("it is stored", || refusing.stored(&name).ends_with("two\n"));
                let stored = refusing.stored(&name);
                // A program that opens it before the refusal is known still sees what was refused.
                let beside = match how {
                    "appended" => format!("{BASE}{LONG}two\n"),
                    _ => format!("{LONG}two\n"),
                };
                assert!(
                    stored == format!("{BASE}two\n") || write_back && stored == beside,
                    "{about}: {stored:?}"
                );
                assert_eq!(fs::read_to_string(&file).expect("read"), stored, "{about}");
            }
        }
    }
}

#[test]
fn a_descriptor_that_appends_follows_the_end_after_a_refused_truncation() {
    let refusing = Refusing::new(true, false);
    refusing.put("a");
    refusing.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
    refusing.mount.python(
        "import os
fd = os.open('a', os.O_WRONLY | os.O_APPEND)
try: os.truncate('a', 4)
except PermissionError: pass
else: raise AssertionError('truncated')
os.write(fd, b' one')
os.write(fd, b' two')
os.close(fd)
",
    );
    assert_eq!(refusing.stored("a"), "base one two");
    assert_eq!(refusing.mount.works("cat a"), "base one two");
}

#[test]
fn a_file_that_waits_for_its_upload_is_what_it_was_after_a_half_that_had_no_room() {
    for etags in [true, false] {
        let refusing = Refusing::new(etags, true);
        refusing.put("a");
        let file = refusing.mount.file("a");
        refusing.faults.block(Call::Put);
        rewrite(&file, b"one\n").expect("journalled");
        let mut half = OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&file)
            .expect("emptied");
        let piece = [b'x'; 8 << 10];
        while half.write_all(&piece).is_ok() {}
        let closed = close(half).expect_err("no room");
        assert_eq!(closed.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(fs::read(&file).expect("read"), b"one\n");
        append(&file, b"two\n").expect("journalled");
        assert_eq!(fs::read(&file).expect("read"), b"one\ntwo\n");
        refusing.faults.release(Call::Put);
        eventually("it is stored", || refusing.stored("a") == "one\ntwo\n");
        assert_eq!(fs::read(&file).expect("read"), b"one\ntwo\n");
    }
}

#[test]
fn lines_that_several_append_while_some_are_refused_stay_whole() {
    let refusing = Refusing::new(true, false);
    refusing.put("log");
    let file = refusing.mount.file("log");
    let stored = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (refusing, file) = (&refusing, &file);
                scope.spawn(move || {
                    let mut stored = Vec::new();
                    for number in 0..25 {
                        if (number + writer) % 3 == 0 {
                            refusing.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
                        }
                        let line = format!("{writer}-{}\n", "x".repeat(number));
                        if append(file, line.as_bytes()).is_ok() {
                            stored.push(line);
                        }
                    }
                    stored
                })
            })
            .collect();
        let lines = writers
            .into_iter()
            .map(|writer| writer.join().expect("no panic"));
        lines.flatten().collect::<Vec<String>>()
    });
    refusing.faults.clear_faults(Call::Put);
    append(&file, b"end\n").expect("stored");
    let text = refusing.stored("log");
    assert_eq!(fs::read_to_string(&file).expect("read"), text);
    assert!(!text.contains('\0'), "{text:?}");
    for line in &stored {
        let found = text.split_inclusive('\n').filter(|there| there == line);
        assert_eq!(found.count(), 1, "{line:?} in {text:?}");
    }
}
