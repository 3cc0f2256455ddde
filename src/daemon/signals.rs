//! Signals of the serving process: the first ends it cleanly, each further one harder.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
    SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::Signals;

use super::logging;
use super::session::Unmounter;
use crate::daemon::registry::mount_point;
use crate::daemon::registry::unmount::{UnmountMode, unmount};

/// How long a process goes on after a signal that asked for an end at once.
const FORCED_PATIENCE: Duration = Duration::from_secs(10);

/// Signals that would end a process that knows nothing of them, and leave a dead mount: operators send
/// them to have logs rotated or statistics written, and the kernel when a limit is reached.
const IGNORED: [i32; 8] = [
    SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXCPU, SIGXFSZ,
];

/// Where the serving process runs, which decides about the signals that it obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No terminal: it outlives the one that it was started from.
    Background,
    /// A terminal, or a supervisor such as systemd.
    Foreground,
    /// A command that has more to clear away than the mount, and ends when the mount does.
    Within,
}

/// What a signal has to end.
enum Stage {
    /// Nothing is mounted, or is just being.
    Starting,
    /// As before, but a signal has come.
    Cancelled,
    /// The mount.
    Mounted(Unmounter),
}

/// Turns signals into an end of the mount.
#[derive(Clone)]
pub struct Stopper(Arc<Mutex<Stage>>);

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopper").finish_non_exhaustive()
    }
}

impl Stopper {
    /// Catches SIGTERM, SIGINT, SIGQUIT and SIGHUP from now on, in a thread of its own, and lets others
    /// pass without effect.
    ///
    /// # Errors
    /// That the handlers or the thread cannot be made.
    pub fn install(mount_point: &Path, place: Place) -> io::Result<Self> {
        let stopper = Self(Arc::new(Mutex::new(Stage::Starting)));
        let ignored = Arc::new(AtomicBool::new(false));
        for signal in IGNORED {
            signal_hook::flag::register(signal, Arc::clone(&ignored))?;
        }
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])?;
        let stage = Arc::clone(&stopper.0);
        let mount_point = mount_point.to_path_buf();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                let mut received = 0;
                for signal in signals.forever() {
                    if signal == SIGHUP && place == Place::Background {
                        // Programs that rotate logs say so: another file may have the name now.
                        logging::reopen();
                        continue;
                    }
                    received += 1;
                    end(&stage, &mount_point, signal, received, place);
                }
            })?;
        Ok(stopper)
    }

    /// Notes that there is a mount to end from now on.
    pub fn mounted(&self, unmounter: Unmounter) {
        let mut stage = self.0.lock();
        let cancelled = matches!(*stage, Stage::Cancelled);
        *stage = Stage::Mounted(Arc::clone(&unmounter));
        drop(stage);
        if cancelled && let Err(error) = unmounter(UnmountMode::Lazy) {
            tracing::error!(%error, "cannot unmount");
        }
    }
}

fn end(stage: &Mutex<Stage>, mount_point: &Path, signal: i32, received: u32, place: Place) {
    let mut stage = stage.lock();
    let Stage::Mounted(unmounter) = &*stage else {
        if place == Place::Within {
            *stage = Stage::Cancelled;
            return;
        }
        give_up(mount_point, signal);
    };
    let mode = match received {
        1 => UnmountMode::Graceful,
        2 => UnmountMode::Lazy,
        _ => UnmountMode::Force,
    };
    tracing::info!(signal, ?mode, "unmounting");
    let unmounter = Arc::clone(unmounter);
    let by_hand = matches!(signal, SIGINT | SIGQUIT) && place == Place::Foreground;
    // Unmounting may wait for uploads, and the next signal must not.
    let started = thread::Builder::new()
        .name("unmount".into())
        .spawn(move || {
            let result = unmounter(mode);
            if mode == UnmountMode::Force && place != Place::Within {
                outlast(signal);
            }
            let Err(mut error) = result else {
                return;
            };
            if error.kind() == io::ErrorKind::NotFound {
                tracing::info!("unmounted already; ending when the last open file is closed");
                return;
            }
            let busy = error.raw_os_error() == Some(libc::EBUSY);
            if busy && mode == UnmountMode::Graceful {
                if by_hand {
                    tracing::warn!("the mount point is in use; press Ctrl-C again to detach it");
                    return;
                }
                // The sender of SIGTERM wants an end: open files stay usable until closed.
                tracing::warn!("the mount point is in use; detaching it");
                match unmounter(UnmountMode::Lazy) {
                    Ok(()) => return,
                    Err(second) => error = second,
                }
            }
            tracing::error!(%error, "cannot unmount");
        });
    if let Err(error) = started {
        tracing::error!(%error, "cannot start a thread to unmount");
    }
}

/// Ends the process if it goes on being in use: the mount may be gone here and be held by another
/// mount namespace, which this process cannot see or unmount.
#[expect(
    clippy::exit,
    reason = "the kernel has nothing that would end the session's threads"
)]
fn outlast(signal: i32) {
    thread::sleep(FORCED_PATIENCE);
    tracing::warn!("something still holds the mount, perhaps another mount namespace; ending");
    std::process::exit(128 + signal)
}

/// Ends the process while it is still opening the store.
#[expect(
    clippy::exit,
    reason = "the thread that opens the store may wait for the network and cannot be stopped"
)]
fn give_up(mount_point: &Path, signal: i32) -> ! {
    let path = PathBuf::from(mount_point);
    if mount_point::is_kvfs(&path) {
        let _ = unmount(&path, UnmountMode::Lazy);
    }
    std::process::exit(128 + signal)
}
