//! Finds the records of a folder, whichever layout each of them is in.
//!
//! A file belongs to a key (a *claim*) by its sidecar or, without one, by its name. Where
//! several files claim one key the order of [`Claim::rank`] decides and the rest are *rivals*.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use rustix::fs::FileType;

use super::dir::Dir;
use super::folder::{Folder, is_absence};
use super::names::{self, SIDECAR_SUFFIX, STORE_METADATA, UNFINISHED};
use crate::store::Key;

/// How deep sub-directories are looked into: keys with slashes, in the plain layout.
const MAX_DEPTH: usize = 32;

/// Where a record's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// In the quoted layout: the names follow from the key. Holds the sidecar's inode.
    Quoted(u64),
    /// Anywhere else.
    Other(Box<Files>),
}

/// The files of one record, relative to the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    pub value: String,
    pub sidecar: Option<String>,
}

impl Claim {
    /// Returns where the files of `key` are.
    pub(super) fn files(&self, key: &Key) -> Files {
        match self {
            Self::Quoted(_) => Files::quoted(key),
            Self::Other(files) => (**files).clone(),
        }
    }

    /// Orders claims: the quoted layout first, then other files with sidecars, then bare files;
    /// among equals the first name.
    fn rank(&self) -> (u8, Option<&str>) {
        match self {
            Self::Quoted(_) => (0, None),
            Self::Other(files) if files.sidecar.is_some() => (1, Some(&files.value)),
            Self::Other(files) => (2, Some(&files.value)),
        }
    }
}

impl Files {
    /// Returns where a record of the quoted layout is.
    pub(super) fn quoted(key: &Key) -> Self {
        Self::named(names::quote(key.as_str()))
    }

