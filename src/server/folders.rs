//! The stores of a storage folder: `<root>/key_value_stores/<name or id>`, or `<root>` itself.
//!
//! A store's `__metadata__.json` has the shape of Crawlee for Python; kvfs adds `title` and
//! `general_access`, which the others ignore. A store without that file gets an id that follows
//! from its folder's name, so that it is the same each time.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::catalog::{Catalog, Changed, Lookup, StoreChange, StoreEntry};
use super::config::GeneralAccess;
use crate::local::directory::names::STORE_METADATA;
use crate::local::directory::replace_file;
use crate::local::{Access, DirectoryStore};
use crate::redact::Secret;
use crate::signature::{base62, sign_record};
use crate::store::{ErrorKind, Result, StoreError};

/// The folder of all key-value stores in a storage folder.
const STORES: &str = "key_value_stores";

/// The folder of the store that a program uses when it names none; never a name.
const DEFAULT: &str = "default";

/// Length of the platform's ids.
const ID_LEN: usize = 17;

/// The stores of a folder.
#[derive(Debug)]
pub struct DirectoryCatalog {
    root: PathBuf,
    single: bool,
    access: Access,
    general_access: GeneralAccess,
    signing_secret: Secret,
    /// By folder name. Never locked across I/O.
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    /// Modification time of the metadata file that `entry` was made from.
    stamp: Option<SystemTime>,
    entry: StoreEntry,
}

/// What `__metadata__.json` says, in either case.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Metadata {
    id: Option<String>,
    name: Option<String>,
    #[serde(default, alias = "accessedAt")]
    accessed_at: Option<String>,
    #[serde(default, alias = "createdAt")]
    created_at: Option<String>,
    #[serde(default, alias = "modifiedAt")]
    modified_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    general_access: Option<GeneralAccess>,
}

