//! A mount without a kernel, which can be killed, mounted again and recovered from. What of kvfs is
//! not the filesystem itself is used here only.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvfs::base::clock::{Clock, Deadline, SystemClock, Wait};
use kvfs::cache::records::{Records, RecordsConfig};
use kvfs::fs::types::{Ino, Lookup};
use kvfs::fs::write::WriteConfig;
use kvfs::fs::{FsConfig, FsError, KvFs};
use kvfs::local::memory::MemoryStore;
use kvfs::metrics::Metrics;
use kvfs::staging::StagingFolder;
use kvfs::staging::{Why, owner, report};
use kvfs::store::Store;
use kvfs::upload::{Uploader, UploaderConfig};

use super::turnstile::{Front, Pausing, Shifted, Turnstile};
use crate::support::core::{Names, TTL, write_config};

/// The longest that anything waits. Nothing is to wait so long: what does is a hang.
pub const DEADLINE: Duration = Duration::from_secs(8);

/// The longest that a step may wait when all others are answered.
pub const HANG: Duration = Duration::from_secs(3);

/// A process number that no process has.
const DEAD: u32 = 4_194_303;

/// How the mount and its server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    pub write_back: bool,
    pub etags: bool,
    /// Uploads in the background wait until somebody waits for them.
    pub lazy: bool,
}

/// What is in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub id: String,
    pub key: String,
    pub content: Bytes,
    /// The store refused it; whether because the record had changed.
    pub refused: Option<bool>,
}

/// One mount.
#[derive(Debug)]
pub struct Mount {
    pub fs: Arc<KvFs>,
    clock: Shifted,
    pub turnstile: Arc<Turnstile>,
    pub number: u32,
    uploader: Arc<Uploader>,
    dir: PathBuf,
    full: PathBuf,
}

impl Mount {
    fn new(turnstile: &Arc<Turnstile>, number: u32, dir: &Path, mode: Mode) -> Arc<Self> {
        let metrics = Arc::new(Metrics::default());
        let clock = Shifted::default();
        let shared: Arc<dyn Clock> = Arc::new(Pausing {
            clock: clock.clone(),
            turnstile: Arc::clone(turnstile),
            mount: number,
        });
        let store: Arc<dyn Store> = Arc::new(Front {
            turnstile: Arc::clone(turnstile),
            mount: number,
            conditions: mode.etags,
        });
        let records = RecordsConfig {
            raw: false,
            max_content: None,
            ttl: Some(TTL),
            clock_lag: None,
            asks_each_time: true,
            keeps_plain_sizes: false,
            memory_capacity: 1 << 20,
        };
        let records = Records::new(
            Arc::clone(&store),
            records,
            None,
            Arc::clone(&shared),
            Arc::clone(&metrics),
        );
        let mut write = WriteConfig {
            write_back: mode.write_back,
            deadline: DEADLINE,
            ..write_config(dir)
        };
        let uploader = Uploader::new(
            Arc::clone(&store),
            Arc::clone(write.staging.journal()),
            uploader_config(),
            Arc::clone(&shared),
            Arc::clone(&metrics),
        );
        write.uploader = Some(Arc::clone(&uploader));
        let config = FsConfig {
            write: Some(write),
            ..FsConfig::default()
        };
        let fs = Arc::new(KvFs::new(store, records, config, shared, metrics));
        fs.start_uploads();
        Arc::new(Self {
            fs,
            clock,
            turnstile: Arc::clone(turnstile),
            number,
            uploader,
            dir: dir.to_owned(),
            full: dir.with_extension("full"),
        })
    }

    /// Returns whether an upload waits or runs.
    pub fn is_uploading(&self) -> bool {
        !self.uploader.pending().is_empty()
    }

    /// Makes the journal take nothing more, as on a full disk, or lets it.
    pub fn set_full(&self, full: bool) {
        let scope = self.dir.join(kvfs::staging::FOLDER).join("test");
        let away = &self.full;
        let _ = match full {
            true => fs::rename(&scope, away),
            false => fs::rename(away, &scope),
        };
    }

