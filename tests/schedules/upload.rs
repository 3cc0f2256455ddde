//! Gates, queues and journal: threads close, delete and rename two files while uploads are under way.
//! Whenever anything changes, store and journal are compared with what was acknowledged (W1, W2 and W4
//! of `upload`), as if the daemon was killed at that moment.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvfs::base::clock::{Deadline, SystemClock};
use kvfs::base::sync::{now, thread};
use kvfs::local::memory::MemoryStore;
use kvfs::metrics::Metrics;
use kvfs::staging::folder::StoreFile;
use kvfs::staging::{JournalEntry, Pending, StagingConfig, StagingFolder, Why, owner};
use kvfs::store::reference::StoreRef;
use kvfs::store::{
    ETag, Encoding, ErrorKind, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest,
    RecordMeta, Result, Store, StoreError, StoreInfo, Upload as Body,
};
use kvfs::upload::{Change, Submission, Upload, UploadObserver, Uploader, UploaderConfig};
use shuttle::rand::{Rng, thread_rng};

use crate::explore;
use crate::stage::{assert_nobody_overslept, folder, key};

type Name = usize;

const NAMES: [&str; 2] = ["a", "b"];
/// How long a request takes to come to the store, and its answer to come back.
const WAY: Duration = Duration::from_millis(1);

/// What a program did to a name.
#[derive(Debug)]
struct Op {
    name: Name,
    /// What it made of it; `None`: it deleted it.
    text: Option<String>,
    began: u64,
    ended: Option<u64>,
    /// It was told that it has succeeded.
    certain: bool,
}

/// What a file is for the mount.
#[derive(Debug, Default)]
struct Shown {
    /// Another number when the name has changed hands.
    file: u64,
    text: Option<String>,
    /// A rename gives its name to another file, which is safe already.
    taken: bool,
    /// The version that the next close replaces.
    base: Option<ETag>,
    unanswered: kvfs::staging::UnansweredUploads,
}

/// All that is known outside of what is explored. No thread waits while it holds the lock.
#[derive(Debug, Default)]
struct Notes {
    now: u64,
    ops: Vec<Op>,
    shown: [Shown; 2],
    /// A change of the record is under way.
    busy: [bool; 2],
    /// What changed the records, by the number of the operation.
    effects: [Vec<usize>; 2],
}

impl Notes {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn begin(&mut self, name: Name, text: Option<String>) -> usize {
        let began = self.tick();
        self.ops.push(Op {
            name,
            text,
            began,
            ended: None,
            certain: false,
        });
        self.ops.len() - 1
    }

    /// Returns what a name may have: what nothing that has happened came after.
    fn allowed(&self, name: Name) -> Vec<Option<String>> {
        let ours = || self.ops.iter().filter(|op| op.name == name);
        let certain = || ours().filter(|op| op.certain);
        let open = ours()
            .filter(|op| certain().all(|later| op.ended.is_none_or(|ended| later.began <= ended)));
        let start = certain().next().is_none().then_some(None);
        open.map(|op| op.text.clone()).chain(start).collect()
    }

    /// W4: what a change makes of a record is not older than what made it what it is.
    fn changed(&mut self, name: Name, text: Option<&str>) {
        let ours = self.ops.iter().enumerate();
        let mut made = ours.filter(|(_, op)| op.name == name && op.text.as_deref() == text);
        let Some((index, _)) = made.next_back() else {
            panic!("{} becomes {text:?}, which nobody made it", NAMES[name]);
        };
        if text.is_some() {
            let ended = self.ops[index].ended.unwrap_or(u64::MAX);
            let newer = self.effects[name].iter().find(|newer| {
                let newer = &self.ops[**newer];
                // Of what has failed a program was told that it is not there.
                newer.began > ended && (newer.certain || newer.ended.is_none())
            });
            assert!(
                newer.is_none(),
                "W4: {} becomes {text:?} after {:?}",
                NAMES[name],
                newer.map(|newer| &self.ops[*newer].text)
            );
        }
        self.effects[name].push(index);
    }
}

/// What goes wrong at the store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    Nothing,
    Passing,
    /// Some uploads are refused, too.
    Refusals,
}

/// The store, and what is around what is explored.
#[derive(Debug)]
struct World {
    memory: MemoryStore,
    notes: Mutex<Notes>,
    trouble: Trouble,
    dir: tempfile::TempDir,
    folder: Arc<StagingFolder>,
}

