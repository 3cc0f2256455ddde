//! The parent's side: start the background process and wait until its mount answers.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::child::{FAILED, READY};
use super::{Failure, Order, SUBCOMMAND};
use crate::bucket;
use crate::daemon::registry::mount_point::{self, Health};
use crate::daemon::registry::unmount::{UnmountMode, unmount};

/// The longest answer of the child.
const MAX_REPORT: u64 = 1 << 20;

/// Environment variables that the child must not keep: `/proc/PID/environ` shows them for as
/// long as it lives. What they say is in the order.
const SECRET_VARIABLES: [&str; 3] = ["APIFY_TOKEN", "KVFS_SIGNATURE", "KVFS_SERVE_TOKEN"];

/// How the names of other variables end: those of proxies, with addresses that may hold passwords.
const PROXY: &str = "_PROXY";

/// Parts of the names of others' secrets, for which the child has no use.
const SECRET_PARTS: [&str; 6] = [
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "CREDENTIAL",
    "API_KEY",
];

/// Why there is no mount.
#[derive(Debug)]
pub enum LaunchError {
    /// It failed.
    Failed(Failure),
    /// The person pressed Ctrl-C, or another signal ended this.
    Interrupted,
}

/// Starts the background process; returns its pid once the mount answers.
///
/// # Errors
/// What the child reports, or that it died; then nothing is left mounted.
pub fn launch(order: &Order) -> Result<u32, LaunchError> {
    let failed = |what: &str, error: &dyn std::error::Error| {
        LaunchError::Failed(Failure::new(what).caused_by(error))
    };
    let mut json = serde_json::to_vec(order)
        .map_err(|error| failed("cannot hand the settings to the daemon", &error))?;
    json.push(b'\n');
    let mut child = spawn(order).map_err(|error| failed("cannot start the daemon", &error))?;
    let watch = Watch::start(&child).map_err(|error| {
        let _ = child.kill();
        failed("cannot catch signals", &error)
    })?;
    if let Some(mut pipe) = child.stdin.take() {
        // A child that is already dead is noticed below.
        let _ = pipe.write_all(&json);
    }
    drop(json);
    let report = read_report(&mut child);
    if report.as_deref() == Some(READY) && !watch.interrupted() {
        return Ok(child.id());
    }
    // It ends by itself, or because the signal was passed on to it.
    let status = child.wait();
    let interrupted = watch.interrupted();
    drop(watch);
    clean_up(order);
    if interrupted {
        return Err(LaunchError::Interrupted);
    }
    Err(LaunchError::Failed(
        report
            .as_deref()
            .and_then(|line| serde_json::from_str(line.strip_prefix(FAILED)?).ok())
            .unwrap_or_else(|| silent_death(order, status.ok())),
    ))
}

fn spawn(order: &Order) -> io::Result<Child> {
    let exe = std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        // The program was replaced by a newer one while it runs.
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(exe);
    command
        .arg0("kvfs")
        .arg(SUBCOMMAND)
        // For people who look at the list of processes; no program reads them.
        .arg("--")
        .arg(&order.store)
        .arg(&order.mount.mount_point)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    for name in inherited_secrets() {
        command.env_remove(name);
    }
    // The daemon leaves the folder from which they may count.
    command.envs(order.certificates.iter().map(|(name, path)| (name, path)));
    // systemd waits for the process that it has started.
    command.env_remove("NOTIFY_SOCKET");
    command.spawn()
}

/// Returns the variables of this process that its child must not have.
fn inherited_secrets() -> Vec<OsString> {
    let is_secret = |name: &str| {
        SECRET_VARIABLES.contains(&name)
            || name.to_ascii_uppercase().ends_with(PROXY)
            || SECRET_PARTS
                .iter()
                .any(|part| name.to_ascii_uppercase().contains(part))
            || bucket::VARIABLES
                .iter()
                .any(|begin| name.starts_with(begin))
    };
    std::env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| name.to_str().is_some_and(is_secret))
        .collect()
}

/// Returns the child's first line, `None` if it died without a word.
fn read_report(child: &mut Child) -> Option<String> {
    let mut line = String::new();
    BufReader::new(child.stdout.take()?.take(MAX_REPORT))
        .read_line(&mut line)
        .ok()?;
    line.strip_suffix('\n').map(str::to_owned)
}

fn silent_death(order: &Order, status: Option<ExitStatus>) -> Failure {
    let how = match status {
        Some(status) => match (status.code(), status.signal()) {
            (_, Some(signal)) => format!(" (killed by signal {signal})"),
            (Some(code), _) => format!(" (exit code {code})"),
            _ => String::new(),
        },
        None => String::new(),
    };
    let failure = Failure::new(format!("the daemon ended before the mount was ready{how}"));
    match &order.log.file {
        Some(path) => failure.hinted(format!("its log may say why: {}", path.display())),
        None => failure,
    }
}

/// Removes what a child that was killed may have left.
fn clean_up(order: &Order) {
    let path = &order.mount.mount_point;
    // The lock proves that the mount there, if any, belongs to this process.
    if let Ok(_lock) = order.registry.lock(path)
        && mount_point::is_kvfs(path)
        && mount_point::health(path) == Health::Dead
    {
        let _ = unmount(path, UnmountMode::Lazy);
    }
}

/// Passes signals on to the child, which is not in the terminal's process group.
struct Watch {
    handle: Handle,
    received: Arc<AtomicUsize>,
}

impl Watch {
    fn start(child: &Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let handle = signals.handle();
        let received = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&received);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in signals.forever() {
                    let earlier = counter.fetch_add(1, Ordering::SeqCst);
                    let signal = if earlier == 0 {
                        Signal::TERM
                    } else {
                        Signal::KILL
                    };
                    if let Some(pid) = pid {
                        // It has not been waited for, so the number is still its own.
                        let _ = kill_process(pid, signal);
                    }
                }
            })?;
        Ok(Self { handle, received })
    }

    fn interrupted(&self) -> bool {
        self.received.load(Ordering::SeqCst) > 0
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.handle.close();
    }
}
