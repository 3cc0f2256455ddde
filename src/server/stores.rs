//! Store objects: get, list, create, update, delete.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::aliases::resolve_now;
use super::auth::{self, Sight, Wanted};
use super::catalog::{Changed, NewStore, StoreChange, StoreEntry};
use super::config::GeneralAccess;
use super::errors::{ApiError, Result};
use super::routes::Target;
use super::{App, Call, REQUEST_DEADLINE, reply, schema};
use crate::base::clock::Deadline;
use crate::base::signature::sign_keys;
use crate::store::ListQuery;
use crate::store::pager::Pager;

/// The most stores on one page.
const MAX_STORES: u64 = 1000;

/// The longest name of a store (one DNS label).
const MAX_NAME: usize = 63;

/// Pages of a listing that are added up to tell how large a store is.
const MEASURED_PAGES: usize = 10;

/// How long the signature in `keysPublicUrl` is valid.
const KEYS_URL_VALID: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Answers `GET` of a store object.
pub(super) fn get(app: &App, call: &Call, target: &Target) -> Result<Response> {
    let resolved = resolve_now(app, call, target)?;
    let sight = auth::sight(call, &resolved, Wanted::Store)?;
    let entry = resolved.entry;
    let mut object = object(app, call, &entry, sight);
    if sight == Sight::Owner {
        object["urlSigningSecretKey"] = json!(entry.signing_key.expose());
    }
    if app.catalog.is_near()
        && let Some(size) = app.stats.store(&entry.id).size(|| size(&entry))
    {
        object["stats"]["storageBytes"] = json!(size);
        object["stats"]["s3StorageBytes"] = json!(size);
    }
    Ok(reply::data(StatusCode::OK, &object))
}

/// Finds the store that the caller wants to change, and may.
pub(super) fn to_change(app: &App, call: &Call, target: &Target) -> Result<StoreEntry> {
    call.caller.user()?;
    let resolved = resolve_now(app, call, target)?;
    call.may_write(app, &resolved)?;
    Ok(resolved.entry)
}

