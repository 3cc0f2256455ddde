//! `kvfs rm`.

use super::args::{GlobalArgs, RmArgs};
use super::direct::{Direct, failure, key, shown};
use super::error::CliError;
use super::settings::Environment;
use super::ui::Ui;
use crate::store::Key;

/// Deletes records.
///
/// # Errors
/// That one cannot be deleted; those before it have been.
pub fn run(
    ui: Ui,
    args: &RmArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    let keys: Vec<Key> = args
        .keys
        .iter()
        .map(|typed| key(typed))
        .collect::<Result<_, _>>()?;
    let direct = Direct::open_unasked(&args.store, &args.access, global, environment)?;
    for key in &keys {
        direct
            .store
            .delete(key, direct.deadline())
            .map_err(|error| failure(&format!("cannot delete {}", shown(key)), &error))?;
        ui.say(format_args!("deleted {}", shown(key)));
    }
    Ok(())
}
