//! Resolves a store's id, name or run in an address.

use super::auth::{hidden, is_owner};
use super::catalog::{Lookup, StoreEntry};
use super::config::RunEntry;
use super::errors::{ApiError, Result};
use super::folders::metadata::is_id;
use super::routes::{Query, Target};
use super::{App, Call};

/// A store that an address led to.
#[derive(Debug)]
pub(super) struct Resolved {
    pub entry: StoreEntry,
    /// Whether something other than the store's id led there, which some stores do not allow to all
    /// callers.
    pub by_name: bool,
    /// What is said where there is nothing, if names lead there, which can be guessed.
    pub missing: Option<fn() -> ApiError>,
}

/// How stores are found.
type Find<'a> = &'a dyn Fn(Lookup<'_>) -> crate::store::Result<Option<StoreEntry>>;

/// Finds the store that an address means.
pub(super) fn resolve(app: &App, call: &Call, target: &Target) -> Result<Resolved> {
    resolve_by(app, call, target, &|lookup| app.catalog.find(lookup))
}

/// Finds the store that an address means, as it is now.
pub(super) fn resolve_now(app: &App, call: &Call, target: &Target) -> Result<Resolved> {
    resolve_by(app, call, target, &|lookup| app.catalog.find_now(lookup))
}

fn resolve_by(app: &App, call: &Call, target: &Target, find: Find<'_>) -> Result<Resolved> {
    match target {
        Target::Store(reference) => by_reference(app, call, reference, find),
        target => {
            let missing = missing(target);
            let unseen = |error| match is_owner(app, call) {
                true => error,
                false => hidden(call, Some(missing)),
            };
            let run = find_run(app, target, &call.query).map_err(unseen)?;
            // Runs are the server's own account's, and so are their stores: others may have one of
            // the same id or name.
            let owner = &app.config.owner.id;
            let by_id = find(Lookup::Id(&run.store))?;
            let entry = match by_id.filter(|entry| entry.owner == *owner) {
                Some(entry) => Some(entry),
                None => find(Lookup::Name {
                    owner,
                    name: &run.store,
                })?,
            };
            Ok(Resolved {
                entry: entry.ok_or_else(|| unseen(ApiError::store_not_found()))?,
                by_name: true,
                missing: Some(missing),
            })
        }
    }
}

/// Returns the error for what a target does not find, of the kind that others are told.
pub(super) fn missing(target: &Target) -> fn() -> ApiError {
    match target {
        Target::Store(_) => ApiError::store_not_found,
        Target::LastOfActor(_) => ApiError::actor_not_found,
        Target::Run(_) | Target::LastOfTask(_) => ApiError::run_not_found,
    }
}

/// Finds a run by its id, or the last one of an Actor or a task.
pub(super) fn find_run<'a>(app: &'a App, target: &Target, query: &Query) -> Result<&'a RunEntry> {
    let runs = app.config.runs.iter();
    let found = match target {
        Target::Store(_) => None,
        Target::Run(id) => runs.rev().find(|run| run.id.eq_ignore_ascii_case(id)),
        Target::LastOfActor(actor) => {
            let is_meant =
                |run: &RunEntry| is_called(app, actor, &run.actor_id, run.actor_name.as_deref());
            if !app.config.runs.iter().any(is_meant) {
                return Err(ApiError::actor_not_found());
            }
            last(runs, query, is_meant)
        }
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
            // No run came from nowhere.
            && fits(query.given("origin"), &run.origin)
    })
}

fn is_called(app: &App, reference: &str, id: &str, name: Option<&str>) -> bool {
    match split(reference) {
        None => !id.is_empty() && id.eq_ignore_ascii_case(reference),
        Some((user, wanted)) => name.is_some_and(|name| match split(name) {
            // Runs can be of other people's Actors.
            Some((owner, name)) => {
                user.eq_ignore_ascii_case(owner) && wanted.eq_ignore_ascii_case(name)
            }
            None => {
                (user.is_empty() || app.config.owner.is_called(user))
                    && wanted.eq_ignore_ascii_case(name)
            }
        }),
    }
}

fn by_reference(app: &App, call: &Call, reference: &str, find: Find<'_>) -> Result<Resolved> {
    let missing = split(reference).map(|_| ApiError::store_not_found as fn() -> ApiError);
    // An id says nothing of what other stores there are; names do.
    let absent = || match is_id(reference) {
        true => ApiError::store_not_found(),
        false => hidden(call, Some(ApiError::store_not_found)),
    };
    let lookup = match split(reference) {
        None => Lookup::Id(reference),
        Some((_, "")) => {
            return Err(ApiError::invalid_request(
                "Resource name parameter cannot be empty",
            ));
        }
        // Without an account the caller's own is meant; a caller without one sees public stores.
        Some(("", name)) => {
            let owner = call.caller.user().unwrap_or(&app.config.owner);
            Lookup::Name {
                owner: &owner.id,
                name,
            }
        }
        Some((user, name)) => {
            let owner = app.config.users().find(|known| known.is_called(user));
            let owner = &owner.ok_or_else(absent)?.id;
            Lookup::Name { owner, name }
        }
    };
    let entry = find(lookup)?;
    let entry = entry.ok_or_else(absent)?;
    Ok(Resolved {
        missing,
        // `default` finds a store, too, but is not its id.
        by_name: !entry.id.eq_ignore_ascii_case(reference),
        entry,
    })
}

/// Splits `user~name`, `~name` and `user/name`; `None` for an id.
fn split(reference: &str) -> Option<(&str, &str)> {
    reference.split_once(['~', '/'])
}
