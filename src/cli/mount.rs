//! `kvfs mount`.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;

use sd_notify::NotifyState;

use super::args::{GlobalArgs, MountArgs};
use super::doctor::usable;
use super::error::CliError;
use super::left_behind;
use super::settings::{Environment, mount_order};
use super::ui::{Ui, patiently};
use crate::daemon::launch::launch;
use crate::daemon::registry::mount_point::{ANSWER_TIMEOUT, is_kvfs, quoted};
use crate::daemon::serve::serve;
use crate::daemon::signals::Place;
use crate::daemon::{LogFormat, Order, logging, session};

/// Mounts in the background, or in the foreground until the mount is ended.
///
/// # Errors
/// Why there is no mount.
pub fn run(
    ui: Ui,
    args: &MountArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    let order = mount_order(args, global, environment)?;
    if let Some(address) = order.metrics.filter(|address| !address.ip().is_loopback()) {
        ui.warn(format_args!(
            "everyone who reaches this machine at {address} can read the metrics, which name store and \
            mount point"
        ));
    }
    warn_of_surprises(ui, args, &order);
    if let Some(write) = &order.mount.write {
        left_behind::remember(environment, &write.staging_dir);
    }
    if args.foreground {
        return in_foreground(ui, &order);
    }
    let say = || {
        if io::stderr().is_terminal() {
            ui.say(format_args!("waiting for an answer of {}", order.store));
        }
    };
    patiently(say, || launch(&order))?;
    ui.say(mounted(&order));
    for left in left_behind::at(
        environment,
        &order.registry,
        &order.mount.mount_point,
        ANSWER_TIMEOUT,
    ) {
        ui.warn(left.message());
        ui.hint(left.hint());
    }
    Ok(())
}

/// Warns of what the mount will do that the user may not mean.
fn warn_of_surprises(ui: Ui, args: &MountArgs, order: &Order) {
    let point = &order.mount.mount_point;
    if !is_kvfs(point) && fs::read_dir(point).is_ok_and(|mut entries| entries.next().is_some()) {
        ui.warn(format_args!(
            "{} is not empty: its files are hidden while the store is mounted",
            quoted(point)
        ));
    }
    if std::env::current_dir().is_ok_and(|here| here == *point) {
        ui.warn("this shell stays in the folder below the mount; to see the store: cd .");
    }
    if let (Some(_), Some(cache)) = (&args.disk.cache_dir, &order.mount.disk_cache)
        && let Err(error) = usable(&cache.dir)
    {
        ui.warn(format_args!(
            "{} cannot be used, so there is no disk cache: {error}",
            quoted(&cache.dir)
        ));
    }
}

fn in_foreground(ui: Ui, order: &Order) -> Result<(), CliError> {
    start_log(order)?;
    let message = mounted(order);
    // To programs that read the log it tells the same.
    let is_for_people = order.log.format == LogFormat::Text;
    let ready = Box::new(move || {
        // Does nothing unless systemd, or a stand-in for it, waits for the message.
        let state = [NotifyState::Ready, NotifyState::Status(&message)];
        if let Err(error) = sd_notify::notify(&state) {
            tracing::warn!(%error, "cannot tell systemd that the mount answers");
        }
        if is_for_people {
            ui.say(message);
        }
        Ok(())
    });
    Ok(serve(order, Place::Foreground, &session::mount, ready)?)
}

/// Starts logging as ordered, in this process.
///
/// # Errors
/// That the log file cannot be written.
pub fn start_log(order: &Order) -> Result<(), CliError> {
    let file = order
        .log
        .file
        .as_deref()
        .unwrap_or(Path::new("standard error"));
    logging::start(&order.log).map(drop).map_err(|error| {
        CliError::failed(format!("cannot log to {}", file.display())).caused_by(&error)
    })
}

/// Returns the line that tells what to do with the mount.
fn mounted(order: &Order) -> String {
    let path = quoted(&order.mount.mount_point);
    let log = match &order.log.file {
        Some(file) => format!("; log: {}", quoted(file)),
        None => String::new(),
    };
    format!(
        "mounted {} on {path}; unmount with: kvfs unmount {path}{log}",
        order.store
    )
}
