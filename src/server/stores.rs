//! Store objects, and the few facts about users and runs that clients ask for on the way.

use std::time::{Duration, SystemTime};

use axum::http::{Method, StatusCode};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::aliases::{self, resolve};
use super::auth::{self, Sight, Wanted};
use super::catalog::{Changed, StoreChange, StoreEntry};
use super::config::{GeneralAccess, User};
use super::errors::{ApiError, Result};
use super::routes::Target;
use super::{App, Call, reply};
use crate::signature::sign_keys;

/// The most stores on one page.
const MAX_STORES: u64 = 1000;

/// The longest name of a store (one DNS label).
const MAX_NAME: usize = 63;

/// How long the signature in `keysPublicUrl` is valid.
const KEYS_URL_VALID: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Answers `GET`, `PUT` and `DELETE` of a store object.
pub(super) fn store(app: &App, call: &Call, target: &Target, body: &[u8]) -> Result<Response> {
    let resolved = resolve(app, target, &call.query)?;
    let entry = resolved.entry;
    if call.method == Method::GET {
        let sight = auth::sight(
            &call.caller,
            &entry,
            resolved.by_name,
            Wanted::Store,
            &call.query,
        )?;
        return Ok(reply::data(
            StatusCode::OK,
            &object(app, call, &entry, sight),
        ));
    }
    call.may_write(app)?;
    if call.method == Method::DELETE {
        return if app.catalog.delete(&entry.id)? {
            Ok(reply::empty(StatusCode::NO_CONTENT))
        } else {
            Err(ApiError::store_not_found())
        };
    }
    let change = read_change(body)?;
    match app.catalog.update(&entry.id, &change)? {
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
    let desc = call.query.flag("desc");
    let unnamed = call.query.flag("unnamed");
    let mine =
        user.id == app.config.owner.id && call.query.text("ownership") != Some("sharedWithMe");
    let mut entries = if mine {
        app.catalog.list()?
    } else {
        Vec::new()
    };
    entries.retain(|entry| unnamed || entry.name.is_some());
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

/// Answers `POST /v2/key-value-stores`.
pub(super) fn create(app: &App, call: &Call, body: &[u8]) -> Result<Response> {
    call.may_write(app)?;
    // Bodies are `{"schema": …}` in JSON, or anything that is none; schemas are not offered.
    if serde_json::from_slice::<Value>(body)
        .is_ok_and(|body| body.get("schema").is_some_and(|schema| !schema.is_null()))
    {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "store-schema-invalid",
            "This server does not offer schemas of stores",
        ));
    }
    let name = call.query.text("name");
    if let Some(name) = name {
        check_name(name)?;
    }
    let (entry, new) = app.catalog.create(name)?;
    let status = if new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(reply::data(
        status,
        &object(app, call, &entry, Sight::Owner),
    ))
}

/// Answers `GET /v2/users/me`.
pub(super) fn me(call: &Call) -> Result<Response> {
    let user = call.caller.user()?;
    let answer = json!({
        "id": user.id,
        "username": user.username,
        "profile": { "name": user.username },
        "email": format!("{}@localhost", user.username),
        "proxy": { "password": "", "groups": [] },
        "plan": { "id": "LOCAL" },
        "isPaying": false,
        "createdAt": "1970-01-01T00:00:00.000Z",
    });
    Ok(reply::data(StatusCode::OK, &answer))
}

/// Answers `GET /v2/users/{id}`.
pub(super) fn user(app: &App, id: &str) -> Result<Response> {
    let is_meant =
        |user: &&User| user.id.eq_ignore_ascii_case(id) || user.username.eq_ignore_ascii_case(id);
    let found = std::iter::once(&app.config.owner)
        .chain(app.config.other_users.iter().map(|(user, _)| user))
        .find(is_meant)
        .ok_or_else(ApiError::user_not_found)?;
    let answer = json!({
        "id": found.id,
        "username": found.username,
        "profile": { "name": found.username },
    });
    Ok(reply::data(StatusCode::OK, &answer))
}

/// Answers `GET` of a run.
pub(super) fn run(app: &App, call: &Call, target: &Target) -> Result<Response> {
    call.caller.must_own()?;
    let run = aliases::find_run(app, target, &call.query)?;
    let store = resolve(app, target, &call.query).map_or(run.store.clone(), |found| found.entry.id);
    let answer = json!({
        "id": run.id,
        "actId": run.actor_id,
        "actorTaskId": run.task_id,
        "userId": app.config.owner.id,
        "status": run.status,
        "meta": { "origin": run.origin },
        "defaultKeyValueStoreId": store,
    });
    Ok(reply::data(StatusCode::OK, &answer))
}

fn object(app: &App, call: &Call, entry: &StoreEntry, sight: Sight) -> Value {
    let base = &call.base;
    let id = &entry.id;
    let owner = &app.config.owner;
    let mut keys_url = format!("{base}/v2/key-value-stores/{id}/keys");
    let mut object = json!({
        "id": id,
        "name": entry.name,
        "userId": owner.id,
        "username": owner.username,
        "createdAt": date(entry.created),
        "modifiedAt": date(entry.modified),
        "accessedAt": date(entry.accessed),
        "actId": null,
        "actRunId": null,
        "schema": null,
        "consoleUrl": format!("{base}/v2/key-value-stores/{id}"),
        "recordsPublicUrl": format!("{base}/v2/key-value-stores/{id}/records"),
        "generalAccess": entry.general_access,
    });
    if let Some(title) = &entry.title {
        object["title"] = json!(title);
    }
    if sight == Sight::Owner {
        object["urlSigningSecretKey"] = json!(entry.signing_key.expose());
        if entry.access == GeneralAccess::Restricted {
            let expires = SystemTime::now() + KEYS_URL_VALID;
            let signature = sign_keys(&entry.signing_key, id, Some(expires));
            keys_url = format!("{keys_url}?signature={}", signature.expose());
        }
    }
    object["keysPublicUrl"] = json!(keys_url);
    object
}

fn read_change(body: &[u8]) -> Result<StoreChange> {
    let fields: Map<String, Value> = match body {
        [] => Map::new(),
        body => serde_json::from_slice(body)
            .map_err(|_| ApiError::invalid_request("The body is not a JSON object"))?,
    };
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
        None | Some(Value::Null) => None,
        Some(value) => Some(
            serde_json::from_value(value.clone())
                .map_err(|_| ApiError::invalid_request("\"generalAccess\" has an unknown value"))?,
        ),
    };
    Ok(StoreChange {
        name,
        title: text("title")?,
        general_access,
    })
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

fn date(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
