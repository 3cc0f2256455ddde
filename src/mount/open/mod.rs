//! Opens a [`crate::store::Store`] from what the user typed for STORE, and credentials.
//!
//! Opening asks the server what the reference means, so that a typo, a missing permission or an
//! expired link fails here, with its reason, and not at the first `ls`. Commands that make a request or
//! two skip that question ([`open_unasked`]): theirs fail with the same reasons.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use url::Url;

use self::access::{api_url, check_plain, token_for};
use self::links::{one_key, open_records, open_signed};
use self::scope::{access_of, cache_scope, upload_scope};
use super::storage;
use crate::apify::ApifyStore;
use crate::apify::call::Purpose;
use crate::apify::endpoint::{Endpoint, encode};
use crate::apify::errors::Subject;
use crate::apify::http::{HttpClient, HttpOptions};
use crate::apify::plain::PlainHttp;
use crate::apify::record::RecordApi;
use crate::apify::wire::StoreObject;
use crate::base::clock::Deadline;
use crate::base::redact::Secret;
use crate::bucket::{self, Bucket};
use crate::metrics::Metrics;
use crate::store::freshness;
use crate::store::reference::{RemoteRef, StoreRef};
use crate::store::{ErrorKind, FirstState, Result, Store, StoreError, StoreInfo};

pub mod access;
mod links;
mod scope;

/// What to open, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenConfig {
    /// What the user typed, parsed.
    pub reference: StoreRef,
    /// The API's base URL, `/v2` not included; `None` for the default, `https://api.apify.com`.
    pub api_url: Option<Url>,
    /// Where the token comes from.
    pub token: TokenSource,
    /// A keys signature given besides the reference.
    pub signature: Option<Secret>,
    /// For last-run references: only runs with this status (`SUCCEEDED`, ...).
    pub run_status: Option<String>,
    /// For last-run references: only runs started so (`API`, `WEB`, ...).
    pub run_origin: Option<String>,
    /// How far secrets may travel unencrypted.
    #[serde(default)]
    pub plain_http: PlainHttp,
    /// The longest wait for one attempt's headers, and between two chunks of a body.
    pub attempt_timeout: Duration,
    /// The longest that opening may take, retries included.
    pub deadline: Duration,
    /// Where requests are counted together with those of other processes; `None`: nowhere.
    #[serde(default)]
    pub budget_dir: Option<PathBuf>,
}

/// Where the API token comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TokenSource {
    /// There is none: public stores, signatures, directories.
    None,
    /// A token from the environment.
    Environment(Secret),
    /// A file, read again when it changes.
    File(PathBuf),
    /// For buckets the variables of their provider take its place.
    Bucket(bucket::Options),
    /// What `apify login` left in `~/.apify/auth.json`, read again when it changes.
    CliLogin(PathBuf),
}

/// Opens a store. Like all that the store does, this blocks: it must not be called from async code.
///
/// # Errors
/// [`ErrorKind::StoreNotFound`], [`ErrorKind::Denied`], [`ErrorKind::SignatureExpired`], or that
/// the server could not be asked; [`ErrorKind::NotFound`] for a record's URL.
pub fn open(config: &OpenConfig, metrics: Arc<Metrics>) -> Result<Arc<dyn Store>> {
    open_with(config, usual(config), metrics)
}

/// Opens a store to be changed: a local folder, too, which [`open`] only reads.
///
/// # Errors
/// As [`open`].
pub fn open_writable(config: &OpenConfig, metrics: Arc<Metrics>) -> Result<Arc<dyn Store>> {
    match &config.reference {
        StoreRef::Directory(path) => {
            storage::check_one(path)?;
            crate::local::open_writable_directory(path)
        }
        _ => open(config, metrics),
    }
}

/// Opens a store for a few requests at once, and does not ask what it is where they can be made
/// without: [`Store::info`] then says no more than what was typed.
///
/// # Errors
/// As [`open`]; those about the store come from its operations.
pub fn open_unasked(config: &OpenConfig, metrics: Arc<Metrics>) -> Result<Arc<dyn Store>> {
    open_as(config, usual(config), metrics, false)
}

fn usual(config: &OpenConfig) -> HttpOptions {
    HttpOptions {
        resume_timeout: config.deadline,
        plain_http: config.plain_http,
        ..HttpOptions::new(config.attempt_timeout)
    }
}