impl World {
    fn new(trouble: Trouble) -> Arc<Self> {
        let dir = folder();
        let config = StagingConfig {
            dir: dir.path().to_owned(),
            scope: "test".into(),
            store: StoreFile {
                reference: "test".into(),
                open: StoreRef::Directory("/test".into()),
                api_url: None,
            },
            limit: None,
        };
        let folder = StagingFolder::open(&config).expect("a staging folder");
        Arc::new(Self {
            memory: MemoryStore::new(),
            notes: Mutex::default(),
            trouble,
            dir,
            folder,
        })
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// W1: if the daemon was killed now, every name would have what was acknowledged, in the store or
    /// in what the next mount uploads; or it is kept, because it was refused.
    fn check(&self, when: &str) {
        let notes = self.notes();
        let scope = self.dir.path().join(kvfs::staging::FOLDER).join("test");
        let mut entries = Vec::new();
        for folder in owner::owners(&scope).expect("the folder") {
            let found = owner::contents(&folder).expect("the entries");
            for found in found.entries {
                let bytes = std::fs::read(owner::data_path(&folder, &found.id)).expect("its bytes");
                let text = String::from_utf8(bytes).expect("text");
                entries.push((found.id, found.pending, text));
            }
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, text) in NAMES.iter().enumerate() {
            let ours = || {
                let ours = entries.iter();
                ours.filter(|(_, pending, _)| pending.key.as_str() == *text)
            };
            let allowed = notes.allowed(name);
            let waiting = ours().rfind(|(_, pending, _)| !pending.why.is_failed());
            let stored = self.memory.bytes(text);
            let stored = stored.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let becomes = waiting.map(|(_, _, text)| text.clone()).or(stored);
            let kept = ours().filter(|(_, pending, _)| pending.why.is_failed());
            let mut kept = kept.map(|(_, _, text)| Some(text.clone()));
            assert!(
                allowed.contains(&becomes) || kept.any(|kept| allowed.contains(&kept)),
                "W1: {when} {text} would be {becomes:?}, which is none of {allowed:?}"
            );
        }
    }

    fn end(&self, op: usize, certain: bool) {
        {
            let mut notes = self.notes();
            let ended = notes.tick();
            (notes.ops[op].ended, notes.ops[op].certain) = (Some(ended), certain);
        }
        self.check("at the end of a call");
    }

    /// A change of a record: comes to the store, fails or happens there, and is answered.
    fn change<T>(
        &self,
        key: &Key,
        text: Option<&str>,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let name = name_of(key);
        let was_busy = std::mem::replace(&mut self.notes().busy[name], true);
        assert!(!was_busy, "W2: two changes of {key} are under way");
        thread::sleep(WAY);
        let luck = match self.trouble {
            Trouble::Nothing => 9,
            Trouble::Passing => thread_rng().gen_range(1..6),
            Trouble::Refusals => thread_rng().gen_range(0..6),
        };
        let answer = match luck {
            0 => Err(StoreError::new(ErrorKind::Denied, "refused")),
            1 => Err(StoreError::new(ErrorKind::Network, "it does not arrive")),
            _ => work().inspect(|_| self.notes().changed(name, text)),
        };
        self.check("after a change of the store");
        thread::sleep(WAY);
        self.notes().busy[name] = false;
        if luck == 2 && answer.is_ok() {
            return Err(StoreError::new(ErrorKind::Network, "the answer is lost"));
        }
        answer
    }
}

fn name_of(key: &Key) -> Name {
    usize::from(key.as_str() == NAMES[1])
}

impl Store for World {
    fn info(&self) -> StoreInfo {
        self.memory.info()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        self.memory.list_page(query, deadline)
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        thread::sleep(WAY);
        self.memory.head(key, deadline)
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        thread::sleep(WAY);
        self.memory.get(key, request, deadline)
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Body<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let Body::File(file, size) = body else {
            panic!("not a file");
        };
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0).expect("its bytes");
        let text = String::from_utf8(bytes).expect("text");
        self.change(key, Some(&text), || {
            self.memory.put(key, request, body, deadline)
        })
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        self.change(key, None, || self.memory.delete(key, deadline))
    }
}

/// The side of the filesystem.
struct Mount {
    world: Arc<World>,
    uploader: Arc<Uploader>,
    /// How long a program waits for its turn.
    patience: Duration,
}

impl UploadObserver for Mount {
    fn uploaded(&self, entry: &JournalEntry, _: &Arc<File>, meta: &RecordMeta) {
        let shown = &mut self.world.notes().shown[name_of(&entry.pending.key)];
        shown.base.clone_from(&meta.etag);
        shown.unanswered.clear();
    }

    fn failed(&self, entry: &JournalEntry, error: &StoreError) {
        let is_conflict = error.kind() == ErrorKind::Changed;
        assert!(!is_conflict, "nobody else has changed {entry:?}: {error}");
    }
}

