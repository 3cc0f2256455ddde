//! The listing of a store.

use axum::http::StatusCode;
use axum::response::Response;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::aliases::resolve;
use super::auth::{self, Sight, Wanted};
use super::catalog::StoreEntry;
use super::config::GeneralAccess;
use super::errors::Result;
use super::routes::Target;
use super::schema::select;
use super::{App, Call, REQUEST_DEADLINE, reply};
use crate::base::clock::Deadline;
use crate::base::signature::sign_record;
use crate::store::{Key, MAX_PAGE};

/// What RFC 3986 reserves.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    items: Vec<Item<'a>>,
    count: usize,
    limit: usize,
    exclusive_start_key: Option<&'a str>,
    is_truncated: bool,
    next_exclusive_start_key: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item<'a> {
    key: &'a str,
    size: u64,
    record_public_url: String,
}

/// Answers `GET …/keys`.
pub(super) fn list(app: &App, call: &Call, target: &Target) -> Result<Response> {
    let resolved = resolve(app, call, target)?;
    let entry = &resolved.entry;
    let sight = auth::sight(call, &resolved, Wanted::Keys)?;
    let selection = select(
        entry.schema.as_deref(),
        call.query.text("collection"),
        call.query.text("prefix"),
    )?;
    // 0 counts as absent, and what is too much is cut.
    let limit = match call.query.number("limit")? {
        None | Some(0) => MAX_PAGE,
        Some(limit) => usize::try_from(limit).unwrap_or(MAX_PAGE).min(MAX_PAGE),
    };
    let after = call.query.text("exclusiveStartKey");
    app.stats.store(&entry.id).listed();
    let deadline = Deadline::after(REQUEST_DEADLINE);
    let page = selection.page(&*entry.store, after, limit, deadline)?;
    let signature = match sight {
        Sight::Public => Signed::No,
        _ if entry.access != GeneralAccess::Restricted => Signed::No,
        Sight::Owner | Sight::Signed => Signed::Own,
        Sight::SignedForNow => Signed::As(call.query.text("signature").unwrap_or_default()),
    };
    let items: Vec<Item<'_>> = page
        .items
        .iter()
        .map(|item| Item {
            key: item.key.as_str(),
            size: item.stored_size.unwrap_or_default(),
            record_public_url: record_url(&call.base, entry, &item.key, signature),
        })
        .collect();
    let answer = Page {
        count: items.len(),
        items,
        limit,
        exclusive_start_key: after,
        is_truncated: page.next.is_some(),
        next_exclusive_start_key: page.next.as_deref(),
    };
    Ok(reply::data(StatusCode::OK, &answer))
}

/// How the address of a record is signed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Signed<'a> {
    /// Not at all.
    No,
    /// With the record's own signature, which does not expire.
    Own,
    /// With the one that opened the listing.
    As(&'a str),
}

/// Returns a record's address.
pub(super) fn record_url(base: &str, entry: &StoreEntry, key: &Key, signed: Signed<'_>) -> String {
    // Clients would take dots alone for steps in the path.
    let encoded = match key.as_str() {
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        key => utf8_percent_encode(key, COMPONENT).to_string(),
    };
    let url = format!("{base}/v2/key-value-stores/{}/records/{encoded}", entry.id);
    match signed {
        Signed::No => url,
        Signed::Own => {
            let signature = sign_record(&entry.signing_key, key.as_str());
            format!("{url}?signature={}", signature.expose())
        }
        Signed::As(signature) => {
            let signature = utf8_percent_encode(signature, COMPONENT);
            format!("{url}?signature={signature}")
        }
    }
}
