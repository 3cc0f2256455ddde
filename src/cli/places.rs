//! The meaning of words on the command line that can be mount points, files in mounts, or names of
//! the settings file: the same for every command.
//!
//! A word that leads to a kvfs mount, or to a file right in one, means that mount; a file that exists
//! wins over what only looks like a store's name, as folders do. No mount is touched to find out.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{CliError, Kind};
use super::reference;
use super::settings::{Environment, absolute_reference};
use crate::daemon::registry::mount_point::{self, is_kvfs};
use crate::daemon::registry::mounts::{self, MountInfo};
use crate::daemon::registry::process::user_name;
use crate::store::reference::StoreRef;

/// A place in a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InMount {
    /// The canonical mount point.
    pub mount_point: PathBuf,
    /// The name of a file in it; `None` for the mount itself.
    pub name: Option<String>,
}

/// Returns the place in a mount to which a word leads; `None` when it leads into none.
pub fn inside(word: &Path) -> Option<InMount> {
    let mounted: Vec<PathBuf> = mounts::list()
        .ok()?
        .into_iter()
        .filter(MountInfo::is_kvfs)
        .map(|mount| mount.mount_point)
        .collect();
    if mounted.is_empty() {
        return None;
    }
    let is_mounted = |path: &Path| mounted.iter().any(|mounted| mounted == path);
    let path: PathBuf = std::path::absolute(word).ok()?.components().collect();
    let whole = |mount_point| InMount {
        mount_point,
        name: None,
    };
    if is_mounted(&path) {
        return Some(whole(path));
    }
    // A mount has no folders: what lies in it lies right in it.
    let folder = mount_point::resolve(path.parent()?).ok()?;
    if !is_mounted(&folder) {
        let resolved = mount_point::resolve(&path).ok()?;
        return is_mounted(&resolved).then(|| whole(resolved));
    }
    // In the current folder a bare word may be meant as a store.
    if word.components().count() == 1 && looks_like_store(word) {
        return None;
    }
    Some(InMount {
        mount_point: folder,
        name: Some(path.file_name()?.to_str()?.to_owned()),
    })
}

/// Whether a bare word is written as only stores are.
fn looks_like_store(word: &Path) -> bool {
    let Some(text) = word.to_str() else {
        return false;
    };
    text.starts_with('@')
        || text.contains(['~', ':'])
        || matches!(
            StoreRef::parse(&[text.to_owned()]),
            Ok(StoreRef::Remote(remote)) if remote.mistaken_id().is_none()
        )
}

/// Returns the names of files that words mean in a mount: names, or paths of files in it.
///
/// # Errors
/// That a path leads elsewhere.
pub fn names_in(mount_point: &Path, words: &[String]) -> Result<Vec<String>, CliError> {
    words
        .iter()
        .map(|word| match inside(Path::new(word)) {
            Some(place) if place.mount_point == mount_point => place.name.ok_or_else(|| {
                CliError::usage(format!("{word} is the mount itself, not a file in it"))
            }),
            Some(place) => Err(CliError::usage(format!(
                "{word} is in another mount, {}",
                place.mount_point.display()
            ))),
            None if is_path(word) => Err(CliError::usage(format!(
                "{word} is no file in {}",
                mount_point.display()
            ))),
            // A key may hold a slash.
            None => Ok(word.clone()),
        })
        .collect()
}

fn is_path(word: &str) -> bool {
    word.starts_with(['/', '.']) && word.contains('/')
        || word.contains('/') && fs::symlink_metadata(word).is_ok()
}

/// Returns the mount points that words mean: paths, or `@NAME` for what is mounted of that store.
///
/// # Errors
/// [`Kind::Trouble`] that nothing of kvfs is or can be mounted there.
pub fn mount_points(
    words: &[PathBuf],
    environment: &Environment,
) -> Result<Vec<PathBuf>, CliError> {
    let mut points = Vec::new();
    for word in words {
        for point in meant(word, environment)? {
            if !points.contains(&point) {
                points.push(point);
            }
        }
    }
    Ok(points)
}

/// Returns the one mount point that a word means.
///
/// # Errors
/// As [`mount_points`]; that a name means several.
pub fn one_mount_point(word: &Path, environment: &Environment) -> Result<PathBuf, CliError> {
    match meant(word, environment)?.as_slice() {
        [point] => Ok(point.clone()),
        points => {
            let shown: Vec<String> = points
                .iter()
                .map(|path| mount_point::quoted(path))
                .collect();
            Err(
                CliError::usage(format!("{} is mounted several times", word.display()))
                    .hinted(format!("name one of them: {}", shown.join(", "))),
            )
        }
    }
}

fn meant(word: &Path, environment: &Environment) -> Result<Vec<PathBuf>, CliError> {
    let name = word.to_str().and_then(|word| word.strip_prefix('@'));
    // A folder of that name is one all the same.
    if let Some(name) = name.filter(|_| fs::symlink_metadata(word).is_err()) {
        return named(name, environment);
    }
    match mount_point::resolve(word) {
        Ok(path) => Ok(vec![path]),
        // Its hints are about making one.
        Err(error) => Err(CliError {
            hints: vec!["see what is mounted with: kvfs status".to_owned()],
            kind: Kind::Trouble,
            ..error.into()
        }),
    }
}

/// Returns where a store of the settings file is mounted.
fn named(name: &str, environment: &Environment) -> Result<Vec<PathBuf>, CliError> {
    let file = environment.config_file(None)?;
    let reference = reference::parse(&file.named(name)?.store)?;
    // As `kvfs mount` registers it.
    let shown = match absolute_reference(reference.clone()) {
        Ok(reference) => reference.to_string(),
        Err(_) => reference.to_string(),
    };
    let points: Vec<PathBuf> = environment
        .registry()?
        .entries()
        .into_iter()
        .filter(|entry| entry.store == shown && (entry.is_alive() || is_kvfs(&entry.mount_point)))
        .map(|entry| entry.mount_point)
        .collect();
    if points.is_empty() {
        return Err(
            CliError::of(Kind::Trouble, format!("@{name} ({shown}) is not mounted"))
                .hinted("see what is mounted with: kvfs status"),
        );
    }
    Ok(points)
}

/// Returns the error of a command that finds nothing mounted where it looks.
pub fn not_mounted(path: &Path) -> CliError {
    CliError::of(
        Kind::Trouble,
        format!("no store is mounted on {}", path.display()),
    )
    .hinted("see what is mounted with: kvfs status")
}

/// Returns the user to whom the mount at `path` belongs, if that is another one.
pub fn other_owner(path: &Path) -> Option<String> {
    let mount = mounts::find(path).ok().flatten()?;
    let owner = mount.user_id?;
    let me = rustix::process::geteuid();
    if owner == me.as_raw() || me.is_root() {
        return None;
    }
    Some(match user_name(owner) {
        Some(name) => format!("{name} (uid {owner})"),
        None => format!("uid {owner}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_only_stores_have_are_no_paths() {
        for store in ["~shop", "me~shop", "run:abc", "@prod", "WkzbQMuFYuamGv3YF"] {
            assert!(looks_like_store(Path::new(store)), "{store}");
        }
        for file in ["INPUT", "page.html", "OUTPUT.json"] {
            assert!(!looks_like_store(Path::new(file)), "{file}");
        }
    }

    #[test]
    fn what_is_in_no_mount_is_told_so() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(inside(dir.path()), None);
        assert_eq!(inside(&dir.path().join("no/such/file")), None);
        assert_eq!(
            not_mounted(dir.path()).kind.exit_code(),
            Kind::Trouble.exit_code()
        );
    }
}
