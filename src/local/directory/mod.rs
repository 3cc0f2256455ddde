//! A folder as a store: reads what Crawlee, the Apify SDKs and apify-cli write, and writes what
//! they can read.
//!
//! Reading takes both layouts, mixed as they may be (`names`, `sidecar`, `scan`). Writing makes
//! the quoted layout of Crawlee for Python and Crawlee 4, value and sidecar each replaced whole
//! (`write`). Nothing outside the folder is ever opened, whatever keys and links say.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;

use super::transfer::{self, Verdict, disk};
use crate::base::clock::Deadline;
use crate::store::{
    ErrorKind, Fetched, GetOutcome, GetRequest, Key, ListItem, ListPage, ListQuery, MAX_PAGE,
    PutRequest, RecordMeta, Result, Store, StoreError, StoreInfo, Upload,
};

pub(crate) mod dir;
mod folder;
mod found;
mod index;
mod media;
pub(crate) mod names;
mod scan;
mod sidecar;
#[cfg(test)]
mod tests;
mod unfinished;
mod write;

use dir::Dir;
use folder::{Folder, is_absence};
use index::Index;
use sidecar::Identity;
use unfinished::Unfinished;
pub use unfinished::set_file_mode;

/// Whether a store may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Puts and deletes fail with [`ErrorKind::Unsupported`].
    ReadOnly,
    /// Puts and deletes work.
    ReadWrite,
}

/// A folder as a store.
///
/// Changes that others make in the folder are seen: those of a known record at its next head or
/// get, new and vanished records within about a second.
#[derive(Debug)]
pub struct DirectoryStore {
    folder: Folder,
    access: Access,
    info: StoreInfo,
    index: Index,
    /// Files with unreadable sidecars for which a warning has been logged.
    warned: Mutex<HashSet<String>>,
}

impl DirectoryStore {
    /// Opens a folder that holds one store.
    ///
    /// # Errors
    /// [`ErrorKind::StoreNotFound`] if there is no folder at `path`, [`ErrorKind::Denied`] if it
    /// may not be read, [`ErrorKind::Disk`] if the disk fails.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let real = path.canonicalize();
        Self::open_real(&real.map_err(|error| cannot_open(path, error))?, access)
    }

    /// The same for a canonical path: one with a link in it leads to no store.
    ///
    /// # Errors
    /// As [`DirectoryStore::open`].
    pub(crate) fn open_real(real: &Path, access: Access) -> Result<Self> {
        let folder = Folder::open(real).map_err(|error| cannot_open(real, error))?;
        let info = StoreInfo {
            id: real.display().to_string(),
            name: real
                .file_name()
                .map(|name| name.to_string_lossy().into_owned()),
            cache_scope: format!("dir:{}", real.display()),
            upload_scope: format!("dir:{}", real.display()),
            modified: folder.modified().ok(),
            created: None,
            expires: None,
        };
        Ok(Self {
            folder,
            access,
            info,
            index: Index::default(),
            warned: Mutex::default(),
        })
    }

    /// Returns the folder, with no symbolic links in its path.
    #[cfg(feature = "testing")]
    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().to_owned()
    }

    /// Looks at what is in the folder, if it may have changed, and clears what killed processes
    /// left on their way into it.
    fn refresh(&self, tolerated: Duration) -> Result<()> {
        let unfinished = self
            .index
            .refresh(&self.folder, tolerated)
            .map_err(|error| self.failed(error))?;
        if self.is_writable() {
            unfinished::remove_abandoned(&self.folder, &unfinished);
        }
        Ok(())
    }

    /// Returns that the folder is gone, if that is why a change failed.
    fn gone_or(&self, error: StoreError) -> StoreError {
        match self.folder.dir() {
            Err(gone) if error.kind() == ErrorKind::Disk => self.failed(gone),
            _ => error,
        }
    }

    /// Distinguishes a folder that is gone from a disk that fails.
    fn failed(&self, error: io::Error) -> StoreError {
        if is_absence(&error) {
            cannot_open(self.folder.path(), error)
        } else {
            disk(error)
        }
    }
}

impl Store for DirectoryStore {
    fn is_writable(&self) -> bool {
        matches!(self.access, Access::ReadWrite)
    }

