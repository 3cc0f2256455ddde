//! The store at which every request waits until the run says what becomes of it, and the list of
//! all that happened to its records.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use kvfs::base::clock::{Clock, Deadline};
use kvfs::local::memory::MemoryStore;
use kvfs::store::{
    ErrorKind, GetOutcome, GetRequest, Key, ListPage, ListQuery, PutRequest, RecordMeta, Result,
    Store, StoreError, StoreInfo, Upload,
};
use parking_lot::{Condvar, Mutex};

mod front;

pub use front::{Front, Pausing, Shifted};
use front::{by_of, gone, injected};

thread_local! {
    /// The step that this thread makes, if it makes one.
    static STEP: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Says which step the current thread makes.
pub fn set_step(step: Option<usize>) {
    STEP.set(step);
}

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    List,
    Head,
    Get,
    Put,
    Delete,
    /// Not a request: the step looks at the clock, which is where another step may come in between.
    Clock,
    /// Not a request: the step is about to close or sync, which is when the disk may be full.
    Disk,
}

impl Ask {
    /// Returns whether it changes a record.
    pub fn changes(self) -> bool {
        matches!(self, Self::Put | Self::Delete)
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Answer,
    /// It is not done.
    Fail(ErrorKind),
    /// It is done, and its answer is lost.
    Lose(ErrorKind),
    /// It is done, and its answer comes too late for a mount that is killed.
    Stall,
}

/// A request that waits.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "for those who read what clashed")]
pub struct Call {
    pub id: u64,
    pub ask: Ask,
    pub key: Option<Key>,
    /// Whether it names a version, or asks that there is none.
    pub conditional: bool,
    /// The step whose thread makes it; `None` for one that an upload in the background makes.
    pub step: Option<usize>,
    /// The run has seen it and lets it wait.
    pub held: bool,
    /// When it came.
    pub at: u64,
    pub mount: u32,
}

/// Who changed a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Step(usize),
    Uploads,
    Recover,
    /// Another client.
    Other,
}

/// A change of a record.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "for those who read what happened")]
pub struct Effect {
    pub at: u64,
    pub key: Key,
    /// What it is now; `None`: deleted.
    pub content: Option<Bytes>,
    pub before: Option<Bytes>,
    pub by: By,
    /// When the request came that did it.
    pub asked: u64,
    /// When a read of the same key by the same step was last answered before.
    pub looked: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    verdicts: HashMap<u64, Verdict>,
    next: u64,
    now: u64,
    /// Requests pass at once.
    open: bool,
    recovering: bool,
    clock_points: bool,
    /// Mounts with lower numbers were killed.
    first_living: u32,
    effects: Vec<Effect>,
    /// Mounts and steps.
    finished: Vec<(u32, usize)>,
    /// How many changes were made, or refused by the records' versions.
    judged: usize,
    /// Two changes of one key that were under way at the same time.
    clashes: Vec<String>,
    looks: HashMap<(usize, Key), u64>,
}

/// Where all requests of all mounts of a run come by.
#[derive(Debug)]
pub struct Turnstile {
    pub memory: Arc<MemoryStore>,
    state: Mutex<State>,
    stirred: Condvar,
    decided: Condvar,
}

/// What the run is woken by.
#[derive(Debug)]
pub enum Stir {
    Call(Call),
    /// On that mount, that step.
    Finished(u32, usize),
    Nothing,
}

