//! `kvfs unmount`.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::args::UnmountArgs;
use super::error::{CliError, Kind, cannot_unmount};
use super::left_behind;
use super::places::{mount_points, not_mounted, other_owner};
use super::settings::Environment;
use super::status;
use super::ui::Ui;
use crate::base::units::ByteSize;
use crate::daemon::control::{self, Answer, Request};
use crate::daemon::registry::mount_point::{ANSWER_TIMEOUT, is_kvfs, quoted};
use crate::daemon::registry::unmount::{UnmountError, UnmountMode, unmount};
use crate::daemon::registry::{Entry, Registry};
use crate::staging::report::{self, State};

/// How long everything under way may take to finish.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How much longer a daemon may take to end than it waits for its uploads.
const ENDING: Duration = Duration::from_secs(10);

/// How long a daemon may take to end after its mount was taken away by force.
const FORCED_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for a daemon that seems to hang, and how long one may take to answer before it counts
/// as hanging: a forced end is in a hurry.
const HUNG_TIMEOUT: Duration = Duration::from_millis(400);

/// How often the kernel's list of mounts is looked at meanwhile.
const POLL: Duration = Duration::from_millis(20);

/// Unmounts; returns when the mounts are gone and, unless `--lazy`, their daemons have ended.
///
/// # Errors
/// That nothing of kvfs is mounted there, that it is in use, or that it does not end.
pub fn run(ui: Ui, args: &UnmountArgs, environment: &Environment) -> Result<(), CliError> {
    let registry = environment.registry()?;
    let points = match args.all {
        true => status::own_mount_points(&registry),
        false => mount_points(&args.mountpoints, environment)?,
    };
    if points.is_empty() {
        ui.say("nothing is mounted");
    }
    // Each waits for its own uploads: together they take no longer than the slowest.
    let failed = thread::scope(|scope| {
        let ends: Vec<_> = points
            .iter()
            .map(|path| scope.spawn(|| end(ui, args, environment, &registry, path)))
            .collect();
        let joined = ends.into_iter().map(|end| {
            end.join()
                .unwrap_or_else(|_| Err(CliError::of(Kind::Internal, "unmounting panicked")))
        });
        joined.filter_map(Result::err).collect()
    });
    CliError::several(failed).map_or(Ok(()), Err)
}

