//! `kvfs warm`.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::args::WarmArgs;
use super::error::CliError;
use super::mounted::Daemon;
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
    let wanted = wanted(args.what.as_deref())?;
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
    let told: WarmProgress = serde_json::from_value(told).map_err(|error| {
        CliError::failed("the daemon's answer makes no sense").caused_by(&error)
    })?;
    summary(ui, &told, begun.elapsed())
}

fn wanted(what: Option<&str>) -> Result<Wanted, CliError> {
    let Some(what) = what else {
        return Ok(Wanted::All);
    };
    if what != "-" {
        return Ok(if what.contains(['*', '?', '[', '{']) {
            Wanted::Glob(what.to_owned())
        } else {
            Wanted::Prefix(what.to_owned())
        });
    }
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

/// Returns the progress bar; it is silent where nobody would see it.
fn bar(ui: Ui) -> ProgressBar {
    if ui.quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    const FIELDS: &str =
        "{bar:24} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left  {msg}";
    // A constant that is right; without it the bar looks plainer.
    if let Ok(style) = ProgressStyle::with_template(FIELDS) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
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
        "{} in the cache, {}; asked for {}, {} had been cached; took {:.1} s",
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
            .push("the same command goes on where this one ended".into());
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
        assert_eq!(wanted(None).expect("all"), Wanted::All);
        assert_eq!(
            wanted(Some("2026-")).expect("it"),
            Wanted::Prefix("2026-".into())
        );
        assert_eq!(
            wanted(Some("*.html")).expect("it"),
            Wanted::Glob("*.html".into())
        );
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
