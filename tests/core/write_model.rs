//! The changing core against a reference model: a folder in memory, as POSIX has it. After every
//! operation names, sizes and contents are compared, of closed and of open files; in the end the
//! store holds exactly the records that the model has.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Read;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kvfs::fs::types::{Fh, Ino};
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{ErrorKind, GetOutcome, GetRequest, PutRequest, Store, Upload};
use proptest::prelude::*;

use crate::support::core::{Core, Setup, TTL, patient};
use crate::support::operations;
use crate::support::served::{TestServer, key, soon};

/// Few names, so that everything happens to the same ones: records, a temporary and scratch names.
const NAMES: [&str; 6] = ["a", "b", "...", "a.tmp", "a~", ".b.swp"];
/// How many of them are records from the start.
const RECORDS: usize = 2;

#[derive(Clone, Debug)]
enum Op {
    /// Opens a file, makes it if it is missing, and empties it if so told.
    Open(usize, bool),
    Write(usize, u16, u16),
    SetSize(usize, u16),
    Sync(usize),
    /// Closes a duplicate.
    Flush(usize),
    Close(usize),
    Remove(usize),
    Rename(usize, usize),
    Truncate(usize, u16),
    List,
    /// Time passes, in tenths of the TTL.
    Wait(u32),
    /// The next upload fails for a moment.
    Fail,
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..NAMES.len();
    prop_oneof![
        6 => (name.clone(), any::<bool>()).prop_map(|(name, empty)| Op::Open(name, empty)),
        6 => (0usize..6, 0u16..9000, 0u16..5000).prop_map(|(pick, at, len)| Op::Write(pick, at, len)),
        2 => (0usize..6, 0u16..9000).prop_map(|(pick, size)| Op::SetSize(pick, size)),
        1 => (0usize..6).prop_map(Op::Sync),
        2 => (0usize..6).prop_map(Op::Flush),
        5 => (0usize..6).prop_map(Op::Close),
        3 => name.clone().prop_map(Op::Remove),
        4 => (name.clone(), name.clone()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => (name, 0u16..9000).prop_map(|(name, size)| Op::Truncate(name, size)),
        2 => Just(Op::List),
        2 => (1u32..12).prop_map(Op::Wait),
        1 => Just(Op::Fail),
    ]
}

type Content = Rc<RefCell<Vec<u8>>>;

struct World<'a> {
    core: &'a Core,
    files: BTreeMap<&'static str, Content>,
    open: Vec<(Ino, Fh, Content)>,
    counter: u8,
}

