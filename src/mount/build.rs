//! Puts a mount together: settings in, running filesystem out. Used by the command line and by tests.

use std::fs as files;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use url::Url;

pub use super::config::{DiskCacheConfig, MountAccess, MountConfig, WriteSettings};
pub use super::status::StatusSource;
use crate::base::clock::{Clock, Deadline, SystemClock};
use crate::base::workers::Workers;
use crate::cache::records::{Records, RecordsConfig};
use crate::cache::watched::Watched;
use crate::disk::DiskTier;
use crate::fs::write::scratch::ScratchRules;
use crate::fs::write::{Overwrite, WriteConfig};
use crate::fs::{self, FsConfig, KvFs};
use crate::fuse::adapter::{Adapter, Appearance};
use crate::fuse::passthrough::Passthrough;
use crate::fuse::pending::Watcher;
use crate::fuse::session::{self, Access, MountOptions};
use crate::fuse::suspend;
use crate::metrics::Metrics;
use crate::staging::folder::{StoreFile, scope_name};
use crate::staging::report::{self, Item};
use crate::staging::{FOLDER, StagingConfig, StagingFolder};
use crate::store::reference::{RemoteRef, StoreRef};
use crate::store::{Encoding, ErrorKind, ListQuery, Store, StoreError};
use crate::upload::{Uploader, UploaderConfig, Uploads};

/// Threads that wait for the store on behalf of programs.
const WAITING_THREADS: usize = 512;
/// Threads that upload, and wait for uploads, on behalf of programs.
const UPLOADING_THREADS: usize = 64;
/// Requests that may wait for one of them.
const WAITING_REQUESTS: usize = 4096;

/// Why a mount could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The store could not be opened.
    #[error("cannot open the store: {0}")]
    Store(#[source] StoreError),
    /// The collection to be shown cannot be listed.
    #[error("cannot list the collection: {0}")]
    Collection(#[source] StoreError),
    /// It was to be changed and cannot be.
    #[error("cannot mount for writing: {0}")]
    Unwritable(String),
    /// There is no folder for what is on its way into the store.
    #[error("cannot mount for writing: {0}")]
    Staging(String),
    /// Files that an earlier mount left wait in another staging folder.
    #[error("cannot mount for writing: {waiting} closed files wait for this store in {}", dir.display())]
    LeftBehind {
        /// How many.
        waiting: usize,
        /// In which staging folder.
        dir: PathBuf,
    },
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount at {}: {error}", mount_point.display())]
    Mount {
        /// Where.
        mount_point: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

impl SetupError {
    /// Returns what the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) | Self::Collection(error) => error.hint().map(Into::into),
            Self::Unwritable(_) => Some("mount without --rw".into()),
            Self::Staging(_) => {
                Some("name a folder of yours with --staging-dir, or mount without --rw".into())
            }
            Self::LeftBehind { dir, .. } => Some(format!(
                "mount with --staging-dir {0}, or upload them first: kvfs recover --staging-dir {0} --upload",
                dir.display()
            )),
            Self::Mount { .. } => None,
        }
    }

    /// Returns the kind of the store's failure, where it is the store's.
    pub fn store_kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Store(error) | Self::Collection(error) => Some(error.kind()),
            Self::Unwritable(_)
            | Self::Staging(_)
            | Self::LeftBehind { .. }
            | Self::Mount { .. } => None,
        }
    }
}

/// A mount that answers; [`Mounted::run`] serves it.
#[derive(Debug)]
pub struct Mounted {
    session: session::Mounted,
    pub(super) fs: Arc<KvFs>,
    pub(super) store: Arc<dyn Store>,
    pub(super) config: MountConfig,
    pub(super) started: Instant,
    pub(super) uploads: Option<Uploads>,
}

impl Mounted {
    /// Serves the mount until it is unmounted.
    ///
    /// # Errors
    /// When the connection to the kernel breaks otherwise.
    pub fn run(self) -> io::Result<()> {
        let served = self.session.run();
        let left = self.fs.finish_writes();
        if left > 0 {
            tracing::error!("{left} changed files could not be stored; see kvfs recover");
        }
        served
    }

    /// Returns what is on its way to the store; `None` for a read-only mount.
    pub fn uploads(&self) -> Option<&Uploads> {
        self.uploads.as_ref()
    }

