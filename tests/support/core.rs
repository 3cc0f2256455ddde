//! The filesystem core over a store in memory, with time moved by hand and no kernel.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvfs::base::clock::{Clock, Deadline, SystemClock, Wait};
use kvfs::base::manual_clock::ManualClock;
use kvfs::cache::records::{Records, RecordsConfig};
use kvfs::disk::DiskTier;
use kvfs::fs::types::{AttrReply, DirSink, Fh, FileKind, Ino, KernelCache, Lookup};
use kvfs::fs::write::scratch::ScratchRules;
use kvfs::fs::write::{Overwrite, WriteConfig};
use kvfs::fs::{FsConfig, FsError, KvFs};
use kvfs::local::fault::FaultStore;
use kvfs::local::memory::MemoryStore;
use kvfs::metrics::Metrics;
use kvfs::staging::folder::StoreFile;
use kvfs::staging::{StagingConfig, StagingFolder};
use kvfs::store::Store;
use kvfs::store::reference::StoreRef;
use kvfs::upload::{Uploader, UploaderConfig};
use parking_lot::Mutex;

/// The metadata TTL of the cores under test.
pub const TTL: Duration = Duration::from_secs(10);

/// What a core under test is made of; change the fields, then [`Setup::core`].
pub struct Setup {
    pub store: Arc<MemoryStore>,
    /// What the core speaks to instead of `store`.
    pub remote: Option<Arc<dyn Store>>,
    pub records: RecordsConfig,
    pub fs: FsConfig,
    pub disk_capacity: u64,
    pub scope: &'static str,
}

impl Setup {
    pub fn new(store: MemoryStore) -> Self {
        Self {
            store: Arc::new(store),
            remote: None,
            records: RecordsConfig {
                raw: false,
                max_content: None,
                ttl: Some(TTL),
                clock_lag: None,
                asks_each_time: false,
                keeps_plain_sizes: false,
                memory_capacity: 64 << 20,
            },
            fs: FsConfig::default(),
            disk_capacity: 1 << 30,
            scope: "test",
        }
    }

    /// Lets the store be changed; staging files are in `dir`.
    pub fn writable(mut self, dir: &Path) -> Self {
        self.fs.write = Some(write_config(dir));
        self
    }

    /// The same with `--write-back`.
    pub fn write_back(mut self, dir: &Path) -> Self {
        self.fs.write = Some(WriteConfig {
            write_back: true,
            ..write_config(dir)
        });
        self
    }

    /// Makes a core; with a folder it has a disk cache there.
    pub fn core(&self, cache: Option<&Path>) -> Core {
        let metrics = Arc::new(Metrics::default());
        let clock = ManualClock::default();
        let disk = cache.map(|dir| {
            DiskTier::open(dir, self.disk_capacity, self.scope, Arc::clone(&metrics))
                .expect("a cache folder")
        });
        let memory: Arc<dyn Store> = Arc::<MemoryStore>::clone(&self.store);
        let faults = Arc::new(FaultStore::new(self.remote.clone().unwrap_or(memory)));
        let store: Arc<dyn Store> = Arc::<FaultStore>::clone(&faults);
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let records = Records::new(
            Arc::clone(&store),
            RecordsConfig {
                asks_each_time: self.fs.write.is_some(),
                keeps_plain_sizes: self.fs.exact_sizes,
                ..self.records.clone()
            },
            disk,
            Arc::clone(&shared),
            Arc::clone(&metrics),
        );
        let mut config = self.fs.clone();
        if let Some(write) = config.write.as_mut().filter(|write| write.write_back) {
            write.uploader = Some(Uploader::new(
                Arc::clone(&store),
                Arc::clone(write.staging.journal()),
                UploaderConfig {
                    guard: write.overwrite == Overwrite::Unchanged,
                    ..UploaderConfig::new(write.deadline)
                },
                Arc::new(SystemClock),
                Arc::clone(&metrics),
            ));
        }
        let fs = Arc::new(KvFs::new(
            store,
            Arc::clone(&records),
            config,
            shared,
            Arc::clone(&metrics),
        ));
        fs.start_uploads();
        let kernel = Arc::new(KernelLog::default());
        fs.connect_kernel(Arc::<KernelLog>::clone(&kernel));
        Core {
            fs,
            records,
            faults,
            clock,
            metrics,
            kernel,
        }
    }
}