    /// Reads a file as `cat` does; `None` where there is none.
    pub fn cat(&self, name: &str) -> Result<Option<Bytes>, FsError> {
        let wait = patient();
        for _ in 0..2 {
            let found = self.fs.lookup(Ino::ROOT, OsStr::new(name), wait)?;
            let Lookup::Found(reply) = found else {
                return Ok(None);
            };
            let ino = reply.attr.ino;
            let opened = match self.fs.open(ino, false, wait) {
                Ok(opened) => opened,
                Err(FsError::Stale) => continue,
                Err(FsError::NoEntry) => return Ok(None),
                Err(error) => return Err(error),
            };
            let bytes = self.fs.read(opened.fh, 0, 1000, wait);
            self.fs.release(opened.fh);
            self.fs.forget(ino, 1);
            return bytes.map(Some);
        }
        Err(FsError::Stale)
    }

    /// Lists the names as `ls` does.
    pub fn list(&self) {
        let fh = self.fs.opendir(Ino::ROOT).expect("the root");
        let mut names = Names::default();
        let listed = self.fs.readdir(fh, 0, false, &mut names, patient());
        listed.expect("a listing");
        self.fs.releasedir(fh);
    }

    /// Lets all that was believed be asked for again, and stores what was held back.
    pub fn later(&self) {
        self.clock.shift(TTL * 3);
        self.uploader.look();
    }

    /// Returns what is on the disk of this mount's journal.
    pub fn journal(&self) -> Vec<Kept> {
        read_journal(&self.dir)
    }

    pub fn stop(&self) {
        self.uploader.stop();
    }
}

fn uploader_config() -> UploaderConfig {
    UploaderConfig {
        first_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(2),
        ..UploaderConfig::new(DEADLINE)
    }
}

pub fn patient() -> Wait {
    Wait::Until(Deadline::after(DEADLINE))
}

/// A mount, and what comes after it.
#[derive(Debug)]
pub struct Rig {
    pub turnstile: Arc<Turnstile>,
    pub mode: Mode,
    pub mount: Arc<Mount>,
    /// Whether the mount may serve another run.
    pub fit: bool,
    base: PathBuf,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.turnstile.bury(u32::MAX);
        self.mount.stop();
        let _ = fs::remove_dir_all(&self.base);
    }
}

static SERIAL: AtomicU32 = AtomicU32::new(0);

impl Rig {
    pub fn new(mode: Mode) -> Self {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let base = folder_of(std::process::id()).join(serial.to_string());
        let memory = MemoryStore::new()
            .with_etags(mode.etags)
            .with_last_modified(false);
        let turnstile = Turnstile::new(Arc::new(memory));
        turnstile.set_open(true);
        let mount = Mount::new(&turnstile, 1, &base.join("1"), mode);
        Self {
            turnstile,
            mode,
            mount,
            fit: true,
            base,
        }
    }

    /// Ends the mount as `kill -9` does; what it left is in the folder of which this returns the
    /// number.
    pub fn kill(&mut self) -> u32 {
        let next = self.mount.number + 1;
        let to = self.base.join(next.to_string());
        self.mount.set_full(false);
        copy_settled(&self.mount.dir, &to);
        self.turnstile.bury(next);
        self.mount.stop();
        next
    }

    /// Mounts what is in the folder of that number.
    pub fn mount(&mut self, number: u32) {
        let dir = self.base.join(number.to_string());
        self.mount = Mount::new(&self.turnstile, number, &dir, self.mode);
    }

    /// Returns what is in the journal of the folder of that number.
    pub fn left(&self, number: u32) -> Vec<Kept> {
        read_journal(&self.base.join(number.to_string()))
    }

