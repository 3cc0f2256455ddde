//! The stores of a storage folder: `<root>/key_value_stores/<name or id>`, or `<root>` itself.
//!
//! `__metadata__.json` holds a store's name and account (`metadata`). A store without that file is
//! the server's own account's, and gets an id that follows from its folder's name and the server's
//! secret, so that it is the same each time and cannot be guessed.
//!
//! Programs that share the folder may put links into it at any time. Everything is opened beneath
//! a descriptor, or by a path that may hold no links any more, so that none of them leads out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::catalog::{Catalog, Changed, Lookup, NewStore, StoreChange, StoreEntry};
use super::config::GeneralAccess;
use super::secret;
use crate::base::redact::Secret;
use crate::base::signature::sign_record;
use crate::local::directory::dir::Dir;
use crate::local::directory::names::SECRET;
use crate::local::{Access, DirectoryStore};
use crate::store::{ErrorKind, Result, Store, StoreError};

mod changes;
mod known;
pub(super) mod metadata;

use known::{Stores, rank};
use metadata::{Metadata, disk, id_of_folder, is_id, time};

/// The folder of all key-value stores in a storage folder.
const STORES: &str = "key_value_stores";

/// The folder of the store that a program uses when it names none; never a name.
const DEFAULT: &str = "default";

/// How often a store that changes while it is looked for is looked for again.
const ATTEMPTS: usize = 8;

/// How long making, changing or deleting a store waits for other changes, also of other servers.
const PATIENCE: Duration = Duration::from_secs(30);

/// The stores of a folder.
#[derive(Debug)]
pub struct DirectoryCatalog {
    /// Without links in its path.
    root: PathBuf,
    single: bool,
    access: Access,
    general_access: GeneralAccess,
    signing_secret: Secret,
    /// The id of the account that stores without an owner belong to.
    owner: String,
    /// Held while a store is made, changed or deleted, so that names stay unique.
    changing: Mutex<()>,
    /// How long a change waits for the others.
    patience: Duration,
    /// Held while all folders are looked at, so that many requests cost one look. Taken after
    /// `changing`.
    looking: Mutex<()>,
    /// Never locked across I/O.
    stores: Mutex<Stores>,
}