/// Opens a staging folder in `dir` that takes no more than `limit` bytes.
pub fn staging(dir: &Path, limit: Option<u64>) -> Arc<StagingFolder> {
    let staging = StagingFolder::open(&StagingConfig {
        dir: dir.to_owned(),
        scope: "test".into(),
        store: StoreFile {
            reference: "test".into(),
            open: StoreRef::Directory("/test".into()),
            api_url: None,
        },
        limit,
    });
    staging.expect("a staging folder")
}

/// Returns the usual settings for writing, with staging files in `dir`.
pub fn write_config(dir: &Path) -> WriteConfig {
    WriteConfig {
        overwrite: Overwrite::Unchanged,
        compress: None,
        scratch: ScratchRules::default(),
        scratch_delay: Duration::from_secs(1),
        max_record_size: None,
        deadline: Duration::from_secs(20),
        staging: staging(dir, None),
        uploader: None,
        write_back: false,
    }
}

/// A core under test.
pub struct Core {
    pub fs: Arc<KvFs>,
    pub records: Arc<Records>,
    pub faults: Arc<FaultStore>,
    pub clock: ManualClock,
    pub metrics: Arc<Metrics>,
    pub kernel: Arc<KernelLog>,
}

/// What the core told the kernel; it takes its time with pages while the second is locked.
#[derive(Debug, Default)]
pub struct KernelLog(pub Mutex<Vec<Told>>, pub Mutex<()>);

/// One thing the core told the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Store(Ino, u64, Vec<u8>),
    ForgetAttributes(Ino),
    ForgetPages(Ino),
    ForgetName(OsString),
}

impl KernelCache for KernelLog {
    fn store(&self, ino: Ino, offset: u64, bytes: &[u8]) {
        self.0.lock().push(Told::Store(ino, offset, bytes.to_vec()));
    }

    fn invalidate_attributes(&self, ino: Ino) {
        self.0.lock().push(Told::ForgetAttributes(ino));
    }

    fn invalidate_name(&self, name: &OsStr) {
        self.0.lock().push(Told::ForgetName(name.to_owned()));
    }

    fn invalidate_pages(&self, ino: Ino) -> bool {
        self.0.lock().push(Told::ForgetPages(ino));
        drop(self.1.lock());
        true
    }
}

/// A wait that is long enough for anything that a test waits for.
pub fn patient() -> Wait {
    Wait::Until(Deadline::after(Duration::from_secs(20)))
}

/// Collects entries.
#[derive(Debug, Default)]
pub struct Names(pub Vec<(OsString, AttrReply)>);

impl DirSink for Names {
    fn add(
        &mut self,
        _ino: Ino,
        _next: u64,
        _kind: FileKind,
        name: &OsStr,
        attr: &AttrReply,
    ) -> bool {
        if name != "." && name != ".." {
            self.0.push((name.to_owned(), *attr));
        }
        false
    }
}

impl Core {
    /// Looks a name up; `None` when it does not exist.
    pub fn lookup(&self, name: &str) -> Result<Option<AttrReply>, FsError> {
        match self.fs.lookup(Ino::ROOT, OsStr::new(name), patient())? {
            Lookup::Found(reply) => Ok(Some(reply)),
            Lookup::Absent(_) => Ok(None),
        }
    }

