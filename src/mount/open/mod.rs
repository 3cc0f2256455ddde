//! Opens a [`crate::store::Store`] from what the user typed for STORE, and credentials.
//!
//! Opening asks the server what the reference means, so that a typo, a missing permission or an
//! expired link fails here, with its reason, and not at the first `ls`. Commands that make a request or
//! two skip that question ([`open_unasked`]): theirs fail with the same reasons.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use super::storage;
use crate::apify::ApifyStore;
use crate::apify::call::Purpose;
use crate::apify::endpoint::{Endpoint, encode};
use crate::apify::errors::Subject;
use crate::apify::http::{HttpClient, HttpOptions, PLATFORM_HOST};
use crate::apify::plain::{PlainHttp, is_exposed};
use crate::apify::record::RecordApi;
use crate::apify::record_urls::{RecordUrlsStore, is_signed};
use crate::apify::signed::SignedKeysStore;
use crate::apify::token::{Format, Token};
use crate::apify::wire::StoreObject;
use crate::base::clock::Deadline;
use crate::base::redact::{SafeUrl, Secret};
use crate::base::signature::keys_expiry;
use crate::bucket::{self, Bucket};
use crate::metrics::Metrics;
use crate::store::freshness;
use crate::store::reference::{RemoteRef, StoreRef};
use crate::store::{ErrorKind, FirstState, ListQuery, Result, Store, StoreError, StoreInfo};

/// The domain of the platform's servers: over TLS, all of them are the platform's.
const PLATFORM_DOMAIN: &str = ".apify.com";

/// Takes the place of a credential, where the account does not matter.
const ANY_ACCOUNT: &str = "anybody";

/// How much of the hash a cache scope keeps, in bytes.
const SCOPE_HASH_LEN: usize = 16;

/// The most of a store's id that a cache scope shows, in characters.
const SCOPE_ID_LEN: usize = 32;

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
                upload_scope: cache_scope(base, &store.id, ANY_ACCOUNT),
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
                upload_scope: cache_scope(base, &id, ANY_ACCOUNT),
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
        upload_scope: cache_scope(base, &id, ANY_ACCOUNT),
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

/// Returns an identity of the account, to separate what accounts may see.
fn access_of(api: &RecordApi) -> Result<String> {
    Ok(match &api.token {
        Some(token) => format!("token:{}", token.current()?.expose()),
        None => "public".to_owned(),
    })
}

