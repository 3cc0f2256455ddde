//! Serving a mount from beginning to end: claim the mount point, mount, register, answer.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::session::{Session, Unmounter};
use super::signals::{Place, Stopper};
use super::{Failure, Order};
use crate::base::clock::Deadline;
use crate::base::units::ByteSize;
use crate::daemon::control::{self, Answer, ControlServer, Handler, Request};
use crate::daemon::registry::mount_point::{self, Health, MountPointError};
use crate::daemon::registry::process::ProcessId;
use crate::daemon::registry::unmount::{UnmountMode, unmount};
use crate::daemon::registry::{Entry, MountLock, Registry};
use crate::metrics::{Metrics, exporter};
use crate::mount::build::MountConfig;

/// Mounts; [`super::session::mount`] except in tests.
pub type Mounter<'a> = &'a dyn Fn(&MountConfig, Arc<Metrics>) -> Result<Session, Failure>;

/// Is told once, when the mount answers. If it fails, the mount is ended again.
pub type Ready = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// Mounts as ordered and serves until the mount is ended, by a signal, a request or `umount`.
///
/// # Errors
/// What kept it from mounting, or broke the mount.
pub fn serve(
    order: &Order,
    place: Place,
    mounter: Mounter<'_>,
    ready: Ready,
) -> Result<(), Failure> {
    let path = &order.mount.mount_point;
    let stopper = Stopper::install(path, place)
        .map_err(|error| Failure::new("cannot catch signals").caused_by(&error))?;
    let lock = mount_point::claim(&order.registry, path)
        .map_err(|error| told_by_last(&order.registry, error))?;
    let metrics = Arc::new(Metrics::default());
    let exported = export(order, &metrics)?;
    let session = mounter(&order.mount, metrics)?;
    stopper.mounted(Arc::clone(&session.unmounter));
    let unmounter = Arc::clone(&session.unmounter);
    // From here on a failure must not leave the mount behind.
    let served = serve_mounted(order, &lock, session, exported, ready);
    if served.is_err() && mount_point::is_kvfs(path) && unmounter(UnmountMode::Lazy).is_err() {
        let _ = unmount(path, UnmountMode::Lazy);
    }
    served
}

/// Asks the daemon of an earlier mount that has not ended what keeps it.
fn told_by_last(registry: &Registry, error: MountPointError) -> MountPointError {
    let MountPointError::NotEnded { path, pid, .. } = error else {
        return error;
    };
    let asked = registry.find(&path).map(|entry| {
        control::ask(
            &entry.control,
            &Request::Status,
            mount_point::ANSWER_TIMEOUT,
        )
    });
    let uploads = match asked {
        Some(Ok(Answer::Done(state))) => waiting_uploads(&state),
        _ => None,
    };
    MountPointError::NotEnded { path, pid, uploads }
}

/// Returns what a mount has not uploaded yet, such as `2 files (1.0 MiB)`; `None` for nothing.
pub fn waiting_uploads(state: &Value) -> Option<String> {
    let files = state["uploads"]["pending"].as_u64().filter(|n| *n > 0)?;
    let size = state["uploads"]["pending_bytes"].as_u64().unwrap_or(0);
    let noun = if files == 1 { "file" } else { "files" };
    Some(format!("{files} {noun} ({})", ByteSize(size)))
}

/// Serves the counters where that is wanted.
fn export(order: &Order, metrics: &Arc<Metrics>) -> Result<Option<SocketAddr>, Failure> {
    let Some(address) = order.metrics else {
        return Ok(None);
    };
    let about = exporter::About {
        mount_point: order.mount.mount_point.to_string_lossy().into_owned(),
        store: order.store.clone(),
    };
    let address = exporter::start(address, about, Arc::clone(metrics)).map_err(|error| {
        Failure::new(format!("cannot serve metrics at {address}"))
            .caused_by(&error)
            .hinted("give --metrics another port, or 0 for any that is free")
    })?;
    tracing::info!("metrics at http://{address}/metrics");
    Ok(Some(address))
}

