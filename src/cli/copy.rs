//! `kvfs copy`.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use indicatif::ProgressBar;
use parking_lot::Mutex;
use serde_json::json;

use super::args::{CopyArgs, GlobalArgs, StoreArgs};
use super::direct::{key_fault, shown, start_log};
use super::error::{CliError, Kind};
use super::progress::bar;
use super::settings::Environment;
use super::sides::{self, Opened};
use super::ui::Ui;
use crate::base::text::{self, Line};
use crate::base::units::ByteSize;
use crate::copy::memory::{Memory, forget_old};
use crate::copy::report::{Outcome, Report, Told, Watcher};
use crate::copy::run::{self, Options};
use crate::daemon::causes;
use crate::store::{ErrorKind, StoreError};

/// How many failures are named one by one.
const TOLD: u64 = 20;
/// What a copy remembers of a pair of stores is removed after this many days without use.
const DAYS: u64 = 90;

/// Copies a store.
///
/// # Errors
/// That a store cannot be opened or listed, or that something could not be copied.
pub fn run(
    ui: Ui,
    args: &CopyArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    // With -v the copy tells what it does; the requests are told by -vv.
    start_log(
        GlobalArgs {
            verbose: global.verbose.saturating_sub(1),
            ..global
        },
        environment,
    )?;
    let filter = sides::filter(&args.filter)?;
    let source = sides::source(ui, &args.source, &args.access, environment)?;
    let target = sides::target(ui, &args.target, &to_target(args), environment)?;
    check_apart(&source, &target)?;
    let copies = environment.copies_dir()?;
    forget_old(&copies, DAYS);
    let memory = Memory::open(&copies, &source.scope, &target.scope);
    let options = Options {
        filter,
        delete: args.delete,
        dry_run: args.dry_run,
        verify: args.verify,
        checksum: args.checksum,
        jobs: args.jobs,
        timeout: source.timeout.max(target.timeout),
    };
    let teller = Teller {
        ui,
        json: args.json,
        verbose: global.verbose > 0,
        dry_run: args.dry_run,
        bar: bar(ui),
        failures: Mutex::new((0, None)),
        broken: Mutex::new(None),
    };
    let began = Instant::now();
    let report = run::run(&source.side, &target.side, &options, &memory, &teller);
    teller.bar.finish_and_clear();
    if let Some(error) = teller.broken.into_inner() {
        return Err(error.into());
    }
    let (_, first) = teller.failures.into_inner();
    summary(ui, args, &report, began.elapsed().as_secs_f64());
    outcome(&report, first, &source, &target)
}

/// Returns how the target is opened: as the source, but for what is said of it alone.
fn to_target(args: &CopyArgs) -> StoreArgs {
    StoreArgs {
        token_file: args
            .to_token_file
            .clone()
            .or_else(|| args.access.token_file.clone()),
        api_url: args
            .to_api_url
            .clone()
            .or_else(|| args.access.api_url.clone()),
        signature: None,
        signature_file: None,
        status: None,
        origin: None,
        ..args.access.clone()
    }
}

fn check_apart(source: &Opened, target: &Opened) -> Result<(), CliError> {
    if source.scope == target.scope {
        return Err(CliError::usage(format!(
            "{} and {} are the same store",
            source.shown, target.shown
        )));
    }
    if let (Some(one), Some(other)) = (&source.folder, &target.folder)
        && (one.starts_with(other) || other.starts_with(one))
    {
        return Err(CliError::usage("one of the folders is inside the other")
            .hinted("copy to a folder next to it"));
    }
    Ok(())
}

fn summary(ui: Ui, args: &CopyArgs, report: &Report, seconds: f64) {
    let verb = if args.dry_run { "would copy" } else { "copied" };
    let mut parts = vec![
        format!(
            "{verb} {} ({})",
            records(report.copied),
            ByteSize(report.copied_bytes)
        ),
        format!("{} unchanged", report.unchanged),
    ];
    if args.delete {
        let verb = if args.dry_run {
            "would be deleted"
        } else {
            "deleted"
        };
        parts.push(format!("{} {verb}", report.deleted));
    }
    ui.say(format_args!("{}; {seconds:.1} s", parts.join(", ")));
}

