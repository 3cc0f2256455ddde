//! The few facts about users and runs that clients ask for on their way to stores.

use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use super::aliases::{self, resolve};
use super::auth::{hidden, is_owner};
use super::errors::{ApiError, Result};
use super::folders::metadata::derived_id;
use super::routes::Target;
use super::{App, Call, reply};

/// When what was never begun began.
const NEVER: &str = "1970-01-01T00:00:00.000Z";

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
        "createdAt": NEVER,
    });
    Ok(reply::data(StatusCode::OK, &answer))
}

/// Answers `GET /v2/users/{id}`.
pub(super) fn user(app: &App, id: &str) -> Result<Response> {
    let found = app.config.users().find(|user| user.is_called(id));
    let found = found.ok_or_else(ApiError::user_not_found)?;
    let answer = json!({
        "id": found.id,
        "username": found.username,
        "profile": { "name": found.username },
    });
    Ok(reply::data(StatusCode::OK, &answer))
}

/// Answers `GET` of a run.
pub(super) fn run(app: &App, call: &Call, target: &Target) -> Result<Response> {
    if !is_owner(app, call) {
        return Err(hidden(call, Some(aliases::missing(target))));
    }
    let run = aliases::find_run(app, target, &call.query)?;
    let store = resolve(app, call, target).map_or(run.store.clone(), |found| found.entry.id);
    let answer = json!({
        "id": run.id,
        "actId": run.actor_id,
        "actorTaskId": run.task_id,
        "userId": app.config.owner.id,
        "status": run.status,
        "meta": { "origin": run.origin },
        "defaultKeyValueStoreId": store,
        // The SDKs insist on these when they start; the server knows nothing of them.
        "startedAt": NEVER,
        "finishedAt": null,
        "stats": {
            "restartCount": 0, "resurrectCount": 0, "computeUnits": 0, "durationMillis": 0,
            "runTimeSecs": 0,
        },
        "options": {
            "build": "latest", "timeoutSecs": 0, "memoryMbytes": 1024, "diskMbytes": 2048,
        },
        "buildId": derived_id("build"),
        "defaultDatasetId": derived_id(&format!("dataset {}", run.id)),
        "defaultRequestQueueId": derived_id(&format!("queue {}", run.id)),
    });
    Ok(reply::data(StatusCode::OK, &answer))
}