impl DirectoryCatalog {
    /// Looks at `root`: a folder with `key_value_stores` in it, or with no files at all, is a
    /// storage folder; any other is the folder of a single store. Without a `signing_secret` the one
    /// that is kept in `root` is taken, else one in `state`, a folder of this user.
    ///
    /// # Errors
    /// [`ErrorKind::StoreNotFound`] if there is no such folder, [`ErrorKind::Denied`] if its
    /// stores lie outside of it, [`ErrorKind::Disk`].
    pub fn open(
        root: &Path,
        access: Access,
        general_access: GeneralAccess,
        signing_secret: Option<Secret>,
        state: Option<&Path>,
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
        let folder = Dir::open(&root).map_err(cannot)?;
        let mut files = false;
        for entry in folder.entries().map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let hidden = entry
                .name
                .as_deref()
                .is_some_and(|name| name.starts_with(SECRET));
            files |= !entry.kind.is_dir() && !hidden;
        }
        let stores = folder.entry(STORES).map_err(cannot)?;
        if stores.is_some_and(|kind| kind.is_symlink()) && folder.dir(STORES).is_err() {
            return Err(leads_out(&root));
        }
        let writable = access == Access::ReadWrite;
        let signing_secret = signing_secret
            .unwrap_or_else(|| secret::or_passing(secret::of_folder(&root, writable, state)));
        Ok(Self {
            single: files && folder.dir(STORES).is_err(),
            root,
            access,
            general_access: match general_access {
                GeneralAccess::FollowUserSetting => GeneralAccess::Restricted,
                other => other,
            },
            signing_secret,
            owner: owner.to_owned(),
            changing: Mutex::default(),
            patience: PATIENCE,
            looking: Mutex::default(),
            stores: Mutex::default(),
        })
    }

    /// Opens the folder of all stores.
    fn stores_dir(&self) -> io::Result<Dir> {
        Dir::open(&self.root)?.dir(STORES)
    }

    fn open_folder(&self, folder: &str) -> io::Result<Dir> {
        if self.single {
            Dir::open(&self.root)
        } else {
            self.stores_dir()?.dir(folder)
        }
    }

    /// Returns the path of a store's folder, without links in it.
    fn real_path(&self, folder: &str) -> io::Result<PathBuf> {
        if self.single {
            return Ok(self.root.clone());
        }
        let path = self.root.join(STORES).join(folder).canonicalize()?;
        match path.starts_with(&self.root) {
            true => Ok(path),
            false => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    /// Returns the names of all stores' folders, sorted.
    fn folders(&self) -> Result<Vec<String>> {
        if self.single {
            let name = self.root.file_name().unwrap_or_default();
            return Ok(vec![name.to_string_lossy().into_owned()]);
        }
        let stores = match self.stores_dir() {
            Ok(stores) => stores,
            Err(error) if is_absence(&error) => return Ok(Vec::new()),
            Err(error) => return Err(disk(error)),
        };
        let mut folders = Vec::new();
        for entry in stores.entries().map_err(disk)? {
            let entry = entry.map_err(disk)?;
            let may_be = entry.kind.is_dir() || entry.kind.is_symlink();
            if let Some(name) = entry.name.filter(|name| may_be && !name.starts_with('.')) {
                folders.push(name);
            }
        }
        folders.sort();
        Ok(folders)
    }

    /// Returns the store of a folder; `None` if the folder is gone, or leads out.
    fn load(&self, folder: &str) -> Result<Option<StoreEntry>> {
        let opened = self
            .open_folder(folder)
            .and_then(|dir| Ok((dir.metadata()?, dir)));
        let (found, dir) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                if !is_absence(&error) {
                    tracing::warn!(%error, folder, "the folder of a store cannot be opened");
                }
                self.stores.lock().remove(folder);
                return Ok(None);
            }
        };
        let place = (found.st_dev, found.st_ino);
        let file = Metadata::open(&dir);
        let stamp = file.as_ref().map(|(_, identity)| *identity);
        let known = self.stores.lock().get(folder).cloned();
        let known = known.filter(|known| known.place == place);
        let modified = changed(found.st_mtime, found.st_mtime_nsec);
        let mut entry = match known {
            Some(known) if known.stamp == stamp => known.entry,
            known => {
                let store = match known {
                    Some(known) => known.entry.store,
                    None => match self.open_store(folder) {
                        Err(error) if error.kind() == ErrorKind::StoreNotFound => return Ok(None),
                        store => Arc::new(store?) as Arc<dyn Store>,
                    },
                };
                let metadata = file.map(|(file, _)| Metadata::read(file));
                self.describe(folder, metadata, modified, store)
            }
        };
        entry.modified = entry.modified.max(modified);
        entry.accessed = entry.accessed.max(entry.modified);
        let mut stores = self.stores.lock();
        // Two threads may have opened the store: the first one's index is kept.
        if let Some(first) = stores.get(folder).filter(|first| first.place == place) {
            entry.store = first.entry.store.clone();
        }
        stores.insert(folder, stamp, place, entry.clone());
        Ok(Some(entry))
    }

    fn open_store(&self, folder: &str) -> Result<DirectoryStore> {
        let path = self.real_path(folder).map_err(|error| {
            StoreError::new(ErrorKind::StoreNotFound, "the store is gone").with_source(error)
        })?;
        DirectoryStore::open_real(&path, self.access)
    }

    fn describe(
        &self,
        folder: &str,
        metadata: Option<Metadata>,
        modified: SystemTime,
        store: Arc<dyn Store>,
    ) -> StoreEntry {
        let said_nothing = metadata.is_none();
        let metadata = metadata.unwrap_or_default();
        let id = match metadata.id {
            Some(id) if is_id(&id) => id,
            _ if is_id(folder) => folder.to_owned(),
            _ => id_of_folder(&self.signing_secret, folder),
        };
        let name = match metadata.name {
            None if said_nothing => {
                (folder != DEFAULT && !is_id(folder)).then(|| folder.to_owned())
            }
            name => name,
        };
        let general_access = metadata
            .general_access
            .unwrap_or(GeneralAccess::FollowUserSetting);
        StoreEntry {
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
            store,
            id,
        }
    }

    /// Looks at all folders, unless that was done a moment ago.
    fn look(&self) -> Result<()> {
        let _looking = self.looking.lock();
        let modified = match self.single {
            true => None,
            false => self.stores_dir().and_then(|dir| dir.metadata()).ok(),
        };
        let modified = modified.map(|found| changed(found.st_mtime, found.st_mtime_nsec));
        if self.stores.lock().are_all(modified) {
            return Ok(());
        }
        let began = (Instant::now(), SystemTime::now());
        let folders = self.folders()?;
        for folder in &folders {
            if let Err(error) = self.load(folder) {
                tracing::warn!(%error, folder, "a store cannot be opened");
            }
        }
        self.stores.lock().looked(modified, began, &folders);
        Ok(())
    }

    fn find_folder(&self, lookup: Lookup<'_>) -> Result<Option<(String, StoreEntry)>> {
        if !self.stores.lock().were_looked_at() {
            self.look()?;
        }
        let mut looked = false;
        for _ in 0..ATTEMPTS {
            let known = self.stores.lock().find(lookup, &self.owner);
            match known {
                Some(folder) => {
                    if let Some(entry) = self.load(&folder)?
                        && rank(&folder, &entry, lookup, &self.owner).is_some()
                    {
                        return Ok(Some((folder, entry)));
                    }
                }
                None if looked => return Ok(None),
                None => {
                    self.look()?;
                    looked = true;
                }
            }
        }
        Ok(None)
    }

    /// Finds the folder of a store that was found, and maybe judged, a moment ago; `None` if another
    /// has taken its place since.
    fn folder_of(&self, entry: &StoreEntry) -> Result<Option<String>> {
        let Some(folder) = self.stores.lock().folder_of(entry) else {
            return Ok(None);
        };
        let now = self.load(&folder)?;
        let same = now.is_some_and(|now| {
            now.id == entry.id && now.owner == entry.owner && Arc::ptr_eq(&now.store, &entry.store)
        });
        Ok(same.then_some(folder))
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
        self.make(new)
    }

    fn update(&self, entry: &StoreEntry, change: &StoreChange) -> Result<Changed> {
        self.alter(entry, change)
    }

    fn delete(&self, entry: &StoreEntry) -> Result<bool> {
        self.erase(entry)
    }
}

fn changed<N: TryInto<u32>>(seconds: i64, nanos: N) -> SystemTime {
    let since = Duration::new(
        u64::try_from(seconds).unwrap_or_default(),
        nanos.try_into().unwrap_or_default(),
    );
    UNIX_EPOCH + since
}

fn leads_out(root: &Path) -> StoreError {
    let link = root.join(STORES);
    let target = std::fs::read_link(&link).unwrap_or_default();
    let message = format!(
        "{} is a link that leads out of the folder, to {}",
        link.display(),
        target.display()
    );
    StoreError::new(ErrorKind::Denied, message)
        .with_hint("serve a folder that holds its stores itself, or mount them there with --bind")
}

/// Returns whether an error means that there is no such folder here: a link that leads out is none.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || [libc::EXDEV, libc::ELOOP].contains(&error.raw_os_error().unwrap_or_default())
}
