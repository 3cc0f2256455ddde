//! What a server can do: tried with its listing and a small record.

use std::time::Duration;

use url::Url;

use super::Finding;
use super::network::store_error;
use crate::apify::probe::Probe;
use crate::base::clock::Deadline;
use crate::store::reference::{RemoteRef, StoreRef};
use crate::store::{ErrorKind, Key, ListQuery, Store, StoreError};

/// Keys among which one is looked for to try the server with.
const KEYS: usize = 100;

/// Reports on the line to the server: the protocols, and how listings come.
pub(super) fn wire(probe: &Probe, base: &Url, reference: &StoreRef) -> Finding {
    let check = "protocol";
    let path = match reference {
        StoreRef::Remote(remote) | StoreRef::Url { remote, .. } => keys_path(remote),
        _ => None,
    };
    let tls = probe.tls_version(base).map(|tls| format!(" over {tls}"));
    let tls = tls.unwrap_or_default();
    let Some(path) = path else {
        return Finding::ok(check, format!("HTTP/1.1{tls}"));
    };
    let listing = match probe.page(&path, None) {
        Ok(listing) if listing.status == 200 => listing,
        Ok(listing) => {
            let message = format!(
                "{}{tls}; no listing: HTTP {}",
                listing.version, listing.status
            );
            return Finding::ok(check, message);
        }
        Err(error) => return store_error(check, &error),
    };
    let packed = match (listing.header("content-encoding"), listing.len) {
        (Some(encoding), _) => format!("listings come compressed ({encoding})"),
        (None, ..SMALL) => "the listing is too short to be compressed".to_owned(),
        (None, _) => "listings are not compressed".to_owned(),
    };
    let tag = match listing.header("etag").map(str::to_owned) {
        None => "without a tag".to_owned(),
        Some(tag) => match probe.page(&path, Some(&tag)).map(|again| again.status) {
            Ok(304) => "with a tag that saves sending them again (304)".to_owned(),
            _ => "with a tag that saves nothing".to_owned(),
        },
    };
    let limit = listing
        .header("x-ratelimit-limit")
        .map_or_else(String::new, |limit| format!("; {limit} listings a second"));
    Finding::ok(
        check,
        format!("{}{tls}; {packed}, {tag}{limit}", listing.version),
    )
}

/// Listings shorter than this need not be compressed, in bytes.
const SMALL: usize = 1024;

fn keys_path(remote: &RemoteRef) -> Option<String> {
    let path = remote.api_path();
    // Runs have an address of their own for the store of each.
    path.starts_with("key-value-stores/")
        .then(|| format!("{path}/keys"))
}

/// Tries with a small record what the server can do.
pub(super) fn abilities(
    probe: &Probe,
    base: &Url,
    store: &dyn Store,
    timeout: Duration,
) -> Finding {
    let check = "server";
    let query = ListQuery {
        limit: Some(KEYS),
        ..ListQuery::default()
    };
    let page = match store.list_page(&query, Deadline::after(timeout)) {
        Ok(page) => page,
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            return Finding::ok(check, "not asked: the store is known by these records only");
        }
        Err(error) => return store_error(check, &error),
    };
    let record = page
        .items
        .iter()
        .filter(|item| item.stored_size != Some(0))
        .min_by_key(|item| item.stored_size)
        .and_then(|item| record_url(store, &item.key, base));
    let Some(url) = record else {
        return Finding::ok(check, "not tried: the store has no record to try with");
    };
    match try_abilities(probe, &url) {
        Ok(message) => Finding::ok(check, message),
        Err(error) => store_error(check, &error),
    }
}

/// Returns a record's address, if it is one of the server that is asked.
fn record_url(store: &dyn Store, key: &Key, base: &Url) -> Option<Url> {
    let url = Url::parse(&store.record_url(key)?).ok()?;
    (url.origin() == base.origin()).then_some(url)
}

fn try_abilities(probe: &Probe, url: &Url) -> Result<String, StoreError> {
    let plain = probe.headers(false, url, &[("accept-encoding", "gzip, br, deflate")])?;
    if plain.status != 200 {
        let message = format!("a record is answered with HTTP {}", plain.status);
        return Err(StoreError::new(ErrorKind::Protocol, message)
            .with_hint("links to records need a signature each; else try again later"));
    }
    let etag = plain.header("etag").map(str::to_owned);
    let head = probe.headers(true, url, &[])?.status == 200;
    let range = probe.headers(false, url, &[("range", "bytes=0-0")])?.status == 206;
    let conditional = match &etag {
        Some(etag) => {
            probe
                .headers(false, url, &[("if-none-match", etag)])?
                .status
                == 304
        }
        None => false,
    };
    let limit = plain.header("x-ratelimit-limit");
    let limit = limit.map_or_else(String::new, |limit| {
        format!("; {limit} requests a second for records")
    });
    let encoding = plain.header("content-encoding").unwrap_or("none");
    let mut has = Vec::new();
    let mut lacks = Vec::new();
    for (name, there, without) in [
        (
            "ETag",
            etag.is_some(),
            "what is current is told by the store's modifiedAt",
        ),
        (
            "conditional requests",
            conditional,
            "what is checked is fetched again",
        ),
        ("HEAD", head, "sizes cost a GET"),
        ("Range", range, "large records are fetched whole"),
    ] {
        if there {
            has.push(name.to_owned());
        } else {
            lacks.push(format!("no {name}: {without}"));
        }
    }
    let mut message = format!("has {}", has.join(", "));
    for lack in lacks {
        message = format!("{message}; {lack}");
    }
    Ok(format!(
        "{message}; encoding of the record tried: {encoding}{limit}"
    ))
}
