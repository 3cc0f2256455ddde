//! The read-only core against a reference model: after every operation, what programs see is what
//! the store held at a moment within the metadata TTL, and an open file never changes.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use kvfs::base::clock::Clock;
use kvfs::base::manual_clock::ManualClock;
use kvfs::fs::FsError;
use kvfs::fs::types::{Fh, Ino};
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind, Key, PutRequest, Store, Upload};
use proptest::prelude::*;

use crate::support::core::{Core, Setup, TTL, patient};
use crate::support::operations;
use crate::support::served::{TestServer, soon};

/// Few keys, so that everything happens to the same ones, and the names of their files.
type Keys = [(&'static str, &'static str); 4];
const KEYS: Keys = [("a", "a"), ("b", "b"), (".", "%2E"), ("x y", "x%20y")];
/// The platform refuses spaces, and no URL can name `.`.
const KEYS_OVER_HTTP: Keys = [("a", "a"), ("b", "b"), ("...", "..."), ("x-y", "x-y")];

#[derive(Clone, Debug)]
enum Op {
    /// Somebody else stores a record: so long, compressed or not.
    Put(usize, usize, bool),
    /// Somebody else deletes a record.
    Delete(usize),
    /// Time passes, in tenths of the TTL.
    Wait(u32),
    Cat(usize),
    Open(usize),
    /// Reads from one of the open files.
    ReadOpen(usize),
    Close(usize),
    List,
    Stat(usize),
    /// The next get fails.
    Fail,
    /// What memory knows of a record is dropped.
    Expire(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..KEYS.len();
    prop_oneof![
        3 => (key.clone(), prop_oneof![0usize..10, 4090usize..4100, Just(1_200_000)], any::<bool>())
            .prop_map(|(key, len, packed)| Op::Put(key, len, packed)),
        1 => key.clone().prop_map(Op::Delete),
        3 => (1u32..12).prop_map(Op::Wait),
        4 => key.clone().prop_map(Op::Cat),
        3 => key.clone().prop_map(Op::Open),
        3 => (0usize..8).prop_map(Op::ReadOpen),
        2 => (0usize..8).prop_map(Op::Close),
        2 => Just(Op::List),
        2 => key.clone().prop_map(Op::Stat),
        1 => Just(Op::Fail),
        1 => key.prop_map(Op::Expire),
    ]
}

/// From when on a record had this content, or did not exist.
type Version = (Instant, Option<Vec<u8>>);

/// The one definition of what may be seen: every version of every key, with its time.
#[derive(Default)]
struct Reference {
    /// For each key its versions: from when on, and the content; `None` for absence.
    history: HashMap<usize, Vec<Version>>,
}

impl Reference {
    fn set(&mut self, key: usize, at: Instant, content: Option<Vec<u8>>) {
        self.history.entry(key).or_default().push((at, content));
    }

    /// What was there at some moment of the last `TTL`.
    fn visible(&self, key: usize, now: Instant) -> Vec<Option<&Vec<u8>>> {
        let versions = self
            .history
            .get(&key)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let from = now.checked_sub(TTL).expect("the clock has run for a while");
        let mut seen = Vec::new();
        if versions.first().is_none_or(|(at, _)| *at > from) {
            seen.push(None);
        }
        for (index, (_, content)) in versions.iter().enumerate() {
            let until = versions.get(index + 1).map_or(now, |(next, _)| *next);
            if until >= from {
                seen.push(content.as_ref());
            }
        }
        seen
    }
}

struct World<'a> {
    /// Where somebody else changes records.
    store: Arc<dyn Store>,
    keys: Keys,
    core: &'a Core,
    clock: ManualClock,
    reference: Reference,
    open: Vec<(Ino, Fh, Vec<u8>)>,
    counter: u8,
    /// How many of the next gets fail.
    failing: usize,
}