    fn info(&self) -> StoreInfo {
        self.info.clone()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        transfer::check(deadline)?;
        if query.collection.is_some() {
            return Err(StoreError::new(
                ErrorKind::Unsupported,
                "a folder has no schema and so no collections",
            ));
        }
        self.refresh(Duration::ZERO)?;
        let (page, more) = self.index.page(
            query.after.as_deref().unwrap_or_default(),
            query.prefix.as_deref().unwrap_or_default(),
            query.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE),
        );
        let next = match page.last() {
            Some((key, _)) if more => Some(key.as_str().into()),
            _ => None,
        };
        let folder = self.folder.dir().map_err(|error| self.failed(error))?;
        let mut items = Vec::with_capacity(page.len());
        for (key, claim) in page {
            // Sizes change without the folder's time; what has vanished since is left out.
            if let Ok((size, modified)) = self.folder.stat(&folder, &claim.files(&key).value) {
                items.push(ListItem {
                    key,
                    stored_size: Some(size),
                    modified: Some(modified),
                    public_url: None,
                });
            }
        }
        Ok(ListPage { items, next })
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        transfer::check(deadline)?;
        Ok(self.locate(key, Duration::ZERO)?.meta())
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        transfer::check(deadline)?;
        let opened = self.locate(key, Duration::ZERO)?;
        let meta = opened.meta();
        if let Verdict::NotModified = transfer::judge(key, request, &meta)? {
            return Ok(GetOutcome::NotModified);
        }
        let size = meta.stored_size.unwrap_or_default();
        let range = request
            .range
            .as_ref()
            .map(|range| transfer::clamp(range, size));
        let window = range.clone().unwrap_or(0..size);
        let mut file = opened.file;
        if window.start > 0 {
            file.seek(SeekFrom::Start(window.start)).map_err(disk)?;
        }
        Ok(GetOutcome::Found(Fetched {
            is_delimited: true,
            meta,
            range,
            body: Box::new(Body {
                file,
                left: window.end - window.start,
                identity: opened.identity,
                key: key.clone(),
            }),
        }))
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        transfer::check(deadline)?;
        self.check_writable()?;
        self.write(key, request, body, deadline)
            .map_err(|error| self.gone_or(error).with_key(key))
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        transfer::check(deadline)?;
        self.check_writable()?;
        self.erase(key, deadline)
            .map_err(|error| self.gone_or(error).with_key(key))
    }
}

/// A value on its way: exactly the bytes of the version that was opened, or an error.
struct Body {
    file: File,
    left: u64,
    identity: Identity,
    key: Key,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.file.read(&mut buffer[..most])?;
        // Another process may write into this very file; replacing it does no harm.
        if n == 0 || folder::identity(&self.file)? != self.identity {
            return Err(StoreError::new(
                ErrorKind::Changed,
                "the file was written to while it was being read",
            )
            .with_key(&self.key)
            .into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

fn unreadable(key: &Key, error: io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        StoreError::new(ErrorKind::Denied, "the file may not be read")
            .with_hint("check the permissions of the folder and its files")
            .with_source(error)
            .with_key(key)
    } else {
        disk(error).with_key(key)
    }
}

fn cannot_open(path: &Path, error: io::Error) -> StoreError {
    let path = path.display();
    let (kind, message, hint) = match error.kind() {
        io::ErrorKind::NotFound => (
            ErrorKind::StoreNotFound,
            format!("there is no folder {path}"),
            "check the path; local stores lie in storage/key_value_stores/<name>",
        ),
        io::ErrorKind::NotADirectory => (
            ErrorKind::StoreNotFound,
            format!("{path} is not a folder"),
            "name the folder that holds the records, not one of its files",
        ),
        _ if is_absence(&error) => (
            ErrorKind::StoreNotFound,
            format!("a symbolic link has been put into the path {path}"),
            "open the folder again where it is now",
        ),
        io::ErrorKind::PermissionDenied => (
            ErrorKind::Denied,
            format!("the folder {path} may not be read"),
            "check the permissions of the folder",
        ),
        _ => (
            ErrorKind::Disk,
            format!("the folder {path} cannot be opened"),
            "check the disk",
        ),
    };
    StoreError::new(kind, message)
        .with_hint(hint)
        .with_source(error)
}

/// Replaces a file of a folder whole and durably, through a file of another name.
///
/// # Errors
/// [`ErrorKind::Disk`].
pub(crate) fn replace_file(folder: &Dir, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = folder.again().and_then(Unfinished::create).map_err(disk)?;
    transfer::copy(Upload::Bytes(bytes), &mut file)?;
    file.finish().map_err(disk)?;
    file.publish(name).map_err(disk)?;
    folder.sync().map_err(disk)
}
