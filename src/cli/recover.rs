//! `kvfs recover`: files that were written to a mount and are not in its store.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::args::{GlobalArgs, RecoverArgs, StoreArgs};
use super::direct::{failure, start_log};
use super::error::CliError;
use super::settings::{Environment, open_config};
use super::ui::{Ui, table};
use crate::base::clock::{Deadline, SystemClock};
use crate::base::text;
use crate::base::units::ByteSize;
use crate::daemon::control::{self, Answer, Request};
use crate::daemon::registry::{Entry, Registry};
use crate::metrics::Metrics;
use crate::mount::build;
use crate::staging::StagingFolder;
use crate::staging::report::{self, Item, Scope, State};
use crate::upload::{Uploader, UploaderConfig};

/// How long all uploads to one store may take where nothing else is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Lists, uploads or drops what is not in its store.
///
/// # Errors
/// That the staging folder cannot be used, or that something could not be uploaded.
pub fn run(
    ui: Ui,
    args: &RecoverArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    start_log(global, environment)?;
    let dir = environment.staging_dir(args.staging_dir.as_deref())?;
    // The default one is made with the first mount for writing; another that is not there is a typing
    // error.
    let is_default = environment
        .staging_dir(None)
        .is_ok_and(|default| default == dir)
        && args.staging_dir.is_none();
    let may_be_missing = is_default && environment.variable("staging-dir").is_none();
    if !dir.is_dir() && !may_be_missing {
        return Err(
            CliError::failed(format!("there is no folder {}", dir.display()))
                .hinted("it is the folder that mounts were given with --staging-dir"),
        );
    }
    let scopes = report::scan(&dir).map_err(|error| unusable(&dir, &error))?;
    let scopes = select(scopes, args)?;
    if args.upload {
        upload(ui, args, environment, &dir, &scopes)
    } else if args.discard {
        discard(ui, args, environment, &dir, &scopes)
    } else {
        list(ui, args, &dir, &scopes)
    }
}

/// Keeps the items that the arguments name.
fn select(mut scopes: Vec<Scope>, args: &RecoverArgs) -> Result<Vec<Scope>, CliError> {
    if args.wanted.is_empty() {
        return Ok(scopes);
    }
    let mut unknown: Vec<&String> = args.wanted.iter().collect();
    for scope in &mut scopes {
        scope.items.retain(|item| {
            let names = |name: &String| *name == item.id || Some(name) == item.key.as_ref();
            unknown.retain(|name| !names(name));
            args.wanted.iter().any(names)
        });
    }
    scopes.retain(|scope| !scope.items.is_empty());
    match unknown.first() {
        None => Ok(scopes),
        Some(name) => Err(CliError::failed(format!("no file of '{name}' is waiting"))
            .hinted("list waiting files with: kvfs recover")),
    }
}

fn list(ui: Ui, args: &RecoverArgs, dir: &Path, scopes: &[Scope]) -> Result<(), CliError> {
    if args.json {
        let items: Vec<_> = scopes.iter().flat_map(as_json).collect();
        ui.json(&items)?;
        return Ok(());
    }
    if scopes.is_empty() {
        ui.say(format_args!("nothing is waiting in {}", dir.display()));
        return Ok(());
    }
    let header = ["STORE", "KEY", "SIZE", "CLOSED", "STATE", "ID", "REASON"];
    let rows: Vec<Vec<String>> = scopes
        .iter()
        .flat_map(|scope| scope.items.iter().map(move |item| row(scope, item)))
        .collect();
    ui.data(table(&header, &rows))?;
    ui.hint("upload with: kvfs recover --upload [ID...]; drop with: kvfs recover --discard ID...");
    Ok(())
}

fn as_json(scope: &Scope) -> impl Iterator<Item = serde_json::Value> {
    let store = scope.store.as_ref().map(|store| store.reference.clone());
    scope.items.iter().map(move |item| {
        let mut shown = json!(item);
        shown["store"] = store.clone().into();
        shown["folder"] = scope.path.to_string_lossy().into();
        shown
    })
}

fn row(scope: &Scope, item: &Item) -> Vec<String> {
    let store = scope.store.as_ref();
    let dash = || "-".to_owned();
    vec![
        store.map_or_else(dash, |store| store.reference.clone()),
        item.key.as_deref().map_or_else(dash, shown),
        ByteSize(item.size).to_string(),
        item.closed_at
            .map_or_else(dash, |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()),
        match (item.state, item.owner_pid) {
            (State::Waiting, Some(pid)) => format!("uploading (process {pid})"),
            (state, _) => format!("{state:?}").to_lowercase(),
        },
        item.id.clone(),
        item.reason.as_deref().map_or_else(dash, shown),
    ]
}

/// Returns text as it is shown on a line.
fn shown(text: &str) -> String {
    text::line(text).into_owned()
}