impl DirectoryCatalog {
    /// Looks at `root`: a folder with `key_value_stores` in it, or with no files at all, is a
    /// storage folder; any other is the folder of a single store.
    ///
    /// # Errors
    /// [`ErrorKind::StoreNotFound`] if there is no such folder, [`ErrorKind::Disk`].
    pub fn open(
        root: &Path,
        access: Access,
        general_access: GeneralAccess,
        signing_secret: Secret,
    ) -> Result<Self> {
        let cannot = |error: io::Error| {
            let message = format!("the folder {} cannot be opened", root.display());
            let kind = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::StoreNotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                _ => ErrorKind::Disk,
            };
            StoreError::new(kind, message).with_source(error)
        };
        let root = root.canonicalize().map_err(cannot)?;
        let mut files = false;
        for entry in std::fs::read_dir(&root).map_err(cannot)? {
            files |= !entry.map_err(cannot)?.path().is_dir();
        }
        Ok(Self {
            single: files && !root.join(STORES).is_dir(),
            root,
            access,
            general_access: match general_access {
                GeneralAccess::FollowUserSetting => GeneralAccess::Restricted,
                other => other,
            },
            signing_secret,
            known: Mutex::default(),
        })
    }

    fn path(&self, folder: &str) -> PathBuf {
        if self.single {
            self.root.clone()
        } else {
            self.root.join(STORES).join(folder)
        }
    }

    fn folders(&self) -> Result<Vec<String>> {
        if self.single {
            let name = self.root.file_name().unwrap_or_default();
            return Ok(vec![name.to_string_lossy().into_owned()]);
        }
        let listed = match std::fs::read_dir(self.root.join(STORES)) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(disk(error)),
        };
        let mut folders = Vec::new();
        for entry in listed {
            let entry = entry.map_err(disk)?;
            if let Ok(name) = entry.file_name().into_string()
                && !name.starts_with('.')
                && entry.path().is_dir()
            {
                folders.push(name);
            }
        }
        folders.sort();
        Ok(folders)
    }

    /// Returns the store of a folder; `None` if the folder is gone.
    fn load(&self, folder: &str) -> Result<Option<StoreEntry>> {
        let path = self.path(folder);
        let Ok(modified) = std::fs::metadata(&path).and_then(|found| found.modified()) else {
            self.known.lock().remove(folder);
            return Ok(None);
        };
        let stamp = std::fs::metadata(path.join(STORE_METADATA))
            .and_then(|found| found.modified())
            .ok();
        let known = self.known.lock().get(folder).cloned();
        let mut known = match known {
            Some(known) if known.stamp == stamp => known,
            known => Known {
                stamp,
                entry: self.read(folder, &path, modified, known)?,
            },
        };
        known.entry.modified = known.entry.modified.max(modified);
        known.entry.accessed = known.entry.accessed.max(known.entry.modified);
        let mut all = self.known.lock();
        // Two threads may have opened the store: the first one's index is kept.
        if let Some(first) = all.get(folder).filter(|first| first.stamp == stamp) {
            known.entry.store = first.entry.store.clone();
        }
        all.insert(folder.to_owned(), known.clone());
        Ok(Some(known.entry))
    }

    fn read(
        &self,
        folder: &str,
        path: &Path,
        modified: SystemTime,
        known: Option<Known>,
    ) -> Result<StoreEntry> {
        let metadata = self.metadata(path);
        let id = match metadata.id {
            Some(id) if is_id(&id) => id,
            _ if is_id(folder) => folder.to_owned(),
            _ => derived_id(folder),
        };
        let name = match metadata.name {
            Some(name) => Some(name),
            None if path.join(STORE_METADATA).exists() => None,
            None => (folder != DEFAULT && !is_id(folder)).then(|| folder.to_owned()),
        };
        let time = |text: Option<String>| {
            let parsed = text?.parse::<Timestamp>().ok()?;
            Some(SystemTime::from(parsed))
        };
        let general_access = metadata
            .general_access
            .unwrap_or(GeneralAccess::FollowUserSetting);
        Ok(StoreEntry {
            name,
            title: metadata.title,
            created: time(metadata.created_at).unwrap_or(modified),
            modified: time(metadata.modified_at).unwrap_or(modified),
            accessed: time(metadata.accessed_at).unwrap_or(modified),
            access: match general_access {
                GeneralAccess::FollowUserSetting => self.general_access,
                own => own,
            },
            general_access,
            signing_key: sign_record(&self.signing_secret, &format!("store {id}")),
            store: match known {
                Some(known) => known.entry.store,
                None => Arc::new(DirectoryStore::open(path, self.access)?),
            },
            id,
        })
    }

    fn metadata(&self, path: &Path) -> Metadata {
        std::fs::read(path.join(STORE_METADATA))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    fn find_folder(&self, lookup: Lookup<'_>) -> Result<Option<(String, StoreEntry)>> {
        let guess = self
            .known
            .lock()
            .iter()
            .find(|(folder, known)| matches(folder, &known.entry, lookup))
            .map(|(folder, _)| folder.clone());
        for folder in guess.into_iter().chain(self.folders_unless_known(lookup)?) {
            if let Some(entry) = self.load(&folder)?
                && matches(&folder, &entry, lookup)
            {
                return Ok(Some((folder, entry)));
            }
        }
        Ok(None)
    }

    /// Returns all folders, or none where what is known answers.
    fn folders_unless_known(&self, lookup: Lookup<'_>) -> Result<Vec<String>> {
        let known = self
            .known
            .lock()
            .iter()
            .any(|(folder, known)| matches(folder, &known.entry, lookup));
        if known {
            Ok(Vec::new())
        } else {
            self.folders()
        }
    }

    fn must_write(&self) -> Result<()> {
        if self.access == Access::ReadWrite && !self.single {
            Ok(())
        } else {
            Err(StoreError::new(
                ErrorKind::Unsupported,
                "stores cannot be made, changed or deleted here",
            ))
        }
    }
}

impl Catalog for DirectoryCatalog {
    fn find(&self, lookup: Lookup<'_>) -> Result<Option<StoreEntry>> {
        Ok(self.find_folder(lookup)?.map(|(_, entry)| entry))
    }

    fn list(&self) -> Result<Vec<StoreEntry>> {
        let mut entries = Vec::new();
        for folder in self.folders()? {
            entries.extend(self.load(&folder)?);
        }
        Ok(entries)
    }

    fn create(&self, name: Option<&str>) -> Result<(StoreEntry, bool)> {
        if let Some(name) = name
            && let Some(found) = self.find(Lookup::Name(name))?
        {
            return Ok((found, false));
        }
        self.must_write()?;
        let id = random_id();
        let folder = name.unwrap_or(&id);
        let now = Timestamp::now();
        let metadata = Metadata {
            id: Some(id.clone()),
            name: name.map(str::to_owned),
            accessed_at: Some(date(now)),
            created_at: Some(date(now)),
            modified_at: Some(date(now)),
            ..Metadata::default()
        };
        let path = self.path(folder);
        std::fs::create_dir_all(&path).map_err(disk)?;
        write_metadata(&path, &metadata)?;
        let entry = self.load(folder)?.ok_or_else(vanished)?;
        Ok((entry, true))
    }

