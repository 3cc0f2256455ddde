//! The command line: parse, dispatch, exit code. One file for each command.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser};

pub mod args;
pub mod cache;
pub mod cat;
pub mod config;
pub mod config_file;
pub mod copy;
pub mod defaults;
pub mod demo;
pub mod demo_store;
pub mod diff;
pub mod direct;
pub mod doctor;
pub mod error;
pub mod examples;
pub mod helper;
pub mod info;
pub mod left_behind;
pub mod ls;
pub mod mount;
pub mod mounted;
pub mod mounted_store;
pub mod options;
#[cfg(test)]
mod options_page;
pub mod pages;
pub mod places;
pub mod progress;
pub mod put;
pub mod recover;
pub mod reference;
pub mod refresh;
pub mod rm;
pub mod select;
pub mod serve;
pub mod settings;
pub mod share;
pub mod sides;
pub mod status;
pub mod stores;
pub mod sync;
pub mod trace;
pub mod ui;
pub mod unmount;
pub mod warm;
pub mod watch;

use args::{Cli, Command};
use error::{CliError, Kind};
use settings::Environment;
use ui::Ui;

use crate::base::in_use;

/// The hint for people who look for `--token`.
const TOKEN_HINT: &str = "a token on the command line could be seen by others; set the variable \
    APIFY_TOKEN or use --token-file";

/// Runs the program.
pub fn main() -> ExitCode {
    crate::daemon::memory::bound_arenas();
    crate::daemon::memory::forbid_core_files();
    crate::daemon::memory::allow_files();
    let argv = std::env::args_os().collect();
    catch_unwind(AssertUnwindSafe(|| run(argv))).unwrap_or_else(|_| {
        // The panic itself has been printed.
        let error = CliError::of(Kind::Internal, "kvfs has a bug, and ended")
            .hinted("please report it with what is printed above");
        Ui {
            quiet: false,
            color: false,
        }
        .error(&error);
        Kind::Internal.into()
    })
}

fn run(argv: Vec<OsString>) -> ExitCode {
    let environment = Environment::read();
    environment.secrets().iter().for_each(in_use::keep_out);
    let mut ui = Ui {
        quiet: false,
        color: environment.color(),
    };
    let argv = match helper::translate(without_short_help(argv)) {
        Ok(Some(argv)) => argv,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => return fail(ui, &error),
    };
    let cli = match parse(argv, &environment) {
        Ok(cli) => cli,
        Err(Unparsed::Clap(error)) => return clap_says(ui, &error),
        Err(Unparsed::Options(error)) => return fail(ui, &error),
    };
    ui.quiet = cli.global.quiet;
    let result = match &cli.command {
        Command::Mount(args) => mount::run(ui, args, cli.global, &environment),
        Command::Unmount(args) => unmount::run(ui, args, &environment),
        Command::Status(args) => status::run(ui, args, cli.global, &environment),
        Command::Sync(args) => sync::run(ui, args, &environment),
        Command::Recover(args) => recover::run(ui, args, cli.global, &environment),
        Command::Warm(args) => warm::run(ui, args, &environment),
        Command::Refresh(args) => refresh::run(ui, args, &environment),
        Command::Cache(args) => cache::run(ui, args, &environment),
        Command::Trace(args) => trace::run(ui, args, &environment),
        Command::Serve(args) => serve::run(ui, args, cli.global, &environment),
        Command::Demo(args) => demo::run(ui, args, &environment),
        Command::Ls(args) => ls::run(args, cli.global, &environment),
        Command::Cat(args) => cat::run(ui, args, cli.global, &environment),
        Command::Put(args) => put::run(ui, args, cli.global, &environment),
        Command::Rm(args) => rm::run(ui, args, cli.global, &environment),
        Command::Info(args) => info::run(ui, args, cli.global, &environment),
        Command::Copy(args) => copy::run(ui, args, cli.global, &environment),
        Command::Diff(args) => diff::run(ui, args, cli.global, &environment),
        Command::Stores(args) => stores::run(ui, args, cli.global, &environment),
        Command::Share(args) => share::run(ui, args, cli.global, &environment),
        Command::Doctor(args) => doctor::run(ui, args, cli.global, &environment),
        Command::Config(args) => config::run(ui, args, &environment),
        Command::Completions(args) => pages::completions(ui, args),
        Command::Man(args) => pages::man(ui, args),
        Command::Daemon(_) => return crate::daemon::child::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(ui, &error),
    }
}

/// Turns `kvfs ls -h`, which names no store to show sizes of, into a call for help.
fn without_short_help(mut argv: Vec<OsString>) -> Vec<OsString> {
    if let [_, command, flag] = argv.as_mut_slice()
        && command == "ls"
        && flag == "-h"
    {
        *flag = "--help".into();
    }
    argv
}

/// Returns the definition of the command line: with examples at the end of each command's help.
pub fn definition() -> clap::Command {
    let mut definition = Cli::command();
    for (name, _) in examples::EXAMPLES {
        definition = definition.mut_subcommand(name, |command| match examples::help(name) {
            Some(help) => command.after_help(help),
            None => command,
        });
    }
    definition
}

