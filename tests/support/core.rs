//! The filesystem core over a store in memory, with time moved by hand and no kernel.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvfs::cache::disk::DiskTier;
use kvfs::cache::records::{Records, RecordsConfig};
use kvfs::clock::{Clock, Deadline, ManualClock, Wait};
use kvfs::fs::types::{AttrReply, DirSink, Fh, FileKind, Ino, KernelCache, Lookup};
use kvfs::fs::{FsConfig, FsError, KvFs};
use kvfs::local::fault::FaultStore;
use kvfs::local::memory::MemoryStore;
use kvfs::metrics::Metrics;
use kvfs::store::Store;
use parking_lot::Mutex;

/// The metadata TTL of the cores under test.
pub const TTL: Duration = Duration::from_secs(10);

/// What a core under test is made of; change the fields, then [`Setup::core`].
pub struct Setup {
    pub store: Arc<MemoryStore>,
    pub records: RecordsConfig,
    pub fs: FsConfig,
    pub disk_capacity: u64,
    pub scope: &'static str,
}

impl Setup {
    pub fn new(store: MemoryStore) -> Self {
        Self {
            store: Arc::new(store),
            records: RecordsConfig {
                raw: false,
                ttl: Some(TTL),
                memory_capacity: 64 << 20,
            },
            fs: FsConfig::default(),
            disk_capacity: 1 << 30,
            scope: "test",
        }
    }

    /// Makes a core; with a folder it has a disk cache there.
    pub fn core(&self, cache: Option<&Path>) -> Core {
        let metrics = Arc::new(Metrics::default());
        let clock = ManualClock::default();
        let disk = cache.map(|dir| {
            DiskTier::open(dir, self.disk_capacity, self.scope, Arc::clone(&metrics))
                .expect("a cache folder")
        });
        let faults = Arc::new(FaultStore::new(Arc::<MemoryStore>::clone(&self.store)));
        let store: Arc<dyn Store> = Arc::<FaultStore>::clone(&faults);
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let records = Records::new(
            Arc::clone(&store),
            self.records.clone(),
            disk,
            Arc::clone(&shared),
            Arc::clone(&metrics),
        );
        let fs = KvFs::new(
            store,
            Arc::clone(&records),
            self.fs.clone(),
            shared,
            Arc::clone(&metrics),
        );
        let kernel = Arc::new(KernelLog::default());
        fs.connect_kernel(Arc::<KernelLog>::clone(&kernel));
        Core {
            fs: Arc::new(fs),
            records,
            faults,
            clock,
            metrics,
            kernel,
        }
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

    fn forget_attributes(&self, ino: Ino) {
        self.0.lock().push(Told::ForgetAttributes(ino));
    }

    fn forget_name(&self, name: &OsStr) {
        self.0.lock().push(Told::ForgetName(name.to_owned()));
    }

    fn forget_pages(&self, ino: Ino) -> bool {
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