impl Turnstile {
    pub fn new(memory: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            memory,
            state: Mutex::default(),
            stirred: Condvar::new(),
            decided: Condvar::new(),
        })
    }

    /// Returns the next moment.
    pub fn tick(&self) -> u64 {
        let mut state = self.state.lock();
        state.now += 1;
        state.now
    }

    /// Forgets all that happened.
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.effects.clear();
        state.finished.clear();
        state.clashes.clear();
        state.looks.clear();
        state.now = 0;
    }

    pub fn set_open(&self, open: bool) {
        let mut state = self.state.lock();
        state.open = open;
        if open {
            let waiting: Vec<u64> = state.calls.iter().map(|call| call.id).collect();
            for id in waiting {
                state.verdicts.entry(id).or_insert(Verdict::Answer);
            }
        }
        drop(state);
        self.decided.notify_all();
    }

    pub fn set_recovering(&self, recovering: bool) {
        self.state.lock().recovering = recovering;
    }

    pub fn set_clock_points(&self, on: bool) {
        self.state.lock().clock_points = on;
    }

    /// Lets nothing that older mounts ask for have an effect any more.
    pub fn bury(&self, first_living: u32) {
        self.state.lock().first_living = first_living;
        self.decided.notify_all();
    }

    /// Waits for a request that the run has not seen, or the end of a step.
    pub fn next(&self, patience: Duration) -> Stir {
        let mut state = self.state.lock();
        let until = Instant::now() + patience;
        loop {
            if let Some((mount, step)) = state.finished.pop() {
                return Stir::Finished(mount, step);
            }
            let fresh = state.calls.iter_mut().find(|call| !call.held);
            if let Some(call) = fresh {
                call.held = true;
                return Stir::Call(call.clone());
            }
            if self.stirred.wait_until(&mut state, until).timed_out() {
                return Stir::Nothing;
            }
        }
    }

    /// Decides a request.
    pub fn decide(&self, id: u64, verdict: Verdict) {
        self.state.lock().verdicts.insert(id, verdict);
        self.decided.notify_all();
    }

    /// Says that a step has ended.
    pub fn finish(&self, mount: u32, step: usize) {
        self.state.lock().finished.push((mount, step));
        self.stirred.notify_all();
    }

    /// Returns how many changes were made, or refused by the records' versions.
    pub fn judged(&self) -> usize {
        self.state.lock().judged
    }

    pub fn effects(&self) -> Vec<Effect> {
        self.state.lock().effects.clone()
    }

    pub fn clashes(&self) -> Vec<String> {
        self.state.lock().clashes.clone()
    }

    /// Stores or deletes a record as another client does.
    pub fn other(&self, key: &Key, content: &[u8]) {
        let mut state = self.state.lock();
        let before = self.memory.bytes(key.as_str());
        self.memory.insert(
            key.as_str(),
            "text/plain",
            Default::default(),
            content.to_vec(),
        );
        let asked = state.now + 1;
        note(
            &mut state,
            key,
            Some(content.to_vec().into()),
            before,
            By::Other,
            asked,
        );
    }

    /// Takes a record out of the store when its run is over.
    pub fn remove(&self, key: &Key) {
        let _ = self
            .memory
            .delete(key, Deadline::after(Duration::from_secs(60)));
    }

    /// Lets a thread wait as at a request.
    pub fn pause(&self, mount: u32, ask: Ask) {
        let Some(step) = STEP.get() else { return };
        let state = self.state.lock();
        if state.open || (ask == Ask::Clock && !state.clock_points) {
            return;
        }
        drop(state);
        let deadline = Deadline::after(Duration::from_secs(60));
        let _ = self.enter(mount, Some(step), ask, None, false, deadline);
    }

    /// Waits for the verdict; returns it with when the request came, and its number.
    fn enter(
        &self,
        mount: u32,
        step: Option<usize>,
        ask: Ask,
        key: Option<&Key>,
        conditional: bool,
        deadline: Deadline,
    ) -> Result<(Verdict, u64, u64)> {
        let mut state = self.state.lock();
        state.now += 1;
        let at = state.now;
        if mount < state.first_living {
            return Err(gone());
        }
        if ask.changes() {
            let other = state
                .calls
                .iter()
                .find(|call| call.ask.changes() && call.key.as_ref() == key && call.mount == mount);
            let clash = other.map(|call| format!("{call:?}, and {ask:?} by {step:?} at {at}"));
            state.clashes.extend(clash);
        }
        if state.open || ask == Ask::List || (step.is_none() && !ask.changes()) {
            return Ok((Verdict::Answer, at, 0));
        }
        state.next += 1;
        let id = state.next;
        state.calls.push(Call {
            id,
            ask,
            key: key.cloned(),
            conditional,
            step,
            held: false,
            at,
            mount,
        });
        self.stirred.notify_all();
        let verdict = loop {
            if mount < state.first_living {
                break Err(gone());
            }
            if let Some(verdict) = state.verdicts.remove(&id) {
                break Ok((verdict, at, id));
            }
            let late = self.decided.wait_until(&mut state, deadline.instant());
            if late.timed_out() {
                break Err(StoreError::new(
                    ErrorKind::Timeout,
                    "the run held it too long",
                ));
            }
        };
        if !ask.changes() {
            state.calls.retain(|call| call.id != id);
        }
        verdict.inspect_err(|_| state.calls.retain(|call| call.id != id))
    }

    /// Does what changes a record, and says what follows.
    fn change<T>(
        &self,
        mount: u32,
        ask: Ask,
        key: &Key,
        conditional: bool,
        deadline: Deadline,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let step = STEP.get();
        let (verdict, asked, id) =
            self.enter(mount, step, ask, Some(key), conditional, deadline)?;
        let mut state = self.state.lock();
        state.calls.retain(|call| call.id != id);
        if let Verdict::Fail(kind) = verdict {
            return Err(injected(kind));
        }
        let before = self.memory.bytes(key.as_str());
        let done = work();
        state.judged += 1;
        if verdict == Verdict::Stall {
            // What became of it the mount never learns.
            if done.is_ok() {
                let content = self.memory.bytes(key.as_str());
                note(&mut state, key, content, before, by_of(step), asked);
            }
            while mount >= state.first_living {
                self.decided.wait(&mut state);
            }
            return Err(gone());
        }
        let done = done?;
        let content = self.memory.bytes(key.as_str());
        let by = match step {
            _ if state.recovering => By::Recover,
            step => by_of(step),
        };
        if ask == Ask::Put || before.is_some() {
            note(&mut state, key, content, before, by, asked);
        }
        match verdict {
            Verdict::Lose(kind) => Err(injected(kind)),
            _ => Ok(done),
        }
    }

    fn read<T>(
        &self,
        mount: u32,
        ask: Ask,
        key: &Key,
        deadline: Deadline,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let step = STEP.get();
        match self.enter(mount, step, ask, Some(key), false, deadline)?.0 {
            Verdict::Answer => {
                let answer = work();
                if let Some(step) = step {
                    let mut state = self.state.lock();
                    state.now += 1;
                    let now = state.now;
                    state.looks.insert((step, key.clone()), now);
                }
                answer
            }
            Verdict::Fail(kind) | Verdict::Lose(kind) => Err(injected(kind)),
            Verdict::Stall => Err(gone()),
        }
    }
}

fn note(
    state: &mut State,
    key: &Key,
    content: Option<Bytes>,
    before: Option<Bytes>,
    by: By,
    asked: u64,
) {
    state.now += 1;
    let looked = match by {
        By::Step(step) => state.looks.get(&(step, key.clone())).copied(),
        _ => None,
    };
    let effect = Effect {
        at: state.now,
        key: key.clone(),
        content,
        before,
        by,
        asked,
        looked,
    };
    state.effects.push(effect);
}
