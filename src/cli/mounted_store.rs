//! A mount as a store: lets commands that work without a mount use one, through the filesystem.
//!
//! The token stays with the daemon, and what the mount shows and allows is what the commands see:
//! its part of the store, decoded or as stored, read-only or not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use crate::base::clock::Deadline;
use crate::fs::name::{self, Meaning};
use crate::store::{
    Encoding, ErrorKind, Fetched, GetOutcome, GetRequest, Key, ListItem, ListPage, ListQuery,
    MAX_PAGE, PutRequest, RecordMeta, Result, Store, StoreError, StoreInfo, Upload,
};

/// The records of a mount.
#[derive(Debug)]
pub struct MountedStore {
    mount_point: PathBuf,
    info: StoreInfo,
    writable: bool,
    /// All of it, from the first page on.
    listing: Mutex<Option<Arc<Vec<ListItem>>>>,
}

impl MountedStore {
    /// Returns the store that is mounted at `mount_point`; its daemon has sent `state`.
    pub fn new(mount_point: &Path, state: &Value) -> Self {
        let text = |name: &str| state[name].as_str().map(str::to_owned);
        Self {
            mount_point: mount_point.to_path_buf(),
            info: StoreInfo {
                id: text("store_id").unwrap_or_default(),
                name: text("store_name"),
                cache_scope: format!("mount:{}", mount_point.display()),
                upload_scope: format!("mount:{}", mount_point.display()),
                ..StoreInfo::default()
            },
            writable: state["access"] == "read-write",
            listing: Mutex::new(None),
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.mount_point.join(name::of_key(key))
    }

    fn list(&self) -> Result<Arc<Vec<ListItem>>> {
        let mut items = Vec::new();
        for entry in fs::read_dir(&self.mount_point).map_err(|error| failed(error, None))? {
            let entry = entry.map_err(|error| failed(error, None))?;
            let Some(key) = key_of(entry.file_name().as_bytes()) else {
                continue;
            };
            let found = entry.metadata().ok();
            items.push(ListItem {
                stored_size: found.as_ref().map(fs::Metadata::len),
                modified: None,
                public_url: None,
                key,
            });
        }
        items.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Arc::new(items))
    }

    fn attribute(&self, path: &Path, name: &str) -> Option<String> {
        let value = xattr::get(path, format!("user.apify.{name}")).ok()??;
        String::from_utf8(value).ok()
    }

    fn meta(&self, key: &Key, path: &Path, found: &fs::Metadata) -> RecordMeta {
        let stored = self.attribute(path, "stored-size");
        RecordMeta {
            content_type: self.attribute(path, "content-type").map(Into::into),
            encoding: Encoding::from_header(self.attribute(path, "content-encoding").as_deref()),
            stored_size: stored
                .and_then(|size| size.parse().ok())
                .or(Some(found.len())),
            etag: self.attribute(path, "etag").map(crate::store::ETag::new),
            last_modified: None,
            accepts_ranges: key.is_valid(),
        }
    }

    fn must_write(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        let point = self.mount_point.display();
        Err(StoreError::new(
            ErrorKind::Unsupported,
            format!("{point} is mounted read-only"),
        )
        .with_hint("name the store instead of the mount, or mount it with --rw"))
    }
}

/// Returns the key that a file's name stands for; a name that only the mount understands stands for
/// itself.
fn key_of(file_name: &[u8]) -> Option<Key> {
    match name::meaning(std::ffi::OsStr::from_bytes(file_name)) {
        Meaning::Key(key) => Some(key),
        Meaning::Listed | Meaning::Nothing => Key::new(std::str::from_utf8(file_name).ok()?),
    }
}

impl Store for MountedStore {
    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn record_url(&self, key: &Key) -> Option<String> {
        self.attribute(&self.path(key), "url")
    }

