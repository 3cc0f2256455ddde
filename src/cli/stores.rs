//! `kvfs stores`.

use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::args::{
    GlobalArgs, StoreArgs, StoresArgs, StoresCommand, StoresCreateArgs, StoresListArgs,
    StoresRemoveArgs,
};
use super::direct::{Direct, failure, start_log};
use super::error::{CliError, Kind};
use super::settings::{Environment, open_config};
use super::ui::{Ui, cell, table};
use crate::apify::account::{Account, StoreSummary};
use crate::base::clock::Deadline;
use crate::base::text::{self, Line};
use crate::base::units::ByteSize;
use crate::metrics::Metrics;
use crate::mount::account::open_account;
use crate::mount::storage::stores_in;
use crate::store::pager::Pager;
use crate::store::reference::{RemoteRef, StoreRef};
use crate::store::{ListQuery, Store};

/// The longest table of stores that is put together, in bytes: some hundred thousand stores.
const MOST_SHOWN: usize = 32 << 20;

/// Lists, makes or deletes stores.
///
/// # Errors
/// What the server or the disk says.
pub fn run(
    ui: Ui,
    args: &StoresArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    start_log(global, environment)?;
    match &args.command {
        None => list(ui, &args.list, environment),
        Some(StoresCommand::List(list_args)) => list(ui, list_args, environment),
        Some(StoresCommand::Create(create_args)) => create(ui, create_args, environment),
        Some(StoresCommand::Remove(remove_args)) => remove(ui, remove_args, environment),
    }
}

/// Opens the account, with the settings file and the environment.
fn account(access: &StoreArgs, environment: &Environment) -> Result<(Account, Deadline), CliError> {
    // Any store of one's own is opened as the account itself is.
    let (_, access) = super::access_of("~any", access.flags(), environment)?;
    let reference = StoreRef::Remote(RemoteRef::Named {
        user: None,
        name: "any".to_owned(),
    });
    let config = open_config(&access, environment, reference)?;
    let deadline = Deadline::after(config.deadline);
    let account = open_account(&config, Arc::new(Metrics::default()))
        .map_err(|error| failure("cannot ask the API", &error))?;
    Ok((account, deadline))
}

fn list(ui: Ui, args: &StoresListArgs, environment: &Environment) -> Result<(), CliError> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut show = |store: &Value| {
        if args.json {
            return Ok(ui.data(text::json(&store.to_string()))?);
        }
        let row = row(store);
        bytes += row.iter().map(String::len).sum::<usize>();
        rows.push(row);
        match bytes {
            ..=MOST_SHOWN => Ok(()),
            _ => Err(CliError::failed("there are too many stores for a table")
                .hinted("list them as they come with: kvfs stores --json")),
        }
    };
    match &args.folder {
        Some(folder) => in_folder(folder, args, environment, &mut show)?,
        None => in_account(args, environment, &mut show)?,
    }
    if args.json {
        return Ok(());
    }
    if rows.is_empty() {
        ui.say("there are no stores");
        return Ok(());
    }
    ui.data(table(
        &["STORE", "RECORDS", "SIZE", "MODIFIED", "ID"],
        &rows,
    ))?;
    Ok(())
}

/// Returns a store's line of the table.
fn row(store: &Value) -> Vec<String> {
    let text = |value: &Value| cell(value.as_str().unwrap_or("-"));
    let number = |value: &Value| value.as_u64().map_or("-".to_owned(), |n| n.to_string());
    let size = |value: &Value| {
        value
            .as_u64()
            .map_or("-".to_owned(), |n| ByteSize(n).to_string())
    };
    vec![
        text(&store["store"]),
        number(&store["records"]),
        size(&store["bytes"]),
        text(&store["modified"]),
        text(&store["id"]),
    ]
}

/// Takes the stores one by one, as they become known.
type Show<'a> = dyn FnMut(&Value) -> Result<(), CliError> + 'a;

fn in_account(
    args: &StoresListArgs,
    environment: &Environment,
    show: &mut Show<'_>,
) -> Result<(), CliError> {
    let (account, deadline) = account(&args.access, environment)?;
    let mut stores = account.stores(args.unnamed);
    while let Some(page) = stores
        .next_page(deadline)
        .map_err(|error| failure("cannot list the stores", &error))?
    {
        for store in page {
            let records = match args.count {
                true => {
                    let flags = args.access.flags();
                    let (word, access) = super::access_of(&store.id, flags, environment)?;
                    let direct = Direct::open_quietly(&word, &access, environment)?;
                    Some(count(&*direct.store, &direct)?.0)
                }
                false => None,
            };
            show(&described(&store, records))?;
        }
    }
    Ok(())
}

