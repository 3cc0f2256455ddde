//! `kvfs demo`: a sample store, served and mounted by this process, and a tour of it with
//! everyday programs.

use std::fs;
use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

use super::args::DemoArgs;
use super::demo_store;
use super::error::{CliError, Kind, cannot_unmount};
use super::mount::start_log;
use super::serve::{Root, ServeSettings, random_token, start};
use super::settings::{Environment, demo_order, local_open_config};
use super::ui::Ui;
use crate::base::clock::Deadline;
use crate::daemon::registry::mount_point::quoted;
use crate::daemon::registry::unmount::{UnmountError, UnmountMode, unmount};
use crate::daemon::serve::serve;
use crate::daemon::signals::Place;
use crate::daemon::{Failure, Order, session};
use crate::local::directory::{Access, DirectoryStore};
use crate::store::Store;
use crate::store::reference::{RemoteRef, StoreRef};

/// The name of the sample store.
const STORE: &str = "demo";

/// How long storing the sample records may take.
const FILL_TIMEOUT: Duration = Duration::from_secs(30);

/// How often the mount is looked at while the person looks around.
const POLL: Duration = Duration::from_millis(100);

/// Shows kvfs at work.
///
/// # Errors
/// That the sample cannot be mounted, or a program of the tour failed.
pub fn run(ui: Ui, args: &DemoArgs, environment: &Environment) -> Result<(), CliError> {
    let folder = tempfile::Builder::new()
        .prefix("kvfs-demo-")
        .tempdir()
        .map_err(|error| CliError::failed("cannot make a temporary folder").caused_by(&error))?;
    let result = show(ui, args, environment, &folder);
    let path = folder.path().to_path_buf();
    if let Err(error) = folder.close() {
        ui.warn(format_args!("cannot remove {}: {error}", path.display()));
    }
    result
}

fn show(
    ui: Ui,
    args: &DemoArgs,
    environment: &Environment,
    folder: &TempDir,
) -> Result<(), CliError> {
    let root = folder.path().join("storage");
    let store = folder.path().join("storage/key_value_stores").join(STORE);
    let mount_point = match &args.mountpoint {
        Some(path) => path.clone(),
        None => folder.path().join("mnt"),
    };
    let mut made = vec![&store];
    if args.mountpoint.is_none() {
        made.push(&mount_point);
    }
    for dir in made {
        fs::create_dir_all(dir).map_err(|error| {
            CliError::failed(format!("cannot make the folder {}", dir.display())).caused_by(&error)
        })?;
    }
    demo_store::fill(&*open_folder(&store)?, Deadline::after(FILL_TIMEOUT))
        .map_err(|error| CliError::failed("cannot make the sample store").caused_by(&error))?;
    let server = ServeSettings {
        root: Root::Folder(root),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        token: random_token()?,
        public: false,
    };
    let running = start(&server)?;
    let reference = StoreRef::Remote(RemoteRef::Named {
        user: None,
        name: STORE.to_owned(),
    });
    let open = local_open_config(reference, running.url.clone(), server.token.clone());
    let order = demo_order(
        environment,
        open,
        &mount_point,
        folder.path().join("kvfs.log"),
    )?;
    start_log(&order)?;

    let mounted = Mounted::start(order)?;
    let path = mounted.path.clone();
    ui.say(format_args!(
        "a sample store is mounted on {}",
        quoted(&path)
    ));
    let toured = tour(ui, &mounted);
    if !mounted.ended() && !args.exit && io::stdin().is_terminal() {
        ui.say(format_args!(
            "\nlook around in {} yourself; Enter unmounts it",
            quoted(&path)
        ));
        wait_for_enter(&mounted);
    }
    let interrupted = mounted.ended();
    mounted.end()?;
    let failed = toured?;
    if interrupted {
        return Err(CliError::silent(Kind::Interrupted));
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(CliError::failed(format!(
            "this did not work: {}",
            failed.join("; ")
        ))),
    }
}

