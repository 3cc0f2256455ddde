//! Small contents, many in one file: a SQLite database for each scope, in a folder of its own.
//!
//! INVARIANTS: whatever goes wrong is a miss. A database that is damaged, or of another version, is
//! put out of the way whole and made again (C7). Rows carry checksums, so that nothing rests on the
//! database's own care. A connection is used only while its file has the database's name: another
//! process may have removed or replaced it. Connections that write are closed at once and those that
//! read soon, so that the disk can be made read-only and taken away.
//!
//! There is a rollback journal and no log beside the database: that works without shared memory, on
//! network disks, and for readers of a read-only folder. Nothing is fsynced; what a power cut mixes up
//! does not check out.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::Access;

use crate::base::folders::private_dir;
use crate::base::sync::{self, Condvar, Mutex, thread};
use crate::metrics::Metrics;

mod rows;

use rows::{Name, VERSION, schema};
pub(super) use rows::{NewRow, Space};

/// The folder of a scope that holds the database and its journal.
const FOLDER: &str = "small";
const FILE: &str = "contents.sqlite";
/// How long others may keep the database locked.
const BUSY: Duration = Duration::from_millis(500);
/// How long it is left alone then.
const REST: Duration = Duration::from_secs(5);
/// How long a thread waits for another's change.
const TURN: Duration = Duration::from_secs(2);
/// Connections for reading that are kept, and how long they are after the last use of any.
const MOST_IDLE: usize = 4;
const IDLE: Duration = Duration::from_secs(1);
/// Uses that are noted together, and the most that wait for that.
const USES: usize = 4096;
/// Larger values are no row of ours.
const MOST_BYTES: i32 = 1 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Not now: it is locked, or the disk fails.
    Away(String),
    /// There is none.
    Missing,
    /// The disk is full or read-only; what is there can be read.
    Unwritable(String),
    /// It is not what it should be.
    Broken(String),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        let said = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::ReadOnly) => Self::Unwritable(said),
            Some(
                ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::TooBig
                | ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::Unknown,
            )
            | None => Self::Broken(said),
            Some(_) => Self::Away(said),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::StorageFull
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied => Self::Unwritable(error.to_string()),
            _ => Self::Away(error.to_string()),
        }
    }
}

/// Identifies a file: its device and inode, and when it was made, as inodes are used again.
type FileId = (u64, u64, Option<SystemTime>);

/// The database of one scope.
#[derive(Debug)]
pub(super) struct Database {
    folder: PathBuf,
    /// A folder on the same disk for what is being removed.
    trash: PathBuf,
    keeps_open: bool,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    /// A change has ended.
    turn: Condvar,
    /// Uses wait to be noted.
    tend: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<(Connection, FileId)>,
    /// When a connection was last used.
    last: Option<Instant>,
    /// Whether a thread looks after idle connections and uses.
    is_tended: bool,
    /// Whether a thread is changing the database.
    is_changing: bool,
    /// Until when it is left alone, as it did not answer.
    rests_until: Option<Instant>,
    /// When rows were used, in milliseconds since 1970.
    used: HashMap<Name, i64>,
    /// When the row that was used least lately was used.
    oldest: i64,
}

/// The right to change the database, of one thread of this process at a time.
struct Turn<'a>(&'a Database);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_changing = false;
        self.0.turn.notify_one();
    }
}