/// Why a command line was not understood.
enum Unparsed {
    /// Because of its arguments, or because it asks for help.
    Clap(clap::Error),
    /// Because of what stands behind `-o`, or in the settings file.
    Options(CliError),
}

impl From<clap::Error> for Unparsed {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error)
    }
}

impl From<CliError> for Unparsed {
    fn from(error: CliError) -> Self {
        Self::Options(error)
    }
}

/// Returns how to open one of several stores of a command, and what it is: as if it were the command's
/// only store, with the settings file, the environment and these flags.
///
/// # Errors
/// What is wrong with any of them.
pub(crate) fn access_of(
    word: &str,
    flags: Vec<OsString>,
    environment: &Environment,
) -> Result<(String, args::StoreArgs), CliError> {
    let mut argv: Vec<OsString> = vec!["kvfs".into(), "info".into()];
    argv.extend(flags);
    argv.extend(["--".into(), word.into()]);
    match parse(argv, environment) {
        Ok(Cli {
            command: Command::Info(args),
            ..
        }) => Ok((args.store, args.access)),
        Ok(_) => Err(CliError::of(Kind::Internal, "another command was parsed")),
        Err(Unparsed::Options(error)) => Err(error),
        Err(Unparsed::Clap(error)) => Err(CliError::usage(error.to_string())),
    }
}

/// Parses a command line. What `-o` and the settings file say is put in front of the other flags,
/// which override it.
fn parse(mut argv: Vec<OsString>, environment: &Environment) -> Result<Cli, Unparsed> {
    let mut given = defaults::switched_off(&mut argv);
    let mut definition = definition();
    let mut matches = definition.try_get_matches_from_mut(&argv)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Command::Mount(args) = &cli.command {
        let said = options::to_flags(&args.options)?;
        given.extend(said.off);
        insert(&mut argv, &matches, said.flags);
        matches = definition.try_get_matches_from_mut(&argv)?;
        cli = Cli::from_arg_matches(&matches)?;
    }
    if let (Command::Serve(_), Some((name, arguments))) = (&cli.command, matches.subcommand())
        && let Some(command) = definition.find_subcommand(name)
    {
        let flags = defaults::serve_flags(command, arguments, environment)?;
        insert(&mut argv, &matches, flags);
        return Ok(Cli::try_parse_from(&argv)?);
    }
    let Some((stores, access)) = defaults::stores(&mut cli.command) else {
        return Ok(cli);
    };
    let name = stores.name()?;
    if name.is_none() && !stores.may_mean_last_run() {
        let only = [("--status", &access.status), ("--origin", &access.origin)];
        if let Some((option, _)) = only.iter().find(|(_, value)| value.is_some()) {
            return Err(CliError::usage(format!(
                "{option} says which last run is meant, and so needs actor: or task:"
            ))
            .into());
        }
    }
    let path = access.config.clone();
    let file = match environment.config_file(path.as_deref()) {
        // It is one of the faults that the doctor looks for.
        Err(_) if matches!(cli.command, Command::Doctor(_)) => return Ok(cli),
        file => file?,
    };
    let Some((command, arguments)) = matches.subcommand() else {
        return Ok(cli);
    };
    let Some(command) = definition.find_subcommand(command) else {
        return Ok(cli);
    };
    given.extend(defaults::given(command, arguments));
    let settings = defaults::settings(&file, name.as_deref(), given, environment)?;
    let flags = defaults::flags(&settings, command, arguments);
    insert(&mut argv, &matches, flags);
    let mut cli = Cli::try_parse_from(&argv)?;
    if let Some((stores, access)) = defaults::stores(&mut cli.command) {
        access.token = defaults::token(&settings);
        if let Some(name) = name {
            stores.replace(&name, &file.named(&name)?.store)?;
        }
    }
    Ok(cli)
}

/// Puts flags behind the command's name.
fn insert(argv: &mut Vec<OsString>, matches: &ArgMatches, flags: Vec<OsString>) {
    // Nothing in front of the command takes a value, so the first such word is the command.
    let name = matches.subcommand_name().unwrap_or_default();
    let command = argv.iter().skip(1).position(|word| word == name);
    let after = command.map_or(argv.len(), |position| position + 2);
    argv.splice(after..after, flags);
}

fn fail(ui: Ui, error: &CliError) -> ExitCode {
    ui.error(error);
    error.kind.into()
}