/// What a list shows of a store; what is not known is null.
fn described(store: &StoreSummary, records: Option<u64>) -> Value {
    let shown = store.name.as_ref().map(|name| match &store.username {
        Some(user) => format!("{user}~{name}"),
        None => format!("~{name}"),
    });
    json!({
        "store": shown.unwrap_or_else(|| store.id.clone()), "id": store.id, "name": store.name,
        "records": records,
        "bytes": store.stats.as_ref().and_then(|stats| stats.storage_bytes),
        "created": store.created_at, "modified": store.modified_at,
        "access": store.general_access, "run": store.act_run_id,
    })
}

fn in_folder(
    folder: &Path,
    args: &StoresListArgs,
    environment: &Environment,
    show: &mut Show<'_>,
) -> Result<(), CliError> {
    if !folder.is_dir() {
        return Err(CliError::of(
            Kind::NotFound,
            format!("there is no folder {}", folder.display()),
        ));
    }
    let stores = stores_in(folder).ok_or_else(|| {
        CliError::failed(format!("{} is one store", folder.display())).hinted(format!(
            "see its records with: kvfs ls {}",
            folder.display()
        ))
    })?;
    stores.iter().try_for_each(|path| {
        let word = path.to_string_lossy().into_owned();
        let reference = StoreRef::Directory(path.clone());
        let direct = Direct::open_reference(
            reference,
            &args.access,
            environment,
            crate::mount::open::open,
        )?;
        let (records, bytes) = count(&*direct.store, &direct)?;
        let modified = direct.store.info().modified.map(super::ls::timestamp);
        show(&json!({
            "store": word, "id": null, "name": path.file_name().map(|name| name.to_string_lossy()),
            "records": records, "bytes": bytes, "created": null, "modified": modified,
            "access": null, "run": null,
        }))
    })
}

/// Counts the records of a store and their bytes.
fn count(store: &dyn Store, direct: &Direct) -> Result<(u64, u64), CliError> {
    let mut pager = Pager::new(ListQuery::default());
    let (mut records, mut bytes) = (0, 0);
    while let Some(page) = pager
        .next_page(store, direct.deadline())
        .map_err(|error| failure("cannot list the store", &error))?
    {
        records += page.len() as u64;
        bytes += page.iter().filter_map(|item| item.stored_size).sum::<u64>();
    }
    Ok((records, bytes))
}

fn create(ui: Ui, args: &StoresCreateArgs, environment: &Environment) -> Result<(), CliError> {
    let name = args.name.trim_start_matches('~');
    let is_name = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !is_name {
        return Err(
            CliError::usage(format!("'{name}' cannot be the name of a store"))
                .hinted("a name has 1 to 63 letters, digits and, between them, dashes"),
        );
    }
    let (account, deadline) = account(&args.access, environment)?;
    let made = account
        .create(name, deadline)
        .map_err(|error| failure("cannot make the store", &error))?;
    if args.json {
        return Ok(ui.data(described(&made, None))?);
    }
    ui.data(format_args!("~{name}"))?;
    ui.say(format_args!("its id is {}", Line(&made.id)));
    Ok(())
}

fn remove(ui: Ui, args: &StoresRemoveArgs, environment: &Environment) -> Result<(), CliError> {
    let (word, access) = super::access_of(&args.store, args.access.flags(), environment)?;
    let direct = Direct::open_quietly(&word, &access, environment)?;
    let info = direct.store.info();
    if Path::new(&info.id).is_absolute() || direct.mount.is_some() {
        return Err(CliError::usage(format!("{word} is no store of an account"))
            .hinted("delete a folder with: rm -r"));
    }
    if !args.yes {
        if !io::stdin().is_terminal() {
            return Err(CliError::usage("cannot ask without a terminal: give --yes"));
        }
        let (records, bytes) = count(&*direct.store, &direct)?;
        ui.warn(format_args!(
            "{word} has {records} records ({}); they cannot be restored. Type its name to delete it:",
            ByteSize(bytes)
        ));
        let mut typed = String::new();
        io::stdin().lock().read_line(&mut typed)?;
        let typed = typed.trim();
        if typed != word && Some(typed) != info.name.as_deref() {
            return Err(CliError::failed("not deleted"));
        }
    }
    let (account, deadline) = account(&args.access, environment)?;
    account
        .delete(&info.id, deadline)
        .map_err(|error| failure("cannot delete the store", &error))?;
    ui.say(format_args!("deleted {word}"));
    Ok(())
}
