//! Store references: what the user typed for STORE, parsed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::redact::{SafeUrl, Secret};

/// What the user typed for STORE, parsed; nothing has been asked of any server yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StoreRef {
    /// A store on the platform.
    Remote(RemoteRef),
    /// A store on the server that the URL names.
    Url {
        /// The server's base URL, `/v2` not included.
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
    /// The default store of an Actor's last run.
    LastRunOfActor(String),
    /// The default store of a task's last run.
    LastRunOfTask(String),
}
