//! Stores in a bucket of an object storage: S3, Google Cloud Storage, Azure.
//!
//! A store is a folder of the bucket, a record an object in it:
//! `<prefix>/stores/<id>/=<key>`. The sign in front of a key makes `.` and `..` names like any
//! other without changing the order. Type and encoding are the object's own attributes, so that
//! whatever else reads the bucket understands them. What stores are called, and whose they are,
//! lies beside them (`catalog`).
//!
//! Nothing is remembered between two calls: any number of processes can use one bucket.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion,
};
use tokio::runtime::{Builder, Handle, Runtime};

mod body;
mod catalog;
mod options;
mod secret;
mod store;

pub use catalog::{Description, NameTaken};
pub use options::{Options, SCHEMES, VARIABLES};
pub use store::BucketStore;

use crate::store::{ErrorKind, Key, Result, StoreError};

/// Threads that wait for the bucket.
const THREADS: usize = 2;

/// What the providers answer when there is no bucket of that name.
const ABSENT: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "404 Not Found"];

/// Objects that are asked for at once where many are needed.
const PARALLEL: usize = 16;

/// A bucket, or a part of it. Clones share their connections.
#[derive(Clone)]
pub struct Bucket {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    scope: Scope,
    /// What the calls run on.
    handle: Handle,
    _runtime: Arc<Background>,
}

/// Tells buckets apart; no secret in it.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Whoever asks.
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

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What the library prints of itself includes credentials.
        f.debug_struct("Bucket")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// A small object, and what tells whether it is still the same.
struct Small {
    bytes: Vec<u8>,
    version: UpdateVersion,
}

impl Bucket {
    /// Wraps what the library offers.
    ///
    /// # Errors
    /// That no threads can be started.
    pub fn over(objects: Arc<dyn ObjectStore>, root: Path, scope: Scope) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("kvfs-bucket")
            .enable_all()
            .build()
            .map_err(|error| {
                StoreError::new(ErrorKind::Disk, "no threads can be started").with_source(error)
            })?;
        Ok(Self {
            objects,
            root,
            scope,
            handle: runtime.handle().clone(),
            _runtime: Arc::new(Background(Some(runtime))),
        })
    }

    /// Asks whether the bucket is there and may be read.
    ///
    /// # Errors
    /// [`ErrorKind::StoreNotFound`], [`ErrorKind::Denied`], or that it cannot be asked.
    pub fn check(&self) -> Result<()> {
        let listed = self.wait(async { self.objects.list(Some(&self.root)).next().await });
        match listed {
            None | Some(Ok(_)) => Ok(()),
            // The library has no error of its own for it when it lists.
            Some(Err(error)) if ABSENT.iter().any(|code| error.to_string().contains(code)) => Err(
                StoreError::new(ErrorKind::StoreNotFound, "there is no such bucket").with_hint(
                    "make it with the provider's own tools, or check its name and the endpoint",
                ),
            ),
            Some(Err(error)) => Err(failed(error, None)),
        }
    }

    /// Returns the records of the store with this id.
    pub fn store(&self, description: &Description) -> BucketStore {
        let folder = self.path(&["stores", &description.id]);
        BucketStore::new(self.clone(), folder, description)
    }

    /// Reads a small object; `None` if there is none.
    fn read(&self, parts: &[&str]) -> Result<Option<Small>> {
        let path = self.path(parts);
        self.wait(read(&*self.objects, &path))
            .map_err(|error| failed(error, None))
    }

    /// Writes a small object; false if the mode's condition does not hold.
    fn write(&self, parts: &[&str], bytes: Vec<u8>, mode: PutMode) -> Result<bool> {
        let path = self.path(parts);
        let payload = PutPayload::from(bytes);
        match self.wait(self.objects.put_opts(&path, payload, mode.into())) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(failed(error, None)),
        }
    }

    /// Deletes an object; an absent one is fine.
    fn delete(&self, parts: &[&str]) -> Result<()> {
        let path = self.path(parts);
        match self.wait(self.objects.delete(&path)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error, None)),
        }
    }

    /// Deletes all objects below a folder.
    fn delete_all(&self, parts: &[&str]) -> Result<()> {
        let path = self.path(parts);
        let deleting = async {
            let listed = self.objects.list(Some(&path));
            let paths = listed.map_ok(|object| object.location).boxed();
            self.objects
                .delete_stream(paths)
                .try_for_each(|_| async { Ok(()) })
                .await
        };
        match self.wait(deleting) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error, None)),
        }
    }

    /// Reads all small objects right below a folder.
    fn read_all(&self, parts: &[&str]) -> Result<Vec<Vec<u8>>> {
        let folder = self.path(parts);
        let reading = async {
            let objects = self.objects.list(Some(&folder));
            let read: Vec<Option<Small>> = objects
                .map_ok(|object| async move { read(&*self.objects, &object.location).await })
                .try_buffer_unordered(PARALLEL)
                .try_collect()
                .await?;
            Ok(read.into_iter().flatten().map(|small| small.bytes))
        };
        let read = self.wait(reading).map_err(|error| failed(error, None))?;
        Ok(read.collect())
    }

    /// Returns the path of an object. What a name may not hold is escaped.
    fn path(&self, parts: &[&str]) -> Path {
        let parts = parts.iter().map(|part| part.to_string().into());
        self.root.parts().chain(parts).collect()
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.handle.block_on(work)
    }
}

async fn read(objects: &dyn ObjectStore, path: &Path) -> Result<Option<Small>, Error> {
    let found = match objects.get_opts(path, GetOptions::default()).await {
        Ok(found) => found,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let version = UpdateVersion {
        e_tag: found.meta.e_tag.clone(),
        version: found.meta.version.clone(),
    };
    Ok(Some(Small {
        bytes: found.bytes().await?.into(),
        version,
    }))
}

/// Turns the library's errors into those of stores.
fn failed(error: Error, key: Option<&Key>) -> StoreError {
    let (kind, message, hint) = match &error {
        Error::NotFound { .. } => (ErrorKind::NotFound, "there is no such record", ""),
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => (
            ErrorKind::Changed,
            "the record is no longer the version that was asked for",
            "",
        ),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (
            ErrorKind::Denied,
            "the bucket may not be used",
            "check the credentials in the variables AWS_…, GOOGLE_… or AZURE_…",
        ),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            (ErrorKind::Unsupported, "the bucket cannot do that", "")
        }
        Error::InvalidPath { .. } => (
            ErrorKind::InvalidKey,
            "the bucket does not take this key",
            "",
        ),
        _ => (
            ErrorKind::Server,
            "the bucket cannot be asked",
            "check the network, and the endpoint and region in the variables AWS_…, GOOGLE_… or AZURE_…",
        ),
    };
    let mut error = StoreError::new(kind, message).with_source(error);
    if !hint.is_empty() {
        error = error.with_hint(hint);
    }
    match key {
        Some(key) => error.with_key(key),
        None => error,
    }
}
