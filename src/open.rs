//! From what the user typed for STORE, and credentials, to a [`crate::store::Store`].

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::redact::Secret;
use crate::store::reference::StoreRef;

/// What to open, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpenConfig {
    /// What the user typed, parsed.
    pub reference: StoreRef,
    /// The API's base URL, `/v2` not included; `None` for the default, `https://api.apify.com`.
    pub api_url: Option<Url>,
    /// Where the token comes from.
    pub token: TokenSource,
    /// A keys signature given beside the reference.
    pub signature: Option<Secret>,
    /// For last-run references: only runs with this status (`SUCCEEDED`, ...).
    pub run_status: Option<String>,
    /// For last-run references: only runs started so (`API`, `WEB`, ...).
    pub run_origin: Option<String>,
    /// The longest wait for one attempt's headers, and between two chunks of a body.
    pub attempt_timeout: Duration,
    /// The longest that opening may take, retries included.
    pub deadline: Duration,
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
    /// What `apify login` left in `~/.apify/auth.json`, read again when it changes.
    CliLogin(PathBuf),
}
