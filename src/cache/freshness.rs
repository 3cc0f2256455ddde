//! Decides by the store's clock which contents are current, where records have no validators.
//!
//! One question about the store, at most one in a TTL, answers for all contents. It is not asked for
//! one small record alone: asking for that record itself costs the same, and says more. Its verdicts
//! are checked now and then: a small record is fetched and compared.
//!
//! Lock order: a record's slot, then the state here. Nothing is locked while a question is asked.

use std::fs;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lru::LruCache;

use crate::base::clock::{Clock, Deadline};
use crate::base::sync::{Condvar, Mutex};
use crate::disk::temp;
use crate::store::freshness::{self, Remembered, Span, StoreClock, Trust};
use crate::store::{Key, Store};

/// A larger record is not fetched instead of asking about the store, nor to check the clock.
pub(super) const SMALL: u64 = 64 << 10;
/// How long the store is not asked about after that has failed: perhaps the token may not.
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// The clock is not checked more often.
const CHECK_EVERY: Duration = Duration::from_secs(60);
/// Of this many trusted small contents, one is fetched and compared.
const CHECKED_OF: u8 = 8;
/// Records that were forgotten or stored, of which the time is remembered.
const MOST_FLOORS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);
/// Own writes of which the time is remembered until their contents are taken in.
const MOST_WRITTEN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// When a question was asked, by this machine's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(super) at: Instant,
    wall: SystemTime,
}

/// What to do about a content that is older than the TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// It is current: the store was asked about then.
    Current(Instant),
    /// Ask for the record.
    Fetch,
}

/// Which of a store's contents are trusted, and why.
#[derive(Debug)]
pub struct Freshness {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    ttl: Option<Duration>,
    /// The files that remember this store's clock, and whether the server's is trusted at all.
    files: Option<(PathBuf, PathBuf)>,
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug)]
struct State {
    /// Whether the clock may be used at all.
    is_on: bool,
    store: StoreClock,
    /// When the question was asked that the current answer belongs to.
    asked: Option<Instant>,
    is_asking: bool,
    failed: Option<Instant>,
    /// The record that was fetched instead of asking.
    alone: Option<(Key, Instant)>,
    /// When a content was last compared; how many more are trusted before the next comparison.
    checked: Option<Instant>,
    until_check: u8,
    /// What was read before is not trusted: everything was forgotten then, or this record was forgotten
    /// or stored.
    floor: Span,
    floors: LruCache<Key, Span>,
    /// When this mount last stored these records.
    written: LruCache<Key, SystemTime>,
    saved: Option<Remembered>,
    is_told: bool,
}

impl State {
    fn is_outdated(&self, key: &Key, read: SystemTime) -> bool {
        read < self.floor_of(key).latest
    }

    fn floor_of(&self, key: &Key) -> Span {
        let own = self
            .floors
            .peek(key)
            .filter(|own| own.latest > self.floor.latest);
        own.copied().unwrap_or(self.floor)
    }
}

