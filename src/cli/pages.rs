//! `kvfs completions` and `kvfs man`: made from the definitions of the command line.

use std::fs;
use std::io;

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::error::CliError;
use super::ui::Ui;

/// Prints completions.
///
/// # Errors
/// That standard output is closed or full.
pub fn completions(ui: Ui, args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "kvfs", &mut script);
    ui.data(String::from_utf8_lossy(&script).trim_end())?;
    Ok(())
}

/// Writes a manual page for each command.
///
/// # Errors
/// That the folder cannot be written to.
pub fn man(ui: Ui, args: &ManArgs) -> Result<(), CliError> {
    let cannot = |error: io::Error| {
        CliError::failed(format!("cannot write to {}", args.dir.display())).caused_by(&error)
    };
    fs::create_dir_all(&args.dir).map_err(cannot)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(cannot)?;
    ui.say(format_args!("wrote the pages to {}", args.dir.display()));
    Ok(())
}
