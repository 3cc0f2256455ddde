//! The clients' requests, the answers, and the servers that give them.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use object_store::ObjectStore;

/// What a client asks its server for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// A store of this name, as it is or new.
    Create(&'static str),
    /// Another name for the client's store.
    Rename(&'static str),
    Delete,
    Put,
    Get,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Told {
    /// This store, called so; whether it is new.
    Store(String, Option<String>, bool),
    Done,
    Taken,
    Missing,
    /// An error: whatever was asked for may be done or not.
    Unknown,
}

/// What happened, in the order in which it did.
#[derive(Clone, Debug, Hash)]
pub(super) enum Event {
    Asked(usize, Step, String),
    Told(usize, Step, String, Told),
}

impl Event {
    /// Returns the store that its client knows to be gone from here on.
    pub(super) fn deleted(&self) -> Option<&str> {
        match self {
            Self::Told(_, Step::Delete, id, Told::Done) => Some(id),
            _ => None,
        }
    }
}

/// What servers do: today's code, or another's.
pub(super) trait Protocol: Clone + 'static {
    fn over(store: Arc<dyn ObjectStore>) -> Self;
    /// The same, of a server that settles at once what others have left.
    fn settling(store: Arc<dyn ObjectStore>) -> Self;
    fn create(&self, name: &str, id: &str) -> impl Future<Output = Told>;
    fn rename(&self, id: &str, name: &str) -> impl Future<Output = Told>;
    fn delete(&self, id: &str) -> impl Future<Output = Told>;
    fn put(&self, id: &str, key: &str) -> impl Future<Output = Told>;
    fn get(&self, id: &str, key: &str) -> impl Future<Output = Told>;
    fn named(&self, name: &str) -> impl Future<Output = Option<String>>;
    /// Finishes what deletions have left.
    fn tidy(&self) -> impl Future<Output = ()>;
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    /// Done, but the answer is an error.
    Lost,
    /// Done, and repeated by the library, which then gets a failed condition.
    Repeated,
    /// Not done, and the answer is an error.
    Refused,
    /// Not done: the storage says that two writes met.
    Conflict,
    /// The answer is an error, and it is done at some later time.
    Late,
    /// The server dies before it asks, or before it hears.
    DiesBefore,
    DiesAfter,
}

pub(super) const EVERY_FATE: [Fate; 8] = [
    Fate::Answered,
    Fate::Lost,
    Fate::Repeated,
    Fate::Refused,
    Fate::Conflict,
    Fate::Late,
    Fate::DiesBefore,
    Fate::DiesAfter,
];

/// What is explored.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    /// The names of stores that are there, with the ids `S0`, `S1`, ...
    pub(super) given: &'static [&'static str],
    /// What each client does, through a server of its own. The first store that it works with is
    /// `S0`, then the one that it made.
    pub(super) clients: Vec<Vec<Step>>,
    pub(super) faults: usize,
    /// What may become of a request then.
    pub(super) fates: &'static [Fate],
    /// Whether servers settle at once what others are about to do.
    pub(super) hasty: bool,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            clients, faults, ..
        } = self;
        let hasty = if self.hasty { ", hasty" } else { "" };
        write!(f, "{clients:?} with {faults} faults{hasty}")
    }
}

/// What an exploration found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) states: usize,
    /// States in which nothing is under way any more.
    pub(super) ends: usize,
    /// What went wrong, each with a history that leads there.
    pub(super) violations: Vec<(String, String)>,
}
