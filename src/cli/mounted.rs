//! Shared by the commands that ask the daemon of a mount.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::error::{CliError, Kind};
use super::places::{not_mounted, one_mount_point, other_owner};
use super::settings::Environment;
use crate::daemon::control::{self, Answer, Request};
use crate::daemon::registry::Entry;
use crate::daemon::registry::mount_point::is_kvfs;

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
    /// Finds the daemon of the mount that `path` means: a mount point, or `@NAME`.
    ///
    /// # Errors
    /// That no store is mounted there, or by no daemon that could be asked.
    pub fn find(path: &Path, environment: &Environment) -> Result<Self, CliError> {
        let mount_point = one_mount_point(path, environment)?;
        if !is_kvfs(&mount_point) {
            return Err(not_mounted(&mount_point));
        }
        let entry = environment.registry()?.find(&mount_point);
        if let Some(entry) = entry.filter(Entry::is_alive) {
            return Ok(Self { mount_point, entry });
        }
        let shown = mount_point.display();
        Err(match other_owner(&mount_point) {
            Some(owner) => CliError::of(
                Kind::Trouble,
                format!(
                    "{shown} is a mount of {owner}; its daemon answers only that user and root"
                ),
            ),
            None => CliError::of(
                Kind::Trouble,
                format!("no known daemon of kvfs serves {shown}"),
            )
            .hinted("it is gone, or registered in another XDG_RUNTIME_DIR; see: kvfs status"),
        })
    }

    /// Returns the state of the mount, as `kvfs status --json` shows it.
    ///
    /// # Errors
    /// As [`Daemon::ask`].
    pub fn state(&self) -> Result<Value, CliError> {
        Ok(self
            .ask(&Request::Status, &mut |_| true)?
            .unwrap_or_default())
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
            Ok(Answer::Missing(what)) => Err(CliError::of(Kind::NotFound, what)),
            Ok(answer) => Err(CliError::failed(answer.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(None),
            // It unmounted meanwhile.
            Err(_) if !self.entry.is_alive() => Err(CliError::of(
                Kind::Trouble,
                format!("{} was unmounted meanwhile", self.mount_point.display()),
            )),
            Err(error) => Err(CliError::of(
                Kind::Trouble,
                format!(
                    "the daemon of {} (process {}) does not answer",
                    self.mount_point.display(),
                    self.entry.process.pid
                ),
            )
            .caused_by(&error)
            .hinted("if this version of kvfs is newer than the daemon's, unmount and mount again")),
        }
    }
}
