//! Stores that signed links open.

use std::sync::Arc;

use url::Url;

use super::OpenConfig;
use super::access::{check_plain, token_for};
use super::scope::{cache_scope, upload_scope};
use crate::apify::endpoint::Endpoint;
use crate::apify::http::{HttpClient, HttpOptions};
use crate::apify::record::RecordApi;
use crate::apify::record_urls::{RecordUrlsStore, is_signed};
use crate::apify::signed::SignedKeysStore;
use crate::base::clock::Deadline;
use crate::base::redact::{SafeUrl, Secret};
use crate::base::signature::keys_expiry;
use crate::metrics::Metrics;
use crate::store::reference::RemoteRef;
use crate::store::{ErrorKind, ListQuery, Result, Store, StoreError, StoreInfo};

/// Opens a store by a signature; where there is a deadline, checks that this opens the listing.
pub(super) fn open_signed(
    api: RecordApi,
    base: &Url,
    remote: &RemoteRef,
    signature: &Secret,
    check: Option<Deadline>,
) -> Result<Arc<dyn Store>> {
    let id = remote.to_string();
    let info = StoreInfo {
        cache_scope: cache_scope(base, &id, &format!("signature:{}", signature.expose())),
        upload_scope: upload_scope(base, &id),
        expires: keys_expiry(signature.expose()).and_then(|expiry| expiry.time()),
        id,
        ..StoreInfo::default()
    };
    let endpoint = Endpoint::new(base, &remote.api_path());
    let store = SignedKeysStore::new(api, endpoint, signature.clone(), info);
    let Some(deadline) = check else {
        return Ok(Arc::new(store));
    };
    store.list_page(&one_key(), deadline).map_err(|error| {
        if error.kind() == ErrorKind::Denied && keys_expiry(signature.expose()).is_none() {
            return error.with_hint(
                "the signature is not that of a list of keys; is it a record's? then mount the record's whole URL",
            );
        }
        error
    })?;
    Ok(Arc::new(store))
}

pub(super) fn open_records(
    config: &OpenConfig,
    urls: &[SafeUrl],
    options: HttpOptions,
    metrics: Arc<Metrics>,
) -> Result<Arc<dyn Store>> {
    let Some(first) = urls.first().map(SafeUrl::expose) else {
        return Err(StoreError::new(
            ErrorKind::Unsupported,
            "no record was given",
        ));
    };
    let unsigned = urls.iter().find(|url| !is_signed(url)).map(SafeUrl::expose);
    let token = match unsigned {
        Some(url) => token_for(config, url)?,
        None => None,
    };
    for url in urls {
        check_plain(config, url.expose(), is_signed(url) || token.is_some())?;
    }
    let mut access: Vec<String> = urls.iter().map(|url| url.expose().to_string()).collect();
    access.sort();
    if let Some(token) = &token {
        access.push(format!("token:{}", token.current()?.expose()));
    }
    let id = config.reference.to_string();
    let info = StoreInfo {
        cache_scope: cache_scope(first, "records", &access.join("\n")),
        upload_scope: upload_scope(first, "records"),
        id,
        ..StoreInfo::default()
    };
    let http = Arc::new(HttpClient::new(first, options, metrics)?);
    let deadline = Deadline::after(config.deadline);
    let store = RecordUrlsStore::open(RecordApi::new(http, token), urls, info, deadline)?;
    Ok(Arc::new(store))
}

pub(super) fn one_key() -> ListQuery {
    ListQuery {
        limit: Some(1),
        ..ListQuery::default()
    }
}