/// Answers `DELETE` of a store object.
pub(super) fn delete(app: &App, call: &Call, target: &Target) -> Result<Response> {
    let entry = to_change(app, call, target)?;
    if !app.catalog.delete(&entry)? {
        return Err(ApiError::store_not_found());
    }
    app.stats.forget(&entry.id);
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// Answers `PUT` of a store object, which [`to_change`] has found.
pub(super) fn change(app: &App, call: &Call, entry: &StoreEntry, body: &[u8]) -> Result<Response> {
    let change = read_change(body)?;
    match app.catalog.update(entry, &change)? {
        // Without the signing key, as the platform's answer is.
        Changed::Done(entry) => Ok(reply::data(
            StatusCode::OK,
            &object(app, call, &entry, Sight::Owner),
        )),
        Changed::NameTaken => {
            let name = change.name.flatten().unwrap_or_default();
            Err(ApiError::name_taken(&name))
        }
        Changed::Missing => Err(ApiError::store_not_found()),
    }
}

/// Answers `GET /v2/key-value-stores`.
pub(super) fn list(app: &App, call: &Call) -> Result<Response> {
    let user = call.caller.user()?;
    let offset = call.query.number("offset")?.unwrap_or(0);
    let limit = match call.query.number("limit")? {
        None | Some(0) => MAX_STORES,
        Some(limit) => limit.min(MAX_STORES),
    };
    let desc = call.query.flag("desc")?;
    let unnamed = call.query.flag("unnamed")?;
    // A store can be shared here only with all accounts.
    let mine = match call.query.text("ownership") {
        None | Some("ownedByMe") => true,
        Some("sharedWithMe") => false,
        Some(_) => {
            return Err(ApiError::invalid_request(
                "Query parameter \"ownership\" must be ownedByMe or sharedWithMe",
            ));
        }
    };
    let mut entries = app.catalog.list()?;
    entries.retain(|entry| mine && entry.owner == user.id && (unnamed || entry.name.is_some()));
    entries.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    if desc {
        entries.reverse();
    }
    let items: Vec<Value> = entries
        .iter()
        .skip(usize::try_from(offset).unwrap_or(usize::MAX))
        .take(usize::try_from(limit).unwrap_or(usize::MAX))
        .map(|entry| object(app, call, entry, Sight::Owner))
        .collect();
    let answer = json!({
        "total": entries.len(),
        "offset": offset,
        "limit": limit,
        "count": items.len(),
        "desc": desc,
        "unnamed": unnamed,
        "items": items,
    });
    Ok(reply::data(StatusCode::OK, &answer))
}

/// Fails unless the caller may make a store.
pub(super) fn may_create(app: &App, call: &Call) -> Result<()> {
    call.caller.user()?;
    app.must_be_writable()
}

/// Answers `POST /v2/key-value-stores`.
pub(super) fn create(app: &App, call: &Call, body: &[u8]) -> Result<Response> {
    let user = call.caller.user()?;
    app.must_be_writable()?;
    // Bodies are `{"schema": …}`, or empty; the official clients send forms, too.
    let said_json = call.header("content-type").is_some_and(is_json);
    let schema = match serde_json::from_slice(body) {
        Ok(Value::Object(mut fields)) => fields.remove("schema").filter(|schema| !schema.is_null()),
        _ if said_json && !body.is_empty() => return Err(ApiError::no_object()),
        _ => None,
    };
    if let Some(schema) = &schema {
        schema::check(schema)?;
    }
    let name = call.query.text("name");
    if let Some(name) = name {
        check_name(name)?;
    }
    let (entry, new) = app.catalog.create(&NewStore {
        owner: Some(user.id.clone()),
        name: name.map(str::to_owned),
        schema,
    })?;
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut object = object(app, call, &entry, Sight::Owner);
    object["urlSigningSecretKey"] = json!(entry.signing_key.expose());
    let mut response = reply::data(status, &object);
    let address = format!("{}/v2/key-value-stores/{}", call.base, entry.id);
    if new && let Ok(address) = HeaderValue::from_str(&address) {
        response.headers_mut().insert(header::LOCATION, address);
    }
    Ok(response)
}

/// Adds up what a store holds, as stored; `None` where that would take long.
fn size(entry: &StoreEntry) -> Option<u64> {
    let mut pager = Pager::new(ListQuery::default());
    let mut size = 0;
    for _ in 0..MEASURED_PAGES {
        let page = pager
            .next_page(&*entry.store, Deadline::after(REQUEST_DEADLINE))
            .ok()?;
        let Some(page) = page else {
            return Some(size);
        };
        size += page.iter().filter_map(|item| item.stored_size).sum::<u64>();
    }
    pager.is_done().then_some(size)
}

fn object(app: &App, call: &Call, entry: &StoreEntry, sight: Sight) -> Value {
    let base = &call.base;
    let id = &entry.id;
    let owner = app.config.users().find(|user| user.id == entry.owner);
    let mut keys_url = format!("{base}/v2/key-value-stores/{id}/keys");
    let mut object = json!({
        "id": id,
        "name": entry.name,
        "userId": entry.owner,
        "username": owner.map(|owner| &owner.username),
        "createdAt": date(entry.created),
        "modifiedAt": date(entry.modified),
        "accessedAt": date(entry.accessed),
        "actId": null,
        "actRunId": null,
        "schema": entry.schema,
        "consoleUrl": format!("{base}/v2/key-value-stores/{id}"),
        "recordsPublicUrl": format!("{base}/v2/key-value-stores/{id}/records"),
        "generalAccess": entry.general_access,
        "stats": app.stats.store(id).object(),
    });
    if let Some(title) = &entry.title {
        object["title"] = json!(title);
    }
    if sight == Sight::Owner && entry.access == GeneralAccess::Restricted {
        let expires = SystemTime::now() + KEYS_URL_VALID;
        let signature = sign_keys(&entry.signing_key, id, Some(expires));
        keys_url = format!("{keys_url}?signature={}", signature.expose());
    }
    object["keysPublicUrl"] = json!(keys_url);
    if let Some(profile) = &app.profile {
        profile.describe(entry, &mut object);
    }
    object
}

fn read_change(body: &[u8]) -> Result<StoreChange> {
    let fields: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| ApiError::no_object())?;
    let text = |field: &str| match fields.get(field) {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(None)),
        Some(Value::String(text)) => Ok(Some(Some(text.clone()))),
        Some(_) => Err(ApiError::invalid_request(format!(
            "\"{field}\" must be a string or null"
        ))),
    };
    let name = text("name")?;
    if let Some(Some(name)) = &name {
        check_name(name)?;
    }
    let general_access = match fields.get("generalAccess") {
        None => None,
        Some(value) => Some(
            serde_json::from_value(value.clone())
                .map_err(|_| ApiError::invalid_request("\"generalAccess\" has an unknown value"))?,
        ),
    };
    let schema = match fields.get("schema") {
        None => None,
        Some(Value::Null) => Some(None),
        Some(schema) => {
            schema::check(schema)?;
            Some(Some(schema.clone()))
        }
    };
    Ok(StoreChange {
        schema,
        name,
        title: text("title")?,
        general_access,
    })
}

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}

/// Names are DNS labels.
fn check_name(name: &str) -> Result<()> {
    let inner = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let valid = inner
        && (1..=MAX_NAME).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('-');
    if valid {
        Ok(())
    } else {
        Err(ApiError::invalid_request(format!(
            "\"{name}\" is not a name: up to {MAX_NAME} letters, digits and inner hyphens"
        )))
    }
}

pub(super) fn date(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