impl Database {
    /// Names the database in the folder of a scope; nothing is opened. With `keeps_open` connections
    /// are kept for what is read next.
    pub(super) fn of(
        scope: &Path,
        trash: PathBuf,
        metrics: Arc<Metrics>,
        keeps_open: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            folder: scope.join(FOLDER),
            trash,
            // Explored schedules have no time of their own to close them after.
            keeps_open: keeps_open && cfg!(not(feature = "shuttle")),
            metrics,
            state: Mutex::default(),
            turn: Condvar::new(),
            tend: Condvar::new(),
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Returns which file has the database's name; `None` without one, or where it is empty.
    fn file_id(&self) -> Option<FileId> {
        let found = fs::symlink_metadata(self.path()).ok()?;
        let made = found.created().ok();
        (found.is_file() && found.len() > 0).then(|| (found.dev(), found.ino(), made))
    }

    /// Reads from the database; `None` where there is none, or it does not answer.
    fn read<T>(self: &Arc<Self>, work: impl Fn(&Connection) -> rusqlite::Result<T>) -> Option<T> {
        let file = self.file_id()?;
        if self.rests() {
            return None;
        }
        sync::point();
        let (kept, stale) = self.take(file);
        drop(stale);
        let read = || {
            let connection = match kept {
                Some(kept) => kept,
                None => self.open(OpenFlags::SQLITE_OPEN_READ_ONLY)?,
            };
            let answer = work(&connection)?;
            if self.file_id() == Some(file) {
                self.put_back(connection, file);
            }
            Ok(answer)
        };
        let answer = match read() {
            // What a dead process has left half done is undone by the next change only.
            Err(Trouble::Away(_) | Trouble::Unwritable(_)) if self.has_journal() => {
                self.change(false, &work)
            }
            answer => answer,
        };
        match answer {
            Ok(answer) => Some(answer),
            Err(trouble) => {
                self.note(&trouble, Some(file));
                None
            }
        }
    }

    fn has_journal(&self) -> bool {
        let journal = self.folder.join(format!("{FILE}-journal"));
        journal.metadata().is_ok_and(|found| found.len() > 0)
    }

    /// Changes the database in one transaction; makes it if `creates`. Other trouble than damage is
    /// the caller's.
    fn write<T>(
        &self,
        creates: bool,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Trouble> {
        let file = self.file_id();
        if !creates && file.is_none() {
            return Err(Trouble::Missing);
        }
        if self.rests() {
            return Err(Trouble::Away("it did not answer a moment ago".to_owned()));
        }
        sync::point();
        self.change(creates, work).inspect_err(|trouble| {
            let now = self.file_id();
            self.note(
                trouble,
                now.filter(|now| file.is_none_or(|was| was == *now)),
            );
        })
    }

    fn rests(&self) -> bool {
        let until = self.state.lock().rests_until;
        until.is_some_and(|until| sync::now() < until)
    }

    /// Notes trouble with that file.
    fn note(&self, trouble: &Trouble, file: Option<FileId>) {
        match trouble {
            Trouble::Broken(reason) => self.discard(reason, file),
            // Where it was replaced meanwhile, the next one may answer.
            Trouble::Away(_) if self.file_id() != file => {}
            Trouble::Away(reason) => {
                tracing::debug!("small contents are not cached for a moment: {reason}");
                self.state.lock().rests_until = Some(sync::now() + REST);
            }
            Trouble::Missing | Trouble::Unwritable(_) => {}
        }
    }

    fn change<T>(
        &self,
        creates: bool,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Trouble> {
        let _turn = self.turn()?;
        if creates {
            self.create_file()?;
        }
        let connection = self.open(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let answer = work(&connection)?;
        connection.execute_batch("COMMIT")?;
        Ok(answer)
    }

    fn turn(&self) -> Result<Turn<'_>, Trouble> {
        let until = sync::now() + TURN;
        let mut state = self.state.lock();
        while state.is_changing {
            if sync::now() >= until {
                return Err(Trouble::Away("another change takes long".to_owned()));
            }
            self.turn.wait_until(&mut state, until);
        }
        state.is_changing = true;
        Ok(Turn(self))
    }

    /// Makes an empty file that only its owner may read; SQLite's own would follow the umask.
    fn create_file(&self) -> io::Result<()> {
        let mut options = File::options();
        let options = options.write(true).create_new(true).mode(0o600);
        let created = options.open(self.path()).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            private_dir(&self.folder)?;
            options.open(self.path())
        });
        match created {
            // Closing a file that a connection has open, too, would give up that one's locks.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            created => created.map(drop),
        }
    }

    fn open(&self, access: OpenFlags) -> Result<Connection, Trouble> {
        // Links on the way are fine: the last folder is its owner's alone.
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(self.path(), flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MOST_BYTES)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        let writes = access == OpenFlags::SQLITE_OPEN_READ_WRITE;
        connection.execute_batch(
            "PRAGMA cell_size_check = ON; PRAGMA cache_size = -512; PRAGMA temp_store = MEMORY;
             PRAGMA mmap_size = 0; PRAGMA synchronous = OFF;",
        )?;
        let found = schema::found(&connection)?;
        if writes && connection.is_readonly("main")? {
            return Err(match rustix::fs::access(self.path(), Access::WRITE_OK) {
                Ok(()) => Trouble::Broken("it says that it cannot be changed".to_owned()),
                Err(errno) => Trouble::Unwritable(errno.to_string()),
            });
        }
        if writes {
            connection
                .execute_batch("PRAGMA page_size = 8192; PRAGMA auto_vacuum = INCREMENTAL;")?;
            connection.pragma_update_and_check(None, "journal_mode", "TRUNCATE", |_| Ok(()))?;
        }
        match found {
            None if writes => schema::make(&connection)?,
            None => return Err(Trouble::Missing),
            Some(version) if version == VERSION => {}
            Some(_) => return Err(Trouble::Broken("it is of another version".to_owned())),
        }
        Ok(connection)
    }

    /// Takes a connection to that file; and those to others, to be closed.
    fn take(&self, file: FileId) -> (Option<Connection>, Vec<(Connection, FileId)>) {
        let mut state = self.state.lock();
        let (mut same, others): (Vec<_>, Vec<_>) = std::mem::take(&mut state.idle)
            .into_iter()
            .partition(|(_, of)| *of == file);
        let taken = same.pop().map(|(connection, _)| connection);
        state.idle = same;
        (taken, others)
    }

    fn put_back(self: &Arc<Self>, connection: Connection, file: FileId) {
        if !self.keeps_open {
            return;
        }
        let mut state = self.state.lock();
        if state.idle.len() >= MOST_IDLE {
            drop(state);
            return;
        }
        state.idle.push((connection, file));
        state.last = Some(sync::now());
        if state.is_tended {
            return;
        }
        state.is_tended = true;
        drop(state);
        let database = Arc::clone(self);
        let tends = thread::Builder::new()
            .name("kvfs-rows".into())
            .spawn(move || database.tend());
        if tends.is_err() {
            let idle = {
                let mut state = self.state.lock();
                state.is_tended = false;
                std::mem::take(&mut state.idle)
            };
            drop(idle);
        }
    }

    /// Notes uses, and closes connections once none has been used for a while.
    fn tend(&self) {
        let mut state = self.state.lock();
        loop {
            let until = state.last.unwrap_or_else(sync::now) + IDLE;
            let is_idle = sync::now() >= until;
            if is_idle || state.used.len() >= USES {
                let used = std::mem::take(&mut state.used);
                drop(state);
                self.note_uses(&used);
                state = self.state.lock();
            }
            if is_idle && state.last.is_none_or(|last| last + IDLE <= sync::now()) {
                state.is_tended = false;
                let idle = std::mem::take(&mut state.idle);
                drop(state);
                drop(idle);
                return;
            }
            if state.used.len() < USES {
                self.tend.wait_until(&mut state, until);
            }
        }
    }

    /// Puts a database out of the way that is not what it should be.
    fn discard(&self, reason: &str, file: Option<FileId>) {
        if file.is_none() || self.file_id() != file {
            return;
        }
        tracing::warn!(
            "the cache of small records {} is broken ({reason}); making it again",
            self.path().display()
        );
        self.metrics.cache_healed.one();
        self.remove_all();
    }

    /// Removes the database, at once for all processes.
    pub(super) fn remove_all(&self) {
        if let Err(error) = remove_folder(&self.folder, &self.trash) {
            tracing::debug!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// Removes a folder that others may be using: at once, by a name of its own in `trash`.
pub(super) fn remove_folder(folder: &Path, trash: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(trash)?;
    let away = trash.join(format!("{:016x}.tmp", fastrand::u64(..)));
    match fs::rename(folder, &away) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    fs::remove_dir_all(away)
}