impl World<'_> {
    fn key(&self, key: usize) -> Key {
        Key::new(self.keys[key].0).expect("a key")
    }

    fn step(&mut self, op: &Op) {
        let now = self.clock.now();
        match op {
            Op::Put(key, len, packed) => {
                self.counter = self.counter.wrapping_add(1);
                let content = vec![self.counter; *len];
                let (encoding, stored) = if *packed {
                    (Encoding::Gzip, gzip(&content))
                } else {
                    (Encoding::Identity, content.clone())
                };
                let request = PutRequest {
                    content_type: Some("text/plain".into()),
                    encoding,
                    ..PutRequest::default()
                };
                self.store
                    .put(&self.key(*key), &request, Upload::Bytes(&stored), soon())
                    .expect("stored");
                self.reference.set(*key, now, Some(content));
            }
            Op::Delete(key) => {
                self.store.delete(&self.key(*key), soon()).expect("deleted");
                self.reference.set(*key, now, None);
            }
            Op::Wait(tenths) => self.clock.advance(TTL / 10 * *tenths),
            Op::Cat(key) => match self.core.cat(self.keys[*key].1) {
                Ok(bytes) => self.check_content(*key, &bytes, "cat"),
                Err(error) => self.check_error(*key, &error),
            },
            Op::Open(key) => match self.core.open(self.keys[*key].1) {
                Ok((ino, fh)) => {
                    let size = self
                        .core
                        .fs
                        .getattr(ino, patient())
                        .expect("open")
                        .attr
                        .size;
                    match self.core.read_all(fh) {
                        Ok(bytes) => {
                            assert_eq!(bytes.len() as u64, size, "fstat of an open file");
                            self.check_content(*key, &bytes, "open");
                            self.open.push((ino, fh, bytes));
                        }
                        Err(error) => {
                            self.check_error(*key, &error);
                            self.core.fs.release(fh);
                        }
                    }
                }
                Err(error) => self.check_error(*key, &error),
            },
            Op::ReadOpen(pick) if !self.open.is_empty() => {
                let (ino, fh, bytes) = &self.open[pick % self.open.len()];
                assert!(
                    self.core.read_all(*fh).expect("an open file") == *bytes,
                    "an open file changed"
                );
                let size = self
                    .core
                    .fs
                    .getattr(*ino, patient())
                    .expect("open")
                    .attr
                    .size;
                assert_eq!(size, bytes.len() as u64, "fstat of an open file");
            }
            Op::Close(pick) if !self.open.is_empty() => {
                let (_, fh, _) = self.open.swap_remove(pick % self.open.len());
                self.core.fs.release(fh);
            }
            Op::ReadOpen(_) | Op::Close(_) => {}
            Op::List => {
                let listed = self.core.list().expect("a listing");
                for (key, (_, name)) in self.keys.iter().enumerate() {
                    let found = listed.iter().any(|(listed, _)| listed == name);
                    let visible = self.reference.visible(key, now);
                    assert!(
                        visible.iter().any(|content| content.is_some() == found),
                        "{name} listed: {found}"
                    );
                }
            }
            Op::Stat(key) => match self.core.lookup(self.keys[*key].1) {
                Ok(found) => {
                    let visible = self.reference.visible(*key, now);
                    assert!(
                        visible
                            .iter()
                            .any(|content| content.is_some() == found.is_some()),
                        "{} exists: {}",
                        self.keys[*key].1,
                        found.is_some()
                    );
                    let Some(size) = found.as_ref().map(|reply| reply.attr.size) else {
                        return self.core.fs.check_invariants();
                    };
                    let ino = found.map(|reply| reply.attr.ino);
                    let open = self.open.iter().find(|(open, ..)| Some(*open) == ino);
                    match open {
                        // The kernel has its pages: it is told no other version's size.
                        Some((_, _, bytes)) => {
                            assert_eq!(size, bytes.len() as u64, "stat of an open file");
                        }
                        // Exact, or that of stored bytes: never 0 for what is not empty.
                        None => assert!(
                            size > 0 || visible.iter().flatten().any(|content| content.is_empty())
                        ),
                    }
                }
                Err(error) => self.check_error(*key, &error),
            },
            Op::Fail => {
                self.core.faults.fail_next(Call::Get, 1, ErrorKind::Server);
                self.failing += 1;
            }
            Op::Expire(key) => self.core.records.invalidate(&self.key(*key)),
        }
        self.core.fs.check_invariants();
    }

    fn check_content(&self, key: usize, bytes: &[u8], what: &str) {
        let visible = self.reference.visible(key, self.clock.now());
        assert!(
            visible.iter().flatten().any(|content| **content == bytes),
            "{what} {}: {} bytes of {:?} were not there within the TTL",
            self.keys[key].1,
            bytes.len(),
            bytes.first(),
        );
    }

    fn check_error(&mut self, key: usize, error: &FsError) {
        match error {
            FsError::NoEntry => {
                let visible = self.reference.visible(key, self.clock.now());
                assert!(
                    visible.iter().any(Option::is_none),
                    "{} was there all the time",
                    self.keys[key].1
                );
            }
            FsError::Store(error) if error.kind() == ErrorKind::Server => {
                assert!(self.failing > 0, "a failure that nobody ordered");
                self.failing -= 1;
            }
            other => panic!("{}: {other:?}", self.keys[key].1),
        }
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("in memory");
    encoder.finish().expect("in memory")
}

