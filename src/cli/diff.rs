//! `kvfs diff`.

use serde_json::json;

use super::args::{DiffArgs, GlobalArgs};
use super::direct::{failure, shown, start_log};
use super::error::{CliError, Kind};
use super::settings::Environment;
use super::sides;
use super::ui::Ui;
use crate::base::text;
use crate::base::text::Line;
use crate::copy::diff::{self, Difference, Options, Told};
use crate::copy::pages::ListingError;

/// How many failures are named one by one.
const TOLD: usize = 20;

/// Compares two stores.
///
/// # Errors
/// Silently, with exit code 1, that they differ; [`Kind::Trouble`] that something could not be
/// compared.
pub fn run(
    ui: Ui,
    args: &DiffArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    start_log(global, environment)?;
    let filter = sides::filter(&args.filter)?;
    let first = sides::source(ui, &args.first, &args.access, environment)?;
    let second = sides::source(ui, &args.second, &args.access, environment)?;
    let options = Options {
        filter,
        content: args.content,
        jobs: args.jobs,
        timeout: first.timeout.max(second.timeout),
    };
    let mut failed = 0;
    let mut tell = |told| match told {
        Told::Different(difference) => match args.json {
            true => ui.data(text::json(&as_json(&difference).to_string())),
            false => ui.data(line(&difference, &first.shown, &second.shown)),
        },
        Told::Failed(key, error) => {
            failed += 1;
            if failed <= TOLD {
                ui.warn(format_args!(
                    "cannot compare {}: {}",
                    shown(&key),
                    Line(&error)
                ));
            }
            Ok(())
        }
    };
    let (one, other) = (&*first.side.store, &*second.side.store);
    let found = diff::run(one, other, &options, &mut tell).map_err(|error| {
        let (side, error) = match error {
            diff::Error::Told(error) => return error.into(),
            diff::Error::Listing(error) => match *error {
                ListingError::First(error) => (&first.shown, error),
                ListingError::Second(error) => (&second.shown, error),
            },
        };
        CliError {
            kind: Kind::Trouble,
            ..failure(&format!("cannot list {side} to its end"), &error)
        }
    })?;
    if found.failed > 0 {
        return Err(CliError::of(
            Kind::Trouble,
            format!("{} records could not be compared", found.failed),
        ));
    }
    match found.different {
        0 => {
            ui.say(format_args!("no difference in {} records", found.same));
            Ok(())
        }
        n => {
            ui.say(format_args!("{n} differ, {} are the same", found.same));
            Err(CliError::silent(Kind::Failed))
        }
    }
}

fn line(difference: &Difference, first: &str, second: &str) -> String {
    let key = shown(&difference.key);
    match difference.kind {
        diff::Kind::OnlyFirst => format!("only in {}: {key}", Line(first)),
        diff::Kind::OnlySecond => format!("only in {}: {key}", Line(second)),
        diff::Kind::Different => {
            let size = |size: Option<u64>| size.map_or("?".to_owned(), |size| size.to_string());
            let [one, other] = difference.sizes.map(size);
            format!(
                "different: {key} ({}; {one} and {other} bytes)",
                difference.what
            )
        }
    }
}

fn as_json(difference: &Difference) -> serde_json::Value {
    let state = match difference.kind {
        diff::Kind::OnlyFirst => "only_in_a",
        diff::Kind::OnlySecond => "only_in_b",
        diff::Kind::Different => "different",
    };
    let what = Some(&difference.what).filter(|what| !what.is_empty());
    json!({
        "key": difference.key.as_str(), "state": state, "what": what,
        "size_a": difference.sizes[0], "size_b": difference.sizes[1],
    })
}