    /// Returns a value and its sidecar by the value's name.
    pub(super) fn named(value: String) -> Self {
        Self {
            sidecar: Some(names::sidecar_name(&value)),
            value,
        }
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub claims: BTreeMap<Key, Claim>,
    pub rivals: HashMap<Key, Vec<Claim>>,
    /// Files with names that are not UTF-8; no key can name them.
    pub unnamed: usize,
    /// Files of ours that are being written, or were by processes that are dead.
    pub unfinished: Vec<String>,
    /// Whether there are sub-directories: the folder's own time does not show changes in them.
    pub nested: bool,
}

impl Found {
    fn claim(&mut self, key: &str, claim: Claim) {
        let Some(key) = Key::new(key) else { return };
        match self.claims.remove(&key) {
            None => {
                self.claims.insert(key, claim);
            }
            Some(other) => {
                let (winner, rival) = if claim.rank() < other.rank() {
                    (claim, other)
                } else {
                    (other, claim)
                };
                self.rivals.entry(key.clone()).or_default().push(rival);
                self.claims.insert(key, winner);
            }
        }
    }
}

/// Scans a folder. Sidecars that `known` has seen at the same place are not read again.
pub(super) fn scan(folder: &Folder, known: &dyn Fn(&Key) -> Option<Claim>) -> io::Result<Found> {
    let mut found = Found::default();
    let root = folder.dir()?;
    let mut pending = vec![(String::new(), 0)];
    while let Some((prefix, depth)) = pending.pop() {
        let listed = match list(folder, &root, &prefix, &mut found) {
            Ok(listed) => listed,
            // A sub-directory may vanish meanwhile or belong to another user.
            Err(error) if !prefix.is_empty() => {
                tracing::warn!(%error, directory = prefix, "a sub-directory cannot be listed");
                continue;
            }
            Err(error) => return Err(error),
        };
        if depth < MAX_DEPTH {
            let below = listed.directories.iter();
            pending.extend(below.map(|name| (format!("{prefix}{name}/"), depth + 1)));
        }
        found.nested |= !listed.directories.is_empty();
        assign(folder, &prefix, listed, known, &mut found)?;
    }
    Ok(found)
}

#[derive(Debug, Default)]
struct Listed {
    values: HashSet<String>,
    /// Stem to inode.
    sidecars: BTreeMap<String, u64>,
    directories: Vec<String>,
}

fn list(folder: &Folder, root: &Dir, prefix: &str, found: &mut Found) -> io::Result<Listed> {
    let mut listed = Listed::default();
    let directory = root.dir(prefix.trim_end_matches('/'))?;
    for entry in directory.entries()? {
        let entry = entry?;
        let Some(name) = entry.name else {
            found.unnamed += 1;
            continue;
        };
        let kind = entry.kind;
        if kind.is_dir() {
            listed.directories.push(name);
        } else if !is_readable(folder, prefix, &name, kind) || names::is_unfinished(&name) {
            if let Some(stem) = name.strip_suffix(SIDECAR_SUFFIX) {
                tracing::debug!(stem, "ignoring a sidecar that is not a regular file");
            } else if name.ends_with(".tmp") && kind.is_file() {
                // With a sidecar it is a record after all; `assign` looks for it.
                listed.values.insert(name);
            }
        } else if name == STORE_METADATA {
        } else if let Some(stem) = name.strip_suffix(SIDECAR_SUFFIX) {
            listed.sidecars.insert(stem.to_owned(), entry.inode);
        } else {
            listed.values.insert(name);
        }
    }
    Ok(listed)
}

fn is_readable(folder: &Folder, prefix: &str, name: &str, kind: FileType) -> bool {
    kind.is_file() || (kind.is_symlink() && folder.file(&format!("{prefix}{name}")).is_ok())
}

fn assign(
    folder: &Folder,
    prefix: &str,
    mut listed: Listed,
    known: &dyn Fn(&Key) -> Option<Claim>,
    found: &mut Found,
) -> io::Result<()> {
    let sidecars = std::mem::take(&mut listed.sidecars);
    for (stem, inode) in &sidecars {
        let (stem, inode) = (stem.clone(), *inode);
        let sidecar_path = format!("{prefix}{stem}{SIDECAR_SUFFIX}");
        let quoted = match prefix {
            "" => names::unquote(&stem).and_then(Key::new),
            _ => None,
        };
        let has_value = listed.values.contains(&stem);
        if let Some(key) = &quoted
            && has_value
            && known(key) == Some(Claim::Quoted(inode))
        {
            listed.values.remove(&stem);
            found.claim(key.as_str(), Claim::Quoted(inode));
            continue;
        }
        let sidecar = match folder.sidecar(&sidecar_path) {
            Ok(Some(sidecar)) => sidecar,
            Ok(None) => continue,
            Err(error) if is_absence(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, file = sidecar_path, "a sidecar cannot be read");
                continue;
            }
        };
        // Only in the plain layout the value has an extension of its own.
        let value = match (&sidecar.filename, &sidecar.extension) {
            // A file that has a sidecar of its own is what that says.
            (Some(name), _) if *name != stem && sidecars.contains_key(name) => continue,
            (Some(name), _) => name.clone(),
            _ if has_value => stem.clone(),
            (None, Some(extension)) => format!("{stem}.{extension}"),
            (None, None) => continue,
        };
        if !listed.values.remove(&value) {
            continue;
        }
        let claim = if value == stem
            && quoted
                .as_ref()
                .is_some_and(|key| key.as_str() == sidecar.key)
        {
            Claim::Quoted(inode)
        } else {
            Claim::Other(Box::new(Files {
                value: format!("{prefix}{value}"),
                sidecar: Some(sidecar_path),
            }))
        };
        found.claim(&sidecar.key, claim);
    }
    for value in listed.values {
        if names::is_unfinished(&value) {
            if prefix.is_empty() && value.starts_with(UNFINISHED) {
                found.unfinished.push(value);
            }
            continue;
        }
        let value = format!("{prefix}{value}");
        let key = names::bare_key(&value).to_owned();
        found.claim(
            &key,
            Claim::Other(Box::new(Files {
                value,
                sidecar: None,
            })),
        );
    }
    Ok(())
}
