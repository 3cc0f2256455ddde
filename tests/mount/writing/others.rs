//! Somebody else changes records over the API while programs write here: after every operation
//! each name and each open file has what a reference model says, and no change of theirs is lost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

use super::Writable;
use crate::support::cases;
use crate::support::mounted::{close, eventually};
use crate::support::served::{key, soon};

const KEYS: [&str; 3] = ["a", "b", "c"];
/// At most so many open files.
const OPEN: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    /// They store a record.
    Put {
        key: usize,
        len: usize,
    },
    /// They delete one.
    Delete(usize),
    Open(usize),
    Write {
        file: usize,
        at: usize,
        len: usize,
    },
    Cut {
        file: usize,
        len: usize,
    },
    Close(usize),
    Cat(usize),
    /// Writes a file anew, as `>` does.
    Save {
        key: usize,
        len: usize,
    },
    Remove(usize),
    Rename {
        from: usize,
        to: usize,
    },
    List,
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    let file = 0..OPEN;
    // What is closed empty is stored only a moment later.
    let len = prop_oneof![1usize..20, 4_090usize..4_100, 1usize..200_000];
    prop_oneof![
        4 => (key.clone(), len.clone()).prop_map(|(key, len)| Op::Put { key, len }),
        1 => key.clone().prop_map(Op::Delete),
        5 => key.clone().prop_map(Op::Open),
        5 => (file.clone(), 0usize..5_000, len.clone()).prop_map(|(file, at, len)| Op::Write { file, at, len }),
        2 => (file.clone(), len.clone()).prop_map(|(file, len)| Op::Cut { file, len }),
        5 => file.prop_map(Op::Close),
        3 => key.clone().prop_map(Op::Cat),
        3 => (key.clone(), len).prop_map(|(key, len)| Op::Save { key, len }),
        1 => key.clone().prop_map(Op::Remove),
        2 => (key.clone(), key).prop_map(|(from, to)| Op::Rename { from, to }),
        1 => Just(Op::List),
    ]
}

/// One file as the programs that have it open see it; several may have had one name.
#[derive(Clone, Debug)]
struct Seen {
    key: usize,
    /// The version that it was, by number; `None` for a record that did not exist.
    base: Option<u64>,
    bytes: Vec<u8>,
    changed: bool,
    /// Whether the name leads elsewhere by now: deleted, replaced, or opened anew as a version of
    /// theirs.
    detached: bool,
    /// Whether it was deleted here: nothing of it is for the store any more.
    gone: bool,
    /// Whether the name may lead elsewhere: a newer version of theirs has been looked up.
    may_be_detached: bool,
}

/// Returns the number of a file.
fn ino(found: io::Result<fs::Metadata>) -> Result<u64, String> {
    found
        .map(|found| found.ino())
        .map_err(|error| error.to_string())
}

/// The one definition of what is right.
#[derive(Default)]
struct Reference {
    store: BTreeMap<usize, (u64, Vec<u8>)>,
    files: Vec<Seen>,
    versions: u64,
}

impl Reference {
    fn put(&mut self, key: usize, bytes: Vec<u8>) -> u64 {
        self.versions += 1;
        self.store.insert(key, (self.versions, bytes));
        self.versions
    }

    /// Which file a name leads to now: the one changed here, else what the store has.
    fn lookup(&mut self, key: usize) -> Option<usize> {
        let named = |file: &Seen| file.key == key && !file.detached;
        let changed = self
            .files
            .iter()
            .position(|file| named(file) && file.changed);
        if changed.is_some() {
            return changed;
        }
        let (version, bytes) = self.store.get(&key)?.clone();
        let same = |file: &Seen| named(file) && file.base == Some(version);
        if let Some(same) = self.files.iter().position(same) {
            return Some(same);
        }
        self.detach(key);
        Some(self.add(key, Some(version), bytes))
    }

    /// The same to empty it: whoever has an old version open sees that, too.
    fn empty(&mut self, key: usize) -> usize {
        let version = self.store.get(&key).map(|(version, _)| *version);
        let named = |file: &Seen| file.key == key && !file.detached;
        match self.files.iter().position(named) {
            Some(file) if self.files[file].changed => file,
            Some(file) if version.is_some() => {
                self.files[file].base = version;
                file
            }
            _ => {
                self.detach(key);
                self.add(key, version, Vec::new())
            }
        }
    }