fn clap_says(ui: Ui, error: &clap::Error) -> ExitCode {
    // Help that is not read to its end is no failure.
    let _ = error.print();
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return ExitCode::SUCCESS;
    }
    if let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg)
        && argument == "--token"
    {
        ui.hint(TOKEN_HINT);
    }
    Kind::Usage.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> args::MountArgs {
        let argv = line.split(' ').map(OsString::from).collect();
        match parse(argv, &Environment::default()) {
            Ok(Cli {
                command: Command::Mount(args),
                ..
            }) => *args,
            Ok(_) => panic!("another command: {line}"),
            Err(Unparsed::Clap(error)) => panic!("{line}: {error}"),
            Err(Unparsed::Options(error)) => panic!("{line}: {error}"),
        }
    }

    #[test]
    fn flags_override_options_wherever_they_stand() {
        let ttl = |line| mount(line).ttl.expect("a TTL").as_secs();
        assert_eq!(ttl("kvfs mount -o ttl=1m s /m"), 60);
        assert_eq!(ttl("kvfs mount s /m -o ro,ttl=1m"), 60);
        assert_eq!(ttl("kvfs mount --ttl 5s s /m -o ttl=1m"), 5);
        assert_eq!(ttl("kvfs -v mount -o ttl=1m s /m --ttl 5s"), 5);
        assert_eq!(ttl("kvfs mount s /m -o ttl=1m -o ttl=2m,ro"), 120);
        assert!(mount("kvfs mount --raw -o raw s /m").raw);
    }

    #[test]
    fn a_switch_of_the_settings_file_can_be_switched_off() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("config.toml");
        let text = "[defaults]\nraw = true\nttl = '1m'\nprefix = 'a'\n";
        std::fs::write(&path, text).expect("a file");
        let mount = |more: &str| mount(&format!("kvfs mount --config {} {more}", path.display()));
        let args = mount("s /m");
        assert!(args.raw);
        assert_eq!(args.ttl.map(|ttl| ttl.as_secs()), Some(60));
        assert!(!mount("--raw=false s /m").raw);
        assert!(mount("s --raw=true /m").raw);
        assert_eq!(
            mount("-o ttl=5s s /m").ttl.map(|ttl| ttl.as_secs()),
            Some(5)
        );
        std::fs::write(&path, "[defaults]\nrw = true\n").expect("a file");
        assert!(mount("s /m").rw && mount("-o raw,rw s /m").rw);
        assert!(!mount("-o ro s /m").rw && !mount("--rw=false s /m").rw);
        std::fs::write(&path, text).expect("a file");
        let args = mount("s --immutable /m");
        assert!(args.immutable && args.ttl.is_none());
        assert_eq!(
            mount("--raw=false -- --raw=false /m").paths,
            ["--raw=false", "/m"]
        );
    }

    #[test]
    fn secrets_travel_unencrypted_by_the_flag_then_the_named_store_then_the_variable_then_the_defaults()
     {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("config.toml");
        let parsed = |variable: &str, line: &str| {
            let environment = Environment::from_variables(|name| {
                (name == "KVFS_INSECURE_HTTP").then(|| variable.into())
            });
            let line = line.replace("CONFIG", &format!("--config {}", path.display()));
            let argv = line.split(' ').map(OsString::from).collect();
            let mut cli = parse(argv, &environment).map_err(|_| ())?;
            let (_, access) = defaults::stores(&mut cli.command).expect("a store");
            Ok::<bool, ()>(access.insecure_http)
        };
        let stores = "[stores.off]\nstore = 's'\ninsecure-http = false\n\
            [stores.on]\nstore = 's'\ninsecure-http = true\n[stores.none]\nstore = 's'\n";
        for (defaults, variable, line, expected) in [
            ("", "", "ls CONFIG s", false),
            ("", "", "ls CONFIG s --insecure-http", true),
            ("", "1", "ls CONFIG s", true),
            ("", "0", "ls CONFIG s", false),
            ("", "true", "doctor CONFIG", true),
            ("", "1", "ls CONFIG --insecure-http=false s", false),
            ("", "1", "ls CONFIG @off", false),
            ("", "1", "ls CONFIG @none", true),
            ("", "0", "ls CONFIG @on", true),
            ("insecure-http = true", "", "cat CONFIG s k", true),
            ("insecure-http = true", "0", "cat CONFIG s k", false),
            ("insecure-http = true", "", "put CONFIG s k", true),
            ("insecure-http = true", "", "info CONFIG @off", false),
            ("", "", "mount CONFIG s /m -o insecure-http", true),
            ("", "", "mount CONFIG s /m -o ro", false),
            ("", "", "rm CONFIG --insecure-http s k", true),
            ("", "", "share CONFIG --insecure-http s", true),
        ] {
            std::fs::write(&path, format!("[defaults]\n{defaults}\n{stores}")).expect("a file");
            let found = parsed(variable, &format!("kvfs {line}"));
            assert_eq!(found, Ok(expected), "{defaults}, {variable}, {line}");
        }
        assert!(parsed("maybe", "kvfs ls CONFIG s").is_err());
    }

    #[test]
    fn the_last_path_is_the_mount_point() {
        let args = mount("kvfs mount a b --raw /m");
        assert_eq!(args.paths, ["a", "b", "/m"]);
        assert_eq!(mount("kvfs mount mount /m").paths, ["mount", "/m"]);
        assert_eq!(mount("kvfs mount -o raw mount /m").paths, ["mount", "/m"]);
    }
}
