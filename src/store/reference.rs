//! Store references: what the user typed for STORE, parsed.
//!
//! Parsing is pure: no file is looked at and no server asked. `Display` shows a reference in a
//! form that parses to the same reference, less any signature.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::Url;

use crate::redact::{SafeUrl, Secret, bare};

/// The length of the platform's ids, in characters.
const ID_LEN: usize = 17;

/// The host of the Console, whose page addresses are accepted for what they show.
const CONSOLE_HOST: &str = "console.apify.com";

/// What a person can type for STORE.
const FORMS: &str = "\
accepted forms:
  a store's id                 WkzbQMuFYuamGv3YF
  a store's name               user~name, user/name, or ~name for your own
  a run's default store        run:ID, actor:user~name, task:user~name (the last run)
  a link                       an API or Console URL of a store, its keys, a record, or a run
  a local folder               /path, ./path, ../path, a/b/c
  a store in a bucket          s3://bucket/prefix/NAME, gs://..., az://... (as kvfs serve made it)";

/// The schemes of addresses of buckets.
const BUCKETS: [&str; 3] = ["s3", "gs", "az"];

/// What the user typed for STORE, parsed; nothing has been asked of any server yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StoreRef {
    /// A store on the platform.
    Remote(RemoteRef),
    /// A store on the server that the URL names.
    Url {
        /// The server's base URL, `/v2` not included; its path ends with `/`.
        base: Url,
        /// The store there.
        remote: RemoteRef,
        /// The signature in the URL.
        signature: Option<Secret>,
    },
    /// Exactly these records, by their URLs, signed or not.
    Records(Vec<SafeUrl>),
    /// A folder that holds one store in a local layout.
    Directory(PathBuf),
    /// A store in a bucket of an object storage.
    Bucket {
        /// The bucket and the prefix in it that `kvfs serve` was given.
        address: Url,
        /// The store's id, or the name of one of the server's own account.
        store: String,
    },
}

/// How the platform's API is asked for a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RemoteRef {
    /// By id.
    Id(String),
    /// By name; `user` is `None` for one's own (`~name`).
    Named {
        /// User name or user id.
        user: Option<String>,
        /// The store's name.
        name: String,
    },
    /// The default store of a run.
    Run(String),
    /// The default store of an Actor's last run; `user~name` or an id.
    LastRunOfActor(String),
    /// The default store of a task's last run; `user~name` or an id.
    LastRunOfTask(String),
}

impl RemoteRef {
    /// Explains, with the accepted forms, that a word which is no id of the platform's was looked
    /// up as one.
    pub fn mistaken_id(&self) -> Option<String> {
        match self {
            Self::Id(id) if !is_id(id) => Some(format!(
                "'{id}' was looked up as a store's id: write ~{id} for your own store of that name, or ./{id} for a folder\n{FORMS}"
            )),
            _ => None,
        }
    }
}

/// Why a text is no store reference. `Display` names the accepted forms; it shows no secrets.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReferenceError {
    /// No form fits.
    #[error("'{text}' is not a store reference{}\n{FORMS}", suggestion(text))]
    Unknown {
        /// What was typed.
        text: String,
    },
    /// A URL that names no store.
    #[error("the URL {url} names no store: {reason}\n{FORMS}")]
    Url {
        /// The URL without its query.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Several references that are not all record URLs.
    #[error("several STORE arguments must all be URLs of records, but '{text}' is not\n{FORMS}")]
    Several {
        /// The first that is no record URL, without its query.
        text: String,
    },
    /// No argument at all.
    #[error("no STORE given\n{FORMS}")]
    Missing,
}

/// Proposes what a text may have been meant as.
fn suggestion(text: &str) -> String {
    match text.strip_prefix("~/") {
        Some(path) => format!(": the shell did not expand ~; write \"$HOME/{path}\""),
        None => String::new(),
    }
}

