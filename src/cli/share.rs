//! `kvfs share`.

use std::path::Path;
use std::time::SystemTime;

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::json;

use super::args::{GlobalArgs, ShareArgs};
use super::direct::{Direct, failure, key, shown};
use super::error::CliError;
use super::ls::timestamp;
use super::mounted::Daemon;
use super::places;
use super::settings::Environment;
use super::ui::Ui;
use crate::base::redact::Secret;
use crate::daemon::control::Request;

/// Makes a link and tells how its receiver uses it.
///
/// # Errors
/// That the account does not know the store's signing key, or the record is not there.
pub fn run(
    ui: Ui,
    args: &ShareArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    if args.key.is_some() && args.expires.is_some() {
        return Err(no_expiry());
    }
    let expires = match args.expires {
        None => None,
        Some(after) => {
            let at = SystemTime::now().checked_add(after);
            Some(at.ok_or_else(|| CliError::usage("--expires is too far in the future"))?)
        }
    };
    let link = match places::inside(Path::new(&args.store)) {
        Some(place) => {
            let key = args.key.as_slice();
            let more = places::names_in(&place.mount_point, key)?;
            let name = place.name.or_else(|| more.into_iter().next());
            let daemon = Daemon::find(&place.mount_point, environment)?;
            link_of_mount(ui, &daemon, name, expires)?
        }
        None => link(args, expires, global, environment)?,
    };
    let link = link.expose();
    let mount = format!("kvfs mount '{link}' MOUNTPOINT");
    if args.json {
        let facts = json!({
            "url": link,
            "mount": mount,
            "expires": expires.map(timestamp),
        });
        ui.json(&facts)?;
        return Ok(());
    }
    ui.data(link)?;
    if args.qr {
        let code = QrCode::new(link).map_err(|error| {
            CliError::failed("the link does not fit a QR code").caused_by(&error)
        })?;
        ui.data(code.render::<Dense1x2>().build())?;
    }
    ui.say(format_args!("mount it with:\n  {mount}"));
    ui.say(match expires {
        Some(at) => format!(
            "the link is good until {}; links to single records, which the listing behind it \
             holds on the Apify platform, do not expire",
            timestamp(at)
        ),
        None => "the link does not expire; anyone who has it can read until the store is deleted"
            .to_owned(),
    });
    Ok(())
}

/// Asks the daemon of a mount for the link: it has the token.
fn link_of_mount(
    ui: Ui,
    daemon: &Daemon,
    name: Option<String>,
    expires: Option<SystemTime>,
) -> Result<Secret, CliError> {
    if name.is_some() && expires.is_some() {
        return Err(no_expiry());
    }
    let expires_unix_s = expires
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .map(|since| since.as_secs());
    let request = Request::Share {
        name,
        expires_unix_s,
    };
    let made = daemon.ask(&request, &mut |_| true)?.unwrap_or_default();
    if made["shows_more"] == true {
        ui.warn("the link shows the whole store, not only what is mounted of it");
    }
    match made["url"].as_str() {
        Some(url) => Ok(Secret::new(url)),
        None => Err(CliError::failed("the daemon's answer holds no link")),
    }
}

fn no_expiry() -> CliError {
    CliError::usage("a link to a single record cannot expire")
        .hinted("leave --expires out, or share the whole store: its link can expire")
}

fn link(
    args: &ShareArgs,
    expires: Option<SystemTime>,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<Secret, CliError> {
    let direct = Direct::open(&args.store, &args.access, global, environment)?;
    let key = args.key.as_deref().map(key).transpose()?;
    if let Some(key) = &key {
        // A link to nothing helps no one.
        direct
            .store
            .head(key, direct.deadline())
            .map_err(|error| failure(&format!("cannot share {}", shown(key)), &error))?;
    }
    direct
        .store
        .shared_url(key.as_ref(), expires)
        .ok_or_else(|| {
            CliError::failed(format!(
                "cannot make links to {}: its signing key is not known",
                direct.shown
            ))
            .hinted("the API shows a store's signing key only to accounts that may write to it")
        })
}