impl Freshness {
    /// Returns what is known of the store's clock, which may be late by `lag`; `None` never asks it.
    pub(super) fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        ttl: Option<Duration>,
        lag: Option<Duration>,
        files: Option<(PathBuf, PathBuf)>,
    ) -> Arc<Self> {
        let first = store.first_state();
        let read = |path: &PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        let before: Option<Remembered> = files
            .as_ref()
            .and_then(|(own, server)| read(server).or_else(|| read(own)));
        let is_on = lag.is_some() && first.is_some() && ttl.is_some_and(|ttl| !ttl.is_zero());
        let mut state = State {
            is_on,
            store: StoreClock::new(lag.unwrap_or_default(), before),
            asked: None,
            is_asking: false,
            failed: None,
            alone: None,
            checked: None,
            until_check: fastrand::u8(1..=CHECKED_OF),
            floor: Span::around(SystemTime::UNIX_EPOCH, Duration::ZERO),
            floors: LruCache::new(MOST_FLOORS),
            written: LruCache::new(MOST_WRITTEN),
            saved: None,
            is_told: false,
        };
        if let Some(first) = first.filter(|_| is_on)
            && state.store.answered(first.span, &first.state)
        {
            let ago = first.asked.elapsed();
            state.asked = clock.now().checked_sub(ago);
        }
        Arc::new(Self {
            store,
            clock,
            ttl,
            files,
            state: Mutex::new(state),
            answered: Condvar::new(),
        })
    }

    /// Notes that a question is about to be asked.
    pub(crate) fn question(&self) -> Question {
        Question {
            at: self.clock.now(),
            wall: self.clock.wall(),
        }
    }

    /// Returns when a question was asked by the server's clock, once its answer is there.
    pub(crate) fn moment(&self, question: &Question) -> Span {
        let wall = self.clock.wall();
        let waited = self.clock.now().saturating_duration_since(question.at);
        // The monotonic clock stands while the machine is suspended.
        let passed = wall.duration_since(question.wall).unwrap_or_default();
        freshness::moment(self.store.server_time(), waited.max(passed), wall)
    }

    /// Returns when the store last said that what was read at `read` is current, if that is not
    /// longer ago than the TTL; makes no request.
    pub(super) fn vouched(&self, read: Option<SystemTime>) -> Option<Instant> {
        let state = self.state.lock();
        let asked = state.asked.filter(|at| state.is_on && self.is_fresh(*at))?;
        self.vouches(&state, read?).then_some(asked)
    }

    /// Returns whether the store's clock proves what was read at `read`; not if that is yet to come:
    /// its time is wrong.
    fn vouches(&self, state: &State, read: SystemTime) -> bool {
        let now = freshness::moment(self.store.server_time(), Duration::ZERO, self.clock.wall());
        read <= now.latest && read >= state.floor.latest && state.store.vouches(read)
    }

    /// Trusts nothing any more that was read before now, of these records or of all: neither what is
    /// cached, nor what is on its way, here or in another mount that shares the cache folder.
    pub(super) fn forget(&self, keys: Option<&[Key]>) {
        let now = freshness::moment(self.store.server_time(), Duration::ZERO, self.clock.wall());
        let mut state = self.state.lock();
        match keys.filter(|keys| keys.len() < MOST_FLOORS.get() / 4) {
            None => state.floor = now,
            Some(keys) => {
                for key in keys {
                    state.floors.put(key.clone(), now);
                }
            }
        }
    }

    /// Returns whether a record may have been forgotten or stored since some mount read it at `read`.
    pub(super) fn is_outdated(&self, key: &Key, read: Option<SystemTime>) -> bool {
        read.is_some_and(|read| self.state.lock().is_outdated(key, read))
    }

    /// Returns whether a record was forgotten or stored since this mount read it at `read`: what is as
    /// vague of both times is the same.
    pub(super) fn is_overtaken(&self, key: &Key, read: Option<SystemTime>) -> bool {
        let state = self.state.lock();
        let floor = state.floor_of(key).earliest;
        read.is_some_and(|read| read < floor)
    }

    fn is_fresh(&self, at: Instant) -> bool {
        let age = self.clock.now().saturating_duration_since(at);
        self.ttl.is_none_or(|ttl| age < ttl)
    }

    /// Decides what to do about a content of `size` bytes that is older than the TTL and was read
    /// at `read`; asks about the store if that is worth it.
    pub(super) fn advise(
        &self,
        key: &Key,
        read: SystemTime,
        size: Option<u64>,
        deadline: Deadline,
    ) -> Advice {
        let is_small = size.is_some_and(|size| size <= SMALL);
        let mut state = self.state.lock();
        if state.is_outdated(key, read) {
            return Advice::Fetch;
        }
        loop {
            if !state.is_on || matches!(state.store.trust(), Trust::Lost(_)) {
                return Advice::Fetch;
            }
            let now = self.clock.now();
            if let Some(asked) = state.asked.filter(|at| self.is_fresh(*at)) {
                if !self.vouches(&state, read) {
                    return Advice::Fetch;
                }
                return Advice::Current(asked);
            }
            let recently = |at: Instant| now.saturating_duration_since(at) < AFTER_FAILURE;
            if state.failed.is_some_and(recently) {
                return Advice::Fetch;
            }
            let alone = state.alone.as_ref();
            let others = alone.is_some_and(|(alone, at)| alone != key && self.is_fresh(*at));
            if is_small && !others {
                state.alone = Some((key.clone(), now));
                return Advice::Fetch;
            }
            if !state.is_asking {
                state.is_asking = true;
                break;
            }
            if deadline.remaining().is_none() {
                return Advice::Fetch;
            }
            self.answered.wait_until(&mut state, deadline.instant());
        }
        drop(state);
        self.ask(deadline);
        match self.vouched(Some(read)) {
            Some(asked) => Advice::Current(asked),
            None => Advice::Fetch,
        }
    }

    /// Returns whether to fetch a small record instead of asking about more than it; not if another
    /// was within the TTL.
    pub(super) fn goes_alone(&self, key: &Key) -> bool {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let alone = state.alone.as_ref();
        let others = alone.is_some_and(|(alone, at)| alone != key && self.is_fresh(*at));
        if !others {
            state.alone = Some((key.clone(), now));
        }
        !others
    }

    /// Asks about the store. `is_asking` has been set for it.
    fn ask(&self, deadline: Deadline) {
        let asking = Asking(self);
        let question = self.question();
        let answer = self.store.state(deadline);
        let span = self.moment(&question);
        let mut state = self.state.lock();
        match answer {
            Ok(Some(answer)) => {
                state.alone = None;
                state.failed = None;
                if state.store.answered(span, &answer) {
                    state.asked = Some(question.at);
                }
            }
            Ok(None) => state.is_on = false,
            Err(error) => {
                tracing::debug!("cannot ask about the store: {error}; asking for each record");
                state.failed = Some(question.at);
            }
        }
        drop(state);
        drop(asking);
        self.tell();
    }

    /// Returns whether to fetch and compare the small content that is about to be trusted.
    pub(super) fn is_check_due(&self) -> bool {
        let now = self.clock.now();
        let mut state = self.state.lock();
        let recently = |at: Instant| now.saturating_duration_since(at) < CHECK_EVERY;
        if state.checked.is_some_and(recently) {
            return false;
        }
        state.until_check -= 1;
        let is_due = state.until_check == 0;
        if is_due {
            state.checked = Some(now);
            state.until_check = fastrand::u8(1..=CHECKED_OF);
        }
        is_due
    }

    /// Notes that what was read at `old` has been seen to be another by now.
    pub(super) fn changed(&self, old: SystemTime) {
        let now = freshness::moment(self.store.server_time(), Duration::ZERO, self.clock.wall());
        let mut state = self.state.lock();
        if state.is_on {
            state.store.saw_change(old, now.latest);
        }
    }

    /// Notes an own write that was asked for then; `is_vague` if it may not have happened.
    pub(super) fn wrote(&self, key: &Key, question: &Question, is_vague: bool) {
        let span = self.moment(question);
        let mut state = self.state.lock();
        state
            .floors
            .put(key.clone(), Span::around(span.earliest, Duration::ZERO));
        if state.is_on {
            state.store.wrote(span, is_vague);
            state.written.put(key.clone(), span.earliest);
        }
    }

    /// Returns when this mount last stored a record.
    pub(super) fn written(&self, key: &Key) -> Option<SystemTime> {
        self.state.lock().written.pop(key)
    }

    /// Says and keeps what has been learnt of the clock; not on a thread that answers the kernel.
    fn tell(&self) {
        let mut state = self.state.lock();
        let remembered = state.store.remembered();
        let lost = match state.store.trust() {
            Trust::Lost(why) if !state.is_told => Some(why.clone()),
            _ => None,
        };
        state.is_told |= lost.is_some();
        if state.saved.as_ref() == Some(&remembered) && lost.is_none() {
            return;
        }
        state.saved = Some(remembered.clone());
        drop(state);
        if let Some(why) = &lost {
            tracing::warn!(
                "the server's time of a store's last change is not trusted any more: {why}; \
                 from now on each record is asked for. If it is only late, mount with a longer --clock-lag"
            );
        }
        let Some((own, server)) = &self.files else {
            return;
        };
        let path = if lost.is_some() { server } else { own };
        let kept = serde_json::to_vec(&remembered)
            .map_err(std::io::Error::from)
            .and_then(|text| {
                let dir = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
                let mut file = temp::create(dir)?;
                file.write_all(&text)?;
                file.persist(path).map_err(|error| error.error)
            });
        if let Err(error) = kept {
            tracing::debug!("cannot keep {}: {error}", path.display());
        }
    }

    /// Returns its part of `kvfs status`.
    pub fn status(&self) -> serde_json::Value {
        let state = self.state.lock();
        let (held_by, why) = match state.store.trust() {
            _ if self.ttl.is_none() => ("nothing, as the store never changes", None),
            _ if !state.is_on => ("each record", None),
            Trust::Lost(why) => ("each record", Some(why.clone())),
            Trust::Unproven => (
                "each record",
                Some("the store's modifiedAt has not been seen to move".to_owned()),
            ),
            Trust::Earned if state.store.is_doubted() => (
                "each record",
                Some("a change did not move the store's modifiedAt".to_owned()),
            ),
            Trust::Earned => ("the store's modifiedAt", None),
        };
        serde_json::json!({
            "by": held_by,
            "why": why,
            "lag_s": state.is_on.then(|| state.store.lag().as_secs_f64()),
        })
    }
}

/// Ends a question on every way out, and wakes the threads that wait for its answer.
struct Asking<'a>(&'a Freshness);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_asking = false;
        self.0.answered.notify_all();
    }
}