/// Opens the folder of the sample store for writing.
fn open_folder(folder: &Path) -> Result<Arc<dyn Store>, CliError> {
    let store = DirectoryStore::open(folder, Access::ReadWrite)
        .map_err(|error| CliError::failed("cannot make the sample store").caused_by(&error))?;
    Ok(Arc::new(store))
}

/// A mount that a thread of this process serves.
struct Mounted {
    path: PathBuf,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Mounted {
    /// Returns when the mount answers.
    fn start(order: Order) -> Result<Self, CliError> {
        let path = order.mount.mount_point.clone();
        let (sender, answers) = mpsc::channel();
        let ready = Box::new(move || sender.send(()).map_err(io::Error::other));
        let thread = thread::Builder::new()
            .name("mount".into())
            .spawn(move || serve(&order, Place::Within, &session::mount, ready))
            .map_err(|error| CliError::failed("cannot start a thread").caused_by(&error))?;
        // The sender is dropped if the mount fails.
        let answers = answers.recv().is_ok();
        let mounted = Self { path, thread };
        if answers {
            return Ok(mounted);
        }
        mounted.joined()?;
        Err(CliError::of(
            Kind::Interrupted,
            "interrupted; nothing is mounted",
        ))
    }

    /// Returns whether something else has unmounted it: Ctrl-C, say.
    fn ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Unmounts, whatever still uses it.
    fn end(self) -> Result<(), CliError> {
        if !self.ended() {
            match unmount(&self.path, UnmountMode::Graceful) {
                Ok(()) | Err(UnmountError::NotMounted) => {}
                Err(_) => unmount(&self.path, UnmountMode::Lazy)
                    .map_err(|error| cannot_unmount(&self.path, &error))?,
            }
        }
        self.joined()
    }

    fn joined(self) -> Result<(), CliError> {
        match self.thread.join() {
            Ok(result) => Ok(result?),
            Err(_) => Err(CliError::of(Kind::Internal, "the mount panicked")),
        }
    }
}

/// Runs everyday programs in the mount; returns those that failed.
fn tour(ui: Ui, mounted: &Mounted) -> Result<Vec<String>, CliError> {
    let input = if installed("jq") {
        "cat INPUT | jq ."
    } else {
        "cat INPUT"
    };
    let mut commands = vec!["ls -l", input, "head -3 products.csv"];
    // Stored with brotli: from its first use on, ls -l shows the size that programs see.
    commands.extend([
        "grep -c Product products.json",
        "wc -c products.json index.html",
    ]);
    if installed("file") {
        commands.push("file SCREENSHOT.png");
    }
    commands.push("tar cf - . | wc -c");
    let mut failed = Vec::new();
    for command in commands {
        if mounted.ended() {
            break;
        }
        if command.starts_with("ls -l") {
            ui.say("\n(products.json is stored compressed: until it is first opened, ls shows its stored size)");
        }
        ui.data(format_args!("\n$ {command}"))?;
        let pipefail = "(set -o pipefail) 2>/dev/null && set -o pipefail";
        let status = Command::new("sh")
            .args(["-c", &format!("{pipefail}; {command}")])
            .current_dir(&mounted.path)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .status();
        if !status.is_ok_and(|status| status.success()) {
            failed.push(command.to_owned());
        }
    }
    Ok(failed)
}

fn installed(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Waits for Enter, the end of the input, or the end of the mount.
fn wait_for_enter(mounted: &Mounted) {
    let (sender, entered) = mpsc::channel();
    let waits = thread::Builder::new().name("enter".into()).spawn(move || {
        let mut line = String::new();
        let _ = io::stdin().read_line(&mut line);
        let _ = sender.send(());
    });
    while waits.is_ok()
        && !mounted.ended()
        && entered.recv_timeout(POLL) == Err(mpsc::RecvTimeoutError::Timeout)
    {}
}
