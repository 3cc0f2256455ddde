//! The caller, and what it may see.

use std::time::SystemTime;

use axum::http::{HeaderMap, header};

use super::aliases::Resolved;
use super::catalog::StoreEntry;
use super::config::{GeneralAccess, ServerConfig, User};
use super::errors::{ApiError, Result};
use super::routes::Query;
use super::{App, Call};
use crate::base::redact::Secret;
use crate::base::signature::{constant_time_eq, keys_expiry, verify_keys, verify_record};
use crate::store::Key;

/// The caller.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// No account was named.
    Anonymous,
    /// An account.
    User(User),
}

/// What a caller wants to see.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    Store,
    Keys,
    Record(&'a Key),
}

/// How much a caller sees of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// Everything, the signing key included.
    Owner,
    /// What a valid signature shows, for ever.
    Signed,
    /// What a signature shows until it expires.
    SignedForNow,
    /// What all callers may see.
    Public,
}

/// Identifies the caller. An unknown token is an error, even where none is needed.
pub(super) fn caller(config: &ServerConfig, headers: &HeaderMap, query: &Query) -> Result<Caller> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    let given = bearer.or_else(|| query.text("token"));
    let Some(owners) = &config.token else {
        return Ok(Caller::User(config.owner.clone()));
    };
    let Some(given) = given.filter(|given| !given.is_empty()) else {
        return Ok(Caller::Anonymous);
    };
    let is = |secret: &Secret| constant_time_eq(secret.expose().as_bytes(), given.as_bytes());
    if is(owners) {
        return Ok(Caller::User(config.owner.clone()));
    }
    match config.other_users.iter().find(|(_, token)| is(token)) {
        Some((user, _)) => Ok(Caller::User(user.clone())),
        None => Err(ApiError::bad_token()),
    }
}

impl Caller {
    /// Returns the account, or that there must be one.
    pub(super) fn user(&self) -> Result<&User> {
        match self {
            Self::Anonymous => Err(ApiError::no_token()),
            Self::User(user) => Ok(user),
        }
    }

    /// Fails unless the caller is the account with this id.
    pub(super) fn must_be(&self, owner: &str) -> Result<()> {
        if self.user()?.id == owner {
            Ok(())
        } else {
            Err(ApiError::no_permission())
        }
    }
}

/// Decides whether a caller may see something of a store, and how.
pub(super) fn sight(call: &Call, found: &Resolved, wanted: Wanted<'_>) -> Result<Sight> {
    let store = &found.entry;
    if call.caller.must_be(&store.owner).is_ok() {
        return Ok(Sight::Owner);
    }
    let given = call.query.text("signature");
    if let Some(signed) = given.and_then(|given| signed(store, wanted, given)) {
        return Ok(signed);
    }
    let public = match store.access {
        GeneralAccess::AnyoneWithNameCanRead => true,
        GeneralAccess::AnyoneWithIdCanRead => !found.by_name,
        _ => false,
    };
    match &call.caller {
        _ if public && call.is_local => Ok(Sight::Public),
        _ if public => Err(ApiError::foreign_host()),
        _ => Err(hidden(call, found.missing)),
    }
}

/// Returns whether the caller is the server's own account.
pub(super) fn is_owner(app: &App, call: &Call) -> bool {
    call.caller.must_be(&app.config.owner.id).is_ok()
}

/// Returns what callers are told who may not see something, so that they learn nothing of whether
/// it exists. `missing` is the error for what does not; `None` for what only an id leads to, of which
/// an account is told that it has no permission, as by the platform.
pub(super) fn hidden(call: &Call, missing: Option<fn() -> ApiError>) -> ApiError {
    match (&call.caller, missing) {
        (Caller::Anonymous, _) if !call.is_local => ApiError::foreign_host(),
        (Caller::Anonymous, _) if call.query.text("signature").is_none() => ApiError::no_token(),
        (Caller::User(_), Some(missing)) => missing(),
        _ => ApiError::no_permission(),
    }
}

/// Returns what a signature shows of a store.
fn signed(store: &StoreEntry, wanted: Wanted<'_>, given: &str) -> Option<Sight> {
    let secret = &store.signing_key;
    let of_listing =
        |sight| verify_keys(secret, &store.id, given, SystemTime::now()).then_some(sight);
    let expires = || keys_expiry(given).is_some_and(|expiry| expiry.time().is_some());
    match wanted {
        Wanted::Store => None,
        Wanted::Keys if expires() => of_listing(Sight::SignedForNow),
        Wanted::Keys => of_listing(Sight::Signed),
        Wanted::Record(key) if verify_record(secret, key.as_str(), given) => Some(Sight::Signed),
        // The signatures of records never expire. A listing that was opened for a while shows none
        // of them: its own signature opens the records as long as it.
        Wanted::Record(_) if expires() => of_listing(Sight::SignedForNow),
        Wanted::Record(_) => None,
    }
}
