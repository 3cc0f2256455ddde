//! What the commands share that ask the daemon of a mount.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::error::CliError;
use super::settings::Environment;
use super::unmount::resolve_mounted;
use crate::daemon::control::{self, Answer, Request};
use crate::registry::mount_point::{self, is_kvfs};
use crate::registry::{Entry, mounts};

/// How long a daemon may be silent before it counts as hanging: longer than a request to the
/// store may take.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The daemon of a mount.
#[derive(Debug)]
pub struct Daemon {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    entry: Entry,
}

impl Daemon {
    /// Finds the daemon of the mount at `path`.
    ///
    /// # Errors
    /// That no store is mounted there, or by nobody who could be asked.
    pub fn find(path: &Path, environment: &Environment) -> Result<Self, CliError> {
        let mount_point = resolve_mounted(path)?;
        if !is_kvfs(&mount_point) {
            let shown = mount_point.display();
            return Err(CliError::failed(format!("no store is mounted on {shown}"))
                .hinted("see what is mounted with: kvfs status"));
        }
        Self::at(mount_point, environment)
    }

    fn at(mount_point: PathBuf, environment: &Environment) -> Result<Self, CliError> {
        let entry = environment.registry()?.find(&mount_point);
        match entry.filter(Entry::is_alive) {
            Some(entry) => Ok(Self { mount_point, entry }),
            None => Err(CliError::failed(format!(
                "the daemon that serves {} cannot be asked",
                mount_point.display()
            ))
            .hinted("it is another user's, or gone; see: kvfs status")),
        }
    }

    /// Asks, and hands news to `news` until the answer; hangs up when that says `false`, and
    /// returns nothing then.
    ///
    /// # Errors
    /// What the daemon answers, or that it does not.
    pub fn ask(
        &self,
        request: &Request,
        news: &mut dyn FnMut(Value) -> bool,
    ) -> Result<Option<Value>, CliError> {
        match control::follow(&self.entry.control, request, PATIENCE, news) {
            Ok(Answer::Done(value)) => Ok(Some(value)),
            Ok(answer) => Err(CliError::failed(answer.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(None),
            // It unmounted meanwhile.
            Err(_) if !self.entry.is_alive() => Err(CliError::failed(format!(
                "{} was unmounted meanwhile",
                self.mount_point.display()
            ))),
            Err(error) => Err(CliError::failed(format!(
                "the daemon of {} does not answer",
                self.mount_point.display()
            ))
            .caused_by(&error)
            .hinted("if this version of kvfs is newer than the daemon's, mount anew")),
        }
    }
}

/// Splits a path inside a mount into the mount point and the file's name, without touching the
/// mount; `None` when it lies in none.
pub fn inside(path: &Path) -> Option<(PathBuf, Option<String>)> {
    // A path to something: not a word that happens to be a store's name.
    let absolute = std::path::absolute(path).ok()?;
    let mounted: Vec<PathBuf> = mounts::list()
        .ok()?
        .into_iter()
        .filter(mounts::MountInfo::is_kvfs)
        .map(|mount| mount.mount_point)
        .collect();
    let is_mounted = |path: &Path| mounted.iter().any(|mounted| mounted == path);
    if is_mounted(&absolute) {
        return Some((absolute, None));
    }
    if let Ok(resolved) = mount_point::resolve(path)
        && is_mounted(&resolved)
    {
        return Some((resolved, None));
    }
    let folder = mount_point::resolve(absolute.parent()?).ok()?;
    if !is_mounted(&folder) {
        return None;
    }
    let name = absolute.file_name()?.to_str()?.to_owned();
    Some((folder, Some(name)))
}