/// Opens a store by a signature; where there is a deadline, checks that this opens the listing.
fn open_signed(
    api: RecordApi,
    base: &Url,
    remote: &RemoteRef,
    signature: &Secret,
    check: Option<Deadline>,
) -> Result<Arc<dyn Store>> {
    let id = remote.to_string();
    let info = StoreInfo {
        cache_scope: cache_scope(base, &id, &format!("signature:{}", signature.expose())),
        upload_scope: cache_scope(base, &id, ANY_ACCOUNT),
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

fn open_records(
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
        upload_scope: cache_scope(first, "records", ANY_ACCOUNT),
        id,
        ..StoreInfo::default()
    };
    let http = Arc::new(HttpClient::new(first, options, metrics)?);
    let deadline = Deadline::after(config.deadline);
    let store = RecordUrlsStore::open(RecordApi::new(http, token), urls, info, deadline)?;
    Ok(Arc::new(store))
}

fn one_key() -> ListQuery {
    ListQuery {
        limit: Some(1),
        ..ListQuery::default()
    }
}

/// Returns the server that is asked about the reference, and the token if it may see that.
///
/// # Errors
/// That the address or the token's file cannot be used.
pub fn server(config: &OpenConfig) -> Result<(Url, Option<Arc<Token>>)> {
    let (base, signed) = match &config.reference {
        StoreRef::Url {
            base, signature, ..
        } => (base.clone(), signature.is_some()),
        StoreRef::Records(urls) => match urls.first().map(SafeUrl::expose) {
            Some(url) => (
                url.join("/").unwrap_or_else(|_| url.clone()),
                is_signed_any(urls),
            ),
            None => (api_url(config)?, false),
        },
        StoreRef::Remote(_) | StoreRef::Directory(_) | StoreRef::Bucket { .. } => {
            (api_url(config)?, false)
        }
    };
    let token = if signed || config.signature.is_some() {
        None
    } else {
        token_for(config, &base)?
    };
    if token.is_some() {
        config.plain_http.check(&base)?;
    }
    Ok((base, token))
}

fn is_signed_any(urls: &[SafeUrl]) -> bool {
    urls.iter().any(is_signed)
}

fn api_url(config: &OpenConfig) -> Result<Url> {
    if let Some(url) = &config.api_url {
        return match url.scheme() {
            "http" | "https" => Ok(url.clone()),
            scheme => Err(StoreError::new(
                ErrorKind::Unsupported,
                format!("--api-url must be an http or https URL, not {scheme}"),
            )),
        };
    }
    Url::parse(&format!("https://{PLATFORM_HOST}")).map_err(|error| {
        StoreError::new(ErrorKind::Unsupported, "the default API URL is broken").with_source(error)
    })
}

/// Returns the token if the server at `base` may see it.
fn token_for(config: &OpenConfig, base: &Url) -> Result<Option<Arc<Token>>> {
    let is_platform = base.scheme() == "https"
        && base.port().is_none()
        && base
            .host_str()
            .is_some_and(|host| host.ends_with(PLATFORM_DOMAIN));
    if base.origin() != api_url(config)?.origin() && !is_platform {
        if !matches!(config.token, TokenSource::None | TokenSource::Bucket(_)) {
            tracing::info!(
                host = base.host_str(),
                "the token is not sent to this server: it is not that of --api-url"
            );
        }
        return Ok(None);
    }
    let token = match &config.token {
        TokenSource::None | TokenSource::Bucket(_) => return Ok(None),
        TokenSource::Environment(secret) => Token::fixed(secret.clone(), base),
        TokenSource::File(path) => Token::file(path.clone(), Format::Plain, base),
        TokenSource::CliLogin(path) => Token::file(path.clone(), Format::CliLogin, base),
    };
    token.current()?;
    Ok(Some(Arc::new(token)))
}

/// Returns why opening the store would be refused: a secret would travel unencrypted.
pub fn refused_plain_http(config: &OpenConfig) -> Option<StoreError> {
    let refused = |url: &Url, has_secret: bool| match has_secret {
        true => config.plain_http.check(url).err(),
        false => None,
    };
    let signed = config.signature.is_some();
    match &config.reference {
        StoreRef::Directory(_) | StoreRef::Bucket { .. } => None,
        StoreRef::Records(urls) => urls.iter().find_map(|url| {
            let has_token = || token_for(config, url.expose()).is_ok_and(|token| token.is_some());
            refused(url.expose(), is_signed(url) || has_token())
        }),
        StoreRef::Url {
            base, signature, ..
        } => {
            let has_token = || token_for(config, base).is_ok_and(|token| token.is_some());
            refused(base, signed || signature.is_some() || has_token())
        }
        StoreRef::Remote(_) => {
            let base = api_url(config).ok()?;
            let has_token = || token_for(config, &base).is_ok_and(|token| token.is_some());
            refused(&base, signed || has_token())
        }
    }
}

/// Refuses to send a secret over the network unencrypted; warns where that is allowed.
fn check_plain(config: &OpenConfig, url: &Url, has_secret: bool) -> Result<()> {
    if !has_secret || !is_exposed(url) {
        return Ok(());
    }
    config.plain_http.check(url)?;
    tracing::warn!(
        host = url.host_str(),
        "the connection is not encrypted: others on the network can read the token or signature"
    );
    Ok(())
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

/// Returns a name for what may be seen of a store; fit for a folder's name.
///
/// Only a hash of the credential goes in, cut so far that nothing of it can be recovered.
fn cache_scope(server: &Url, id: &str, access: &str) -> String {
    let mut hash = Sha256::new();
    for part in [
        &server.origin().ascii_serialization(),
        server.path(),
        id,
        access,
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let shown: String = id
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(SCOPE_ID_LEN)
        .collect();
    let digest: String = hash
        .finalize()
        .iter()
        .take(SCOPE_HASH_LEN)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{shown}-{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_scopes_differ_by_server_store_and_access() {
        let scope =
            |server, id, access| cache_scope(&Url::parse(server).expect("a URL"), id, access);
        let first = scope("https://h", "me~s", "token:a");
        assert_eq!(first, scope("https://h/", "me~s", "token:a"));
        assert!(first.starts_with("me-s-"), "{first}");
        for other in [
            scope("https://h:1", "me~s", "token:a"),
            scope("https://h", "me-s", "token:a"),
            scope("https://h", "me~s", "token:b"),
            scope("https://h", "me~s", "public"),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn the_token_is_for_the_api_and_the_platform_only() {
        let mut config = OpenConfig {
            reference: StoreRef::Remote(RemoteRef::Id("A".into())),
            api_url: None,
            token: TokenSource::Environment(Secret::new("t")),
            signature: None,
            run_status: None,
            run_origin: None,
            plain_http: PlainHttp::default(),
            attempt_timeout: Duration::from_secs(1),
            deadline: Duration::from_secs(1),
            budget_dir: None,
        };
        let is_sent = |config: &OpenConfig, url: &str| {
            let url = Url::parse(url).expect("a URL");
            token_for(config, &url).expect("a decision").is_some()
        };
        for (url, sent) in [
            ("https://api.apify.com", true),
            ("https://api-eu.apify.com/x", true),
            ("http://api.apify.com", false),
            ("https://evilapify.com", false),
            ("https://apify.com.evil.com", false),
            ("http://localhost:3", false),
        ] {
            assert_eq!(is_sent(&config, url), sent, "{url}");
        }
        config.api_url = Some(Url::parse("http://localhost:3/x").expect("a URL"));
        assert!(is_sent(&config, "http://localhost:3"));
        assert!(!is_sent(&config, "http://localhost:4"));
    }
}