    /// Returns the filesystem.
    pub fn fs(&self) -> &Arc<KvFs> {
        &self.fs
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

/// Opens the store and mounts it. The mount answers when this returns.
///
/// # Errors
/// [`SetupError`] says what is wrong and what to do.
pub fn mount(config: MountConfig, metrics: Arc<Metrics>) -> Result<Mounted, SetupError> {
    let store = match &config.write {
        Some(_) => crate::mount::open::open_writable(&config.open, Arc::clone(&metrics)),
        None => crate::mount::open::open(&config.open, Arc::clone(&metrics)),
    }
    .map_err(SetupError::Store)?;
    if let Some(collection) = &config.collection {
        // One that the store does not have should be told now, not at the first `ls`.
        let query = ListQuery {
            collection: Some(collection.as_str().into()),
            limit: Some(1),
            ..ListQuery::default()
        };
        store
            .list_page(&query, Deadline::after(config.deadline))
            .map_err(SetupError::Collection)?;
    }
    mount_store(store, config, metrics)
}

/// Mounts a store that is open already.
///
/// # Errors
/// [`SetupError::Mount`].
pub fn mount_store(
    store: Arc<dyn Store>,
    config: MountConfig,
    metrics: Arc<Metrics>,
) -> Result<Mounted, SetupError> {
    mount_store_by(store, config, metrics, Arc::new(SystemClock))
}

/// The same by another clock.
///
/// # Errors
/// [`SetupError::Mount`].
pub fn mount_store_by(
    store: Arc<dyn Store>,
    config: MountConfig,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
) -> Result<Mounted, SetupError> {
    let started = Instant::now();
    let failed = |error| SetupError::Mount {
        mount_point: config.mount_point.clone(),
        error,
    };
    let disk = config
        .disk_cache
        .as_ref()
        .and_then(|disk| open_disk(disk, &*store, config.raw, &metrics));
    let cache_dir = disk.as_ref().map(|disk| disk.scope_dir());
    let records = Records::new(
        Arc::clone(&store),
        RecordsConfig {
            raw: config.raw,
            max_content: config.max_content.map(|size| size.0),
            ttl: config.ttl,
            memory_capacity: config.memory_cache.0,
            clock_lag: config.clock_lag,
            asks_each_time: config.write.is_some(),
            keeps_plain_sizes: config.exact_sizes,
        },
        disk,
        Arc::clone(&clock),
        Arc::clone(&metrics),
    );
    let store: Arc<dyn Store> = Arc::new(Watched::new(store, Arc::clone(records.freshness())));
    let fs_config = FsConfig {
        prefix: config.prefix.as_deref().map(Into::into),
        collection: config.collection.as_deref().map(Into::into),
        exact_sizes: config.exact_sizes,
        prefetch: Some(config.deadline),
        page_deadline: config.deadline,
        write: config
            .write
            .as_ref()
            .map(|write| write_config(write, &config, &store, &clock, &metrics))
            .transpose()?,
    };
    let writing = fs_config.write.clone();
    let fs = Arc::new(KvFs::new(
        Arc::clone(&store),
        records,
        fs_config,
        Arc::clone(&clock),
        Arc::clone(&metrics),
    ));
    let uploading = config
        .write
        .as_ref()
        .zip(writing)
        .and_then(|(write, config)| {
            let uploader = config.uploader?;
            fs.start_uploads();
            Some(Uploads::new(
                config.staging,
                uploader,
                write.unmount_timeout,
            ))
        });
    let pool = Workers::new(
        "kvfs-wait",
        WAITING_THREADS,
        WAITING_REQUESTS,
        Arc::clone(&metrics),
    );
    let uploads = Workers::new("kvfs-upload", UPLOADING_THREADS, WAITING_REQUESTS, metrics);
    let appearance = Appearance {
        uid: config.uid,
        gid: config.gid,
        file_mode: (config.file_mode & 0o777) as u16,
        dir_mode: (config.dir_mode & 0o777) as u16,
    };
    let reporter = Arc::downgrade(&fs);
    let late = move |operation: &'static str| {
        if let Some(fs) = reporter.upgrade() {
            let message = "the store did not answer within the deadline";
            fs.report(
                operation,
                None,
                &StoreError::new(ErrorKind::Timeout, message).into(),
            );
        }
    };
    let watcher = Watcher::start(Box::new(late)).map_err(failed)?;
    let deadline = config.deadline;
    // The kernel cannot read a file by itself that may be changed meanwhile.
    let read_through = cache_dir.as_deref().filter(|_| config.write.is_none());
    let passthrough = Passthrough::new(read_through);
    let adapter = Adapter::new(
        Arc::clone(&fs),
        pool,
        uploads,
        watcher,
        passthrough,
        appearance,
        deadline,
    );
    let options = MountOptions {
        mount_point: config.mount_point.clone(),
        source: config
            .source
            .clone()
            .unwrap_or_else(|| format!("kvfs:{}", config.open.reference)),
        access: match config.access {
            MountAccess::Owner => Access::Owner,
            MountAccess::OwnerAndRoot => Access::OwnerAndRoot,
            MountAccess::Everybody => Access::Everybody,
        },
        writable: config.write.is_some(),
    };
    let session = session::mount(adapter, &options).map_err(failed)?;
    fs.connect_kernel(session.kernel());
    if config.ttl.is_some() {
        suspend::watch(&fs, clock).map_err(failed)?;
    }
    let mounted = Mounted {
        session,
        fs,
        store,
        config,
        started,
        uploads: uploading,
    };
    let status = mounted.status_source();
    mounted
        .fs
        .connect_status(fs::StatusSource(Box::new(move || status().to_string())));
    Ok(mounted)
}

/// Makes sure that no file waits for the store in another staging folder: uploaded later, it would
/// replace what is written now.
fn check_others(write: &WriteSettings, scope: &str) -> Result<(), SetupError> {
    let real = |dir: &Path| files::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let own = real(&write.staging_dir);
    for dir in write.other_staging.iter().filter(|dir| real(dir) != own) {
        let Ok(found) = report::scan_scope(&dir.join(FOLDER).join(scope)) else {
            continue;
        };
        let waits = |item: &&Item| item.owner_pid.is_none() && item.state.is_pending();
        let waiting = found.items.iter().filter(waits).count();
        if waiting > 0 {
            return Err(SetupError::LeftBehind {
                waiting,
                dir: dir.clone(),
            });
        }
    }
    Ok(())
}

/// Opens the staging folder, and turns settings into what the filesystem wants.
fn write_config(
    write: &WriteSettings,
    config: &MountConfig,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
    metrics: &Arc<Metrics>,
) -> Result<WriteConfig, SetupError> {
    if !store.is_writable() {
        return Err(SetupError::Unwritable(
            "a store that is opened by a link can only be read".into(),
        ));
    }
    let info = store.info();
    let scope = scope_name(&info.upload_scope);
    check_others(write, &scope)?;
    let staging = StagingFolder::open(&StagingConfig {
        dir: write.staging_dir.clone(),
        scope,
        store: StoreFile {
            reference: config.open.reference.to_string(),
            open: by_id(&config.open.reference, info.id),
            api_url: config.open.api_url.clone().map(without_password),
        },
        limit: write.staging_size.map(|size| size.0),
    })
    .map_err(|error| {
        SetupError::Staging(format!(
            "the staging folder {} cannot be used: {error}",
            write.staging_dir.display()
        ))
    })?;
    let uploader = Uploader::new(
        Arc::clone(store),
        Arc::clone(staging.journal()),
        UploaderConfig {
            max_open: open_uploads(),
            guard: write.overwrite == Overwrite::Unchanged,
            ..UploaderConfig::new(config.deadline)
        },
        Arc::clone(clock),
        Arc::clone(metrics),
    );
    Ok(WriteConfig {
        uploader: Some(uploader),
        write_back: write.write_back,
        overwrite: write.overwrite,
        compress: write
            .compress
            .as_deref()
            .map(|name| Encoding::from_header(Some(name))),
        scratch: ScratchRules::new(write.scratch.iter().map(String::as_str))
            .map_err(SetupError::Unwritable)?,
        scratch_delay: write.scratch_delay,
        max_record_size: write.max_record_size.map(|size| size.0),
        deadline: config.deadline,
        staging,
    })
}

/// Returns a reference that means the same store later, whatever runs or is renamed meanwhile.
fn by_id(reference: &StoreRef, id: String) -> StoreRef {
    match reference {
        StoreRef::Remote(_) => StoreRef::Remote(RemoteRef::Id(id)),
        StoreRef::Url { base, .. } => StoreRef::Url {
            base: base.clone(),
            remote: RemoteRef::Id(id),
            signature: None,
        },
        other => other.clone(),
    }
}

/// Returns an address as it may be written to a disk.
pub fn without_password(mut url: Url) -> Url {
    // Addresses that cannot have either have none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url
}

/// Returns how many of the files that wait may be open.
fn open_uploads() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = usize::try_from(limit.current.unwrap_or(1 << 16)).unwrap_or(1 << 16);
    (files / 4).clamp(8, 10_000)
}

/// Opens the disk cache; without one reading goes on, only slower.
pub fn open_disk(
    disk: &DiskCacheConfig,
    store: &dyn Store,
    raw: bool,
    metrics: &Arc<Metrics>,
) -> Option<Arc<DiskTier>> {
    let scope = format!(
        "{} {}",
        if raw { "raw" } else { "decoded" },
        store.info().cache_scope
    );
    DiskTier::open(&disk.dir, disk.size.0, &scope, Arc::clone(metrics))
        .and_then(|tier| tier.note_store(&store.info().id).map(|()| tier))
        .inspect_err(|error| {
            tracing::warn!("no disk cache: {error}; mount with --cache-dir to use another folder")
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_of_an_address_is_written_to_a_disk() {
        for (given, kept) in [
            ("http://user:secret@host:8010/", "http://host:8010/"),
            ("http://secret@host/", "http://host/"),
            ("https://host/path", "https://host/path"),
        ] {
            let kept_of = without_password(given.parse().expect("an address"));
            assert_eq!(kept_of.as_str(), kept);
        }
    }
}
