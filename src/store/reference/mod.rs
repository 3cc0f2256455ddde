//! Store references: what the user typed for STORE, parsed.
//!
//! Parsing is pure: no file is looked at and no server asked. `Display` shows a reference in a
//! form that parses to the same reference, less any signature.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::Url;

use crate::base::redact::{SafeUrl, Secret, bare};
use crate::base::text::line;

mod address;
mod bucket;
mod forms;
#[cfg(test)]
mod tests;

pub use bucket::bucket_address;
use forms::is_id;

/// What a person can type for STORE.
const FORMS: &str = "\
accepted forms:
  a store's id                 WkzbQMuFYuamGv3YF
  a store's name               user~name, user/name, or ~name for your own
  a run's default store        run:ID, actor:user~name, task:user~name (the last run)
  a link                       an API or Console URL of a store, its keys, a record, or a run
  a local folder               /path, ./path, ../path, a/b/c
  a store in a bucket          s3://bucket/prefix/NAME, gs://..., az://... (as kvfs serve made it)";

/// What the user typed for STORE, parsed; no server has been asked yet.
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
    #[error("'{}' is not a store reference{}\n{FORMS}", line(text), line(&suggestion(text)))]
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
