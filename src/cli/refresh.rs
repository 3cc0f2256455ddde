//! `kvfs refresh`.

use super::args::RefreshArgs;
use super::error::CliError;
use super::mounted::Daemon;
use super::places;
use super::settings::Environment;
use super::ui::Ui;
use crate::daemon::control::Request;
use crate::daemon::registry::mount_point::quoted;

/// Makes a mount forget what is cached.
///
/// # Errors
/// That it cannot be asked, or that there is no such file.
pub fn run(ui: Ui, args: &RefreshArgs, environment: &Environment) -> Result<(), CliError> {
    let daemon = Daemon::find(&args.mountpoint, environment)?;
    let request = Request::Refresh {
        names: places::names_in(&daemon.mount_point, &args.names)?,
    };
    let done = daemon.ask(&request, &mut |_| true)?.unwrap_or_default();
    if args.json {
        ui.json_line(&done)?;
        return Ok(());
    }
    let contents = match done["contents"].as_u64().unwrap_or(0) {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    };
    ui.say(format_args!(
        "dropped {contents} from the cache of {}",
        quoted(&daemon.mount_point)
    ));
    Ok(())
}