/// Ends one mount.
fn end(
    ui: Ui,
    args: &UnmountArgs,
    environment: &Environment,
    registry: &Registry,
    path: &Path,
) -> Result<(), CliError> {
    if let Some(owner) = other_owner(path) {
        return Err(CliError::of(
            Kind::Denied,
            format!(
                "{} is a mount of {owner}: only that user and root can unmount it",
                path.display()
            ),
        ));
    }
    let mode = match (args.force, args.lazy) {
        (true, _) => UnmountMode::Force,
        (false, true) => UnmountMode::Lazy,
        (false, false) => UnmountMode::Graceful,
    };
    let question = match mode {
        UnmountMode::Force => HUNG_TIMEOUT,
        UnmountMode::Graceful | UnmountMode::Lazy => ANSWER_TIMEOUT,
    };
    let state = ask_state(registry, path, question);
    let forced = match state {
        Some(_) => FORCED_TIMEOUT,
        None => HUNG_TIMEOUT,
    };
    let is_silent = state.is_none();
    let alive = registry.find(path).filter(Entry::is_alive);
    if let Some(daemon) = alive.filter(|_| is_silent && mode == UnmountMode::Graceful) {
        ui.warn(format_args!(
            "the daemon, process {}, does not answer; waiting for at most {} s (--force ends it at once)",
            daemon.process.pid,
            TIMEOUT.as_secs()
        ));
    }
    let left = match &state {
        Some((_, state)) if mode != UnmountMode::Force => left_behind::of(environment, state),
        _ => Vec::new(),
    };
    let uploads = state.and_then(|(daemon, state)| Pending::of(daemon, &state));
    if let Some(uploads) = uploads.as_ref().filter(|uploads| uploads.files > 0)
        && mode == UnmountMode::Graceful
    {
        ui.say(format_args!(
            "uploading {} first, for at most {:?}",
            files(uploads.files),
            uploads.patience
        ));
    }
    let patience = uploads.as_ref().map_or(TIMEOUT, |uploads| {
        uploads.patience.saturating_add(ENDING).max(TIMEOUT)
    });
    if let Some(pid) = unmount_mount(registry, path, mode, patience, forced)? {
        ui.warn(format_args!("the daemon, process {pid}, has not ended yet"));
    }
    ui.say(format_args!("unmounted {}", quoted(path)));
    for left in left {
        ui.warn(left.message());
        ui.hint(left.hint());
    }
    match uploads {
        Some(uploads) => uploads.check(ui, mode),
        None if mode == UnmountMode::Force && is_silent => {
            ui.warn(format_args!(
                "the daemon did not answer; files not uploaded yet are kept: see kvfs recover"
            ));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Asks the daemon of a mount for its state; returns that and its process, if it answers in time.
fn ask_state(registry: &Registry, path: &Path, timeout: Duration) -> Option<(u32, Value)> {
    let daemon = registry.find(path).filter(Entry::is_alive)?;
    match control::ask(&daemon.control, &Request::Status, timeout).ok()? {
        Answer::Done(state) => Some((daemon.process.pid, state)),
        _ => None,
    }
}

/// What a mount had not uploaded when it was asked to end.
struct Pending {
    daemon: u32,
    files: u64,
    folder: PathBuf,
    patience: Duration,
}

impl Pending {
    /// Reads it from a daemon's state; the daemon of a read-only mount has nothing.
    fn of(daemon: u32, state: &Value) -> Option<Self> {
        let uploads = &state["uploads"];
        let patience = uploads["unmount_waits_s"].as_f64().unwrap_or(0.0);
        Some(Self {
            daemon,
            files: uploads["pending"].as_u64().unwrap_or(0),
            folder: PathBuf::from(uploads["folder"].as_str()?),
            patience: Duration::try_from_secs_f64(patience).unwrap_or(TIMEOUT),
        })
    }

    /// Looks at what is left, and tells. What another mount of the store has is its own business.
    fn check(&self, ui: Ui, mode: UnmountMode) -> Result<(), CliError> {
        let Ok(scope) = report::scan_scope(&self.folder) else {
            return Ok(());
        };
        let left = |kept: bool| {
            let items = scope.items.iter();
            items.filter(move |item| {
                // Some of the daemon's threads may hold its lock for a moment after its end.
                let was_its = item.owner_pid.is_none_or(|pid| pid == self.daemon);
                let lingers = was_its || mode == UnmountMode::Lazy;
                lingers && (item.state == State::Kept) == kept && item.state != State::Damaged
            })
        };
        let (refused, waiting) = (left(true).count() as u64, left(false).count() as u64);
        let folder = quoted(&self.folder);
        if refused > 0 {
            ui.warn(format_args!(
                "{} refused by the store and kept in {folder}; see: kvfs recover",
                files(refused)
            ));
        }
        if waiting == 0 {
            return Ok(());
        }
        let size: u64 = left(false).map(|item| item.size).sum();
        Err(CliError::failed(format!(
            "{} ({}) not in the store yet; the bytes are safe in {folder}",
            files(waiting),
            ByteSize(size)
        ))
        .hinted(
            "the next mount of the store with --rw uploads them, or now: kvfs recover --upload",
        ))
    }
}

fn files(n: u64) -> String {
    match n {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    }
}

/// Unmounts what is mounted at the canonical `path`; returns the daemon if it survives that, by
/// force for as long as `forced`.
fn unmount_mount(
    registry: &Registry,
    path: &Path,
    mode: UnmountMode,
    patience: Duration,
    forced: Duration,
) -> Result<Option<u32>, CliError> {
    let until = Instant::now() + patience;
    let daemon = registry.find(path).filter(Entry::is_alive);
    if !is_kvfs(path) && daemon.is_none() {
        registry.clean(path);
        return Err(not_mounted(path));
    }
    let asked = match (&daemon, mode) {
        // The other ways must work even if the daemon does not.
        (Some(daemon), UnmountMode::Graceful) => ask(daemon, path)?,
        _ => false,
    };
    if !asked && is_kvfs(path) {
        match unmount(path, mode) {
            Ok(()) | Err(UnmountError::NotMounted) => {}
            Err(error) => return Err(cannot_unmount(path, &error)),
        }
    }
    wait_gone(path, until)?;
    let survives = daemon.filter(|daemon| {
        let until = match mode {
            UnmountMode::Graceful => until,
            UnmountMode::Lazy => Instant::now(),
            UnmountMode::Force => Instant::now() + forced,
        };
        !daemon.process.wait_ended(until)
    });
    registry.clean(path);
    match survives {
        None => Ok(None),
        // It serves what is still open, for as long as that takes.
        Some(_) if mode == UnmountMode::Lazy => Ok(None),
        Some(daemon) if mode == UnmountMode::Force => Ok(Some(daemon.process.pid)),
        Some(daemon) => Err(not_ended(&daemon)),
    }
}

/// Asks the daemon to unmount; returns whether it does.
fn ask(daemon: &Entry, path: &Path) -> Result<bool, CliError> {
    let request = Request::Unmount {
        mode: UnmountMode::Graceful,
    };
    match control::ask(&daemon.control, &request, TIMEOUT) {
        Ok(Answer::Done(_)) => Ok(true),
        Ok(Answer::Busy) => Err(cannot_unmount(path, &UnmountError::Busy)),
        Ok(Answer::Failed(why) | Answer::Missing(why)) => {
            tracing::debug!(why, "the daemon cannot unmount");
            Ok(false)
        }
        // It may have ended before it could answer.
        Err(_) => Ok(!is_kvfs(path)),
    }
}

fn wait_gone(path: &Path, until: Instant) -> Result<(), CliError> {
    while is_kvfs(path) {
        if Instant::now() >= until {
            return Err(CliError::failed(format!(
                "{} is still mounted after {} seconds",
                path.display(),
                TIMEOUT.as_secs()
            ))
            .hinted("end it at once with --force, or detach it with --lazy"));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

fn not_ended(daemon: &Entry) -> CliError {
    CliError::failed(format!(
        "the mount is gone, but its daemon (process {}) has not ended",
        daemon.process.pid
    ))
    .hinted(match &daemon.log_file {
        Some(log) => format!("its log may say why: {}", quoted(log)),
        None => "it runs in the foreground somewhere; look there".to_owned(),
    })
}