fn upload(
    ui: Ui,
    args: &RecoverArgs,
    environment: &Environment,
    dir: &Path,
    scopes: &[Scope],
) -> Result<(), CliError> {
    let mut uploaded = 0;
    let mut failures = Vec::new();
    for scope in scopes {
        let (scope, conflicts) = without_conflicts(scope, args);
        failures.extend(conflicts);
        let (living, dead) = by_owner(&scope);
        for (pid, wanted) in living {
            match ask_owner(environment, pid, false, wanted) {
                Ok(n) => ui.say(format_args!(
                    "asked process {pid} to upload {n} again; kvfs sync waits for that"
                )),
                Err(error) => failures.push(error),
            }
        }
        if dead.is_empty() {
            continue;
        }
        match upload_dead(args, environment, dir, &scope, &dead) {
            Ok(n) => uploaded += n,
            Err(error) => failures.push(error),
        }
    }
    if uploaded > 0 || (failures.is_empty() && scopes.is_empty()) {
        ui.say(match uploaded {
            0 => format!("nothing is waiting in {}", dir.display()),
            1 => "uploaded 1 file".to_owned(),
            n => format!("uploaded {n} files"),
        });
    }
    first_of(failures)
}

/// Leaves out files that conflict with a newer record, unless they are named by id: uploading one
/// overwrites the newer record, which only a person who has seen it may decide. Returns the error
/// about the files left out.
fn without_conflicts(scope: &Scope, args: &RecoverArgs) -> (Scope, Option<CliError>) {
    let mut rest = scope.clone();
    let is_left = |item: &Item| item.conflict && !args.wanted.contains(&item.id);
    rest.items.retain(|item| !is_left(item));
    let left: Vec<&Item> = scope.items.iter().filter(|item| is_left(item)).collect();
    let Some(first) = left.first() else {
        return (rest, None);
    };
    let key = first.key.as_deref().map_or_else(|| "-".to_owned(), shown);
    let error = CliError::failed(format!(
        "{} not uploaded, because the record has changed in the store since it was opened; the first of \
         them is {key}",
        match left.len() {
            1 => "1 file was".to_owned(),
            n => format!("{n} files were"),
        }
    ))
    .hinted(format!(
        "look at the record first; to overwrite that change: kvfs recover --upload {}",
        first.id
    ))
    .hinted(format!("to drop the file instead: kvfs recover --discard {}", first.id));
    (rest, Some(error))
}

/// Returns the first of several errors, the others as hints.
fn first_of(failures: Vec<CliError>) -> Result<(), CliError> {
    let mut failures = failures.into_iter();
    let Some(mut first) = failures.next() else {
        return Ok(());
    };
    for other in failures {
        first.hints.push(format!("also: {}", other.message));
        for hint in other.hints {
            if !first.hints.contains(&hint) {
                first.hints.push(hint);
            }
        }
    }
    Err(first)
}

/// Returns the ids of what living owners have refused uploads of, by owner, and of what dead ones
/// left.
fn by_owner(scope: &Scope) -> (Vec<(u32, Vec<String>)>, Vec<String>) {
    let mut living: Vec<(u32, Vec<String>)> = Vec::new();
    let mut dead = Vec::new();
    for item in &scope.items {
        match item.owner_pid {
            None => dead.push(item.id.clone()),
            // It uploads the others without being asked.
            Some(_) if item.state != State::Kept => {}
            Some(pid) => match living.iter_mut().find(|(known, _)| *known == pid) {
                Some((_, ids)) => ids.push(item.id.clone()),
                None => living.push((pid, vec![item.id.clone()])),
            },
        }
    }
    (living, dead)
}

/// Asks the daemon of this process to upload or drop; returns how many that are.
fn ask_owner(
    environment: &Environment,
    pid: u32,
    discard: bool,
    wanted: Vec<String>,
) -> Result<u64, CliError> {
    let registry: Registry = environment.registry()?;
    let mut entries = registry.entries().into_iter();
    let Some(daemon) = entries.find(|entry: &Entry| entry.process.pid == pid && entry.is_alive())
    else {
        return Err(CliError::failed(format!(
            "process {pid} has the files and is no mount that is known here"
        ))
        .hinted("perhaps another kvfs recover is running; try again when it has ended"));
    };
    match control::ask(
        &daemon.control,
        &Request::Recover { discard, wanted },
        ANSWER,
    ) {
        Ok(Answer::Done(n)) => Ok(n.as_u64().unwrap_or(0)),
        Ok(answer) => Err(CliError::failed(format!("the daemon refused: {answer}"))),
        Err(error) => Err(CliError::failed("the daemon does not answer").caused_by(&error)),
    }
}