    fn exists(&self, key: usize) -> bool {
        let changed = |file: &Seen| file.key == key && file.changed && !file.detached;
        self.store.contains_key(&key) || self.files.iter().any(changed)
    }

    fn add(&mut self, key: usize, base: Option<u64>, bytes: Vec<u8>) -> usize {
        self.files.push(Seen {
            key,
            base,
            bytes,
            changed: false,
            detached: false,
            gone: false,
            may_be_detached: false,
        });
        self.files.len() - 1
    }

    fn detach(&mut self, key: usize) {
        for file in self.files.iter_mut().filter(|file| file.key == key) {
            file.detached = true;
        }
    }

    /// What a close answers, and whether the store takes the file.
    fn close(&mut self, file: usize) -> Result<(), i32> {
        let Seen {
            key,
            base,
            changed,
            gone,
            ..
        } = self.files[file];
        if !changed || gone {
            return Ok(());
        }
        if base != self.store.get(&key).map(|(version, _)| *version) && base.is_some() {
            return Err(libc::ESTALE);
        }
        let bytes = self.files[file].bytes.clone();
        self.files[file].base = Some(self.put(key, bytes));
        self.files[file].changed = false;
        Ok(())
    }

    fn remove(&mut self, key: usize) {
        self.store.remove(&key);
        for file in self
            .files
            .iter_mut()
            .filter(|file| file.key == key && !file.detached)
        {
            (file.detached, file.gone) = (true, true);
        }
    }
}

struct World<'a> {
    writable: &'a Writable,
    reference: Reference,
    open: Vec<(File, usize)>,
    counter: u8,
}

