//! The background process, from reading its order to the end of the mount.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

use parking_lot::Mutex;

use super::serve::serve;
use super::signals::Place;
use super::{Failure, Order, logging, session};
use crate::local::directory;

/// The longest order: thousands of record URLs fit.
const MAX_ORDER: u64 = 16 << 20;

/// The line that tells the parent that the mount answers.
pub const READY: &str = "ready";

/// What begins the line that tells the parent why there is no mount.
pub const FAILED: &str = "failed ";

/// Runs the background process: the order is on standard input, the answer goes to standard
/// output, which the parent reads.
pub fn run() -> ExitCode {
    let report = match Report::take_stdout() {
        Ok(report) => report,
        // There is no parent to tell: a person started the hidden subcommand by hand.
        Err(_) => return ExitCode::FAILURE,
    };
    match read_order().and_then(|order| serve_detached(&order, &report)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            report.failed(&failure);
            ExitCode::FAILURE
        }
    }
}

fn read_order() -> Result<Order, Failure> {
    let unreadable = |error: &dyn std::error::Error| {
        Failure::new("the daemon got no order; start it with 'kvfs mount'").caused_by(error)
    };
    let mut json = Vec::new();
    io::stdin()
        .take(MAX_ORDER)
        .read_to_end(&mut json)
        .map_err(|error| unreadable(&error))?;
    serde_json::from_slice(&json).map_err(|error| unreadable(&error))
}

fn serve_detached(order: &Order, report: &Report) -> Result<(), Failure> {
    leave_terminal()
        .map_err(|error| Failure::new("cannot leave the terminal").caused_by(&error))?;
    order.proxies.clone().give();
    let log = logging::start(&order.log).map_err(|error| {
        let file = order.log.file.as_deref().map(|path| path.display());
        let name = file.map_or_else(String::new, |file| format!(" {file}"));
        Failure::new(format!("cannot write the log file{name}"))
            .caused_by(&error)
            .hinted("name another one with --log-file")
    })?;
    let announcer = report.clone();
    let ready = Box::new(move || {
        announcer.ready()?;
        // Panics and the like have gone to the parent; from now on the log has them.
        if let Some(log) = log {
            log.take_stderr()?;
        }
        Ok(())
    });
    serve(order, Place::Background, &session::mount, ready)
}

/// Makes this process independent of the terminal, login session and folder of its parent.
fn leave_terminal() -> io::Result<()> {
    // Descriptors 0 to 2 stay open: `/dev/fuse` or a cache file must never become one of them.
    let null: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into();
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    // Fails for a process group's leader only, and then it has no terminal to lose.
    let _ = rustix::process::setsid();
    // What the daemon makes for itself is private; what it stores in a folder is as the user's other
    // programs make files.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    directory::set_file_mode(0o666 & !umask.as_raw_mode());
    std::env::set_current_dir("/")
}

/// The pipe to the parent; what is said first counts.
#[derive(Clone, Debug)]
struct Report(Arc<Mutex<Option<File>>>);

impl Report {
    /// Takes standard output over; it is left open until [`leave_terminal`] replaces it.
    fn take_stdout() -> io::Result<Self> {
        let pipe = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
        Ok(Self(Arc::new(Mutex::new(Some(File::from(pipe))))))
    }

    fn ready(&self) -> io::Result<()> {
        match self.0.lock().take() {
            Some(mut pipe) => writeln!(pipe, "{READY}"),
            None => Ok(()),
        }
    }

    fn failed(&self, failure: &Failure) {
        if let Some(mut pipe) = self.0.lock().take()
            && let Ok(json) = serde_json::to_string(failure)
        {
            // A parent that is gone does not want to know.
            let _ = writeln!(pipe, "{FAILED}{json}");
        }
    }
}
