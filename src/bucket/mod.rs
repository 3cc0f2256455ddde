//! Stores in a bucket of an object storage: S3, Google Cloud Storage, Azure.
//!
//! A store is a folder of the bucket, a record an object in it:
//! `<prefix>/stores/<id>/=<key>`. The sign in front of a key makes `.` and `..` names like any
//! other without changing the order. Type and encoding are the object's own attributes, so that
//! whatever else reads the bucket understands them.
//!
//! Nothing is remembered between two calls: any number of processes can use one bucket.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, parse_url_opts};
use tokio::runtime::{Builder, Handle, Runtime};
use url::Url;

mod body;
mod store;

pub use store::BucketStore;

use crate::store::{ErrorKind, Key, Result, StoreError};

/// Threads that wait for the bucket.
const THREADS: usize = 2;

/// The schemes of addresses of buckets.
pub const SCHEMES: [&str; 3] = ["s3", "gs", "az"];

/// A bucket, or a part of it. Clones share their connections.
#[derive(Clone)]
pub struct Bucket {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    /// What the calls run on.
    handle: Handle,
    _runtime: Arc<Background>,
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
        f.debug_struct("Bucket")
            .field("objects", &self.objects)
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Bucket {
    /// Opens the bucket at an address such as `s3://bucket/prefix`. `options` are those of the
    /// providers' own tools, by their names: `aws_access_key_id`, `aws_endpoint`, ...
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an address or options that make no sense.
    pub fn open(
        address: &Url,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        // An error only says that there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (objects, root) = parse_url_opts(address, options).map_err(|error| {
            let message = format!("{address} is not a bucket that can be used");
            StoreError::new(ErrorKind::Unsupported, message).with_source(error)
        })?;
        Self::over(objects.into(), root)
    }

    /// Wraps what the library offers.
    ///
    /// # Errors
    /// That no threads can be started.
    pub fn over(objects: Arc<dyn ObjectStore>, root: Path) -> Result<Self> {
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
            handle: runtime.handle().clone(),
            _runtime: Arc::new(Background(Some(runtime))),
        })
    }

    /// Returns a store of the bucket.
    pub fn store(&self, id: &str) -> BucketStore {
        BucketStore::new(self.clone(), self.path(&["stores", id]), id)
    }

    /// Reads a small object; `None` if there is none.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn read(&self, parts: &[&str]) -> Result<Option<Vec<u8>>> {
        let path = self.path(parts);
        let read = async { self.objects.get(&path).await?.bytes().await };
        match self.wait(read) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error, None)),
        }
    }

    /// Writes a small object; false if it must be new and is not.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn write(&self, parts: &[&str], bytes: Vec<u8>, new: bool) -> Result<bool> {
        let mode = if new {
            PutMode::Create
        } else {
            PutMode::Overwrite
        };
        let path = self.path(parts);
        let payload = PutPayload::from(bytes);
        match self.wait(self.objects.put_opts(&path, payload, mode.into())) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. }) if new => Ok(false),
            Err(error) => Err(failed(error, None)),
        }
    }

    /// Deletes an object; an absent one is fine.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn delete(&self, parts: &[&str]) -> Result<()> {
        let path = self.path(parts);
        match self.wait(self.objects.delete(&path)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error, None)),
        }
    }

    /// Lists the names of objects right below a folder.
    ///
    /// # Errors
    /// Those of the bucket.
    pub fn names(&self, parts: &[&str]) -> Result<Vec<String>> {
        let path = self.path(parts);
        let listed = self
            .wait(self.objects.list_with_delimiter(Some(&path)))
            .map_err(|error| failed(error, None))?;
        let objects = listed.objects.into_iter().map(|object| object.location);
        Ok(objects
            .chain(listed.common_prefixes)
            .filter_map(|path| path.filename().map(str::to_owned))
            .collect())
    }

    /// Returns the path of an object; the parts must be names that need no escaping.
    fn path(&self, parts: &[&str]) -> Path {
        let parts = parts.iter().map(|part| part.to_string().into());
        self.root.parts().chain(parts).collect()
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.handle.block_on(work)
    }
}

/// Turns the library's errors into those of stores.
fn failed(error: Error, key: Option<&Key>) -> StoreError {
    let (kind, message) = match &error {
        Error::NotFound { .. } => (ErrorKind::NotFound, "there is no such record"),
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. } => (
            ErrorKind::Changed,
            "the record is no longer the version that was asked for",
        ),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            (ErrorKind::Denied, "the bucket may not be used")
        }
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            (ErrorKind::Unsupported, "the bucket cannot do that")
        }
        Error::InvalidPath { .. } => (ErrorKind::InvalidKey, "the bucket does not take this key"),
        _ => (ErrorKind::Server, "the bucket cannot be asked"),
    };
    let error = StoreError::new(kind, message).with_source(error);
    match key {
        Some(key) => error.with_key(key),
        None => error,
    }
}