/// Uploads what dead owners left for one store, as the next mount of it would; returns how many.
fn upload_dead(
    args: &RecoverArgs,
    environment: &Environment,
    dir: &Path,
    scope: &Scope,
    wanted: &[String],
) -> Result<usize, CliError> {
    let Some(file) = &scope.store else {
        return Err(CliError::failed(format!(
            "cannot read which store {} belongs to",
            scope.path.display()
        )));
    };
    let mut config = open_config(
        &StoreArgs {
            token_file: args.token_file.clone(),
            insecure_http: args.insecure_http || environment.insecure_http()?.unwrap_or(false),
            ..StoreArgs::default()
        },
        environment,
        file.open.clone(),
    )?;
    // As it was mounted, so that the token goes where it went then. A password is not written down.
    let own = config.api_url.clone().map(build::without_password);
    if own != file.api_url {
        config.api_url.clone_from(&file.api_url);
    }
    config.signature = None;
    let metrics = Arc::new(Metrics::default());
    let store = crate::mount::open::open_writable(&config, Arc::clone(&metrics))
        .map_err(|error| failure(&format!("cannot open the store {}", file.reference), &error))?;
    let folder = open_folder(dir, scope)?;
    let journal = folder.journal();
    let uploader = Uploader::new(
        store,
        Arc::clone(journal),
        UploaderConfig::new(config.deadline),
        Arc::new(SystemClock),
        Arc::clone(&metrics),
    );
    let ours: Vec<_> = journal
        .entries()
        .into_iter()
        .filter(|entry| wanted.iter().any(|id| *id == entry.id.as_str()))
        .collect();
    for entry in ours.iter().filter(|entry| entry.pending.why.is_failed()) {
        // What is named only by its key, or not at all, has no conflicts among it by now.
        uploader
            .send_again(&entry.id, true)
            .map_err(|error| unusable(folder.path(), &error))?;
    }
    uploader.enqueue(wanted);
    let timeout = args.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let waiting = uploader.wait_all(Deadline::after(timeout));
    uploader.stop();
    let left: Vec<_> = ours
        .iter()
        .filter_map(|entry| journal.get(&entry.id))
        .collect();
    let Some(first) = left.first() else {
        return Ok(usize::try_from(metrics.uploads_total.get()).unwrap_or(usize::MAX));
    };
    let reason = Item::of(&first.id, &first.pending, State::Kept, None).reason;
    let still = waiting.iter().find(|pending| pending.entry.id == first.id);
    let reason = reason.or_else(|| match &still?.state {
        crate::upload::Progress::Retrying(_, error, _) => Some(error.clone()),
        _ => None,
    });
    let why = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    Err(CliError::failed(format!(
        "{} of {} could not be uploaded to {}, the first of them {}{why}",
        left.len(),
        ours.len(),
        file.reference,
        shown(first.pending.key.as_str()),
    ))
    .hinted(format!(
        "the bytes are still safe in {}",
        scope.path.display()
    )))
}

fn discard(
    ui: Ui,
    args: &RecoverArgs,
    environment: &Environment,
    dir: &Path,
    scopes: &[Scope],
) -> Result<(), CliError> {
    if args.wanted.is_empty() && !args.all {
        return Err(CliError::usage("--discard drops files for good: name them")
            .hinted("name ids or keys as kvfs recover lists them, or --all for everything"));
    }
    let mut dropped = 0;
    let mut failures = Vec::new();
    for scope in scopes {
        let (living, dead) = by_owner(scope);
        let in_hands = scope
            .items
            .iter()
            .filter(|item| item.owner_pid.is_some() && item.state != State::Kept);
        let in_hands = in_hands.count();
        if in_hands > 0 {
            ui.warn(format_args!(
                "skipped {in_hands}: a mount is uploading them"
            ));
        }
        for (pid, wanted) in living {
            match ask_owner(environment, pid, true, wanted) {
                Ok(n) => dropped += n,
                Err(error) => failures.push(error),
            }
        }
        if dead.is_empty() {
            continue;
        }
        let folder = open_folder(dir, scope)?;
        for entry in folder.journal().entries() {
            if dead.iter().any(|id| *id == entry.id.as_str()) {
                let removed = folder.journal().remove(&entry.id);
                removed.map_err(|error| unusable(folder.path(), &error))?;
                dropped += 1;
            }
        }
        dropped += folder.discard_damaged(&dead) as u64;
        folder
            .journal()
            .settle()
            .map_err(|error| unusable(folder.path(), &error))?;
    }
    ui.say(match dropped {
        1 => "dropped 1 file".to_owned(),
        n => format!("dropped {n} files"),
    });
    first_of(failures)
}

/// Takes over what dead owners left for one store.
fn open_folder(dir: &Path, scope: &Scope) -> Result<Arc<StagingFolder>, CliError> {
    StagingFolder::adopt(dir, &scope.name, scope.store.as_ref())
        .map_err(|error| unusable(&scope.path, &error))
}

fn unusable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed(format!("cannot use the staging folder {}", path.display())).caused_by(error)
}
