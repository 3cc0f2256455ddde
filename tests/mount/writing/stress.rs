//! Programs that write, rename and delete the same few files at the same time.
#![allow(clippy::print_stdout, reason = "says how long calls took")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Writable, keys, writing};
use crate::support::mounted::{close, eventually};

/// The names that all of them use.
const SHARED: [&str; 4] = ["w", "x", "y", "z"];
const THREADS: usize = 6;
/// No call comes near the deadline: nothing waits for another that waits for it.
const LONGEST: Duration = Duration::from_secs(10);

/// What one of them did.
#[derive(Default)]
struct Done {
    calls: usize,
    longest: Duration,
    /// Opens that failed because the file was changed twice meanwhile, as the kernel tries no third time.
    stale: usize,
    /// What its own file must have in the end.
    own: Option<Vec<u8>>,
    wrong: Vec<String>,
}

struct Worker<'a> {
    mnt: &'a Path,
    number: usize,
    seed: u64,
    done: Done,
}

impl Worker<'_> {
    fn random(&mut self, below: usize) -> usize {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed % below as u64) as usize
    }

    /// Does one thing, which takes no longer than it may. That a file is not there is no error: another
    /// has deleted it.
    fn call(&mut self, what: &str, work: impl FnOnce() -> io::Result<()>) -> bool {
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        self.done.calls += 1;
        self.done.longest = self.done.longest.max(took);
        match result {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error)
                if error.kind() == io::ErrorKind::StaleNetworkFileHandle
                    && error.to_string().starts_with("open") =>
            {
                self.done.stale += 1;
                false
            }
            Err(error) => {
                self.done
                    .wrong
                    .push(format!("{what}: {error}, after {took:?}"));
                false
            }
        }
    }

    /// Does something to a file that others use too.
    fn share(&mut self, turn: usize) {
        let name = SHARED[self.random(SHARED.len())];
        let path = self.mnt.join(name);
        let text = format!("{} of {}\n", turn, self.number).repeat(1 + self.random(40));
        match self.random(10) {
            0..4 => self.call("write", || write(&path, text.as_bytes())),
            4 | 5 => self.call("append", || {
                write_to(OpenOptions::new().append(true).open(&path), text.as_bytes())
            }),
            6 | 7 => {
                let to = self.mnt.join(SHARED[self.random(SHARED.len())]);
                self.call("rename", || fs::rename(&path, to))
            }
            _ => self.call("unlink", || fs::remove_file(&path)),
        };
    }

    /// Does something to a file that nobody else uses, and looks at what has become of it.
    fn own(&mut self, turn: usize) {
        let path = self.mnt.join(format!("own{}", self.number));
        let other = self.mnt.join(format!("other{}", self.number));
        match self.random(4) {
            0 if self.done.own.is_some() => {
                if self.call("unlink own", || fs::remove_file(&path)) {
                    self.done.own = None;
                }
            }
            1 if self.done.own.is_some() => {
                self.call("rename own", || fs::rename(&path, &other));
                self.call("rename own back", || fs::rename(&other, &path));
            }
            _ => {
                let text = format!("{turn} of {} alone\n", self.number).into_bytes();
                if self.call("write own", || write(&path, &text)) {
                    self.done.own = Some(text);
                }
            }
        }
        let found = fs::read(&path).ok();
        if found != self.done.own {
            let wrong = format!("own file: {found:?} instead of {:?}", self.done.own);
            self.done.wrong.push(wrong);
            self.done.own = found;
        }
    }
}

/// Replaces the contents of a file. An error says which call failed.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_to(fs::File::create(path), bytes)
}

fn write_to(opened: io::Result<fs::File>, bytes: &[u8]) -> io::Result<()> {
    let failed =
        |call| move |error: io::Error| io::Error::new(error.kind(), format!("{call}: {error}"));
    let mut file = opened.map_err(failed("open"))?;
    file.write_all(bytes).map_err(failed("write"))?;
    close(file).map_err(failed("close"))
}

/// Lets six threads work for so long.
fn stress(mnt: &Path, span: Duration) -> Vec<Done> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|number| {
                let stop = &stop;
                scope.spawn(move || {
                    let seed = 88_172_645_463_325_252 + number as u64 * 7_919;
                    let done = Done::default();
                    let mut worker = Worker {
                        mnt,
                        number,
                        seed,
                        done,
                    };
                    for turn in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        match turn % 3 {
                            0 => worker.own(turn),
                            _ => worker.share(turn),
                        }
                    }
                    worker.done
                })
            })
            .collect();
        thread::sleep(span);
        stop.store(true, Ordering::Relaxed);
        let ended = workers.into_iter().map(|worker| worker.join());
        ended.map(|done| done.expect("no panic")).collect()
    })
}

fn contents(mnt: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = fs::read_dir(mnt).expect("a listing").map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("text")
    });
    names
        .filter_map(|name| Some((name.clone(), fs::read(mnt.join(&name)).ok()?)))
        .collect()
}

fn programs_share_files(write_back: bool) {
    let span = Duration::from_secs(if crate::support::long() { 60 } else { 10 });
    let with = Writable::with(
        |server| server.knobs.latency = Duration::from_millis(5),
        |mount| {
            writing(mount).write_back = write_back;
            mount.ttl = Some(Duration::from_millis(200));
        },
    );
    let mnt = with.mount.path();
    let done = stress(&mnt, span);
    let wrong: Vec<&String> = done.iter().flat_map(|done| &done.wrong).collect();
    let calls: usize = done.iter().map(|done| done.calls).sum();
    let longest = done
        .iter()
        .map(|done| done.longest)
        .max()
        .unwrap_or_default();
    let stale: usize = done.iter().map(|done| done.stale).sum();
    println!("write back {write_back}: {calls} calls, {stale} stale, the longest {longest:.1?}");
    assert!(stale * 100 <= calls, "{stale} of {calls} opens are stale");
    assert!(
        wrong.is_empty(),
        "{} are wrong: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(10)]
    );
    assert!(longest < LONGEST, "a call took {longest:?}");
    eventually("all is in the store", || {
        with.mount.status()["uploads"]["pending"] == 0
    });
    // Nobody else changes anything: once what was believed has aged, all is as it is in the store.
    thread::sleep(Duration::from_millis(300));
    let shown = contents(&mnt);
    let stored: BTreeMap<String, Vec<u8>> = keys(&with.server)
        .into_iter()
        .map(|key| (key.clone(), with.stored(&key).expect("a record").0))
        .collect();
    let names = |all: &BTreeMap<String, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&shown), names(&stored), "mount and store");
    assert!(
        shown == stored,
        "mount and store have the same names and other bytes"
    );
    for (number, done) in done.iter().enumerate() {
        let own = stored.get(&format!("own{number}"));
        assert_eq!(own, done.own.as_ref(), "the own file of {number}");
    }
    assert_eq!(with.mount.status()["uploads"]["kept"], 0, "refused");
}

#[test]
fn programs_that_write_rename_and_delete_the_same_files_leave_the_mount_as_the_store() {
    programs_share_files(false);
}

#[test]
fn programs_that_share_files_leave_the_mount_as_the_store_with_write_back() {
    programs_share_files(true);
}
