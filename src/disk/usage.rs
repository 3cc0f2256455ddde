//! The cache folder as a person sees it: what each store takes, and room for other things.
//!
//! Mounts may use the folder meanwhile. Whatever goes under them is a miss to them, no error, and
//! what they have open stays readable.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::database::{Database, remove_folder};
use super::{DiskTier, FOLDER, STORE_FILE};

/// What the folder holds of one store, as one account and one kind of mount may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeUsage {
    /// The store's id; `None` if it is not known.
    pub store: Option<String>,
    /// How many contents there are.
    pub contents: u64,
    /// How many bytes they take, with everything that is kept about them.
    pub bytes: u64,
    /// When one of them was last read or fetched.
    pub used: Option<SystemTime>,
    path: PathBuf,
}

/// Returns what is in the cache folder `dir`, the store that was used last first.
///
/// # Errors
/// That the folder cannot be read; one that is not there holds nothing.
pub fn scopes(dir: &Path) -> io::Result<Vec<ScopeUsage>> {
    let entries = match fs::read_dir(dir.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut scopes = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != "tmp" {
            scopes.push(usage_of(entry.path())?);
        }
    }
    scopes.sort_by_key(|scope| std::cmp::Reverse(scope.used));
    Ok(scopes)
}

fn usage_of(path: PathBuf) -> io::Result<ScopeUsage> {
    let mut usage = ScopeUsage {
        store: fs::read_to_string(path.join(STORE_FILE)).ok(),
        contents: 0,
        bytes: 0,
        used: None,
        path,
    };
    let trash = usage.path.with_file_name("tmp");
    let database = Database::of(&usage.path, trash, Arc::default(), false);
    if let Some((rows, used)) = database.count() {
        usage.contents = rows;
        usage.used = used
            .and_then(|ms| u64::try_from(ms).ok())
            .map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
    }
    let mut folders = vec![usage.path.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // A file that goes meanwhile is not there.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                folders.push(entry.path());
                continue;
            }
            usage.bytes += metadata.len();
            if entry.path().extension().is_some_and(|kind| kind == "json")
                && entry.path().parent() != Some(&usage.path)
            {
                usage.contents += 1;
                usage.used = usage.used.max(metadata.modified().ok());
            }
        }
    }
    Ok(usage)
}

/// Removes everything that the folder holds of a store.
///
/// # Errors
/// That something cannot be removed; what is gone already is no error.
pub fn clear(scope: &ScopeUsage) -> io::Result<()> {
    remove_folder(&scope.path, &scope.path.with_file_name("tmp"))
}

impl DiskTier {
    /// Notes which store the scope belongs to.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn note_store(&self, id: &str) -> io::Result<()> {
        let path = self.scope_dir().join(STORE_FILE);
        match path.exists() {
            true => Ok(()),
            false => fs::write(path, id),
        }
    }
}
