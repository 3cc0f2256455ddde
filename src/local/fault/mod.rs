//! A store that fails on purpose, and counts its calls.
//!
//! It wraps any store. Locks are never held while the wrapped store works.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::base::clock::Deadline;
use crate::store::freshness::{Span, StoreState};
use crate::store::{
    ErrorKind, Fetched, FirstState, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest,
    RecordMeta, Result, Store, StoreError, StoreInfo, Upload,
};

mod body;

use body::FaultyBody;

/// One operation of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// [`Store::list_page`].
    List,
    /// [`Store::head`].
    Head,
    /// [`Store::get`].
    Get,
    /// [`Store::put`].
    Put,
    /// [`Store::delete`].
    Delete,
}

/// How a body ends too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// With an error of this kind, as a good store reports it.
    Error(ErrorKind),
    /// As if it were whole: what a store must never do and a cautious reader still notices.
    Silent,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The operation is not done.
    Fail(ErrorKind),
    /// The operation is done, and its answer lost.
    LoseAnswer(ErrorKind),
}

#[derive(Debug, Default)]
struct Plan {
    faults: VecDeque<Fault>,
    closed: bool,
    waiting: usize,
    calls: u64,
}

#[derive(Debug, Default)]
struct State {
    plans: [Plan; 5],
    cuts: VecDeque<(u64, Cut)>,
    body_gate: Option<u64>,
    bodies_waiting: usize,
    /// Bytes a second of each body.
    body_speed: Option<u64>,
    bodies_open: usize,
    most_bodies: usize,
    body_bytes: u64,
    conditional: u64,
    ranged: u64,
    ranged_bytes: u64,
    gets: Vec<Key>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

/// A store that fails, stalls and truncates as it is told. Clones share their plans.
#[derive(Debug, Clone)]
pub struct FaultStore {
    inner: Arc<dyn Store>,
    shared: Arc<Shared>,
}

impl FaultStore {
    /// Wraps `inner`; nothing fails until told to.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            shared: Arc::default(),
        }
    }

    /// Fails the next `n` calls with `kind`, without doing them.
    pub fn fail_next(&self, call: Call, n: usize, kind: ErrorKind) {
        self.plan(call, n, Fault::Fail(kind));
    }

    /// Does the next `n` calls and fails them all the same: the answer was lost on its way.
    pub fn lose_answers(&self, call: Call, n: usize, kind: ErrorKind) {
        self.plan(call, n, Fault::LoseAnswer(kind));
    }

    /// Forgets the failures planned for a call.
    pub fn clear_faults(&self, call: Call) {
        self.shared.state.lock().plans[call as usize].faults.clear();
    }

    /// Ends the bodies of the next `n` gets after `bytes` bytes.
    pub fn cut_next(&self, n: usize, bytes: u64, cut: Cut) {
        let mut state = self.shared.state.lock();
        state.cuts.extend(std::iter::repeat_n((bytes, cut), n));
    }

    /// Makes calls wait until [`FaultStore::release`], or for their deadline.
    pub fn block(&self, call: Call) {
        self.shared.state.lock().plans[call as usize].closed = true;
    }

    /// Lets waiting and later calls pass.
    pub fn release(&self, call: Call) {
        self.shared.state.lock().plans[call as usize].closed = false;
        self.shared.moved.notify_all();
    }

    /// Makes the bodies of gets wait after `bytes` bytes until [`FaultStore::release_bodies`].
    pub fn block_bodies(&self, bytes: u64) {
        self.shared.state.lock().body_gate = Some(bytes);
    }

    /// Lets waiting and later bodies pass.
    pub fn release_bodies(&self) {
        self.shared.state.lock().body_gate = None;
        self.shared.moved.notify_all();
    }

    /// Limits each body to this many bytes a second.
    pub fn slow_bodies(&self, bytes_per_second: u64) {
        self.shared.state.lock().body_speed = Some(bytes_per_second);
    }

    /// Returns the most bodies that were being read at the same time.
    pub fn most_bodies(&self) -> usize {
        self.shared.state.lock().most_bodies
    }

    /// Returns how many bytes of bodies have been read.
    pub fn body_bytes(&self) -> u64 {
        self.shared.state.lock().body_bytes
    }

    /// Waits until `n` calls are blocked at the gate; false when the deadline passed first.
    pub fn wait_blocked(&self, call: Call, n: usize, deadline: Deadline) -> bool {
        self.wait(deadline.instant(), |state| {
            state.plans[call as usize].waiting >= n
        })
    }

    /// Waits until `n` bodies are blocked at their gate; false when the deadline passed first.
    pub fn wait_bodies_blocked(&self, n: usize, deadline: Deadline) -> bool {
        self.wait(deadline.instant(), |state| state.bodies_waiting >= n)
    }

    /// Waits until `n` calls have been made in all; false when the deadline passed first.
    pub fn wait_calls(&self, call: Call, n: u64, deadline: Deadline) -> bool {
        self.wait(deadline.instant(), |state| {
            state.plans[call as usize].calls >= n
        })
    }

    /// Returns how often an operation was called, failures included.
    pub fn calls(&self, call: Call) -> u64 {
        self.shared.state.lock().plans[call as usize].calls
    }

    /// Returns how often anything was called.
    pub fn total_calls(&self) -> u64 {
        let state = self.shared.state.lock();
        state.plans.iter().map(|plan| plan.calls).sum()
    }

    /// Returns how many gets were conditional.
    pub fn conditional_gets(&self) -> u64 {
        self.shared.state.lock().conditional
    }

    /// Returns how many gets asked for a range.
    pub fn ranged_gets(&self) -> u64 {
        self.shared.state.lock().ranged
    }

    /// Returns how many bytes all those ranges have.
    pub fn ranged_bytes(&self) -> u64 {
        self.shared.state.lock().ranged_bytes
    }

    /// Returns the keys of all gets, in the order of their calls.
    pub fn keys_got(&self) -> Vec<Key> {
        self.shared.state.lock().gets.clone()
    }

    /// Forgets all counts; plans stay.
    pub fn reset_counts(&self) {
        let mut state = self.shared.state.lock();
        for plan in &mut state.plans {
            plan.calls = 0;
        }
        (state.conditional, state.ranged, state.ranged_bytes) = (0, 0, 0);
        state.gets.clear();
    }

    fn plan(&self, call: Call, n: usize, fault: Fault) {
        let mut state = self.shared.state.lock();
        state.plans[call as usize]
            .faults
            .extend(std::iter::repeat_n(fault, n));
    }

    fn wait(&self, until: Instant, reached: impl Fn(&State) -> bool) -> bool {
        let mut state = self.shared.state.lock();
        while !reached(&state) {
            if self.shared.moved.wait_until(&mut state, until).timed_out() {
                return reached(&state);
            }
        }
        true
    }

    /// Counts the call, waits at its gate, and takes the fault planned for it.
    fn enter(&self, call: Call, deadline: Deadline) -> Result<Option<Fault>> {
        let mut state = self.shared.state.lock();
        state.plans[call as usize].calls += 1;
        state.plans[call as usize].waiting += 1;
        self.shared.moved.notify_all();
        let mut late = false;
        while state.plans[call as usize].closed && !late {
            late = self
                .shared
                .moved
                .wait_until(&mut state, deadline.instant())
                .timed_out();
        }
        let plan = &mut state.plans[call as usize];
        plan.waiting -= 1;
        if late && plan.closed {
            return Err(injected(ErrorKind::Timeout));
        }
        match plan.faults.pop_front() {
            Some(Fault::Fail(kind)) => Err(injected(kind)),
            fault => Ok(fault),
        }
    }

    fn leave<T>(fault: Option<Fault>, answer: Result<T>) -> Result<T> {
        match fault {
            Some(Fault::Fail(kind) | Fault::LoseAnswer(kind)) => Err(injected(kind)),
            None => answer,
        }
    }
}