/// Operations, and how the store and the caches are: entity tags, a disk, little room.
fn strategy() -> impl Strategy<Value = (Vec<Op>, bool, bool, bool)> {
    let ops = proptest::collection::vec(op(), 1..60);
    (ops, any::<bool>(), any::<bool>(), any::<bool>())
}

fn run(
    setup: &mut Setup,
    keys: Keys,
    ops: &[Op],
    disk: bool,
    starved: bool,
    store: Arc<dyn Store>,
) {
    if starved {
        setup.records.memory_capacity = 5_000;
        setup.disk_capacity = 3_000_000;
    }
    let cache = tempfile::tempdir().expect("a temp folder");
    let core = setup.core(disk.then_some(cache.path()));
    let clock = core.clock.clone();
    clock.advance(TTL * 3);
    let mut world = World {
        store,
        keys,
        core: &core,
        clock,
        reference: Reference::default(),
        open: Vec::new(),
        counter: 0,
        failing: 0,
    };
    for op in ops {
        world.step(op);
    }
}

#[test]
fn what_programs_see_was_there_within_the_ttl_and_open_files_never_change() {
    let config = ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    let test = |(ops, etags, disk, starved): (Vec<Op>, bool, bool, bool)| {
        let store = MemoryStore::new()
            .with_etags(etags)
            .with_last_modified(false);
        let mut setup = Setup::new(store);
        let behind = Arc::<MemoryStore>::clone(&setup.store);
        run(&mut setup, KEYS, &ops, disk, starved, behind);
        Ok(())
    };
    let wanted = (6_000, 600_000);
    operations(
        "reading, memory",
        wanted,
        strategy(),
        &config,
        |value| value.0.len(),
        test,
    );
}

#[test]
fn what_programs_see_over_http_was_there_within_the_ttl_and_open_files_never_change() {
    let server = TestServer::in_memory();
    let count = Cell::new(0);
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 500,
        ..ProptestConfig::default()
    };
    let test = |(ops, _, disk, starved): (Vec<Op>, bool, bool, bool)| {
        count.set(count.get() + 1);
        let entry = server.another_store(&format!("case-{}", count.get()));
        let mut setup = Setup::new(MemoryStore::new());
        setup.remote = Some(server.open(&entry));
        run(
            &mut setup,
            KEYS_OVER_HTTP,
            &ops,
            disk,
            starved,
            entry.store.clone(),
        );
        Ok(())
    };
    let wanted = (1_000, 120_000);
    operations(
        "reading, HTTP",
        wanted,
        strategy(),
        &config,
        |value| value.0.len(),
        test,
    );
}
