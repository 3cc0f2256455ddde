//! `kvfs sync`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressStyle;
use serde_json::{Value, json};

use super::args::SyncArgs;
use super::error::{CliError, Kind};
use super::left_behind;
use super::places::{mount_points, not_mounted};
use super::progress::Progress;
use super::settings::Environment;
use super::status;
use super::ui::Ui;
use crate::base::clock::Deadline;
use crate::daemon::control::{self, Answer, Request};
use crate::daemon::registry::mount_point::quoted;
use crate::daemon::registry::{Entry, Registry};
use crate::daemon::serve::waiting_uploads;

/// How long uploads may take where nothing else is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// How much earlier than this process a daemon stops waiting, at most: its answer takes a moment.
const ANSWER: Duration = Duration::from_secs(1);
/// The least that each of several daemons has for its answer.
const LEAST: Duration = Duration::from_millis(100);
/// How long a daemon may take to say how far it has come.
const STATE: Duration = Duration::from_secs(2);

/// Waits until everything that was closed on mounts is in the store.
///
/// # Errors
/// What is not, or that there is no such mount.
pub fn run(ui: Ui, args: &SyncArgs, environment: &Environment) -> Result<(), CliError> {
    let registry = environment.registry()?;
    let points: Vec<PathBuf> = match args.all {
        true => status::own_mount_points(&registry),
        false => mount_points(&args.mountpoints, environment)?,
    };
    let mut states = Vec::new();
    let mut failed = Vec::new();
    let timeout = args.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let until = Deadline::after(timeout);
    for path in &points {
        let synced = sync(ui, &registry, path, until)
            .and_then(|()| nothing_left(environment, &registry, path, until));
        states.push(json!({
            "mount_point": path.to_string_lossy(),
            "in_store": synced.is_ok(),
            "message": synced.as_ref().err().map(|error| error.message.clone()),
        }));
        failed.extend(synced.err());
    }
    if args.json {
        ui.data(serde_json::to_string_pretty(&Value::Array(states)).unwrap_or_default())?;
    }
    match CliError::several(failed) {
        Some(error) => Err(error),
        None => {
            ui.say("everything is in the store");
            Ok(())
        }
    }
}

/// Makes sure that earlier mounts have left nothing that this one does not upload.
fn nothing_left(
    environment: &Environment,
    registry: &Registry,
    path: &Path,
    until: Deadline,
) -> Result<(), CliError> {
    let patience = STATE.min(until.remaining().unwrap_or_default()).max(LEAST);
    match left_behind::at(environment, registry, path, patience).first() {
        Some(left) => Err(CliError::failed(left.message()).hinted(left.hint())),
        None => Ok(()),
    }
}

fn sync(ui: Ui, registry: &Registry, path: &Path, until: Deadline) -> Result<(), CliError> {
    let Some(daemon) = registry.find(path).filter(Entry::is_alive) else {
        return Err(not_mounted(path));
    };
    let control = daemon.control.clone();
    let progress = Progress::start(ui, move |bar| {
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        let patience = STATE.min(until.remaining().unwrap_or_default()).max(LEAST);
        if let Ok(Answer::Done(state)) = control::ask(&control, &Request::Status, patience)
            && let Some(files) = waiting_uploads(&state)
        {
            bar.set_message(format!("uploading {files}"));
        }
    });
    let left = until.remaining().unwrap_or_default().max(LEAST);
    let request = Request::Sync {
        timeout: left.saturating_sub(ANSWER.min(left / 4)),
    };
    let answer = control::ask(&daemon.control, &request, left);
    drop(progress);
    match answer {
        Ok(Answer::Done(_)) => Ok(()),
        Ok(Answer::Failed(left) | Answer::Missing(left)) => Err(CliError::failed(left)
            .hinted(format!("see why with: kvfs status {}", quoted(path)))
            .hinted("list refused files with: kvfs recover")),
        Ok(Answer::Busy) => Err(CliError::failed("the mount is busy")),
        Err(error) => Err(CliError::of(
            Kind::Trouble,
            format!(
                "the daemon of {} (process {}) does not answer",
                path.display(),
                daemon.process.pid
            ),
        )
        .caused_by(&error)),
    }
}