impl World<'_> {
    fn step(&mut self, op: &Op) {
        match op {
            Op::Open(name, empty) => self.open_file(NAMES[*name], *empty),
            Op::Write(pick, at, len) if !self.open.is_empty() => {
                self.counter = self.counter.wrapping_add(1);
                let bytes = vec![self.counter; usize::from(*len).max(1)];
                let (_, fh, content) = &self.open[pick % self.open.len()];
                self.core
                    .fs
                    .write(*fh, u64::from(*at), &bytes, patient())
                    .expect("written");
                let mut content = content.borrow_mut();
                let end = usize::from(*at) + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[usize::from(*at)..end].copy_from_slice(&bytes);
            }
            Op::SetSize(pick, size) if !self.open.is_empty() => {
                let (ino, fh, content) = &self.open[pick % self.open.len()];
                self.set_size(*ino, *size, Some(*fh));
                content.borrow_mut().resize(usize::from(*size), 0);
            }
            Op::Sync(pick) if !self.open.is_empty() => {
                let (_, fh, _) = &self.open[pick % self.open.len()];
                self.surely(|core| core.fs.fsync(*fh, patient()));
            }
            Op::Flush(pick) if !self.open.is_empty() => {
                let (_, fh, _) = &self.open[pick % self.open.len()];
                let stored = self.core.fs.flush(*fh, patient());
                if stored.is_err() {
                    self.surely(|core| core.fs.fsync(*fh, patient()));
                }
            }
            Op::Close(pick) if !self.open.is_empty() => {
                let (_, fh, _) = self.open.swap_remove(pick % self.open.len());
                self.close(fh);
            }
            Op::Remove(name) => {
                // As the kernel does, which has looked a name up before it asks for its removal.
                let found = self.core.lookup(NAMES[*name]).expect("an answer");
                if let Some(reply) = found {
                    self.core.remove(NAMES[*name]).expect("removed");
                    self.core.fs.forget(reply.attr.ino, 1);
                }
                self.files.remove(NAMES[*name]);
            }
            Op::Rename(from, to) => {
                let (from, to) = (NAMES[*from], NAMES[*to]);
                let expected = self.files.contains_key(from);
                self.core.faults.clear_faults(Call::Put);
                let renamed = self.core.rename(from, to);
                assert_eq!(renamed.is_ok(), expected, "mv {from} {to}: {renamed:?}");
                if let Some(content) = self.files.remove(from) {
                    self.files.insert(to, content);
                }
            }
            Op::Truncate(name, size) => {
                if let Some(content) = self.files.get(NAMES[*name]).cloned() {
                    let found = self.core.lookup(NAMES[*name]).expect("an answer");
                    let ino = found.expect("present").attr.ino;
                    self.core.faults.clear_faults(Call::Put);
                    self.set_size(ino, *size, None);
                    self.core.fs.forget(ino, 1);
                    content.borrow_mut().resize(usize::from(*size), 0);
                }
            }
            Op::Wait(tenths) => self.core.clock.advance(TTL / 10 * *tenths),
            Op::Fail => self.core.faults.fail_next(Call::Put, 1, ErrorKind::Server),
            _ => {}
        }
        self.compare();
        self.core.fs.check_invariants();
    }

    fn open_file(&mut self, name: &'static str, empty: bool) {
        let opened = if empty || !self.files.contains_key(name) {
            self.core.create(name)
        } else {
            self.core.open_to_write(name)
        };
        let (ino, fh) = opened.unwrap_or_else(|error| panic!("open {name}: {error:?}"));
        let content = self.files.entry(name).or_default();
        if empty {
            content.borrow_mut().clear();
        }
        self.open.push((ino, fh, Rc::clone(content)));
    }

    fn set_size(&self, ino: Ino, size: u16, fh: Option<Fh>) {
        let set = kvfs::fs::write::setattr::SetAttr {
            size: Some(u64::from(size)),
            ..Default::default()
        };
        self.core.fs.setattr(ino, &set, fh, patient()).expect("set");
    }

    /// An upload that fails for a moment is asked for again.
    fn surely(&self, mut work: impl FnMut(&Core) -> Result<(), kvfs::fs::FsError>) {
        if work(self.core).is_err() {
            self.core.faults.clear_faults(Call::Put);
            work(self.core).expect("the second time");
        }
    }

    fn close(&self, fh: Fh) {
        self.surely(|core| core.fs.fsync(fh, patient()));
        self.core.faults.clear_faults(Call::Put);
        self.core.close(fh).expect("closed");
    }

    fn compare(&mut self) {
        for name in NAMES {
            let found = self.core.lookup(name).expect("an answer");
            let expected = self.files.get(name);
            assert_eq!(found.is_some(), expected.is_some(), "does {name} exist?");
            let Some((reply, content)) = found.zip(expected) else {
                continue;
            };
            assert_eq!(
                reply.attr.size,
                content.borrow().len() as u64,
                "size of {name}"
            );
            self.core.fs.forget(reply.attr.ino, 1);
            let bytes = self.core.cat(name).expect("its bytes");
            assert!(bytes == *content.borrow(), "{name} has other bytes");
        }
        for (ino, fh, content) in &self.open {
            let bytes = self.core.read_all(*fh).expect("an open file");
            assert!(bytes == *content.borrow(), "an open file has other bytes");
            let size = self
                .core
                .fs
                .getattr(*ino, patient())
                .expect("open")
                .attr
                .size;
            assert_eq!(size, bytes.len() as u64, "fstat of an open file");
        }
        let mut listed: Vec<(String, u64)> = self
            .core
            .list()
            .expect("a listing")
            .into_iter()
            .map(|(name, reply)| (name.to_string_lossy().into_owned(), reply.attr.size))
            .collect();
        listed.sort();
        let mut expected: Vec<(String, u64)> = self
            .files
            .iter()
            .map(|(name, content)| ((*name).to_owned(), content.borrow().len() as u64))
            .collect();
        expected.sort();
        assert_eq!(listed, expected);
    }
}

