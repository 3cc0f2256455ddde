//! Folders that hold several stores, as Crawlee and the SDKs make them: `storage` with
//! `key_value_stores`, `datasets` and `request_queues` in it. Each store is mounted by itself.

use std::fs;
use std::path::{Path, PathBuf};

use crate::base::text::Line;
use crate::local::directory::names::STORE_METADATA;
use crate::store::{ErrorKind, Result, StoreError};

/// The folder of all key-value stores in a storage folder.
const STORES: &str = "key_value_stores";
/// What else a storage folder holds; none of it is a key-value store.
const OTHERS: [&str; 2] = ["datasets", "request_queues"];
/// The most stores that are named.
const NAMED: usize = 8;

/// Returns the folders of the stores that `folder` holds, if it is not the folder of one store.
pub fn stores_in(folder: &Path) -> Option<Vec<PathBuf>> {
    let inner = folder.join(STORES);
    if inner.is_dir() {
        return Some(folders_in(&inner));
    }
    if folder.join(STORE_METADATA).is_file() {
        return None;
    }
    let below = folders_in(folder);
    let described = |path: &PathBuf| path.join(STORE_METADATA).is_file();
    let is_storage = OTHERS.iter().any(|name| folder.join(name).is_dir()) && !has_files(folder);
    if is_storage {
        return Some(Vec::new());
    }
    let is_all_stores = folder.file_name().is_some_and(|name| name == STORES) && !has_files(folder);
    let is_folder_of_stores = !below.is_empty() && (is_all_stores || below.iter().any(described));
    is_folder_of_stores.then_some(below)
}

/// Refuses a folder that holds several stores: as one, it would show some records under names that no
/// program knows, and hide others.
///
/// # Errors
/// [`ErrorKind::Unsupported`]; names the stores that are there.
pub fn check_one(folder: &Path) -> Result<()> {
    let Some(stores) = stores_in(folder) else {
        return Ok(());
    };
    let shown = folder.display();
    let Some(first) = stores.first() else {
        return Err(StoreError::new(
            ErrorKind::Unsupported,
            format!("{shown} is a storage folder without any key-value store"),
        )
        .with_hint("datasets and request queues are no key-value stores"));
    };
    let names: Vec<String> = stores
        .iter()
        .take(NAMED)
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    let more = match stores.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(", and {n} more"),
    };
    let noun = if stores.len() == 1 {
        "the store"
    } else {
        "the stores"
    };
    Err(StoreError::new(
        ErrorKind::Unsupported,
        format!(
            "{} is not one store: it holds {noun} {}{more}",
            Line(shown),
            Line(names.join(", "))
        ),
    )
    .with_hint(format!("name one of them: {}", Line(first.display()))))
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = entries(folder)
        .filter(|(_, is_folder)| *is_folder)
        .map(|(path, _)| path)
        .collect();
    found.sort();
    found
}

fn has_files(folder: &Path) -> bool {
    entries(folder).any(|(_, is_folder)| !is_folder)
}

/// Returns what is in a folder, and whether it is a folder, without hidden names.
fn entries(folder: &Path) -> impl Iterator<Item = (PathBuf, bool)> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let (kind, path) = (entry.file_type().ok()?, entry.path());
            let is_folder = kind.is_dir() || kind.is_symlink() && path.is_dir();
            (!is_hidden(&path)).then_some((path, is_folder))
        })
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for file in files {
            let path = dir.path().join(file);
            let folder = path.parent().expect("a folder");
            fs::create_dir_all(folder).expect("a folder");
            fs::write(path, "{}").expect("a file");
        }
        dir
    }

    fn names(dir: &tempfile::TempDir, folder: &str) -> Option<Vec<String>> {
        let stores = stores_in(&dir.path().join(folder))?;
        let name = |path: PathBuf| {
            let name = path.file_name().expect("a name");
            name.to_string_lossy().into_owned()
        };
        Some(stores.into_iter().map(name).collect())
    }

    #[test]
    fn a_folder_of_several_stores_is_told_from_that_of_one() {
        let dir = made(&[
            "storage/key_value_stores/shop/INPUT.json",
            "storage/key_value_stores/s2/__metadata__.json",
            "storage/datasets/default/000000001.json",
            "only/datasets/default/000000001.json",
            "many/a/__metadata__.json",
            "many/b/x.txt",
            "one/__metadata__.json",
            "one/sub/x.txt",
            "plain/x.txt",
            "plain/key/with/slashes.txt",
        ]);
        let two = Some(vec!["s2".to_owned(), "shop".to_owned()]);
        assert_eq!(names(&dir, "storage"), two);
        assert_eq!(names(&dir, "storage/key_value_stores"), two);
        assert_eq!(names(&dir, "only"), Some(Vec::new()));
        assert_eq!(
            names(&dir, "many"),
            Some(vec!["a".to_owned(), "b".to_owned()])
        );
        for one in ["one", "plain", "storage/key_value_stores/shop"] {
            assert_eq!(names(&dir, one), None, "{one}");
        }
        let error = check_one(&dir.path().join("storage")).expect_err("two stores");
        assert!(error.to_string().contains("s2, shop"), "{error}");
        assert!(error.hint().is_some_and(|hint| hint.ends_with("/s2")));
    }
}
