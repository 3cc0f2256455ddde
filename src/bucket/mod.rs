//! Stores in a bucket of an object storage: S3, Google Cloud Storage, Azure.
//!
//! A store is a folder of the bucket, a record an object in it: `<prefix>/stores/<id>/=<key>`. The
//! sign in front of a key makes `.` and `..` names like any other without changing the order. Type
//! and encoding are the object's own attributes, so that other readers of the bucket understand
//! them. The stores' names and accounts lie next to them (`catalog`, `names`).
//!
//! Any number of processes can use one bucket: no decision depends on the memory of one of them.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use object_store::list::PaginatedListStore;
use object_store::path::Path;
use parking_lot::{Condvar, Mutex};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{OwnedMutexGuard, Semaphore};

mod body;
mod catalog;
mod errors;
#[cfg(test)]
mod histories;
mod index;
mod known;
mod layout;
mod names;
mod objects;
mod options;
mod pieces;
mod put;
mod secret;
mod store;
mod transport;

pub use catalog::{Description, NameTaken};
pub use layout::{CHECK, Use};
pub use options::{Options, VARIABLES};
pub use store::BucketStore;

use objects::Objects;
use pieces::{MOST_PIECES, PART};

use crate::base::clock::Deadline;
use crate::store::{ErrorKind, Result, StoreError};

/// Threads that wait for the bucket.
const THREADS: usize = 2;

/// How often a write is repeated that others got ahead of.
const ATTEMPTS: u32 = 20;

/// How often a name is asked for again that another server is about to give: about three seconds.
const WAITS: u32 = 6;

/// How long such a claim must have stood still here until it counts as left behind by a server
/// that is no more.
const PATIENCE: Duration = Duration::from_secs(15);

/// A bucket, or a part of it. Clones share their connections.
#[derive(Clone)]
pub struct Bucket {
    objects: Arc<Objects>,
    scope: Scope,
    /// KiB of uploads that may be in memory.
    room: Arc<Semaphore>,
    uploads: Arc<Uploads>,
    /// What the calls run on.
    handle: Handle,
    _runtime: Arc<Background>,
}

/// Distinguishes buckets; holds no secret.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Any caller.
    pub bucket: Arc<str>,
    /// And accounts.
    pub account: Arc<str>,
}

/// A runtime that may be dropped anywhere.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Uploads in parts that are under way.
#[derive(Debug, Default)]
struct Uploads(Mutex<usize>, Condvar);

/// One of them, until it is dropped.
struct UnderWay<'a>(&'a Uploads);

impl Uploads {
    fn begin(&self) -> UnderWay<'_> {
        *self.0.lock() += 1;
        UnderWay(self)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.0.lock() -= 1;
        self.0.1.notify_all();
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

impl Bucket {
    /// Wraps what the library offers.
    ///
    /// # Errors
    /// That no threads can be started.
    #[cfg(feature = "testing")]
    pub fn over(objects: Arc<dyn ObjectStore>, root: Path, scope: Scope) -> Result<Self> {
        Self::with(objects, None, false, root, scope)
    }

    fn with(
        store: Arc<dyn ObjectStore>,
        pages: Option<Arc<dyn PaginatedListStore>>,
        azure: bool,
        root: Path,
        scope: Scope,
    ) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("kvfs-bucket")
            .enable_all()
            .build()
            .map_err(|error| {
                StoreError::new(ErrorKind::Disk, "no threads can be started").with_source(error)
            })?;
        Ok(Self {
            objects: Arc::new(Objects {
                store,
                pages,
                root,
                known: Default::default(),
                index: Default::default(),
                conditional_parts: Default::default(),
                wanted: Default::default(),
                alone: Default::default(),
                azure,
                attempts: ATTEMPTS,
                waits: WAITS,
                patience: PATIENCE,
            }),
            scope,
            room: Arc::new(Semaphore::new(MOST_PIECES * PART / 1024)),
            uploads: Arc::default(),
            handle: runtime.handle().clone(),
            _runtime: Arc::new(Background(Some(runtime))),
        })
    }

    /// Returns the records of the store with this id.
    pub fn store(&self, description: &Description) -> BucketStore {
        let folder = self.objects.path(&[catalog::STORES, &description.id]);
        BucketStore::new(self.clone(), folder, description)
    }

    /// Returns what is known of a store; `None` if there is none with this id. What was read in
    /// the last `age` will do.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn describe(
        &self,
        id: &str,
        age: Duration,
        deadline: Deadline,
    ) -> Result<Option<Description>> {
        self.wait(deadline, self.objects.describe(id, age))?
    }

    /// Finds an account's store by its name, as [`Bucket::describe`] does by its id. `owner` is
    /// `None` for the server's own account.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn named(
        &self,
        owner: Option<&str>,
        name: &str,
        age: Duration,
        deadline: Deadline,
    ) -> Result<Option<Description>> {
        self.wait(deadline, self.objects.named(owner, name, age))?
    }

    /// Makes a store, unless one of its account has its name already: then that one is returned,
    /// and false.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn create(&self, new: &Description, deadline: Deadline) -> Result<(Description, bool)> {
        let _alone = self.alone(deadline)?;
        self.wait(deadline, self.objects.create(new))?
    }

    /// Changes what is known of a store; `None` if there is none.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn change(
        &self,
        id: &str,
        change: impl Fn(&mut Description),
        deadline: Deadline,
    ) -> Result<Option<Result<Description, NameTaken>>> {
        let _alone = self.alone(deadline)?;
        self.wait(deadline, self.objects.change(id, change))?
    }

    /// Deletes a store with all its records; false if there was none. It is gone when this returns;
    /// many records may take longer than the deadline to be deleted.
    ///
    /// # Errors
    /// Those of the bucket: then nothing was deleted.
    pub fn remove(&self, id: &str, deadline: Deadline) -> Result<bool> {
        let marked = {
            let _alone = self.alone(deadline)?;
            self.wait(deadline, self.objects.mark(id))??
        };
        let Some(gone) = marked else {
            return Ok(false);
        };
        let objects = self.objects.clone();
        let finishing = self.handle.spawn(async move {
            if let Err(error) = objects.finish(&gone).await {
                tracing::warn!(%error, id = gone.id, "a deleted store was not cleared away; the next start does it");
            }
        });
        // Whatever is left then is done later.
        let _ = self.wait(deadline, finishing);
        Ok(true)
    }

    /// Ends uploads in parts, for at most this long, so that none is left in the bucket.
    pub fn end_uploads(&self, most: Duration) {
        self.room.close();
        let end = Instant::now() + most;
        let mut under_way = self.uploads.0.lock();
        while *under_way > 0 && !self.uploads.1.wait_until(&mut under_way, end).timed_out() {}
    }

    /// Excludes other changes of this process where the storage excludes none.
    fn alone(&self, deadline: Deadline) -> Result<Option<OwnedMutexGuard<()>>> {
        if !self.objects.is_for(Use::Alone) {
            return Ok(None);
        }
        let alone = self.objects.alone.clone().lock_owned();
        self.wait(deadline, alone).map(Some)
    }

    /// Runs an asynchronous operation, until the deadline.
    fn wait<T>(&self, deadline: Deadline, work: impl Future<Output = T>) -> Result<T> {
        let late = || {
            StoreError::new(ErrorKind::Timeout, "the bucket took too long").with_hint(
                "check the network, and the endpoint in the variables AWS_…, GOOGLE_… or AZURE_…",
            )
        };
        let left = deadline.remaining().ok_or_else(late)?;
        self.handle
            .block_on(async { tokio::time::timeout(left, work).await })
            .map_err(|_| late())
    }
}