    fn list_page(&self, query: &ListQuery, _deadline: Deadline) -> Result<ListPage> {
        if query.collection.is_some() {
            return Err(StoreError::new(
                ErrorKind::Unsupported,
                "a mount shows one collection: name the store for another",
            ));
        }
        let known = self.listing.lock().clone();
        let all = match known.filter(|_| query.after.is_some()) {
            Some(all) => all,
            None => {
                let all = self.list()?;
                *self.listing.lock() = Some(Arc::clone(&all));
                all
            }
        };
        let after = query.after.as_deref().unwrap_or_default();
        let prefix = query.prefix.as_deref().unwrap_or_default();
        let limit = query.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE);
        let start = all.partition_point(|item| item.key.as_str() <= after);
        let mut matching = all[start..]
            .iter()
            .filter(|item| item.key.as_str().starts_with(prefix));
        let items: Vec<ListItem> = matching.by_ref().take(limit).cloned().collect();
        let more = matching.next().is_some();
        Ok(ListPage {
            next: items
                .last()
                .filter(|_| more)
                .map(|item| item.key.as_str().into()),
            items,
        })
    }

    fn head(&self, key: &Key, _deadline: Deadline) -> Result<RecordMeta> {
        let path = self.path(key);
        let found = fs::symlink_metadata(&path).map_err(|error| failed(error, Some(key)))?;
        Ok(self.meta(key, &path, &found))
    }

    fn get(&self, key: &Key, request: &GetRequest, _deadline: Deadline) -> Result<GetOutcome> {
        let path = self.path(key);
        let mut file = File::open(&path).map_err(|error| failed(error, Some(key)))?;
        let found = file.metadata().map_err(|error| failed(error, Some(key)))?;
        let size = found.len();
        let range = request
            .range
            .clone()
            .map(|range| range.start.min(size)..range.end.min(size).max(range.start.min(size)));
        let window = range.clone().unwrap_or(0..size);
        if window.start > 0 {
            file.seek(SeekFrom::Start(window.start))
                .map_err(|error| failed(error, Some(key)))?;
        }
        Ok(GetOutcome::Found(Fetched {
            meta: RecordMeta {
                // As the mount hands it over.
                encoding: Encoding::Identity,
                stored_size: Some(size),
                ..self.meta(key, &path, &found)
            },
            range,
            is_delimited: true,
            body: Box::new(file.take(window.end - window.start)),
        }))
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        self.must_write()?;
        if request.if_match.is_some() || !request.encoding.is_identity() {
            return Err(StoreError::new(
                ErrorKind::Unsupported,
                "--if-match and --content-encoding do not work through a mount: name the store",
            ));
        }
        let path = self.path(key);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        if request.if_absent {
            options.create_new(true);
        }
        let mut file = options
            .open(&path)
            .map_err(|error| failed(error, Some(key)))?;
        if let Some(content_type) = &request.content_type {
            xattr::set(&path, "user.apify.content-type", content_type.as_bytes())
                .map_err(|error| failed(error, Some(key)))?;
        }
        copy(body, &mut file)
            .and_then(|()| file.sync_all())
            .map_err(|error| failed(error, Some(key)))?;
        drop(file);
        self.head(key, deadline)
    }

    fn delete(&self, key: &Key, _deadline: Deadline) -> Result<()> {
        self.must_write()?;
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error, Some(key))),
            _ => Ok(()),
        }
    }
}

fn copy(body: Upload<'_>, out: &mut File) -> io::Result<()> {
    match body {
        Upload::Bytes(bytes) => out.write_all(bytes),
        Upload::File(file, len) => {
            let mut file = file;
            file.seek(SeekFrom::Start(0))?;
            io::copy(&mut file.take(len), out).map(drop)
        }
        Upload::Stream(stream, _) => io::copy(stream, out).map(drop),
    }
}

/// Says what an errno of the mount means; the log and `kvfs status` say the rest.
fn failed(error: io::Error, key: Option<&Key>) -> StoreError {
    let (kind, message) = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => (ErrorKind::NotFound, "there is no such record".to_owned()),
        (io::ErrorKind::PermissionDenied, _) => (
            ErrorKind::Denied,
            format!("the mount does not allow it: {error}"),
        ),
        (io::ErrorKind::AlreadyExists, _) => {
            (ErrorKind::Changed, "the record exists already".to_owned())
        }
        (_, Some(libc::ESTALE)) => (ErrorKind::Changed, "the record has changed".to_owned()),
        (_, Some(libc::ETIMEDOUT)) => (ErrorKind::Timeout, "the store did not answer".to_owned()),
        (_, Some(libc::EFBIG)) => (ErrorKind::TooLarge, "the record is too large".to_owned()),
        (_, Some(libc::EDQUOT)) => (ErrorKind::Quota, "the account is out of quota".to_owned()),
        _ => (ErrorKind::Server, format!("the mount says: {error}")),
    };
    let error = StoreError::new(kind, message)
        .with_hint("kvfs status MOUNTPOINT shows its errors")
        .with_source(error);
    match key {
        Some(key) => error.with_key(key),
        None => error,
    }
}
