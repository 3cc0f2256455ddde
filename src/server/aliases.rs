//! From what an address calls a store to the store: ids, names, and runs.

use super::App;
use super::catalog::{Lookup, StoreEntry};
use super::config::{RunEntry, User};
use super::errors::{ApiError, Result};
use super::routes::{Query, Target};

/// A store that an address led to.
#[derive(Debug)]
pub(super) struct Resolved {
    pub entry: StoreEntry,
    /// Whether a name led there, which some stores do not allow everybody.
    pub by_name: bool,
}

/// Finds the store that an address means.
pub(super) fn resolve(app: &App, target: &Target, query: &Query) -> Result<Resolved> {
    match target {
        Target::Store(reference) => by_reference(app, reference),
        run => {
            let run = find_run(app, run, query)?;
            let by_id = app.catalog.find(Lookup::Id(&run.store))?;
            let entry = match by_id {
                Some(entry) => Some(entry),
                None => app.catalog.find(Lookup::Name(&run.store))?,
            };
            Ok(Resolved {
                entry: entry.ok_or_else(ApiError::store_not_found)?,
                by_name: false,
            })
        }
    }
}

/// Finds a run by its id, or the last one of an Actor or a task.
pub(super) fn find_run<'a>(app: &'a App, target: &Target, query: &Query) -> Result<&'a RunEntry> {
    let runs = app.config.runs.iter();
    let found = match target {
        Target::Store(_) => None,
        Target::Run(id) => runs.rev().find(|run| run.id.eq_ignore_ascii_case(id)),
        Target::LastOfActor(actor) => last(runs, query, |run| {
            is_called(app, actor, &run.actor_id, run.actor_name.as_deref())
        }),
        Target::LastOfTask(task) => last(runs, query, |run| {
            let id = run.task_id.as_deref().unwrap_or_default();
            is_called(app, task, id, run.task_name.as_deref())
        }),
    };
    found.ok_or_else(ApiError::run_not_found)
}

fn last<'a>(
    runs: impl DoubleEndedIterator<Item = &'a RunEntry>,
    query: &Query,
    is_meant: impl Fn(&RunEntry) -> bool,
) -> Option<&'a RunEntry> {
    let fits = |wanted: Option<&str>, value: &str| {
        wanted.is_none_or(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    runs.rev().find(|run| {
        is_meant(run)
            && fits(query.text("status"), &run.status)
            && fits(query.text("origin"), &run.origin)
    })
}

fn is_called(app: &App, reference: &str, id: &str, name: Option<&str>) -> bool {
    match split(reference) {
        None => !id.is_empty() && id.eq_ignore_ascii_case(reference),
        Some((user, wanted)) => {
            is_user(&app.config.owner, user)
                && name.is_some_and(|name| name.eq_ignore_ascii_case(wanted))
        }
    }
}

fn by_reference(app: &App, reference: &str) -> Result<Resolved> {
    let (lookup, by_name) = match split(reference) {
        None => (Lookup::Id(reference), false),
        Some((_, "")) => {
            return Err(ApiError::invalid_request(
                "Resource name parameter cannot be empty",
            ));
        }
        Some((user, name)) if is_user(&app.config.owner, user) => (Lookup::Name(name), true),
        Some(_) => return Err(ApiError::store_not_found()),
    };
    let entry = app.catalog.find(lookup)?;
    Ok(Resolved {
        entry: entry.ok_or_else(ApiError::store_not_found)?,
        by_name,
    })
}

/// Splits `user~name`, `~name` and `user/name`; `None` for an id.
fn split(reference: &str) -> Option<(&str, &str)> {
    reference.split_once(['~', '/'])
}

/// Tells whether a reference's first part means this user; an empty one means the caller, who
/// is the owner or sees nothing.
fn is_user(owner: &User, given: &str) -> bool {
    given.is_empty()
        || given.eq_ignore_ascii_case(&owner.username)
        || given.eq_ignore_ascii_case(&owner.id)
}