fn serve_mounted(
    order: &Order,
    lock: &MountLock,
    session: Session,
    exported: Option<SocketAddr>,
    ready: Ready,
) -> Result<(), Failure> {
    let path = &order.mount.mount_point;
    let entry = Entry {
        mount_point: path.clone(),
        store: order.store.clone(),
        process: ProcessId::current(),
        started_unix_s: unix_seconds(SystemTime::now()),
        log_file: order.log.file.clone(),
        control: lock.control_path().to_path_buf(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let _control = ControlServer::start(
        lock.control_path(),
        handler(entry.clone(), exported, &session),
    )
    .map_err(|error| Failure::new("cannot listen for requests").caused_by(&error))?;
    lock.register(&entry)
        .map_err(|error| Failure::new("cannot register the mount").caused_by(&error))?;

    let failure = Arc::new(Mutex::new(None));
    let waiter = announce(
        order,
        Arc::clone(&session.unmounter),
        ready,
        Arc::clone(&failure),
    )
    .map_err(|error| Failure::new("cannot start a thread").caused_by(&error))?;
    let served = (session.run)();
    // A mount that ended before it answered lets this thread fail at once.
    let announced = waiter.join();
    if let Some(failure) = failure.lock().take() {
        return Err(failure);
    }
    if announced.is_err() {
        return Err(Failure::new("the thread that waits for the mount panicked"));
    }
    served.map_err(|error| Failure::new("serving the mount failed").caused_by(&error))?;
    tracing::info!(mount_point = %path.display(), "unmounted");
    Ok(())
}

/// Waits in a thread until the mount answers, and calls `ready`; ends the mount if that fails.
fn announce(
    order: &Order,
    unmounter: Unmounter,
    ready: Ready,
    failure: Arc<Mutex<Option<Failure>>>,
) -> io::Result<thread::JoinHandle<()>> {
    let path = order.mount.mount_point.clone();
    let store = order.store.clone();
    let deadline = order.mount.deadline;
    thread::Builder::new()
        .name("announce".into())
        .spawn(move || {
            let result = wait_answering(&path, deadline).and_then(|()| {
                tracing::info!(store, mount_point = %path.display(), "mounted");
                ready().map_err(|error| {
                    Failure::new("the process that started this mount has gone").caused_by(&error)
                })
            });
            if let Err(error) = result {
                *failure.lock() = Some(error);
                if let Err(error) = unmounter(UnmountMode::Force) {
                    tracing::debug!(%error, "the mount that did not answer is gone already");
                }
            }
        })
}

fn wait_answering(path: &Path, deadline: Duration) -> Result<(), Failure> {
    let until = Instant::now() + deadline.max(mount_point::ANSWER_TIMEOUT);
    loop {
        match mount_point::health(path) {
            // What answered is the directory below if the mount has been ended meanwhile.
            Health::Answers if !mount_point::is_kvfs(path) => {
                return Err(Failure::new("the new mount was unmounted at once"));
            }
            // Only now is it safe to touch it from this thread.
            Health::Answers => {
                return fs::metadata(path).map(drop).map_err(|error| {
                    Failure::new("the new mount does not work").caused_by(&error)
                });
            }
            Health::Dead => return Err(Failure::new("the new mount ended at once")),
            Health::Hangs if Instant::now() >= until => {
                return Err(Failure::new("the new mount does not answer"));
            }
            Health::Hangs => {}
        }
    }
}

fn handler(entry: Entry, exported: Option<SocketAddr>, session: &Session) -> Handler {
    let (status, unmounter) = (Arc::clone(&session.status), Arc::clone(&session.unmounter));
    let uploads = session.uploads.clone();
    let desk = session.desk.clone();
    let path = entry.mount_point.clone();
    Arc::new(move |request, progress| match request {
        Request::Status => {
            let mut state = describe(&entry, SystemTime::now());
            if let (Some(state), Value::Object(more)) = (state.as_object_mut(), status()) {
                state.extend(more);
                let url = exported.map(|address| format!("http://{address}/metrics"));
                state.insert("metrics_url".into(), url.into());
            }
            Answer::Done(state)
        }
        Request::Share {
            name,
            expires_unix_s,
        } => desk.share(name.as_deref(), expires_unix_s),
        Request::Refresh { names } => desk.refresh(&names),
        Request::Warm { wanted } => desk.warm(&wanted, progress),
        Request::Trace => desk.trace(progress, &|| !mount_point::is_kvfs(&path)),
        Request::Unmount { mode } => {
            tracing::info!(?mode, "asked to unmount");
            match unmounter(mode) {
                Ok(()) => Answer::Done(Value::Null),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Answer::Busy,
                Err(error) => {
                    tracing::warn!(%error, "cannot unmount");
                    Answer::Failed(error.to_string())
                }
            }
        }
        Request::Sync { timeout } => match &uploads {
            None => Answer::Done(Value::Null),
            Some(uploads) => match uploads.sync(Deadline::after(timeout)) {
                Ok(()) => Answer::Done(Value::Null),
                Err(left) => Answer::Failed(left),
            },
        },
        Request::Recover { discard, wanted } => match &uploads {
            None => Answer::Done(0.into()),
            Some(uploads) if discard => Answer::Done(uploads.discard(&wanted).into()),
            Some(uploads) => Answer::Done(uploads.send_again(&wanted).into()),
        },
    })
}

/// Returns what an [`Entry`] says of a mount, under the names of `kvfs status --json`.
pub fn describe(entry: &Entry, now: SystemTime) -> Value {
    json!({
        "mount_point": entry.mount_point.to_string_lossy(),
        "store": entry.store,
        "pid": entry.process.pid,
        "started_unix_s": entry.started_unix_s,
        "uptime_s": unix_seconds(now).saturating_sub(entry.started_unix_s),
        "log_file": entry.log_file.as_ref().map(|path| path.to_string_lossy()),
        "version": entry.version,
        "state": "live",
    })
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