impl Mount {
    fn new(world: &Arc<World>, patience: Duration) -> Arc<Self> {
        let config = UploaderConfig {
            parallel: 2,
            first_delay: Duration::from_millis(4),
            max_delay: Duration::from_millis(16),
            ..UploaderConfig::new(Duration::from_secs(3600))
        };
        let uploader = Uploader::new(
            Arc::<World>::clone(world),
            Arc::clone(world.folder.journal()),
            config,
            Arc::new(SystemClock),
            Arc::new(Metrics::default()),
        );
        Arc::new(Self {
            world: Arc::clone(world),
            uploader,
            patience,
        })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.patience)
    }

    fn upload<'a>(&self, name: Name, text: &str, file: &'a File) -> Upload<'a> {
        file.write_all_at(text.as_bytes(), 0).expect("room");
        Upload {
            id: self.world.folder.journal().stamp(),
            pending: Pending {
                key: key(NAMES[name]),
                content_type: None,
                encoding: Encoding::Identity,
                if_match: None,
                if_absent: false,
                size: text.len() as u64,
                is_new: false,
                closed_at: jiff::Timestamp::UNIX_EPOCH,
                why: Why::WriteBack,
                attempts: 0,
                unanswered: Default::default(),
                began: None,
            },
            file,
        }
    }

    /// Closes a file that has been written: in the background, or on the thread that waits.
    fn close(&self, name: Name, text: &str, waits: bool) {
        let op = self.world.notes().begin(name, Some(text.into()));
        let opened = self.world.notes().shown[name].file;
        let file = self.world.folder.new_file().expect("a staging file");
        let mut upload = self.upload(name, text, &file);
        let is_named = || {
            let shown = &self.world.notes().shown[name];
            shown.file == opened && !shown.taken
        };
        if !waits {
            let confirm = |pending: &mut Pending, first: bool| {
                if first {
                    let shown = &self.world.notes().shown[name];
                    pending.if_match.clone_from(&shown.base);
                    pending.unanswered.clone_from(&shown.unanswered);
                }
                is_named()
            };
            let how = Submission {
                run_here: thread_rng().gen_range(0..2) == 0,
                ..Submission::default()
            };
            let journalled = self
                .uploader
                .submit(&upload, how, self.deadline(), confirm, |_| {
                    self.world.notes().shown[name].text = Some(text.into());
                });
            let journalled = journalled.expect("room");
            return self.world.end(op, journalled.is_some());
        }
        let key = key(NAMES[name]);
        let certain = match self
            .uploader
            .enter(&[&key], Change::Upload, self.deadline())
        {
            Ok(entered) if is_named() => {
                upload.id = self.world.folder.journal().stamp();
                {
                    let shown = &self.world.notes().shown[name];
                    upload.pending.if_match.clone_from(&shown.base);
                    upload.pending.unanswered.clone_from(&shown.unanswered);
                }
                let stored = entered.run(&mut upload, self.deadline(), true);
                let shown = &mut self.world.notes().shown[name];
                match stored {
                    Ok(meta) => {
                        (shown.text, shown.base) = (Some(text.into()), meta.etag);
                        shown.unanswered.clear();
                        true
                    }
                    Err(error) => {
                        assert_ne!(error.kind(), ErrorKind::Changed, "{error}");
                        shown.unanswered = upload.pending.unanswered;
                        false
                    }
                }
            }
            Ok(_) => false,
            Err(late) => {
                assert!(self.is_hasty(), "{late}");
                self.uploader.keep_failed(&mut upload, late);
                false
            }
        };
        self.world.end(op, certain);
    }

    fn is_hasty(&self) -> bool {
        self.patience < Duration::from_secs(60)
    }

    fn unlink(&self, name: Name) {
        let op = self.world.notes().begin(name, None);
        let key = key(NAMES[name]);
        let entered = match self.uploader.enter(&[&key], Change::Name, self.deadline()) {
            Ok(entered) => entered,
            Err(late) => {
                assert!(self.is_hasty(), "{late}");
                return self.world.end(op, false);
            }
        };
        let deleted = entered.delete(&key, self.deadline()).is_ok();
        if deleted {
            entered.discard(&key, || {
                let shown = &mut self.world.notes().shown[name];
                *shown = Shown {
                    file: shown.file + 1,
                    ..Shown::default()
                };
                true
            });
        }
        drop(entered);
        self.world.end(op, deleted);
    }

    /// Renames a file, as `fs::write::rename` does with one that was changed.
    fn rename(&self, from: Name, to: Name, waits: bool) {
        let keys = [from, to].map(|name| key(NAMES[name]));
        let names = [&keys[0], &keys[1]];
        let Ok(entered) = self.uploader.enter(&names, Change::Name, self.deadline()) else {
            assert!(self.is_hasty(), "late");
            return;
        };
        let Some(mut text) = self.world.notes().shown[from].text.clone() else {
            return;
        };
        let gone = self.world.notes().begin(from, None);
        let mut deleted = false;
        let mut made = Vec::new();
        let take = || self.world.notes().shown[to].taken = true;
        let switched = loop {
            let new = format!("{text}>{}", NAMES[to]);
            made.push(self.world.notes().begin(to, Some(new.clone())));
            let file = self.world.folder.new_file().expect("a staging file");
            let mut upload = self.upload(to, &new, &file);
            let mut base = None;
            if waits {
                match entered.run(&mut upload, self.deadline(), false) {
                    Ok(meta) => base = meta.etag,
                    Err(_) => {
                        let shown = &mut self.world.notes().shown[to];
                        shown.unanswered.extend(&upload.pending.unanswered);
                        break false;
                    }
                }
                entered.discard(&keys[1], || {
                    take();
                    true
                });
            } else {
                let submitted = self.uploader.submit(
                    &upload,
                    Submission::default(),
                    self.deadline(),
                    |_, _| true,
                    |_| take(),
                );
                submitted.expect("room");
            }
            if !deleted && entered.delete(&keys[0], self.deadline()).is_err() {
                break false;
            }
            deleted = true;
            let mut renamed = false;
            entered.discard(&keys[0], || {
                let mut notes = self.world.notes();
                let now = notes.shown[from].text.clone();
                renamed = now.as_ref() == Some(&text);
                if !renamed {
                    text = now.expect("it has its name");
                    return false;
                }
                let next = notes.shown[from].file + 1;
                notes.shown[from] = Shown {
                    file: next,
                    ..Shown::default()
                };
                let next = notes.shown[to].file + 1;
                notes.shown[to] = Shown {
                    file: next,
                    text: Some(new.clone()),
                    base,
                    ..Shown::default()
                };
                true
            });
            if renamed {
                break true;
            }
        };
        if deleted && !switched {
            entered.forget_version(&keys[0]);
            let shown = &mut self.world.notes().shown[from];
            shown.base = None;
            shown.unanswered.clear();
        }
        {
            // Half way it has another file's name, too.
            let shown = &mut self.world.notes().shown[to];
            if shown.taken {
                *shown = Shown {
                    file: shown.file + 1,
                    ..Shown::default()
                };
            }
        }
        drop(entered);
        let last = made.pop();
        for op in made {
            self.world.end(op, false);
        }
        if let Some(op) = last {
            self.world.end(op, switched);
        }
        self.world.end(gone, switched);
    }
}