    fn update(&self, id: &str, change: &StoreChange) -> Result<Changed> {
        let Some((folder, entry)) = self.find_folder(Lookup::Id(id))? else {
            return Ok(Changed::Missing);
        };
        self.must_write()?;
        if let Some(Some(name)) = &change.name
            && let Some(other) = self.find(Lookup::Name(name))?
            && other.id != entry.id
        {
            return Ok(Changed::NameTaken);
        }
        let path = self.path(&folder);
        let metadata = Metadata {
            id: Some(entry.id.clone()),
            name: change.name.clone().unwrap_or(entry.name),
            accessed_at: Some(date_of(entry.accessed)),
            created_at: Some(date_of(entry.created)),
            modified_at: Some(date(Timestamp::now())),
            title: change.title.clone().unwrap_or(entry.title),
            general_access: change
                .general_access
                .or(self.metadata(&path).general_access),
        };
        write_metadata(&path, &metadata)?;
        let renamed = match &change.name {
            Some(Some(name)) if !self.path(name).exists() => name.clone(),
            _ => folder.clone(),
        };
        if renamed != folder {
            std::fs::rename(&path, self.path(&renamed)).map_err(disk)?;
        }
        self.known.lock().remove(&folder);
        match self.load(&renamed)? {
            Some(entry) => Ok(Changed::Done(Box::new(entry))),
            None => Ok(Changed::Missing),
        }
    }

    fn delete(&self, id: &str) -> Result<bool> {
        let Some((folder, _)) = self.find_folder(Lookup::Id(id))? else {
            return Ok(false);
        };
        self.must_write()?;
        let path = self.path(&folder);
        if path.is_symlink() {
            std::fs::remove_file(&path).map_err(disk)?;
        } else {
            std::fs::remove_dir_all(&path).map_err(disk)?;
        }
        self.known.lock().remove(&folder);
        Ok(true)
    }
}

fn matches(folder: &str, entry: &StoreEntry, lookup: Lookup<'_>) -> bool {
    let named = entry.name.as_deref();
    match lookup {
        // The folder of a nameless store (`default`) is what local programs take for its id.
        Lookup::Id(id) => {
            entry.id.eq_ignore_ascii_case(id)
                || (named.is_none() && folder.eq_ignore_ascii_case(id))
        }
        Lookup::Name(name) => named.unwrap_or(folder).eq_ignore_ascii_case(name),
    }
}

fn write_metadata(path: &Path, metadata: &Metadata) -> Result<()> {
    let text = serde_json::to_vec_pretty(metadata).map_err(|error| disk(error.into()))?;
    replace_file(path, STORE_METADATA, &text)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn derived_id(folder: &str) -> String {
    let hash = Sha256::digest(format!("kvfs store {folder}"));
    let number = hash[..16]
        .iter()
        .fold(0u128, |number, byte| (number << 8) | u128::from(*byte));
    let digits = base62(number);
    // The least significant digits; a number this large has 17 but for one in a million.
    format!("{digits:0>ID_LEN$}")[digits.len().max(ID_LEN) - ID_LEN..].to_owned()
}

fn random_id() -> String {
    std::iter::repeat_with(fastrand::alphanumeric)
        .take(ID_LEN)
        .collect()
}

/// Writes a time as Crawlee for Python does.
fn date(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.6f+00:00").to_string()
}

fn date_of(time: SystemTime) -> String {
    date(Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH))
}

fn disk(error: io::Error) -> StoreError {
    StoreError::new(ErrorKind::Disk, "the storage folder cannot be used").with_source(error)
}

fn vanished() -> StoreError {
    StoreError::new(ErrorKind::StoreNotFound, "the store was deleted meanwhile")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_look_like_the_platforms_and_stay_the_same() {
        assert!(is_id(&derived_id("a")), "{}", derived_id("a"));
        assert_eq!(derived_id("a"), derived_id("a"));
        assert_ne!(derived_id("a"), derived_id("b"));
    }

    #[test]
    fn dates_of_all_writers_are_understood() {
        for text in [
            "2026-11-22 23:40:50.764587+00:00",
            "2026-11-22T23:40:50.764Z",
        ] {
            text.parse::<Timestamp>().expect(text);
        }
        let time = Timestamp::UNIX_EPOCH;
        assert_eq!(date(time), "1970-01-01 00:00:00.000000+00:00");
        assert_eq!(date(time).parse::<Timestamp>().expect("a date"), time);
    }
}