impl StoreRef {
    /// Reads STORE; several arguments are several record URLs.
    ///
    /// # Errors
    /// The reason, with the accepted forms.
    pub fn parse(arguments: &[String]) -> Result<Self, ReferenceError> {
        match arguments {
            [] => Err(ReferenceError::Missing),
            [one] => one.parse(),
            several => {
                let mut urls = Vec::with_capacity(several.len());
                for text in several {
                    match text.parse() {
                        Ok(Self::Records(mut records)) => urls.append(&mut records),
                        Ok(_) => {
                            return Err(ReferenceError::Several {
                                text: without_query(text),
                            });
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(Self::Records(urls))
            }
        }
    }
}

impl FromStr for StoreRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || ReferenceError::Unknown {
            text: without_query(text),
        };
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        if scheme.is_some_and(|s| {
            ["http", "https", "file"]
                .iter()
                .any(|known| s.eq_ignore_ascii_case(known))
        }) {
            return from_url(text);
        }
        if let Some(address) = bucket_address(text) {
            return in_bucket(address?);
        }
        if is_local_path(text) {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        if let Some((word, rest)) = text.split_once(':') {
            let remote = match word {
                "run" if is_name(rest) => RemoteRef::Run(rest.to_owned()),
                "actor" => RemoteRef::LastRunOfActor(resource(rest).ok_or_else(unknown)?),
                "task" => RemoteRef::LastRunOfTask(resource(rest).ok_or_else(unknown)?),
                _ => return Err(unknown()),
            };
            return Ok(Self::Remote(remote));
        }
        // The platform's ids are 17 letters and digits; other servers have ids of their own.
        if is_name(text) {
            return Ok(Self::Remote(RemoteRef::Id(text.to_owned())));
        }
        named(text).map(Self::Remote).ok_or_else(unknown)
    }
}

impl fmt::Display for StoreRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(remote) => write!(f, "{remote}"),
            Self::Url { base, remote, .. } => write!(f, "{base}v2/{}", remote.api_path()),
            Self::Records(urls) => match urls.as_slice() {
                [] => f.write_str("no records"),
                [url] => f.write_str(&bare(url.expose())),
                [first, ..] => write!(
                    f,
                    "{} records of {}",
                    urls.len(),
                    first.expose().host_str().unwrap_or_default()
                ),
            },
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Bucket { address, store } => {
                write!(f, "{}/{store}", address.as_str().trim_end_matches('/'))
            }
        }
    }
}

impl RemoteRef {
    /// Returns the path of the store in the API, after `/v2/`; percent-encoded.
    pub fn api_path(&self) -> String {
        match self {
            Self::Id(id) => format!("key-value-stores/{id}"),
            Self::Named { user, name } => {
                let user = user.as_deref().unwrap_or_default();
                format!("key-value-stores/{user}~{name}")
            }
            Self::Run(id) => format!("actor-runs/{id}/key-value-store"),
            Self::LastRunOfActor(actor) => format!("actors/{actor}/runs/last/key-value-store"),
            Self::LastRunOfTask(task) => format!("actor-tasks/{task}/runs/last/key-value-store"),
        }
    }
}

impl fmt::Display for RemoteRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => f.write_str(id),
            Self::Named { user, name } => {
                write!(f, "{}~{name}", user.as_deref().unwrap_or_default())
            }
            Self::Run(id) => write!(f, "run:{id}"),
            Self::LastRunOfActor(actor) => write!(f, "actor:{actor}"),
            Self::LastRunOfTask(task) => write!(f, "task:{task}"),
        }
    }
}

fn is_local_path(text: &str) -> bool {
    text == "."
        || text == ".."
        || ["/", "./", "../"].iter().any(|p| text.starts_with(p))
        || (!text.starts_with('~')
            && !text.contains("://")
            && text.split('/').filter(|part| !part.is_empty()).count() >= 3)
}