/// Returns what is stored under a key.
fn stored(store: &dyn Store, name: &str) -> Option<Vec<u8>> {
    match store.get(&key(name), &GetRequest::default(), soon()) {
        Ok(GetOutcome::Found(mut found)) => {
            let mut bytes = Vec::new();
            found.body.read_to_end(&mut bytes).expect("a body");
            Some(bytes)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        other => panic!("{name}: {other:?}"),
    }
}

/// Runs in a core that speaks to a store; `store` is that store, from behind.
fn run(setup: Setup, store: &dyn Store, ops: &[Op], cached: bool) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut files = BTreeMap::new();
    for name in &NAMES[..RECORDS] {
        let request = PutRequest {
            content_type: Some("text/x-own".into()),
            ..PutRequest::default()
        };
        store
            .put(&key(name), &request, Upload::Bytes(name.as_bytes()), soon())
            .expect("stored");
        files.insert(*name, Rc::new(RefCell::new(name.as_bytes().to_vec())));
    }
    let mut setup = setup.writable(&dir.path().join("staging"));
    if !cached {
        setup.records.memory_capacity = 0;
        setup.records.ttl = Some(Duration::ZERO);
    }
    let cache = dir.path().join("cache");
    let core = setup.core(cached.then_some(cache.as_path()));
    let mut world = World {
        core: &core,
        files,
        open: Vec::new(),
        counter: 0,
    };
    world.compare();
    for op in ops {
        world.step(op);
    }
    while let Some((_, fh, _)) = world.open.pop() {
        world.close(fh);
    }
    world.compare();
    core.faults.clear_faults(Call::Put);
    assert_eq!(core.fs.finish_writes(), 0);
    for (name, content) in &world.files {
        let stored = stored(store, name);
        if name.ends_with('~') || name.ends_with(".swp") {
            assert_eq!(stored, None, "{name} is scratch");
        } else {
            assert!(
                stored.as_ref() == Some(&*content.borrow()),
                "{name} in the store"
            );
        }
    }
}

fn strategy() -> impl Strategy<Value = (Vec<Op>, bool)> {
    (proptest::collection::vec(op(), 1..40), any::<bool>())
}

#[test]
fn a_changed_store_is_a_folder_as_posix_has_it() {
    let test = |(ops, cached): (Vec<Op>, bool)| {
        let setup = Setup::new(MemoryStore::new());
        let behind = Arc::<MemoryStore>::clone(&setup.store);
        run(setup, &*behind, &ops, cached);
        Ok(())
    };
    let wanted = (2_000, 150_000);
    let config = ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::default()
    };
    operations(
        "writing, memory",
        wanted,
        strategy(),
        &config,
        |value| value.0.len(),
        test,
    );
}

#[test]
fn a_store_that_is_changed_over_http_is_a_folder_as_posix_has_it() {
    let server = TestServer::in_memory();
    let count = Cell::new(0);
    let test = |(ops, cached): (Vec<Op>, bool)| {
        count.set(count.get() + 1);
        let entry = server.another_store(&format!("case-{}", count.get()));
        let mut setup = Setup::new(MemoryStore::new());
        setup.remote = Some(server.open(&entry));
        run(setup, &*entry.store, &ops, cached);
        Ok(())
    };
    let wanted = (400, 30_000);
    let config = ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 500,
        ..ProptestConfig::default()
    };
    operations(
        "writing, HTTP",
        wanted,
        strategy(),
        &config,
        |value| value.0.len(),
        test,
    );
}
