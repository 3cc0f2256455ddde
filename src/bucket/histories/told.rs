//! The clients' requests, the answers, and the servers that give them.

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

/// What is explored.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    /// The names of stores that are there, with the ids `S0`, `S1`, ...
    pub(super) given: &'static [&'static str],
    /// What each client does, through a server of its own. The first store that it works with is
    /// `S0`, then the one that it made.
    pub(super) clients: Vec<Vec<Step>>,
    pub(super) faults: usize,
    /// Whether servers settle at once what others are about to do.
    pub(super) hasty: bool,
}

/// What an exploration found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) states: usize,
    pub(super) histories: usize,
    /// What went wrong, each with a history that leads there.
    pub(super) violations: Vec<(String, String)>,
}
