//! The staging folder of one mount: where its staging files and its journal are.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use super::FOLDER;
use super::adopted::OpenFiles;
use super::budget::Budget;
use super::entry::EntryId;
use super::journal::Journal;
use super::own::Own;
use super::owner::{self, OwnerDir, private_folder, sync_dir};
use crate::store::reference::StoreRef;

/// The file that tells which store a scope is of.
pub const STORE_FILE: &str = "store.json";

/// Which staging folder, and of what.
#[derive(Clone, Debug)]
pub struct StagingConfig {
    /// The folder; kvfs uses a sub-folder of its own in it.
    pub dir: PathBuf,
    /// The sub-folder for server and store; fit for a folder's name.
    pub scope: String,
    /// Which store that is.
    pub store: StoreFile,
    /// The most bytes in it; `None` for what the disk can spare.
    pub limit: Option<u64>,
}

/// Returns the folder name for the uploads to a store. What waits are stored bytes with their encoding,
/// so that every mount of the store can show and upload them, decoded or with `--raw`.
pub fn scope_name(upload_scope: &str) -> String {
    // As the folders of decoded mounts have always been named.
    let digest = Sha256::digest(format!("decoded {upload_scope}"));
    digest[..20]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Which store the pending uploads of a scope are for. No secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreFile {
    /// As the user named it.
    pub reference: String,
    /// As it can be opened again, whatever the reference means by then.
    pub open: StoreRef,
    /// The API's address as the mount was told; `None` for the default.
    pub api_url: Option<Url>,
}

impl Default for StoreFile {
    fn default() -> Self {
        Self {
            reference: String::new(),
            open: StoreRef::Directory(PathBuf::new()),
            api_url: None,
        }
    }
}

/// The staging folder of one mount.
#[derive(Debug)]
pub struct StagingFolder {
    own: Arc<Own>,
    scope: PathBuf,
    budget: Arc<Budget>,
    journal: Arc<Journal>,
    open_files: Arc<OpenFiles>,
}

impl StagingFolder {
    /// Opens the folder of a scope, takes over the pending uploads that dead processes left there
    /// and removes what else is left of them.
    ///
    /// # Errors
    /// That a folder cannot be made, is a symbolic link or belongs to another user.
    pub fn open(config: &StagingConfig) -> io::Result<Arc<Self>> {
        Self::open_scope(
            &config.dir,
            &config.scope,
            Some(&config.store),
            config.limit,
        )
    }

    /// Opens the folder of a scope to see to what dead processes left there.
    ///
    /// # Errors
    /// As for [`StagingFolder::open`].
    pub fn adopt(dir: &Path, scope: &str, store: Option<&StoreFile>) -> io::Result<Arc<Self>> {
        Self::open_scope(dir, scope, store, None)
    }

    fn open_scope(
        dir: &Path,
        scope: &str,
        store: Option<&StoreFile>,
        limit: Option<u64>,
    ) -> io::Result<Arc<Self>> {
        let (path, lock) = make_scope(dir, scope, store, true)?;
        let own = OwnerDir::create(&path)?;
        let mut dead = Vec::new();
        for folder in owner::owners(&path)? {
            if folder == own.path() {
                continue;
            }
            match OwnerDir::adopt(&folder) {
                Ok(Some(owner)) => {
                    let entries = take_over(&owner)?;
                    dead.push((owner, entries));
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    "cannot look for pending uploads in {}: {error}",
                    folder.display()
                ),
            }
        }
        drop(lock);
        let budget = Budget::new(File::open(own.path())?, limit);
        let own = Arc::new(Own::new(dir, scope, store, own)?);
        let journal = Journal::new(Arc::clone(&own), dead, Arc::clone(&budget));
        Ok(Arc::new(Self {
            own,
            scope: path,
            budget,
            journal: Arc::new(journal),
            open_files: Arc::default(),
        }))
    }

    /// Makes a staging file: without a name, mode 0600, gone with its last descriptor. Its bytes
    /// are to be counted in a [`super::budget::Space`].
    ///
    /// # Errors
    /// That the disk refuses.
    pub fn new_file(&self) -> io::Result<File> {
        let nameless = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        self.own.within(|own| {
            match rustix::fs::openat(CWD, own.path(), nameless, Mode::RUSR | Mode::WUSR) {
                Ok(file) => Ok(file.into()),
                // Some filesystems cannot: then it has a name for a moment, and is copied to be
                // kept.
                Err(_) => tempfile::tempfile_in(own.path()),
            }
        })
    }

    /// Returns the folder of this process.
    #[cfg(feature = "testing")]
    pub fn own_path(&self) -> PathBuf {
        self.own.get().path().to_owned()
    }

    /// Leaves nothing behind if nothing is pending; nothing more may be kept.
    pub fn end(&self) {
        self.own.get().remove_if_empty();
    }

    /// Returns what may be written.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Returns the pending uploads.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    pub(super) fn open_files(&self) -> &Arc<OpenFiles> {
        &self.open_files
    }

    /// Returns the folder of the scope.
    pub fn path(&self) -> &Path {
        &self.scope
    }

    /// Removes damaged entries, those that `wanted` names by id, or all; returns how many.
    pub fn discard_damaged(&self, wanted: &[String]) -> usize {
        let mut gone = damaged(&self.scope);
        gone.retain(|id| wanted.is_empty() || wanted.iter().any(|name| name == id.as_str()));
        let folder = self.scope.join(owner::DAMAGED);
        for id in &gone {
            for path in [owner::json_path(&folder, id), owner::data_path(&folder, id)] {
                if let Err(error) = super::journal::remove_file(&path) {
                    tracing::warn!("cannot remove {}: {error}", path.display());
                }
            }
        }
        // Not while there is something in it.
        let _ = fs::remove_dir(&folder);
        gone.len()
    }

    /// Returns the entries that were found damaged, of this process and of all before.
    pub fn damaged(&self) -> Vec<EntryId> {
        damaged(&self.scope)
    }
}