/// Tells whether `text` can be an id or a name: a path segment that needs no encoding.
fn is_name(text: &str) -> bool {
    // Empty texts and rows of dots consist of dots only.
    !text.bytes().all(|b| b == b'.')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Reads `user~name`, `user/name` or `~name`.
fn named(text: &str) -> Option<RemoteRef> {
    let (user, name) = text
        .split_once('~')
        .or_else(|| text.split_once('/').filter(|(user, _)| !user.is_empty()))?;
    if !is_name(name) || !(user.is_empty() || is_name(user)) {
        return None;
    }
    Some(RemoteRef::Named {
        user: (!user.is_empty()).then(|| user.to_owned()),
        name: name.to_owned(),
    })
}

/// Reads an Actor or a task: an id, or a name as for stores.
fn resource(text: &str) -> Option<String> {
    if is_name(text) {
        return Some(text.to_owned());
    }
    named(text).map(|remote| remote.to_string())
}

/// Reads the address of a bucket, or of a part of one; `None` for what is none.
pub fn bucket_address(text: &str) -> Option<Result<Url, ReferenceError>> {
    let (scheme, _) = text.split_once("://")?;
    if !BUCKETS
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known))
    {
        return None;
    }
    let parsed = Url::parse(text);
    // Of what cannot be taken apart nothing is shown: it may hold credentials.
    let url = parsed.as_ref().map_or(format!("{scheme}://"), bare);
    let refuse = |reason| Some(Err(ReferenceError::Url { url, reason }));
    match parsed {
        Ok(url) if !url.has_host() => refuse("it names no bucket"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => refuse(
            "it must hold no credentials; the variables AWS_…, GOOGLE_… or AZURE_… tell of them",
        ),
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            refuse("nothing can follow the prefix")
        }
        Ok(url) => Some(Ok(url)),
        Err(_) => refuse("it is not a well-formed URL"),
    }
}

/// Takes the store off the end of an address.
fn in_bucket(mut address: Url) -> Result<StoreRef, ReferenceError> {
    let path = address.path().trim_matches('/').to_owned();
    let (prefix, store) = path.rsplit_once('/').unwrap_or(("", &path));
    if !is_name(store) {
        return Err(ReferenceError::Url {
            url: bare(&address),
            reason: "the name or id of a store must follow the bucket and the prefix",
        });
    }
    address.set_path(prefix);
    let store = store.to_owned();
    Ok(StoreRef::Bucket { address, store })
}

fn without_query(text: &str) -> String {
    text.split(['?', '#']).next().unwrap_or_default().to_owned()
}

fn from_url(text: &str) -> Result<StoreRef, ReferenceError> {
    let url = Url::parse(text).map_err(|_| ReferenceError::Url {
        url: without_query(text),
        reason: "it is not a well-formed URL",
    })?;
    let refuse = |reason| ReferenceError::Url {
        url: bare(&url),
        reason,
    };
    if url.scheme() == "file" {
        let path = url
            .to_file_path()
            .map_err(|()| refuse("a file URL must name a path on this machine"))?;
        // It could be neither handed to the daemon nor kept with what is pending.
        if path.to_str().is_none() {
            return Err(refuse("its path is not UTF-8"));
        }
        return Ok(StoreRef::Directory(path));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it must hold no user name or password"));
    }
    let mut signature = None;
    for (name, value) in url.query_pairs() {
        match &*name {
            "signature" if !value.is_empty() => signature = Some(Secret::new(value)),
            "token" => {
                return Err(refuse(
                    "it must hold no token; pass that as APIFY_TOKEN or with --token-file",
                ));
            }
            "prefix" => return Err(refuse("give its prefix with --prefix instead")),
            "collection" => return Err(refuse("give its collection with --collection instead")),
            _ => {}
        }
    }
    let segments: Vec<String> = url
        .path_segments()
        .into_iter()
        .flatten()
        .map(|segment| percent_decode_str(segment).decode_utf8().map(Into::into))
        .collect::<Result<_, _>>()
        .map_err(|_| refuse("its path is not UTF-8"))?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if url.host_str() == Some(CONSOLE_HOST) {
        return from_console(&segments)
            .map(StoreRef::Remote)
            .ok_or_else(|| {
                refuse("a Console address must be that of a key-value store or of a run")
            });
    }
    let (at, remote, rest) = segments
        .iter()
        .enumerate()
        .filter(|(_, segment)| **segment == "v2")
        .find_map(|(at, _)| {
            let (remote, rest) = from_api(&segments[at + 1..])?;
            Some((at, remote, rest))
        })
        .ok_or_else(|| refuse("an API address has /v2/key-value-stores/ID, or a run's key-value-store, in its path"))?;
    match rest {
        [] | [""] | ["keys"] | ["keys", ""] => {
            let mut base = url.clone();
            base.set_query(None);
            base.set_fragment(None);
            // The raw segments, so that the prefix keeps its spelling.
            let prefix: Vec<&str> = url.path_segments().into_iter().flatten().take(at).collect();
            let prefix: String = prefix.iter().map(|part| format!("{part}/")).collect();
            base.set_path(&prefix);
            Ok(StoreRef::Url {
                base,
                remote,
                signature,
            })
        }
        ["records", key] if !key.is_empty() => {
            let mut url = url.clone();
            url.set_fragment(None);
            Ok(StoreRef::Records(vec![SafeUrl::new(url)]))
        }
        _ => Err(refuse(
            "after the store only /keys or /records/KEY can follow",
        )),
    }
}

