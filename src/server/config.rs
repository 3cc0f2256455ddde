//! What a server is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::folders::metadata::derived_id;
use crate::redact::Secret;

/// What a server serves, to whom, and how.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen; port 0 for any free port.
    pub listen: SocketAddr,
    /// A storage folder (one with `key_value_stores` in it, or empty) or the folder of a single
    /// store. It is created on demand only as far as stores are.
    pub root: PathBuf,
    /// The owner's token. Without one every caller is the owner.
    pub token: Option<Secret>,
    /// The server's own account: that of the stores that do not say otherwise, and of all runs.
    pub owner: User,
    /// Other accounts, with stores of their own.
    pub other_users: Vec<(User, Secret)>,
    /// Who may read stores that do not say otherwise themselves.
    pub general_access: GeneralAccess,
    /// Whether puts, deletes and changes of stores are refused (403).
    pub read_only: bool,
    /// Runs whose default stores can be asked for.
    pub runs: Vec<RunEntry>,
    /// From what the signing keys of stores are derived. `None`: from the token, else at random
    /// for each server, so that signed links end with it.
    pub signing_secret: Option<Secret>,
    /// The base of public URLs, `/v2` not included; `None` for what the request's `Host` says.
    pub public_url: Option<String>,
    /// Deviations, for tests.
    pub knobs: Knobs,
}

impl ServerConfig {
    /// Serves `root` on a free port of the loopback interface to everybody there.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            root: root.into(),
            token: None,
            owner: User::default(),
            other_users: Vec::new(),
            general_access: GeneralAccess::default(),
            read_only: false,
            runs: Vec::new(),
            signing_secret: None,
            public_url: None,
            knobs: Knobs::default(),
        }
    }
}

impl ServerConfig {
    /// Returns all accounts.
    pub(super) fn users(&self) -> impl Iterator<Item = &User> {
        std::iter::once(&self.owner).chain(self.other_users.iter().map(|(user, _)| user))
    }
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// 17 letters and digits.
    pub id: String,
    /// The name, as in `username~store`.
    pub username: String,
}

impl User {
    /// Returns the account of this name; its id follows from the name.
    pub fn named(username: &str) -> Self {
        Self {
            id: derived_id(&format!("user {}", username.to_ascii_lowercase())),
            username: username.to_owned(),
        }
    }

    /// Tells whether a reference means this account, by id or name.
    pub(super) fn is_called(&self, reference: &str) -> bool {
        reference.eq_ignore_ascii_case(&self.username) || reference.eq_ignore_ascii_case(&self.id)
    }
}

impl Default for User {
    fn default() -> Self {
        Self {
            id: "kvfsLocalAccount1".to_owned(),
            username: "local".to_owned(),
        }
    }
}

/// Who may read a store without being its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GeneralAccess {
    /// Nobody, but for signatures.
    #[default]
    Restricted,
    /// Whoever knows the id.
    AnyoneWithIdCanRead,
    /// Whoever knows id or name.
    AnyoneWithNameCanRead,
    /// As the account's setting is: here, [`ServerConfig::general_access`].
    FollowUserSetting,
}

/// A run whose default store can be asked for.
#[derive(Clone, Debug, Default)]
pub struct RunEntry {
    /// The run's id.
    pub id: String,
    /// The Actor's id.
    pub actor_id: String,
    /// The Actor's name, asked for as `username~name`.
    pub actor_name: Option<String>,
    /// The task's id, if a task started it.
    pub task_id: Option<String>,
    /// The task's name.
    pub task_name: Option<String>,
    /// `SUCCEEDED`, `RUNNING`, ...
    pub status: String,
    /// `API`, `WEB`, ...
    pub origin: String,
    /// Id or name of the run's default store.
    pub store: String,
}

/// How a server deviates from its best behaviour, to test its clients.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Whether records carry `ETag` and `Last-Modified`, and preconditions are honoured.
    pub etags: bool,
    /// Whether `Range` is honoured.
    pub ranges: bool,
    /// Whether records carry `Content-Length`; otherwise they come chunked.
    pub content_length: bool,
    /// The wait before each answer.
    pub latency: Duration,
    /// Requests a second for each store before 429; `None` for no limit.
    pub rate_limit: Option<u32>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            etags: true,
            ranges: true,
            content_length: true,
            latency: Duration::ZERO,
            rate_limit: None,
        }
    }
}