/// Each thread does a few things to two names, chosen at random.
fn crowd(trouble: Trouble, patience: Duration) {
    let world = World::new(trouble);
    let mount = Mount::new(&world, patience);
    let observer: Arc<dyn UploadObserver> = Arc::<Mount>::clone(&mount);
    mount.uploader.start(Arc::downgrade(&observer));
    let begun = now();
    thread::scope(|scope| {
        for number in 0..3 {
            let mount = &mount;
            scope.spawn(move || {
                for round in 0..2 {
                    let name = thread_rng().gen_range(0..2);
                    let waits = thread_rng().gen_range(0..2) == 0;
                    match thread_rng().gen_range(0..5) {
                        0 => mount.unlink(name),
                        1 => mount.rename(name, 1 - name, waits),
                        _ => mount.close(name, &format!("{number}.{round}"), waits),
                    }
                }
            });
        }
    });
    // In a hurry a deadline passes at any moment.
    let mut tries = if mount.is_hasty() { 1000 } else { 1 };
    let mut left = mount.uploader.wait_all(Deadline::after(LONG));
    while !left.is_empty() && tries > 1 {
        tries -= 1;
        left = mount.uploader.wait_all(Deadline::after(LONG));
    }
    assert!(left.is_empty(), "left: {left:?}");
    if !mount.is_hasty() {
        assert_nobody_overslept(begun);
    }
    world.check("in the end");
    for name in NAMES {
        let kept = world.folder.journal().of_key(&key(name));
        assert!(kept.len() <= 1, "W4: superseded, and kept: {kept:?}");
    }
    mount.uploader.stop();
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn what_is_closed_deleted_and_renamed_at_once_is_never_lost_nor_older_than_before() {
    explore("gates", 120, 0, || crowd(Trouble::Nothing, LONG));
}

#[test]
fn what_the_store_refuses_or_leaves_unanswered_is_kept_or_found_out() {
    explore("unanswered", 80, 0, || crowd(Trouble::Passing, LONG));
    explore("refused", 80, 0, || crowd(Trouble::Refusals, LONG));
}

#[test]
fn who_waits_too_long_for_a_gate_leaves_it_to_others_and_keeps_the_bytes() {
    let patience = Duration::from_millis(3);
    explore("late", 50, 0, move || crowd(Trouble::Nothing, patience));
    explore("late_at_any_moment", 50, 30, move || {
        crowd(Trouble::Nothing, patience);
    });
}