fn injected(kind: ErrorKind) -> StoreError {
    StoreError::new(kind, format!("injected failure: {kind:?}"))
}

impl Store for FaultStore {
    fn is_writable(&self) -> bool {
        self.inner.is_writable()
    }

    fn info(&self) -> StoreInfo {
        self.inner.info()
    }

    fn state(&self, deadline: Deadline) -> Result<Option<StoreState>> {
        self.inner.state(deadline)
    }

    fn first_state(&self) -> Option<FirstState> {
        self.inner.first_state()
    }

    fn server(&self) -> Option<String> {
        self.inner.server()
    }

    fn server_time(&self) -> Option<Span> {
        self.inner.server_time()
    }

    fn list_page(&self, query: &ListQuery, deadline: Deadline) -> Result<ListPage> {
        let fault = self.enter(Call::List, deadline)?;
        Self::leave(fault, self.inner.list_page(query, deadline))
    }

    fn answers_head(&self) -> bool {
        self.inner.answers_head()
    }

    fn head(&self, key: &Key, deadline: Deadline) -> Result<RecordMeta> {
        let fault = self
            .enter(Call::Head, deadline)
            .map_err(|error| error.with_key(key))?;
        Self::leave(fault, self.inner.head(key, deadline))
    }

    fn get(&self, key: &Key, request: &GetRequest, deadline: Deadline) -> Result<GetOutcome> {
        {
            let mut state = self.shared.state.lock();
            state.conditional +=
                u64::from(request.if_none_match.is_some() || request.if_match.is_some());
            state.ranged += u64::from(request.range.is_some());
            state.ranged_bytes += request
                .range
                .as_ref()
                .map_or(0, |range| range.end - range.start);
            state.gets.push(key.clone());
        }
        let fault = self
            .enter(Call::Get, deadline)
            .map_err(|error| error.with_key(key))?;
        let outcome = Self::leave(fault, self.inner.get(key, request, deadline))?;
        let GetOutcome::Found(fetched) = outcome else {
            return Ok(outcome);
        };
        let (cut, speed) = {
            let mut state = self.shared.state.lock();
            state.bodies_open += 1;
            state.most_bodies = state.most_bodies.max(state.bodies_open);
            (state.cuts.pop_front(), state.body_speed)
        };
        Ok(GetOutcome::Found(Fetched {
            is_delimited: fetched.is_delimited,
            body: Box::new(FaultyBody {
                inner: fetched.body,
                read: 0,
                cut,
                slow: speed.map(|speed| (speed, Instant::now())),
                shared: self.shared.clone(),
            }),
            ..fetched
        }))
    }