/// Makes the folder of a scope where it is missing; returns it, and its lock, for which it may `wait`.
///
/// # Errors
/// That a folder cannot be made, is a symbolic link or belongs to another user.
pub(super) fn make_scope(
    dir: &Path,
    scope: &str,
    store: Option<&StoreFile>,
    wait: bool,
) -> io::Result<(PathBuf, File)> {
    let root = dir.join(FOLDER);
    let scope = root.join(scope);
    crate::base::folders::private_dir(dir)?;
    private_folder(&root)?;
    private_folder(&scope)?;
    sync_dir(dir)?;
    sync_dir(&root)?;
    let lock = owner::lock_scope(&scope, wait)?;
    if let Some(store) = store {
        write_store_file(&scope, store)?;
    }
    Ok((scope, lock))
}

/// Returns the damaged entries of a scope.
pub fn damaged(scope: &Path) -> Vec<EntryId> {
    let files = fs::read_dir(scope.join(owner::DAMAGED))
        .into_iter()
        .flatten();
    let mut ids: Vec<EntryId> = files
        .flatten()
        .filter_map(|file| file.file_name().to_str()?.split('.').next()?.parse().ok())
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// Clears up what a dead owner left; returns its entries.
///
/// # Errors
/// That the folder cannot be read.
pub fn take_over(owner: &OwnerDir) -> io::Result<Vec<owner::Found>> {
    let contents = owner::contents(owner.path())?;
    for (id, why) in &contents.damaged {
        owner.quarantine(id, why);
    }
    for id in &contents.newer {
        tracing::warn!("the pending upload {id} was written by a newer kvfs and is left alone");
    }
    for path in &contents.leftovers {
        tracing::debug!(path = %path.display(), "removing a file that a killed process was writing");
        let _ = fs::remove_file(path);
    }
    Ok(contents.entries)
}

fn write_store_file(scope: &Path, store: &StoreFile) -> io::Result<()> {
    let path = scope.join(STORE_FILE);
    let text = serde_json::to_vec_pretty(store)?;
    if fs::read(&path).is_ok_and(|now| now == text) {
        return Ok(());
    }
    let mut new = tempfile::NamedTempFile::new_in(scope)?;
    new.write_all(&text)?;
    new.as_file().sync_all()?;
    new.persist(&path).map_err(|error| error.error)?;
    sync_dir(scope)
}