    /// Does what `kvfs recover --upload` does with the folder of that number.
    pub fn recover(&self, number: u32) {
        let dir = self.base.join(number.to_string());
        let store: Arc<dyn Store> = Arc::new(Front {
            turnstile: Arc::clone(&self.turnstile),
            mount: number,
            conditions: self.mode.etags,
        });
        let Ok(scopes) = report::scan(&dir) else {
            return;
        };
        for scope in scopes {
            // What another client's change is in the way of is left to a person.
            let items = scope.items.iter().filter(|item| !item.conflict);
            let wanted: Vec<String> = items.map(|item| item.id.clone()).collect();
            let folder = StagingFolder::adopt(&dir, &scope.name, scope.store.as_ref());
            let folder = folder.expect("the folder of a dead mount");
            let journal = folder.journal();
            let uploader = Uploader::new(
                Arc::clone(&store),
                Arc::clone(journal),
                uploader_config(),
                Arc::new(SystemClock),
                Arc::new(Metrics::default()),
            );
            let ours = journal.entries().into_iter();
            let ours = ours.filter(|entry| wanted.iter().any(|id| *id == entry.id.as_str()));
            for entry in ours.filter(|entry| entry.pending.why.is_failed()) {
                uploader.send_again(&entry.id, true).expect("sent again");
            }
            uploader.enqueue(&wanted);
            uploader.wait_all(Deadline::after(DEADLINE));
            uploader.stop();
        }
    }
}

/// What the folders of all processes that run histories begin with.
const FOLDERS: &str = "kvfs-histories-";

/// Returns the folder for what need not survive: in memory where there is one.
fn memory_folder() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

fn folder_of(process: u32) -> PathBuf {
    memory_folder().join(format!("{FOLDERS}{process}"))
}

/// The folders of this process, as long as anything of it runs histories; those that killed processes
/// have left behind are removed before.
#[derive(Debug)]
pub struct Folders;

static USERS: AtomicU32 = AtomicU32::new(0);

impl Folders {
    pub fn new() -> Self {
        USERS.fetch_add(1, Ordering::AcqRel);
        for entry in fs::read_dir(memory_folder())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let process = name
                .strip_prefix(FOLDERS)
                .and_then(|rest| rest.parse().ok());
            if process.is_some_and(|process: u32| !Path::new(&format!("/proc/{process}")).exists())
            {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Self
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        if USERS.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // A thread of a mount that was killed may just write to it.
        let folder = folder_of(std::process::id());
        let until = Instant::now() + HANG;
        while folder.exists() && Instant::now() < until {
            let _ = fs::remove_dir_all(&folder);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Returns what waits or was refused in the staging folder `dir`, as it is on the disk.
fn read_journal(dir: &Path) -> Vec<Kept> {
    let scope = dir.join(kvfs::staging::FOLDER).join("test");
    let mut kept = Vec::new();
    for folder in owner::owners(&scope).into_iter().flatten() {
        // It may just be ending.
        let Ok(contents) = owner::contents(&folder) else {
            continue;
        };
        for found in contents.entries {
            let Ok(mut data) = fs::read(owner::data_path(&folder, &found.id)) else {
                continue;
            };
            data.truncate(usize::try_from(found.pending.size).unwrap_or(usize::MAX));
            kept.push(Kept {
                id: found.id.to_string(),
                key: found.pending.key.to_string(),
                content: data.into(),
                refused: match &found.pending.why {
                    Why::WriteBack => None,
                    why @ Why::Failed { .. } => Some(why.is_conflict()),
                },
            });
        }
    }
    kept.sort_by(|a, b| a.id.cmp(&b.id));
    kept
}

/// Copies a staging folder as a crash leaves it: when nothing in it moves.
fn copy_settled(from: &Path, to: &Path) {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let before = fingerprint(from);
        let _ = fs::remove_dir_all(to);
        copy_tree(from, to);
        if fingerprint(from) == before || Instant::now() > until {
            return;
        }
    }
}

/// Returns names, sizes and inodes of all files below.
fn fingerprint(dir: &Path) -> Vec<(PathBuf, u64, u64)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        all.push((entry.path(), meta.len(), meta.ino()));
        if meta.is_dir() {
            all.extend(fingerprint(&entry.path()));
        }
    }
    all.sort();
    all
}

fn copy_tree(from: &Path, to: &Path) {
    let _ = fs::create_dir_all(to);
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let own = format!("{}-", std::process::id());
        let name = match name.strip_prefix(&own) {
            // Its owner is dead by then.
            Some(rest) => format!("{DEAD}-{rest}"),
            None => name,
        };
        let target = to.join(name);
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            let _ = fs::copy(entry.path(), target);
        }
    }
    restrict(to);
}

fn restrict(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
}
