//! `kvfs warm`.

use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::args::WarmArgs;
use super::error::{CliError, Kind};
use super::mounted::Daemon;
use super::places;
use super::progress::bar;
use super::select::is_pattern;
use super::settings::Environment;
use super::ui::Ui;
use crate::base::units::ByteSize;
use crate::daemon::control::Request;
use crate::fs::warm::{Wanted, WarmProgress};

/// The most bytes of names that are taken from standard input.
const MOST_NAMES: u64 = 12 << 20;

/// Fetches ahead into the cache of a mount.
///
/// # Errors
/// That the mount cannot be asked, or that not everything is in the cache afterwards.
pub fn run(ui: Ui, args: &WarmArgs, environment: &Environment) -> Result<(), CliError> {
    let daemon = Daemon::find(&args.mountpoint, environment)?;
    let wanted = wanted(&daemon, &args.what)?;
    let nothing = nothing_found(&wanted);
    let begun = Instant::now();
    let bar = bar(ui);
    let request = Request::Warm { wanted };
    let told = daemon.ask(&request, &mut |news| {
        if let Ok(now) = serde_json::from_value::<WarmProgress>(news) {
            show(&bar, &now);
        }
        true
    });
    bar.finish_and_clear();
    let told = told?.unwrap_or_default();
    if args.json {
        ui.json_line(&told)?;
    }
    let told: WarmProgress = serde_json::from_value(told)
        .map_err(|error| CliError::failed("the daemon's answer is invalid").caused_by(&error))?;
    let found = told.asked + told.cached + told.unfit + told.failed;
    if let Some(message) = nothing.filter(|_| found == 0 && told.stopped.is_none()) {
        return Err(CliError::of(Kind::NotFound, message)
            .hinted("list the files with: ls, or kvfs ls MOUNTPOINT"));
    }
    summary(ui, &told, begun.elapsed())
}

/// Returns what words mean: a prefix or pattern, or files in the mount by name or path.
fn wanted(daemon: &Daemon, words: &[String]) -> Result<Wanted, CliError> {
    match words {
        [] => Ok(Wanted::All),
        [word] if word == "-" => from_input(),
        [word] if places::inside(Path::new(word)).is_none() => Ok(one(word)),
        words => Ok(Wanted::Names(places::names_in(&daemon.mount_point, words)?)),
    }
}

fn one(word: &str) -> Wanted {
    if is_pattern(word) {
        Wanted::Glob(word.to_owned())
    } else {
        Wanted::Prefix(word.to_owned())
    }
}

/// Returns what to say when nothing was found of what is wanted; nothing for everything.
fn nothing_found(wanted: &Wanted) -> Option<String> {
    match wanted {
        Wanted::All => None,
        Wanted::Prefix(prefix) => Some(format!("no name in the mount begins with '{prefix}'")),
        Wanted::Glob(glob) => Some(format!("no name in the mount matches '{glob}'")),
        Wanted::Names(names) => match names.as_slice() {
            [name] => Some(format!("there is no file '{name}' in the mount")),
            _ => Some("none of these files is in the mount".to_owned()),
        },
    }
}

fn from_input() -> Result<Wanted, CliError> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(MOST_NAMES + 1)
        .read_to_string(&mut text)
        .map_err(|error| {
            CliError::failed("cannot read names from standard input").caused_by(&error)
        })?;
    if text.len() as u64 > MOST_NAMES {
        return Err(CliError::failed("there are too many names")
            .hinted("call kvfs warm several times, or with a prefix or pattern"));
    }
    let names = text.lines().filter(|line| !line.is_empty());
    Ok(Wanted::Names(names.map(str::to_owned).collect()))
}

fn show(bar: &ProgressBar, now: &WarmProgress) {
    bar.set_length(now.bytes.max(now.bytes_done));
    bar.set_position(now.bytes_done);
    let more = if now.is_listed { "" } else { "+" };
    bar.set_message(format!("{}/{}{more} files", now.records_done, now.records));
}

fn summary(ui: Ui, told: &WarmProgress, took: Duration) -> Result<(), CliError> {
    let ready = told.asked + told.cached;
    ui.say(format_args!(
        "cached {}, {}: {} fetched, {} were there already; {:.1} s",
        files(ready),
        ByteSize(told.bytes_done.saturating_sub(told.unfit_bytes)),
        told.asked,
        told.cached,
        took.as_secs_f64()
    ));
    let mut error = CliError::failed(String::new());
    if told.unfit > 0 {
        error.message = format!(
            "{} ({}) did not fit into the cache",
            files(told.unfit),
            ByteSize(told.unfit_bytes)
        );
        error.causes.push(some(&told.unfit_names, told.unfit));
        error
            .hints
            .push("mount with a larger --cache-size, or warm less".into());
    }
    if told.failed > 0 {
        let could_not = format!("{} could not be fetched", files(told.failed));
        if error.message.is_empty() {
            error.message = could_not;
        } else {
            error.causes.push(could_not);
        }
        error.causes.extend(told.failures.iter().cloned());
    }
    if let Some(why) = &told.stopped {
        if error.message.is_empty() {
            error.message = "not everything was fetched".into();
        }
        error.causes.push(format!("given up: {why}"));
        error
            .hints
            .push("the same command resumes where this one ended".into());
    }
    if error.message.is_empty() {
        Ok(())
    } else {
        Err(error)
    }
}

fn files(n: u64) -> String {
    match n {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    }
}

fn some(names: &[String], of: u64) -> String {
    let more = of.saturating_sub(names.len() as u64);
    match more {
        0 => names.join(", "),
        more => format!("{}, and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Ui = Ui {
        quiet: true,
        color: false,
    };

    #[test]
    fn words_patterns_and_everything_are_told_apart() {
        assert_eq!(one("2026-"), Wanted::Prefix("2026-".into()));
        assert_eq!(one("*.html"), Wanted::Glob("*.html".into()));
        assert_eq!(nothing_found(&Wanted::All), None);
        let said = nothing_found(&one("zzz")).expect("a sentence");
        assert!(said.contains("begins with 'zzz'"), "{said}");
    }

    #[test]
    fn what_did_not_fit_or_failed_is_named_and_a_failure() {
        let mut told = WarmProgress {
            asked: 3,
            ..WarmProgress::default()
        };
        assert!(summary(QUIET, &told, Duration::ZERO).is_ok());
        told.unfit = 12;
        told.unfit_names = vec!["big".into(), "huge".into()];
        told.failed = 1;
        told.failures = vec!["x: no".into()];
        let error = summary(QUIET, &told, Duration::ZERO).expect_err("not all");
        assert!(error.message.contains("12 files"), "{error:?}");
        assert_eq!(error.causes[0], "big, huge, and 10 more");
        assert!(error.causes.contains(&"x: no".to_owned()), "{error:?}");
    }
}
