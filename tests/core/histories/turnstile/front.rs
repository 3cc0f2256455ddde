//! The store and the clock as one mount sees them.

use super::*;

/// The store as one mount sees it.
#[derive(Debug)]
pub struct Front {
    pub turnstile: Arc<Turnstile>,
    pub mount: u32,
    /// Whether the server looks at preconditions.
    pub conditions: bool,
}

impl Store for Front {
    fn info(&self) -> StoreInfo {
        self.turnstile.memory.info()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        self.turnstile.memory.list_page(query, deadline)
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        let work = || self.turnstile.memory.head(key, deadline);
        self.turnstile
            .read(self.mount, Ask::Head, key, deadline, work)
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        let work = || self.turnstile.memory.get(key, request, deadline);
        self.turnstile
            .read(self.mount, Ask::Get, key, deadline, work)
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let mut request = request.clone();
        if !self.conditions {
            (request.if_match, request.if_absent) = (None, false);
        }
        let conditional = request.if_match.is_some() || request.if_absent;
        let work = || self.turnstile.memory.put(key, &request, body, deadline);
        self.turnstile
            .change(self.mount, Ask::Put, key, conditional, deadline, work)
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        let work = || self.turnstile.memory.delete(key, deadline);
        self.turnstile
            .change(self.mount, Ask::Delete, key, false, deadline, work)
    }
}

/// The system's clock, set forward.
#[derive(Clone, Debug, Default)]
pub struct Shifted(Arc<Mutex<Duration>>);

impl Shifted {
    pub fn shift(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

/// A clock at which steps wait as at the store.
#[derive(Debug)]
pub struct Pausing {
    pub clock: Shifted,
    pub turnstile: Arc<Turnstile>,
    pub mount: u32,
}

impl Clock for Pausing {
    fn now(&self) -> Instant {
        Instant::now() + *self.clock.0.lock()
    }

    fn asleep(&self) -> Duration {
        Duration::ZERO
    }

    fn wall(&self) -> SystemTime {
        self.turnstile.pause(self.mount, Ask::Clock);
        SystemTime::now() + *self.clock.0.lock()
    }
}

pub(super) fn by_of(step: Option<usize>) -> By {
    step.map_or(By::Uploads, By::Step)
}

pub(super) fn injected(kind: ErrorKind) -> StoreError {
    StoreError::new(kind, format!("injected: {kind:?}"))
}

pub(super) fn gone() -> StoreError {
    StoreError::new(ErrorKind::Network, "this mount was killed")
}