    /// Opens by name as the kernel does: a stale inode is looked up again, once.
    pub fn open(&self, name: &str) -> Result<(Ino, Fh), FsError> {
        let ino = self.lookup(name)?.ok_or(FsError::NoEntry)?.attr.ino;
        match self.fs.open(ino, false, patient()) {
            Ok(opened) => Ok((ino, opened.fh)),
            Err(FsError::Stale) => {
                let ino = self.lookup(name)?.ok_or(FsError::NoEntry)?.attr.ino;
                Ok((ino, self.fs.open(ino, false, patient())?.fh))
            }
            Err(error) => Err(error),
        }
    }

    /// What `echo TEXT > NAME` does, without the shell's detours.
    pub fn store(&self, name: &str, content: &[u8]) -> Result<(), FsError> {
        let (ino, fh) = self.create(name)?;
        let stored = self.write_all(fh, content).and_then(|()| self.close(fh));
        self.fs.forget(ino, 1);
        stored
    }

    /// Makes or empties a file and opens it.
    pub fn create(&self, name: &str) -> Result<(Ino, Fh), FsError> {
        if let Some(reply) = self.lookup(name)? {
            let opened = self.fs.open_writing(reply.attr.ino, true, patient())?;
            return Ok((reply.attr.ino, opened.fh));
        }
        let name = OsStr::new(name);
        let made = self
            .fs
            .create(Ino::ROOT, name, 0o644, false, true, patient())?;
        Ok((made.entry.attr.ino, made.opened.fh))
    }

    /// Opens an existing file for reading and writing.
    pub fn open_to_write(&self, name: &str) -> Result<(Ino, Fh), FsError> {
        let ino = self.lookup(name)?.ok_or(FsError::NoEntry)?.attr.ino;
        Ok((ino, self.fs.open_writing(ino, false, patient())?.fh))
    }

    /// Writes from the start, in pieces.
    pub fn write_all(&self, fh: Fh, content: &[u8]) -> Result<(), FsError> {
        for (at, piece) in content.chunks(100_000).enumerate() {
            self.fs.write(fh, at as u64 * 100_000, piece, patient())?;
        }
        Ok(())
    }

    /// What `close` does; returns the verdict.
    pub fn close(&self, fh: Fh) -> Result<(), FsError> {
        let verdict = self.fs.flush(fh, patient());
        self.fs.release(fh);
        verdict
    }

    /// What `rm` does.
    pub fn remove(&self, name: &str) -> Result<(), FsError> {
        self.fs.unlink(Ino::ROOT, OsStr::new(name), patient())
    }

    /// What `mv` does.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), FsError> {
        let (from, to) = (OsStr::new(from), OsStr::new(to));
        self.fs
            .rename(Ino::ROOT, from, Ino::ROOT, to, false, patient())
    }

    /// Reads all of an open file, in pieces.
    pub fn read_all(&self, fh: Fh) -> Result<Vec<u8>, FsError> {
        let mut all = Vec::new();
        loop {
            let piece = self.fs.read(fh, all.len() as u64, 100_000, patient())?;
            if piece.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&piece);
        }
    }

    /// What `cat` does.
    pub fn cat(&self, name: &str) -> Result<Vec<u8>, FsError> {
        let (ino, fh) = self.open(name)?;
        let size = self.fs.getattr(ino, patient())?.attr.size;
        let bytes = self.read_all(fh);
        self.fs.release(fh);
        let bytes = bytes?;
        assert_eq!(
            bytes.len() as u64,
            size,
            "fstat of {name} disagrees with its bytes"
        );
        Ok(bytes)
    }

    /// What `ls -l` does: names and attributes.
    pub fn list(&self) -> Result<Vec<(OsString, AttrReply)>, FsError> {
        let fh = self.fs.opendir(Ino::ROOT)?;
        let mut names = Names::default();
        let result = self.fs.readdir(fh, 0, true, &mut names, patient());
        self.fs.releasedir(fh);
        for (_, reply) in &names.0 {
            self.fs.forget(reply.attr.ino, 1);
        }
        result.map(|()| names.0)
    }
}