fn outcome(
    report: &Report,
    first: Option<CliError>,
    source: &Opened,
    target: &Opened,
) -> Result<(), CliError> {
    if report.is_complete() {
        return Ok(());
    }
    let mut error = CliError::failed(format!("{} is not all in {}", source.shown, target.shown));
    error.causes.extend(report.listing.iter().cloned());
    if report.failed > 0 {
        error
            .causes
            .push(format!("{} failed", records(report.failed)));
    }
    error.causes.extend(report.stopped.iter().cloned());
    if report.not_tried > 0 {
        error
            .causes
            .push(format!("{} not tried", records(report.not_tried)));
    }
    if report.listing.is_some() {
        error.hints.push("nothing was deleted".into());
    }
    error
        .hints
        .extend(first.map(|first| first.hints).unwrap_or_default());
    error
        .hints
        .push("the same command copies only what is missing".into());
    Err(error)
}

fn records(n: u64) -> String {
    match n {
        1 => "1 record".to_owned(),
        n => format!("{n} records"),
    }
}

/// Reports the progress of a copy to people or programs.
struct Teller {
    ui: Ui,
    json: bool,
    verbose: bool,
    dry_run: bool,
    bar: ProgressBar,
    /// How many there were, and the first.
    failures: Mutex<(u64, Option<CliError>)>,
    broken: Mutex<Option<io::Error>>,
}

impl Teller {
    fn line(&self, text: &str) {
        if io::stderr().is_terminal() {
            self.bar.suspend(|| self.ui.say(text));
        } else {
            self.ui.say(text);
        }
    }

    fn json(&self, told: &Told<'_>) {
        let reason = match told.outcome {
            Outcome::Unchanged(by) => Some((*by).to_owned()),
            Outcome::Failed(error) => Some(explained(error)),
            Outcome::Copied | Outcome::Deleted => None,
        };
        let line = json!({
            "key": told.key.as_str(), "result": result(told.outcome), "size": told.size,
            "dry_run": self.dry_run, "reason": reason,
        });
        if let Err(error) = writeln!(io::stdout().lock(), "{}", text::json(&line.to_string())) {
            self.broken.lock().get_or_insert(error);
        }
    }

    fn failed(&self, told: &Told<'_>, error: &StoreError) {
        let mut failures = self.failures.lock();
        failures.0 += 1;
        if failures.0 <= TOLD && !self.json {
            let line = format!("failed: {}: {}", shown(told.key), explained(error));
            drop(failures);
            if io::stderr().is_terminal() {
                self.bar.suspend(|| self.ui.warn(&line));
            } else {
                self.ui.warn(&line);
            }
            failures = self.failures.lock();
        }
        failures.1.get_or_insert_with(|| {
            let mut first = CliError::of(Kind::Failed, Line(error).to_string());
            if error.kind() == ErrorKind::InvalidKey {
                first.hints.extend(key_fault(told.key));
            }
            first.hints.extend(error.hint().map(str::to_owned));
            first
        });
    }
}

fn explained(error: &StoreError) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        text = format!("{text}: {cause}");
    }
    text::line(&text).into_owned()
}

fn result(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Copied => "copied",
        Outcome::Unchanged(_) => "unchanged",
        Outcome::Deleted => "deleted",
        Outcome::Failed(_) => "failed",
    }
}

impl Watcher for Teller {
    fn told(&self, told: &Told<'_>) {
        if !matches!(told.outcome, Outcome::Copied) {
            // It did not come from the source.
            self.bar.inc(told.size.unwrap_or(0));
        }
        if self.json {
            self.json(told);
        }
        match told.outcome {
            Outcome::Failed(error) => self.failed(told, error),
            outcome if !self.json && (self.verbose || self.dry_run) => {
                let key = shown(told.key);
                match outcome {
                    Outcome::Unchanged(by) if self.verbose => {
                        self.line(&format!("unchanged {key} (by {by})"));
                    }
                    Outcome::Unchanged(_) => {}
                    other => {
                        let would = if self.dry_run { "would be " } else { "" };
                        self.line(&format!("{would}{} {key}", result(other)));
                    }
                }
            }
            _ => {}
        }
    }

    fn found(&self, _records: u64, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    fn moved(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}
