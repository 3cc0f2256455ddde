//! `kvfs share`.

use std::time::SystemTime;

use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::json;

use super::args::{GlobalArgs, ShareArgs};
use super::direct::{Direct, failure, key, shown};
use super::error::CliError;
use super::ls::timestamp;
use super::settings::Environment;
use super::ui::Ui;
use crate::redact::Secret;

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
        return Err(CliError::usage("a link to a single record cannot expire")
            .hinted("leave --expires out, or share the whole store: its link can expire"));
    }
    let expires = match args.expires {
        None => None,
        Some(after) => {
            let at = SystemTime::now().checked_add(after);
            Some(at.ok_or_else(|| CliError::usage("--expires is too far in the future"))?)
        }
    };
    let link = link(args, expires, global, environment)?;
    let link = link.expose();
    let mount = format!("kvfs mount '{link}' MOUNTPOINT");
    if args.json {
        let facts = json!({
            "url": link,
            "mount": mount,
            "expires": expires.map(timestamp),
        });
        ui.data(serde_json::to_string_pretty(&facts).unwrap_or_default())?;
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
        Some(at) => format!("the link is good until {}", timestamp(at)),
        None => {
            "the link does not expire; who has it can read on until the store is deleted".to_owned()
        }
    });
    Ok(())
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
        // A link to nothing is no help to anybody.
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
            .hinted("only an account that may write to a store of the API is told its signing key")
        })
}