/// Opens a store with other than the usual retries.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    config: &OpenConfig,
    options: HttpOptions,
    metrics: Arc<Metrics>,
) -> Result<Arc<dyn Store>> {
    open_as(config, options, metrics, true)
}

fn open_as(
    config: &OpenConfig,
    options: HttpOptions,
    metrics: Arc<Metrics>,
    ask: bool,
) -> Result<Arc<dyn Store>> {
    let (base, remote, signature) = match &config.reference {
        StoreRef::Directory(path) => {
            storage::check_one(path)?;
            return crate::local::open_directory(path);
        }
        StoreRef::Records(urls) => return open_records(config, urls, options, metrics),
        StoreRef::Bucket { address, store } => return open_in_bucket(config, address, store),
        StoreRef::Remote(remote) => (api_url(config)?, remote, None),
        StoreRef::Url {
            base,
            remote,
            signature,
        } => (base.clone(), remote, signature.as_ref()),
    };
    let signature = signature.or(config.signature.as_ref());
    let token = match signature {
        Some(_) => None,
        None => token_for(config, &base)?,
    };
    check_plain(config, &base, signature.is_some() || token.is_some())?;
    let http = Arc::new(HttpClient::new(&base, options, metrics)?);
    let api = RecordApi::new(Arc::clone(&http), token);
    let deadline = Deadline::after(config.deadline);
    let store = match signature {
        Some(signature) => open_signed(api, &base, remote, signature, ask.then_some(deadline)),
        // Which run was the last may change from one request to the next.
        None if !ask
            && !matches!(
                remote,
                RemoteRef::LastRunOfActor(_) | RemoteRef::LastRunOfTask(_)
            ) =>
        {
            open_by_reference(api, &base, remote)
        }
        None => open_by_name(config, api, &base, remote, deadline),
    }?;
    if let Some(dir) = &config.budget_dir {
        // For all accounts: the server limits requests by store.
        http.share_budget(dir, &store.info().upload_scope);
    }
    Ok(store)
}

/// Finds a store of a bucket by its id, else by the name that it has in the server's own account.
fn open_in_bucket(config: &OpenConfig, address: &Url, store: &str) -> Result<Arc<dyn Store>> {
    let options = match &config.token {
        TokenSource::Bucket(options) => options,
        _ => &bucket::Options::default(),
    };
    let bucket = Bucket::open(address, options)?;
    let (now, deadline) = (Duration::ZERO, Deadline::after(config.deadline));
    let found = match bucket.describe(store, now, deadline)? {
        Some(found) => Some(found),
        None => bucket.named(None, store, now, deadline)?,
    };
    match found {
        Some(found) => {
            bucket.must_be_known(deadline)?;
            Ok(Arc::new(bucket.store(&found)))
        }
        None => {
            bucket.check(bucket::Use::Read, deadline)?;
            let message = format!("the bucket has no store {store} at {address}");
            Err(StoreError::new(ErrorKind::StoreNotFound, message)
                .with_hint("give the address of kvfs serve, followed by the store's name or id"))
        }
    }
}

/// Asks which store is meant, and uses its id from then on.
fn open_by_name(
    config: &OpenConfig,
    api: RecordApi,
    base: &Url,
    remote: &RemoteRef,
    deadline: Deadline,
) -> Result<Arc<dyn Store>> {
    let named = Endpoint::new(base, &remote.api_path());
    let mut parameters = Vec::new();
    if matches!(
        remote,
        RemoteRef::LastRunOfActor(_) | RemoteRef::LastRunOfTask(_)
    ) {
        parameters.extend(
            config
                .run_status
                .as_deref()
                .map(|status| ("status", status)),
        );
        parameters.extend(
            config
                .run_origin
                .as_deref()
                .map(|origin| ("origin", origin)),
        );
    }
    let target = named.store_with(&parameters);
    let call = api.call(Purpose::Other, target, Subject::Store);
    let asked = Instant::now();
    let found: Result<StoreObject> = api.http.json(&call, deadline);
    let access = access_of(&api)?;
    let (endpoint, info, signing_key, first_state) = match found {
        Ok(store) => {
            let first_state = first_state(&api, asked, &store);
            let path = format!("key-value-stores/{}", encode(&store.id));
            let info = StoreInfo {
                cache_scope: cache_scope(base, &store.id, &access),
                upload_scope: upload_scope(base, &store.id),
                modified: store.modified(),
                created: store.created(),
                expires: None,
                id: store.id,
                name: store.name,
            };
            (
                Endpoint::new(base, &path),
                info,
                store.signing_key,
                first_state,
            )
        }
        // A public store may show its records without telling about itself.
        Err(error) if error.kind() == ErrorKind::Denied && parameters.is_empty() => {
            let id = remote.to_string();
            let info = StoreInfo {
                cache_scope: cache_scope(base, &id, &access),
                upload_scope: upload_scope(base, &id),
                id,
                ..StoreInfo::default()
            };
            let probe = ApifyStore::new(api.clone(), named.clone(), info.clone());
            if probe.list_page(&one_key(), deadline).is_err() {
                return Err(describe(error, remote, api.token.is_some()));
            }
            avoid_head_of_runs(&api, remote);
            (named, info, None, None)
        }
        Err(error) => return Err(describe(error, remote, api.token.is_some())),
    };
    let store = ApifyStore::new(api, endpoint, info)
        .signing_with(signing_key)
        .beginning_with(first_state);
    Ok(Arc::new(store))
}

