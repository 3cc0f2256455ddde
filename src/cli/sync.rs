//! `kvfs sync`.

use std::time::Duration;

use super::args::SyncArgs;
use super::error::CliError;
use super::settings::Environment;
use super::ui::Ui;
use super::unmount::resolve_mounted;
use crate::daemon::control::{self, Answer, Request};
use crate::registry::Entry;
use crate::registry::mount_point::quoted;

/// How long uploads may take where nothing else is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// How much longer the daemon's answer may take than it was told to wait.
const ANSWER: Duration = Duration::from_secs(10);

/// Waits until everything that was closed on a mount is in the store.
///
/// # Errors
/// What is not, or that there is no such mount.
pub fn run(ui: Ui, args: &SyncArgs, environment: &Environment) -> Result<(), CliError> {
    let path = resolve_mounted(&args.mountpoint)?;
    let found = environment.registry()?.find(&path).filter(Entry::is_alive);
    let Some(daemon) = found else {
        return Err(
            CliError::failed(format!("no store is mounted on {}", path.display()))
                .hinted("see what is mounted with: kvfs status"),
        );
    };
    let timeout = args.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let request = Request::Sync { timeout };
    match control::ask(&daemon.control, &request, timeout.saturating_add(ANSWER)) {
        Ok(Answer::Done(_)) => {
            ui.say("everything is in the store");
            Ok(())
        }
        Ok(Answer::Failed(left)) => Err(CliError::failed(left)
            .hinted(format!("see why with: kvfs status {}", quoted(&path)))
            .hinted("what the store refused is listed by: kvfs recover")),
        Ok(Answer::Busy) => Err(CliError::failed("the mount is busy")),
        Err(error) => Err(CliError::failed("the daemon did not answer").caused_by(&error)),
    }
}