/// Reads the path after `/v2`: which store, and what follows it.
fn from_api<'a, 'b>(path: &'a [&'b str]) -> Option<(RemoteRef, &'a [&'b str])> {
    match path {
        ["key-value-stores", store, rest @ ..] => {
            let remote = if is_name(store) {
                RemoteRef::Id((*store).to_owned())
            } else {
                named(store)?
            };
            Some((remote, rest))
        }
        ["actor-runs", id, "key-value-store", rest @ ..] if is_name(id) => {
            Some((RemoteRef::Run((*id).to_owned()), rest))
        }
        [
            "acts" | "actors",
            actor,
            "runs",
            "last",
            "key-value-store",
            rest @ ..,
        ] => Some((RemoteRef::LastRunOfActor(resource(actor)?), rest)),
        [
            "actor-tasks",
            task,
            "runs",
            "last",
            "key-value-store",
            rest @ ..,
        ] => Some((RemoteRef::LastRunOfTask(resource(task)?), rest)),
        _ => None,
    }
}

/// Reads a path of the Console.
fn from_console(path: &[&str]) -> Option<RemoteRef> {
    let after = |word: &str| {
        let at = path.iter().position(|segment| *segment == word)?;
        path.get(at + 1)
            .filter(|id| is_name(id))
            .map(|id| (*id).to_owned())
    };
    after("key-value-stores")
        .or_else(|| after("key-value"))
        .map(RemoteRef::Id)
        .or_else(|| after("runs").map(RemoteRef::Run))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "WkzbQMuFYuamGv3YF";

    #[test]
    fn stores_in_buckets_follow_bucket_and_prefix() {
        for (text, bucket, name) in [
            ("s3://bucket/results", "s3://bucket", "results"),
            ("s3://bucket/a/b/results/", "s3://bucket/a/b", "results"),
            ("GS://bucket/results", "gs://bucket", "results"),
            ("az://container/p/x-1", "az://container/p", "x-1"),
        ] {
            let StoreRef::Bucket { address, store } = parse(text) else {
                panic!("{text}");
            };
            assert_eq!(address.as_str(), bucket, "{text}");
            assert_eq!(store, name, "{text}");
            let shown = StoreRef::Bucket { address, store };
            assert_eq!(parse(&shown.to_string()), shown);
        }
        for wrong in [
            "s3://bucket",
            "s3://bucket/",
            "s3:///results",
            "s3://user:password@bucket/x",
            "s3://bucket/x?y=z",
            "az://account@container/x",
        ] {
            let error = wrong.parse::<StoreRef>().expect_err(wrong).to_string();
            assert!(!error.contains("password@"), "{error}");
        }
    }

    fn parse(text: &str) -> StoreRef {
        text.parse().expect(text)
    }

    fn refused(text: &str) -> String {
        text.parse::<StoreRef>().expect_err(text).to_string()
    }

    fn id() -> RemoteRef {
        RemoteRef::Id(ID.into())
    }

    fn name(user: Option<&str>, name: &str) -> RemoteRef {
        RemoteRef::Named {
            user: user.map(str::to_owned),
            name: name.into(),
        }
    }

    #[test]
    fn words_name_stores_of_the_platform() {
        for (text, remote) in [
            (ID, id()),
            ("me~my-store", name(Some("me"), "my-store")),
            ("me/my-store", name(Some("me"), "my-store")),
            ("~my-store", name(None, "my-store")),
            (
                "run:HG7ML7M8z78YcAPEB",
                RemoteRef::Run("HG7ML7M8z78YcAPEB".into()),
            ),
            (
                "actor:apify~web-scraper",
                RemoteRef::LastRunOfActor("apify~web-scraper".into()),
            ),
            (
                "actor:apify/web-scraper",
                RemoteRef::LastRunOfActor("apify~web-scraper".into()),
            ),
            (
                "actor:moJRLRc85AitArpNN",
                RemoteRef::LastRunOfActor("moJRLRc85AitArpNN".into()),
            ),
            ("task:me~t", RemoteRef::LastRunOfTask("me~t".into())),
        ] {
            assert_eq!(parse(text), StoreRef::Remote(remote), "{text}");
        }
    }

    #[test]
    fn api_urls_name_a_server_and_a_store() {
        for (text, base, remote, signature) in [
            (
                "https://api.apify.com/v2/key-value-stores/WkzbQMuFYuamGv3YF",
                "https://api.apify.com/",
                id(),
                None,
            ),
            (
                "HTTP://127.0.0.1:8080/a/b/v2/key-value-stores/me%2Fs/keys/?limit=5&signature=MC4w%3D",
                "http://127.0.0.1:8080/a/b/",
                name(Some("me"), "s"),
                Some("MC4w="),
            ),
            (
                "https://h/v2/actor-runs/R1/key-value-store/keys",
                "https://h/",
                RemoteRef::Run("R1".into()),
                None,
            ),
            (
                "https://h/v2/acts/me~a/runs/last/key-value-store?token_type=x",
                "https://h/",
                RemoteRef::LastRunOfActor("me~a".into()),
                None,
            ),
            (
                "https://h/v2/actor-tasks/T/runs/last/key-value-store#top",
                "https://h/",
                RemoteRef::LastRunOfTask("T".into()),
                None,
            ),
        ] {
            let expected = StoreRef::Url {
                base: Url::parse(base).expect("a URL"),
                remote,
                signature: signature.map(Secret::new),
            };
            assert_eq!(parse(text), expected, "{text}");
            assert!(!parse(text).to_string().contains("MC4w"));
        }
    }

    #[test]
    fn console_urls_name_what_they_show() {
        for text in [
            "https://console.apify.com/storage/key-value-stores/WkzbQMuFYuamGv3YF",
            "https://console.apify.com/organization/X1/storage/key-value-stores/WkzbQMuFYuamGv3YF/settings?x=1#y",
        ] {
            assert_eq!(parse(text), StoreRef::Remote(id()), "{text}");
        }
        for text in [
            "https://console.apify.com/actors/A1/runs/R1#output",
            "https://console.apify.com/organization/O/actors/runs/R1",
            "https://console.apify.com/view/runs/R1",
        ] {
            assert_eq!(
                parse(text),
                StoreRef::Remote(RemoteRef::Run("R1".into())),
                "{text}"
            );
        }
        refused("https://console.apify.com/storage/datasets/WkzbQMuFYuamGv3YF");
    }

    #[test]
    fn record_urls_are_exactly_these_records() {
        let first = "https://h/v2/key-value-stores/me~s/records/a%2Fb?signature=s3cret";
        let second = "https://h/v2/actor-runs/R/key-value-store/records/OUTPUT";
        let StoreRef::Records(urls) =
            StoreRef::parse(&[first.into(), second.into()]).expect("records")
        else {
            panic!("not records");
        };
        assert_eq!(urls[0].expose().as_str(), first);
        assert_eq!(urls.len(), 2);
        assert_eq!(StoreRef::Records(urls).to_string(), "2 records of h");
        assert_eq!(
            parse(first).to_string(),
            "https://h/v2/key-value-stores/me~s/records/a%2Fb"
        );
        let error = StoreRef::parse(&[first.into(), ID.into()]).expect_err("mixed");
        assert!(error.to_string().contains(ID), "{error}");
        assert_eq!(StoreRef::parse(&[]), Err(ReferenceError::Missing));
    }

    #[test]
    fn paths_name_folders() {
        for text in [
            "/",
            "/a",
            "./a",
            "../a",
            ".",
            "..",
            "storage/key_value_stores/default",
        ] {
            assert_eq!(parse(text), StoreRef::Directory(text.into()));
        }
        assert_eq!(
            parse("file:///tmp/a%20b"),
            StoreRef::Directory("/tmp/a b".into())
        );
        assert!(refused("file:///tmp/%ff").contains("not UTF-8"));
    }

    #[test]
    fn a_bare_word_is_an_id_and_explained_when_the_platform_has_no_such() {
        let StoreRef::Remote(remote) = parse("my-store") else {
            panic!("not remote")
        };
        assert_eq!(remote, RemoteRef::Id("my-store".into()));
        let explained = remote.mistaken_id().expect("no id of the platform's");
        for part in ["~my-store", "./my-store", "run:ID", "Console"] {
            assert!(explained.contains(part), "{explained}");
        }
        assert_eq!(RemoteRef::Id(ID.into()).mistaken_id(), None);
    }

    #[test]
    fn what_fits_no_form_is_refused() {
        for text in [
            "",
            "a b",
            "~",
            "me~",
            "a~b~c",
            "run:",
            "actor:",
            "ftp://h/v2",
            "~/x/y/z",
        ] {
            refused(text);
        }
    }

    #[test]
    fn secrets_in_refused_urls_are_not_shown() {
        for text in [
            "https://h/v2/key-value-stores/a?token=s3cret",
            "https://u:s3cret@h/v2/key-value-stores/a",
            "https://h/v2/datasets/a?signature=s3cret",
            "https://h/v2/key-value-stores/a/records/a/b?signature=s3cret",
            "https://h:x/?signature=s3cret",
            "foo?signature=s3cret",
        ] {
            let error = refused(text);
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    fn words() -> impl Strategy<Value = String> {
        "[A-Za-z0-9][A-Za-z0-9_.-]{0,20}"
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_the_same(user in words(), name in words(), kind in 0..7) {
            let remote = match kind {
                0 => RemoteRef::Id(format!("{:0<17.17}", name.replace(['_', '.', '-'], "x"))),
                1 => RemoteRef::Named { user: None, name },
                2 => RemoteRef::Named { user: Some(user), name },
                3 => RemoteRef::Run(name),
                4 => RemoteRef::LastRunOfActor(format!("{user}~{name}")),
                5 => RemoteRef::LastRunOfActor(name),
                _ => RemoteRef::LastRunOfTask(format!("{user}~{name}")),
            };
            let reference = StoreRef::Remote(remote.clone());
            prop_assert_eq!(&parse(&reference.to_string()), &reference);
            let base = Url::parse("http://127.0.0.1:9/deep/").expect("a URL");
            let reference = StoreRef::Url { base, remote, signature: None };
            prop_assert_eq!(&parse(&reference.to_string()), &reference);
        }

        #[test]
        fn folders_read_back_the_same(path in "(/|\\./|\\.\\./)[a-z ~:?]{0,9}(/[a-z]{0,4}){0,3}") {
            prop_assert_eq!(parse(&path), StoreRef::Directory(path.clone().into()));
            prop_assert_eq!(parse(&path).to_string(), path);
        }

        #[test]
        fn nothing_that_is_typed_panics(text in ".{0,60}") {
            let _ = text.parse::<StoreRef>();
        }

        #[test]
        fn no_url_panics(rest in "[/a-z0-9~%?=&.:@#2v-]{0,50}") {
            let _ = format!("http://h/{rest}").parse::<StoreRef>();
            let _ = format!("http://{rest}").parse::<StoreRef>();
            let _ = format!("https://h/v2/key-value-stores/{rest}").parse::<StoreRef>();
        }
    }
}