/// Returns what the answer about a store says of its state, which was asked for then.
fn first_state(api: &RecordApi, asked: Instant, store: &StoreObject) -> Option<FirstState> {
    let now = api.http.server_time();
    Some(FirstState {
        asked,
        span: freshness::moment(now, asked.elapsed(), SystemTime::now()),
        state: store.state()?,
    })
}

/// Uses a store by the reference as it was typed; asks about the store only when a record is missing.
fn open_by_reference(api: RecordApi, base: &Url, remote: &RemoteRef) -> Result<Arc<dyn Store>> {
    avoid_head_of_runs(&api, remote);
    let named = Endpoint::new(base, &remote.api_path());
    let id = remote.to_string();
    let info = StoreInfo {
        cache_scope: cache_scope(base, &id, &access_of(&api)?),
        upload_scope: upload_scope(base, &id),
        id,
        ..StoreInfo::default()
    };
    let (asker, target, remote) = (api.clone(), named.store(), remote.clone());
    let explain = move |error: StoreError, deadline: Deadline| {
        let has_token = asker.token.is_some();
        // A typed error tells whether the record is missing or the store.
        if error.kind() == ErrorKind::NotFound && error.api_type().is_none() {
            let call = asker.call(Purpose::Other, target.clone(), Subject::Store);
            let found: Result<StoreObject> = asker.http.json(&call, deadline);
            return match found {
                Err(missing) if missing.kind() == ErrorKind::StoreNotFound => {
                    describe(missing, &remote, has_token)
                }
                _ => error,
            };
        }
        describe(error, &remote, has_token)
    };
    Ok(Arc::new(
        ApifyStore::new(api, named, info).explaining(explain),
    ))
}

fn avoid_head_of_runs(api: &RecordApi, remote: &RemoteRef) {
    if !matches!(remote, RemoteRef::Id(_) | RemoteRef::Named { .. }) {
        // The API has no HEAD for a run's records.
        api.avoid_head();
    }
}

/// Adds what may be wrong with this form of reference, or with how it was opened.
fn describe(error: StoreError, remote: &RemoteRef, has_token: bool) -> StoreError {
    if error.kind() == ErrorKind::Denied && !has_token {
        return error.with_hint(
            "no token was sent; give one: APIFY_TOKEN, --token-file, or `apify login`; or use a signed link",
        );
    }
    if error.kind() != ErrorKind::StoreNotFound {
        return error;
    }
    if let Some(hint) = remote.mistaken_id() {
        return error.with_hint(hint);
    }
    match remote {
        RemoteRef::Id(_) => error.with_hint(
            "check the id; a store's name is written ~name or user~name",
        ),
        RemoteRef::Named { .. } => error.with_hint(
            "check user and name, and that the token's account may see the store; a folder is written ./user/name",
        ),
        RemoteRef::Run(_) => error.with_hint("check the run's id; its store may have been deleted"),
        RemoteRef::LastRunOfActor(_) | RemoteRef::LastRunOfTask(_) => error.with_hint(
            "check the name; it may have no run (with that status and origin), or that run's store may have been deleted",
        ),
    }
}