    fn put(
        &self,
        key: &Key,
        request: &PutRequest,
        body: Upload<'_>,
        deadline: Deadline,
    ) -> Result<RecordMeta> {
        let fault = self
            .enter(Call::Put, deadline)
            .map_err(|error| error.with_key(key))?;
        Self::leave(fault, self.inner.put(key, request, body, deadline))
    }

    fn delete(&self, key: &Key, deadline: Deadline) -> Result<()> {
        let fault = self
            .enter(Call::Delete, deadline)
            .map_err(|error| error.with_key(key))?;
        Self::leave(fault, self.inner.delete(key, deadline))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::time::Duration;

    use super::*;
    use crate::local::MemoryStore;
    use crate::store::Encoding;

    fn broken() -> (FaultStore, Key, Deadline) {
        let memory = MemoryStore::new();
        memory.insert("k", "text/plain", Encoding::Identity, "hello");
        let store = FaultStore::new(Arc::new(memory));
        let key = Key::new("k").expect("a key");
        (store, key, Deadline::after(Duration::from_secs(20)))
    }

    fn body(store: &FaultStore, key: &Key, deadline: Deadline) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match store.get(key, &GetRequest::default(), deadline)? {
            GetOutcome::Found(mut fetched) => fetched.body.read_to_end(&mut bytes)?,
            GetOutcome::NotModified => 0,
        };
        Ok(bytes)
    }

    #[test]
    fn the_next_calls_fail_and_later_ones_do_not() {
        let (store, key, deadline) = broken();
        store.fail_next(Call::Head, 2, ErrorKind::Server);
        for _ in 0..2 {
            let error = store.head(&key, deadline).expect_err("a failure");
            assert_eq!(error.kind(), ErrorKind::Server);
        }
        store.head(&key, deadline).expect("a success");
        assert_eq!(store.calls(Call::Head), 3);
    }

    #[test]
    fn a_lost_answer_leaves_the_deed_done() {
        let (store, key, deadline) = broken();
        store.lose_answers(Call::Delete, 1, ErrorKind::Network);
        store.delete(&key, deadline).expect_err("a lost answer");
        let error = store.head(&key, deadline).expect_err("a deleted record");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn bodies_end_early_loudly_or_silently() {
        let (store, key, deadline) = broken();
        store.cut_next(1, 2, Cut::Silent);
        store.cut_next(1, 2, Cut::Error(ErrorKind::Network));
        assert_eq!(body(&store, &key, deadline).expect("a short body"), b"he");
        body(&store, &key, deadline).expect_err("a broken body");
        assert_eq!(
            body(&store, &key, deadline).expect("a whole body"),
            b"hello"
        );
    }

    #[test]
    fn blocked_calls_wait_for_release_or_their_deadline() {
        let (store, key, deadline) = broken();
        store.block(Call::Get);
        let error = store
            .get(
                &key,
                &GetRequest::default(),
                Deadline::after(Duration::ZERO),
            )
            .expect_err("a timeout");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| body(&store, &key, deadline));
            assert!(store.wait_blocked(Call::Get, 1, deadline));
            store.release(Call::Get);
            let bytes = reader.join().expect("no panic").expect("a body");
            assert_eq!(bytes, b"hello");
        });
    }
}
