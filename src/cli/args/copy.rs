//! The arguments of the commands about whole stores.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use url::Url;

use super::StoreArgs;
use super::values::{api_url, positive_number};

/// Which keys take part.
#[derive(Clone, Debug, Default, Args)]
pub struct FilterArgs {
    /// Only keys that match this pattern, with *, ?, [...] and {a,b}. May be repeated
    #[arg(long, value_name = "GLOB", help_heading = "What takes part")]
    pub include: Vec<String>,
    /// No keys that match this pattern. May be repeated
    #[arg(long, value_name = "GLOB", help_heading = "What takes part")]
    pub exclude: Vec<String>,
    /// Only keys that begin with PREFIX
    #[arg(long, value_name = "PREFIX", help_heading = "What takes part")]
    pub prefix: Option<String>,
}

/// The arguments of `kvfs copy`.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// The store to copy from, as for `kvfs mount`, or a folder
    pub source: String,
    /// The store to copy into, or a folder; a folder is made if it is missing
    pub target: String,
    /// Delete records that the source does not have; asks the source for each one first
    #[arg(long)]
    pub delete: bool,
    /// Change nothing; print what would be done
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Read each record back after storing it
    #[arg(long)]
    pub verify: bool,
    /// Compare the contents of all records; ignore sizes and earlier copies
    #[arg(long)]
    pub checksum: bool,
    /// Copy up to this many records at once
    #[arg(long, value_name = "NUMBER", default_value_t = 32, value_parser = positive_number)]
    pub jobs: usize,
    /// Print a JSON object for each record, a line each
    #[arg(long)]
    pub json: bool,
    /// Which keys.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Read the target's API token from this file [default: the source's]
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub to_token_file: Option<PathBuf>,
    /// The address of the target's API [default: the source's]
    #[arg(long, value_name = "URL", value_parser = api_url, help_heading = "Access")]
    pub to_api_url: Option<Url>,
    /// How the stores are opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// A store, as for `kvfs mount`, or a folder
    #[arg(value_name = "A")]
    pub first: String,
    /// The other
    #[arg(value_name = "B")]
    pub second: String,
    /// Compare decoded contents and types instead of stored sizes
    #[arg(long)]
    pub content: bool,
    /// Read up to this many records at once
    #[arg(long, value_name = "NUMBER", default_value_t = 32, value_parser = positive_number)]
    pub jobs: usize,
    /// Print a JSON object for each difference, a line each
    #[arg(long)]
    pub json: bool,
    /// Which keys.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// How the stores are opened.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs stores`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct StoresArgs {
    /// The command.
    #[command(subcommand)]
    pub command: Option<StoresCommand>,
    /// Options of the listing.
    #[command(flatten)]
    pub list: StoresListArgs,
}

/// What `kvfs stores` does.
#[derive(Debug, Subcommand)]
pub enum StoresCommand {
    /// List the stores of the token's account, or of a storage folder
    List(StoresListArgs),
    /// Make a store, or find the one of that name
    Create(StoresCreateArgs),
    /// Delete a store with all its records
    Remove(StoresRemoveArgs),
}

/// The arguments of `kvfs stores list`.
#[derive(Debug, Args)]
pub struct StoresListArgs {
    /// A storage folder, such as ./storage [default: the token's account]
    #[arg(value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Stores without a name too, such as those of runs
    #[arg(long)]
    pub unnamed: bool,
    /// Count the records too; costs a request for 1,000 of them
    #[arg(long)]
    pub count: bool,
    /// Print a JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Access to the API.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs stores create`.
#[derive(Debug, Args)]
pub struct StoresCreateArgs {
    /// The name: letters, digits and dashes
    pub name: String,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// Access to the API.
    #[command(flatten)]
    pub access: StoreArgs,
}

/// The arguments of `kvfs stores remove`.
#[derive(Debug, Args)]
pub struct StoresRemoveArgs {
    /// The store: ~NAME, USER~NAME or an id
    pub store: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Access to the API.
    #[command(flatten)]
    pub access: StoreArgs,
}
