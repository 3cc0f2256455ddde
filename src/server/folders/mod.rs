//! The stores of a storage folder: `<root>/key_value_stores/<name or id>`, or `<root>` itself.
//!
//! What a store is called and whose it is says its `__metadata__.json` (`metadata`). A store
//! without that file is the server's own account's, and gets an id that follows from its
//! folder's name, so that it is the same each time.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

use super::catalog::{Catalog, Changed, Lookup, NewStore, StoreChange, StoreEntry};
use super::config::GeneralAccess;
use crate::base::redact::Secret;
use crate::base::signature::sign_record;
use crate::local::directory::names::STORE_METADATA;
use crate::local::{Access, DirectoryStore};
use crate::store::{ErrorKind, Result, StoreError};

pub(super) mod metadata;

use metadata::{Metadata, date, derived_id, disk, is_id, random_id, time};

/// The folder of all key-value stores in a storage folder.
const STORES: &str = "key_value_stores";

/// The folder of the store that a program uses when it names none; never a name.
const DEFAULT: &str = "default";

/// The stores of a folder.
#[derive(Debug)]
pub struct DirectoryCatalog {
    root: PathBuf,
    single: bool,
    access: Access,
    general_access: GeneralAccess,
    signing_secret: Secret,
    /// The id of the account that stores without an owner belong to.
    owner: String,
    /// Held while a store is made, changed or deleted, so that names stay unique.
    changing: Mutex<()>,
    /// By folder name. Never locked across I/O.
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    /// Modification time of the metadata file that `entry` was made from.
    stamp: Option<SystemTime>,
    entry: StoreEntry,
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
        owner: &str,
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
            owner: owner.to_owned(),
            changing: Mutex::default(),
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

    /// Returns when a store's folder was last changed. One that a symbolic link leads to from the
    /// outside is none.
    fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        let mut found = std::fs::symlink_metadata(path)?;
        if found.is_symlink() {
            if !path.canonicalize()?.starts_with(&self.root) {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            found = std::fs::metadata(path)?;
        }
        found.modified()
    }

    /// Returns the store of a folder; `None` if the folder is gone.
    fn load(&self, folder: &str) -> Result<Option<StoreEntry>> {
        let path = self.path(folder);
        let Ok(modified) = self.modified(&path) else {
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
        let metadata = Metadata::read(path);
        let id = match metadata.id {
            Some(id) if is_id(&id) => id,
            _ if is_id(folder) => folder.to_owned(),
            _ => derived_id(&format!("store {folder}")),
        };
        let name = match metadata.name {
            Some(name) => Some(name),
            None if path.join(STORE_METADATA).exists() => None,
            None => (folder != DEFAULT && !is_id(folder)).then(|| folder.to_owned()),
        };
        let general_access = metadata
            .general_access
            .unwrap_or(GeneralAccess::FollowUserSetting);
        Ok(StoreEntry {
            owner: metadata.owner.unwrap_or_else(|| self.owner.clone()),
            schema: metadata.schema.map(Arc::new),
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
    fn is_near(&self) -> bool {
        true
    }

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

    fn create(&self, new: &NewStore) -> Result<(StoreEntry, bool)> {
        let _changing = self.changing.lock();
        let owner = new.owner.as_deref().unwrap_or(&self.owner);
        if let Some(name) = &new.name
            && let Some(found) = self.find(Lookup::Name { owner, name })?
        {
            return Ok((found, false));
        }
        self.must_write()?;
        let id = random_id();
        let now = Some(date(SystemTime::now()));
        let metadata = Metadata {
            id: Some(id.clone()),
            name: new.name.clone(),
            accessed_at: now.clone(),
            created_at: now.clone(),
            modified_at: now,
            owner: Some(owner.to_owned()).filter(|owner| *owner != self.owner),
            schema: new.schema.clone(),
            ..Metadata::default()
        };
        // Another account's store, or one that was renamed, may lie in the folder of that name.
        let named = new.name.clone().filter(|name| !self.path(name).exists());
        let folder = named.unwrap_or(id);
        let path = self.path(&folder);
        std::fs::create_dir_all(&path).map_err(disk)?;
        metadata.write(&path)?;
        let entry = self.load(&folder)?.ok_or_else(vanished)?;
        Ok((entry, true))
    }

    fn update(&self, id: &str, change: &StoreChange) -> Result<Changed> {
        let _changing = self.changing.lock();
        let Some((folder, entry)) = self.find_folder(Lookup::Id(id))? else {
            return Ok(Changed::Missing);
        };
        self.must_write()?;
        if let Some(Some(name)) = &change.name
            && let Some(other) = self.find(Lookup::Name {
                owner: &entry.owner,
                name,
            })?
            && other.id != entry.id
        {
            return Ok(Changed::NameTaken);
        }
        let path = self.path(&folder);
        let old = Metadata::read(&path);
        let metadata = Metadata {
            id: Some(entry.id.clone()),
            name: change.name.clone().unwrap_or(entry.name),
            accessed_at: Some(date(entry.accessed)),
            created_at: Some(date(entry.created)),
            modified_at: Some(date(SystemTime::now())),
            title: change.title.clone().unwrap_or(entry.title),
            general_access: change.general_access.or(old.general_access),
            owner: old.owner,
            schema: change.schema.clone().unwrap_or(old.schema),
        };
        metadata.write(&path)?;
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
        let _changing = self.changing.lock();
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
        Lookup::Name { owner, name } => {
            entry.owner == owner && named.unwrap_or(folder).eq_ignore_ascii_case(name)
        }
    }
}

fn vanished() -> StoreError {
    StoreError::new(ErrorKind::StoreNotFound, "the store was deleted meanwhile")
}
