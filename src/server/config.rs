//! The server's configuration.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::faults::FaultRule;
use super::folders::metadata::{derived_id, is_id};
use super::profile::Platform;
use crate::base::redact::Secret;
use crate::store::codec::DecoderMemory;

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
    /// The accounts that may read stores which do not say otherwise.
    pub general_access: GeneralAccess,
    /// Whether puts, deletes and changes of stores are refused (403).
    pub read_only: bool,
    /// Runs with default stores.
    pub runs: Vec<RunEntry>,
    /// From what the signing keys of stores are derived. `None`: from a random secret that is kept
    /// with the stores.
    pub signing_secret: Option<Secret>,
    /// A folder of this user, where that secret is kept if `root` may not be written to.
    pub state: Option<PathBuf>,
    /// The base of public URLs, `/v2` not included; `None` for what the request's `Host` says.
    pub public_url: Option<String>,
    /// Deviations, for tests.
    pub knobs: Knobs,
    /// Answers as the platform's; `None` for the server's own, kinder ones.
    pub platform: Option<Platform>,
    /// How much the server takes.
    pub limits: Limits,
}

impl ServerConfig {
    /// Serves `root` on a free port of the loopback interface to every program there.
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
            state: None,
            public_url: None,
            knobs: Knobs::default(),
            platform: None,
            limits: Limits::default(),
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

    /// Returns whether a reference means this account, by id or name.
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

/// The accounts that may read a store without owning it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GeneralAccess {
    /// None, but for signatures.
    #[default]
    Restricted,
    /// All that know the id.
    AnyoneWithIdCanRead,
    /// All that know id or name.
    AnyoneWithNameCanRead,
    /// As the account's setting is: here, [`ServerConfig::general_access`].
    FollowUserSetting,
}

/// A run with its default store.
#[derive(Clone, Debug, Default)]
pub struct RunEntry {
    /// The run's id.
    pub id: String,
    /// The Actor's id.
    pub actor_id: String,
    /// The Actor's name, asked for as `username~name`; it may include the user.
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

impl FromStr for RunEntry {
    type Err = String;

    /// Reads `ID=STORE[,actor=ACTOR][,task=TASK][,status=STATUS][,origin=ORIGIN]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: String| {
            format!(
                "{why}: write RUN-ID=STORE[,actor=ID-OR-NAME][,task=ID-OR-NAME][,status=SUCCEEDED]\
                 [,origin=API]"
            )
        };
        let mut parts = text.split(',').map(str::trim);
        let first = parts.next().unwrap_or_default();
        let (id, store) = first
            .split_once('=')
            .filter(|(id, store)| !id.is_empty() && !store.is_empty())
            .ok_or_else(|| wrong(format!("'{first}' does not say which run has which store")))?;
        let mut run = Self {
            id: id.to_owned(),
            store: store.trim_start_matches('~').to_owned(),
            actor_id: derived_id("actor"),
            status: "SUCCEEDED".to_owned(),
            origin: "API".to_owned(),
            ..Self::default()
        };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let upper = || value.to_ascii_uppercase();
            // Ids are told from names by their shape.
            let called = |kind: &str| match is_id(value) {
                true => (value.to_owned(), None),
                false => (
                    derived_id(&format!("{kind} {value}")),
                    Some(value.to_owned()),
                ),
            };
            match name {
                _ if value.is_empty() => return Err(wrong(format!("'{part}' says nothing"))),
                "actor" => (run.actor_id, run.actor_name) = called(name),
                "task" => {
                    let (id, name) = called(name);
                    (run.task_id, run.task_name) = (Some(id), name);
                }
                "status" => run.status = upper(),
                "origin" => run.origin = upper(),
                _ => return Err(wrong(format!("'{name}' is unknown"))),
            }
        }
        Ok(run)
    }
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
    /// Bytes a second for all connections together, both directions; `None` for no limit.
    pub bandwidth: Option<u64>,
    /// What goes wrong.
    pub faults: Vec<FaultRule>,
}

/// How much a server takes before it refuses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's head.
    pub head: usize,
    /// Bytes of a record, as sent; `None` for as much as the disk holds.
    pub record: Option<u64>,
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// How long a client may be silent, or not read what it asked for.
    pub idle: Duration,
    /// Bytes that all decoders of answers may take.
    pub decoders: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: 64 << 10,
            record: None,
            connections: 1000,
            idle: Duration::from_secs(120),
            decoders: DecoderMemory::most(),
        }
    }
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            etags: true,
            ranges: true,
            content_length: true,
            latency: Duration::ZERO,
            rate_limit: None,
            bandwidth: None,
            faults: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_from_the_command_line() {
        let run: RunEntry = "R1=~my-store,actor=my-actor,task=Task1234567890123,status=running"
            .parse()
            .expect("a run");
        assert_eq!((&*run.id, &*run.store), ("R1", "my-store"));
        assert_eq!(run.actor_name.as_deref(), Some("my-actor"));
        assert_eq!(run.task_id.as_deref(), Some("Task1234567890123"));
        assert_eq!((&*run.status, &*run.origin), ("RUNNING", "API"));
        for wrong in ["", "R1", "=s", "R1=s,actor", "R1=s,actor=", "R1=s,x=y"] {
            let error = wrong.parse::<RunEntry>().expect_err(wrong);
            assert!(error.contains("RUN-ID=STORE"), "{error}");
        }
    }
}