impl World<'_> {
    /// Bytes that were never written before.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.counter = self.counter.wrapping_add(1);
        vec![self.counter; len]
    }

    fn step(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Put { key, len } => {
                let bytes = self.bytes(len);
                self.writable.put(KEYS[key], "text/plain", &bytes);
                self.reference.put(key, bytes);
            }
            Op::Delete(of) => {
                let deleted = self.writable.server.store().delete(&key(KEYS[of]), soon());
                deleted.expect("a deletion");
                self.reference.store.remove(&of);
            }
            Op::Open(key) => {
                if self.open.len() < OPEN {
                    let path = self.writable.file(KEYS[key]);
                    let opened = File::options().read(true).write(true).open(path);
                    let expected = self.reference.lookup(key);
                    match (opened, expected) {
                        (Ok(file), Some(seen)) => self.open.push((file, seen)),
                        (Err(error), None) if error.raw_os_error() == Some(libc::ENOENT) => {}
                        (opened, expected) => {
                            return Err(format!("{opened:?} instead of {expected:?}"));
                        }
                    }
                }
            }
            Op::Write { file, at, len } if !self.open.is_empty() && len > 0 => {
                let bytes = self.bytes(len);
                let (file, seen_at) = &self.open[file % self.open.len()];
                file.write_all_at(&bytes, at as u64)
                    .map_err(|error| error.to_string())?;
                let seen_at = *seen_at;
                let seen = &mut self.reference.files[seen_at];
                let end = seen.bytes.len().max(at + len);
                seen.bytes.resize(end, 0);
                seen.bytes[at..at + len].copy_from_slice(&bytes);
                seen.changed = true;
                self.find_name(seen_at)?;
            }
            Op::Cut { file, len } if !self.open.is_empty() => {
                let (file, seen_at) = &self.open[file % self.open.len()];
                file.set_len(len as u64)
                    .map_err(|error| error.to_string())?;
                let seen_at = *seen_at;
                let seen = &mut self.reference.files[seen_at];
                if seen.bytes.len() != len {
                    seen.bytes.resize(len, 0);
                    seen.changed = true;
                    self.find_name(seen_at)?;
                }
            }
            Op::Close(file) if !self.open.is_empty() => {
                let (file, seen) = self.open.swap_remove(file % self.open.len());
                self.close(file, seen)?;
            }
            Op::Write { .. } | Op::Cut { .. } | Op::Close(_) => {}
            Op::Cat(key) => self.cat(key)?,
            Op::Save { key, len } => {
                let bytes = self.bytes(len);
                let path = self.writable.file(KEYS[key]);
                self.look_up(key);
                let file = File::create(path).map_err(|error| error.to_string())?;
                file.write_all_at(&bytes, 0)
                    .map_err(|error| error.to_string())?;
                self.follow_name(key, ino(file.metadata())?)?;
                let seen = self.reference.empty(key);
                self.reference.files[seen].bytes = bytes;
                self.reference.files[seen].changed = true;
                self.close(file, seen)?;
            }
            Op::Remove(key) => {
                let path = self.writable.file(KEYS[key]);
                self.look_up(key);
                // What is deleted is what the name leads to now: not an older version that lost it.
                if let Ok(found) = fs::metadata(&path) {
                    self.follow_name(key, found.ino())?;
                }
                let removed = fs::remove_file(path);
                let expected = self.reference.exists(key);
                if removed.is_ok() != expected {
                    return Err(format!("{removed:?}"));
                }
                if expected {
                    self.reference.remove(key);
                }
            }
            Op::Rename { from, to } => {
                let used = |key: usize| {
                    self.open
                        .iter()
                        .any(|(_, seen)| self.reference.files[*seen].key == key)
                };
                if from == to || used(from) || used(to) {
                    return Ok(());
                }
                let renamed =
                    fs::rename(self.writable.file(KEYS[from]), self.writable.file(KEYS[to]));
                match (renamed, self.reference.store.remove(&from)) {
                    (Ok(()), Some((_, bytes))) => {
                        self.reference.put(to, bytes);
                    }
                    (Err(error), None) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    (renamed, expected) => {
                        return Err(format!("{renamed:?} instead of {:?}", expected.is_some()));
                    }
                }
            }
            Op::List => {
                (0..KEYS.len()).for_each(|key| self.look_up(key));
                let entries = fs::read_dir(self.writable.mount.path()).expect("a folder");
                let listed: Vec<String> = entries
                    .map(|entry| {
                        entry
                            .expect("an entry")
                            .file_name()
                            .into_string()
                            .expect("a name")
                    })
                    .collect();
                for (key, name) in KEYS.iter().enumerate() {
                    let listed = listed.iter().any(|listed| listed == name);
                    let stored = self.reference.store.contains_key(&key);
                    // What was changed here and deleted by them is either.
                    if listed != stored && listed != self.reference.exists(key) {
                        return Err(format!("{name} is listed: {listed}"));
                    }
                }
            }
        }
        self.forget();
        self.check()
    }

    fn cat(&mut self, key: usize) -> Result<(), String> {
        let read = fs::read(self.writable.file(KEYS[key]));
        let expected = self
            .reference
            .lookup(key)
            .map(|seen| &self.reference.files[seen].bytes);
        match (read, expected) {
            (Ok(read), Some(expected)) if read == *expected => Ok(()),
            (Err(error), None) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            (read, expected) => Err(format!(
                "{}: {:?} instead of {:?}",
                KEYS[key],
                read.map(|read| (read.len(), read.first().copied())),
                expected.map(|bytes| (bytes.len(), bytes.first().copied()))
            )),
        }
    }

    /// Closes a file, and waits until the daemon knows: the kernel tells it of a last close some
    /// time after the program goes on, and what the store refused is shown until then.
    fn close(&mut self, file: File, seen: usize) -> Result<(), String> {
        let expected = self.reference.close(seen);
        let closed = close(file).map_err(|error| error.raw_os_error().expect("an errno"));
        if closed != expected {
            return Err(format!("{closed:?} instead of {expected:?}"));
        }
        let left = self.open.len() as u64;
        eventually("the daemon knows of the close", || {
            self.writable.mount.counters().open_files == left
        });
        Ok(())
    }

    /// What nobody has open any more is as the store has it, whatever it refused.
    fn forget(&mut self) {
        for (seen, file) in self.reference.files.iter_mut().enumerate() {
            file.detached |= self.open.iter().all(|(_, open)| *open != seen);
        }
    }

    /// Closes all files; then every name has what the store has.
    fn end(&mut self) -> Result<(), String> {
        while let Some((file, seen)) = self.open.pop() {
            self.close(file, seen)
                .map_err(|wrong| format!("at the end: {wrong}"))?;
        }
        self.reference.files.clear();
        for key in 0..KEYS.len() {
            self.cat(key)
                .map_err(|wrong| format!("at the end: {wrong}"))?;
            self.step(&Op::Remove(key))?;
        }
        Ok(())
    }

    /// Finds out whether an older version that a program has open lost its name to the newer one when that
    /// was looked up, or is what the name leads to still: both are right, as versions of others show at
    /// some time, and what is written here shows at once (50).
    fn follow_name(&mut self, key: usize, of_name: u64) -> Result<(), String> {
        for (file, seen) in &self.open {
            let seen = &mut self.reference.files[*seen];
            if seen.key == key && !seen.detached && seen.may_be_detached {
                seen.detached = ino(file.metadata())? != of_name;
                seen.may_be_detached = false;
            }
        }
        Ok(())
    }

    /// Finds that out for a file that has just been changed: its name leads to it if it has not lost it.
    fn find_name(&mut self, seen: usize) -> Result<(), String> {
        let Seen {
            key,
            may_be_detached: true,
            detached: false,
            ..
        } = self.reference.files[seen]
        else {
            return Ok(());
        };
        let path = self.writable.file(KEYS[key]);
        let found = fs::metadata(path);
        let is_gone = matches!(&found, Err(error) if error.kind() == io::ErrorKind::NotFound);
        self.follow_name(key, if is_gone { 0 } else { ino(found)? })
    }

    /// Notes that older versions which programs have open may lose the name now.
    fn look_up(&mut self, key: usize) {
        let version = self.reference.store.get(&key).map(|(version, _)| *version);
        for seen in &mut self.reference.files {
            let is_old = seen.key == key && !seen.changed && seen.base != version;
            seen.may_be_detached |= is_old && !seen.detached;
        }
    }

    /// Checks the store and all open files.
    fn check(&self) -> Result<(), String> {
        for (key, name) in KEYS.iter().enumerate() {
            let stored = self.writable.stored(name).map(|(bytes, _)| bytes);
            let expected = self.reference.store.get(&key).map(|(_, bytes)| bytes);
            if stored.as_ref() != expected {
                let shown = |bytes: &Vec<u8>| (bytes.len(), bytes.first().copied());
                let (stored, expected) = (stored.as_ref().map(shown), expected.map(shown));
                return Err(format!(
                    "the store has {stored:?} instead of {expected:?} as {name}"
                ));
            }
        }
        for (file, seen) in &self.open {
            let expected = &self.reference.files[*seen].bytes;
            let size = file.metadata().map_err(|error| error.to_string())?.len();
            let mut bytes = vec![0; expected.len() + 1];
            let read = file
                .read_at(&mut bytes, 0)
                .map_err(|error| error.to_string())?;
            if size != expected.len() as u64 || bytes[..read] != **expected {
                return Err(format!(
                    "an open file of {size} bytes instead of {}",
                    expected.len()
                ));
            }
        }
        Ok(())
    }
}

#[test]
fn nobody_loses_a_change_to_somebody_else() {
    let config = ProptestConfig {
        cases: cases(60, 3_000),
        failure_persistence: None,
        max_shrink_iters: 2_000,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    };
    let ran = TestRunner::new(config).run(&proptest::collection::vec(op(), 1..50), |ops| {
        // Each with a mount of its own, so that what fails fails again while it is simplified.
        let writable = Writable::mounted(|config| config.ttl = Some(Duration::ZERO));
        let mut world = World {
            writable: &writable,
            reference: Reference::default(),
            open: Vec::new(),
            counter: 0,
        };
        let mut run = || {
            for (index, op) in ops.iter().enumerate() {
                world
                    .step(op)
                    .map_err(|wrong| format!("{index}: {op:?}: {wrong}"))?;
            }
            world.end()
        };
        // Said of every failure: what is simplified may come to fail for another reason.
        run().map_err(|wrong| {
            eprintln!("{wrong}; {:?}", writable.mount.counters().last_errors);
            TestCaseError::fail(wrong)
        })
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
}
