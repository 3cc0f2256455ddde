//! Which pending upload is next: one lane for each key, in the order of closing. Pure: no file, no
//! store, no waiting.
//!
//! INVARIANT: of one key at most one upload runs, and none starts while somebody has a mark on its
//! lane. A lane that is neither marked nor running and has something queued is in exactly one of
//! `ready` and `delayed`; any other lane is in neither.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use crate::staging::entry::EntryId;
use crate::store::Key;

/// All lanes.
#[derive(Debug, Default)]
pub struct Lanes {
    lanes: HashMap<Key, Lane>,
    ready: VecDeque<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    queued: usize,
    running: usize,
}

#[derive(Debug, Default)]
struct Lane {
    queue: VecDeque<EntryId>,
    running: Option<EntryId>,
    edited: bool,
    held: bool,
    /// Not before this time.
    not_before: Option<Instant>,
    /// Failures of the first of the queue in a row.
    failures: u32,
    error: Option<String>,
}

/// Why nothing of a lane may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Somebody adds to it. Not while it is held.
    Add,
    /// Somebody needs it to stand still, and may wait for what runs. Not while it is held.
    Hold,
    /// What ran ends. Also while it is held.
    End,
}

/// What is to be seen of one upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// It waits for its turn.
    Waiting,
    /// It is being sent.
    Running,
    /// It has failed so often in a row, and will be tried again at that time.
    Retrying(u32, String, Option<Instant>),
}

impl Lanes {
    /// Returns how many uploads wait or run.
    pub fn len(&self) -> usize {
        self.queued + self.running
    }

    /// Tells whether nothing waits or runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether anything of `key` waits or runs.
    pub fn has(&self, key: &Key) -> bool {
        self.lanes
            .get(key)
            .is_some_and(|lane| lane.running.is_some() || !lane.queue.is_empty())
    }

    /// Returns what waits and runs of `key`, in order.
    pub fn ids(&self, key: &Key) -> Vec<EntryId> {
        self.lanes.get(key).map_or_else(Vec::new, |lane| {
            lane.running.iter().chain(&lane.queue).cloned().collect()
        })
    }

    /// Returns what waits of `key`, in order.
    pub fn waiting(&self, key: &Key) -> Vec<EntryId> {
        self.lanes
            .get(key)
            .map_or_else(Vec::new, |lane| lane.queue.iter().cloned().collect())
    }

    /// Returns what of `key` runs.
    pub fn running(&self, key: &Key) -> Option<&EntryId> {
        self.lanes.get(key)?.running.as_ref()
    }

    /// Returns the last error of an upload of `key` that is to be tried again.
    pub fn error(&self, key: &Key) -> Option<&str> {
        self.lanes.get(key)?.error.as_deref()
    }

    /// Returns the state of an upload that waits or runs.
    pub fn state(&self, key: &Key, id: &EntryId) -> Option<LaneState> {
        let lane = self.lanes.get(key)?;
        if lane.running.as_ref() == Some(id) {
            return Some(LaneState::Running);
        }
        let at = lane.queue.iter().position(|queued| queued == id)?;
        Some(match &lane.error {
            Some(error) if at == 0 => {
                LaneState::Retrying(lane.failures, error.clone(), lane.not_before)
            }
            _ => LaneState::Waiting,
        })
    }

    /// Marks the lane of `key`: nothing of it starts until [`Lanes::unmark`]. Returns false while
    /// somebody else has a mark on it that excludes this one.
    pub fn try_mark(&mut self, key: &Key, mark: Mark) -> bool {
        let excluded = |lane: &Lane| lane.edited || (lane.held && mark != Mark::End);
        if self.lanes.get(key).is_some_and(excluded) {
            return false;
        }
        self.unplan(key);
        let lane = self.lanes.entry(key.clone()).or_default();
        match mark {
            Mark::Add | Mark::End => lane.edited = true,
            Mark::Hold => lane.held = true,
        }
        true
    }

    /// Takes a mark away.
    pub fn unmark(&mut self, key: &Key, mark: Mark) {
        self.unplan(key);
        if let Some(lane) = self.lanes.get_mut(key) {
            match mark {
                Mark::Add | Mark::End => lane.edited = false,
                Mark::Hold => lane.held = false,
            }
        }
        self.plan(key);
    }

    /// Adds an upload at the end of the lane of `key`.
    pub fn push(&mut self, key: &Key, id: EntryId) {
        self.unplan(key);
        self.lanes
            .entry(key.clone())
            .or_default()
            .queue
            .push_back(id);
        self.queued += 1;
        self.plan(key);
    }

    /// Takes a waiting upload out; the caller has a mark on the lane.
    pub fn take(&mut self, key: &Key, id: &EntryId) {
        self.unplan(key);
        if let Some(lane) = self.lanes.get_mut(key)
            && let Some(at) = lane.queue.iter().position(|queued| queued == id)
        {
            lane.queue.remove(at);
            self.queued -= 1;
            if at == 0 {
                (lane.failures, lane.error, lane.not_before) = (0, None, None);
            }
        }
        self.plan(key);
    }

    /// Starts the next upload whose time has come.
    pub fn start(&mut self, now: Instant) -> Option<(Key, EntryId)> {
        while let Some((at, key)) = self.delayed.first().cloned() {
            if at > now {
                break;
            }
            self.delayed.pop_first();
            self.ready.push_back(key);
        }
        let key = self.ready.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        let id = lane.queue.pop_front()?;
        lane.running = Some(id.clone());
        self.queued -= 1;
        self.running += 1;
        Some((key, id))
    }

    /// Returns when the next delayed upload may start.
    pub fn next_start(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// Returns how many uploads could start at once.
    pub fn startable(&self) -> usize {
        self.ready.len()
    }

    /// Ends the running upload of `key`, for good.
    pub fn done(&mut self, key: &Key) {
        self.unplan(key);
        if let Some(lane) = self.lanes.get_mut(key)
            && lane.running.take().is_some()
        {
            self.running -= 1;
            (lane.failures, lane.error, lane.not_before) = (0, None, None);
        }
        self.plan(key);
    }

    /// Puts the running upload of `key` back to the front, to be tried again.
    pub fn retry(&mut self, key: &Key, not_before: Instant, error: String) {
        self.unplan(key);
        if let Some(lane) = self.lanes.get_mut(key)
            && let Some(id) = lane.running.take()
        {
            self.running -= 1;
            self.queued += 1;
            lane.queue.push_front(id);
            lane.failures = lane.failures.saturating_add(1);
            lane.error = Some(error);
            lane.not_before = Some(not_before);
        }
        self.plan(key);
    }

    /// Returns how often the running or first upload of `key` has failed in a row.
    pub fn failures(&self, key: &Key) -> u32 {
        self.lanes.get(key).map_or(0, |lane| lane.failures)
    }

    /// Lets `key`, or all keys, be tried again at once.
    pub fn hurry(&mut self, key: Option<&Key>) {
        // Also those that are marked at the moment, and not in the plan.
        let keys: Vec<Key> = match key {
            Some(key) => vec![key.clone()],
            None => self.lanes.keys().cloned().collect(),
        };
        for key in keys {
            self.unplan(&key);
            if let Some(lane) = self.lanes.get_mut(&key) {
                lane.not_before = None;
            }
            self.plan(&key);
        }
    }

    /// Takes a lane out of the plan, for a change.
    fn unplan(&mut self, key: &Key) {
        let Some(lane) = self.lanes.get(key) else {
            return;
        };
        if !lane.is_startable() {
            return;
        }
        if let Some(at) = lane.not_before
            && self.delayed.remove(&(at, key.clone()))
        {
            return;
        }
        self.ready.retain(|ready| ready != key);
    }

    /// Puts a lane into the plan again, or forgets it.
    fn plan(&mut self, key: &Key) {
        let Some(lane) = self.lanes.get(key) else {
            return;
        };
        if lane.is_startable() {
            match lane.not_before {
                Some(at) => {
                    self.delayed.insert((at, key.clone()));
                }
                None => self.ready.push_back(key.clone()),
            }
        } else if lane.queue.is_empty() && lane.running.is_none() && !lane.edited && !lane.held {
            self.lanes.remove(key);
        }
    }

    /// Panics unless the invariants hold. For tests.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        let queued: usize = self.lanes.values().map(|lane| lane.queue.len()).sum();
        let running = self.lanes.values().filter(|lane| lane.running.is_some());
        assert_eq!((queued, running.count()), (self.queued, self.running));
        for (key, lane) in &self.lanes {
            let ready = self.ready.iter().filter(|ready| *ready == key).count();
            let delayed = self
                .delayed
                .iter()
                .filter(|(_, delayed)| delayed == key)
                .count();
            assert_eq!(
                ready + delayed,
                usize::from(lane.is_startable()),
                "{key}: {lane:?}"
            );
            let sorted = lane.running.iter().chain(&lane.queue);
            assert!(
                sorted.count() > 0 || lane.edited || lane.held,
                "{key}: a useless lane"
            );
        }
        let planned = self
            .ready
            .iter()
            .chain(self.delayed.iter().map(|(_, key)| key));
        for key in planned {
            assert!(
                self.lanes.contains_key(key),
                "{key}: planned without a lane"
            );
        }
    }
}

impl Lane {
    fn is_startable(&self) -> bool {
        !self.queue.is_empty() && self.running.is_none() && !self.edited && !self.held
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Push(u8),
        Mark(u8, Mark),
        Unmark(u8, Mark),
        Take(u8),
        Start,
        Done(u8),
        Retry(u8, u64),
        Hurry(Option<u8>),
        Pass(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let key = || 0_u8..3;
        let mark = || prop_oneof![Just(Mark::Add), Just(Mark::Hold), Just(Mark::End)];
        prop_oneof![
            4 => key().prop_map(Op::Push),
            2 => (key(), mark()).prop_map(|(key, mark)| Op::Mark(key, mark)),
            3 => (key(), mark()).prop_map(|(key, mark)| Op::Unmark(key, mark)),
            1 => key().prop_map(Op::Take),
            4 => Just(Op::Start),
            3 => key().prop_map(Op::Done),
            2 => (key(), 0_u64..5).prop_map(|(key, after)| Op::Retry(key, after)),
            1 => proptest::option::of(key()).prop_map(Op::Hurry),
            1 => (0_u64..4).prop_map(Op::Pass),
        ]
    }

    fn key(n: u8) -> Key {
        Key::new(format!("k{n}")).expect("a key")
    }

    proptest! {
        /// Each key's uploads run one after the other in their order, whatever happens between,
        /// and none is forgotten.
        #[test]
        fn uploads_of_a_key_run_in_order_and_none_is_forgotten(ops in proptest::collection::vec(op(), 1..60)) {
            let mut lanes = Lanes::default();
            let mut now = Instant::now();
            let mut model: HashMap<u8, VecDeque<EntryId>> = HashMap::new();
            let mut running: HashSet<u8> = HashSet::new();
            let mut marks: Vec<(u8, Mark)> = Vec::new();
            for (n, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Push(k) => {
                        let id = EntryId::new(n as u64, 0);
                        lanes.push(&key(k), id.clone());
                        model.entry(k).or_default().push_back(id);
                    }
                    Op::Mark(k, mark) => {
                        let mut of_key = marks.iter().filter(|(marked, _)| *marked == k);
                        let free = of_key.all(|(_, other)| mark == Mark::End && *other == Mark::Hold);
                        prop_assert_eq!(lanes.try_mark(&key(k), mark), free);
                        if free {
                            marks.push((k, mark));
                        }
                    }
                    Op::Unmark(k, mark) => {
                        if let Some(at) = marks.iter().position(|found| *found == (k, mark)) {
                            marks.remove(at);
                            lanes.unmark(&key(k), mark);
                        }
                    }
                    Op::Take(k) => {
                        if marks.iter().any(|(marked, _)| *marked == k) && let Some(id) = lanes.waiting(&key(k)).first() {
                            lanes.take(&key(k), id);
                            if let Some(queue) = model.get_mut(&k) {
                                queue.retain(|queued| queued != id);
                            }
                        }
                    }
                    Op::Start => {
                        if let Some((started, id)) = lanes.start(now) {
                            let k = (0..3).find(|k| key(*k) == started).expect("known");
                            prop_assert!(running.insert(k), "two of one key");
                            prop_assert!(marks.iter().all(|(marked, _)| *marked != k));
                            prop_assert_eq!(model[&k].front(), Some(&id));
                            prop_assert_eq!(lanes.state(&started, &id), Some(LaneState::Running));
                        }
                    }
                    Op::Done(k) => {
                        if running.remove(&k) {
                            lanes.done(&key(k));
                            model.get_mut(&k).and_then(VecDeque::pop_front);
                        }
                    }
                    Op::Retry(k, after) => {
                        if running.remove(&k) {
                            lanes.retry(&key(k), now + Duration::from_secs(after), "e".into());
                        }
                    }
                    Op::Hurry(k) => lanes.hurry(k.map(key).as_ref()),
                    Op::Pass(seconds) => now += Duration::from_secs(seconds),
                }
                lanes.check_invariants();
                for k in 0..3 {
                    let expected: Vec<_> = model.get(&k).into_iter().flatten().cloned().collect();
                    prop_assert_eq!(lanes.ids(&key(k)), expected);
                }
            }
            for (k, mark) in marks {
                lanes.unmark(&key(k), mark);
            }
            for k in running {
                lanes.done(&key(k));
            }
            lanes.hurry(None);
            while let Some((key, _)) = lanes.start(now) {
                lanes.done(&key);
                lanes.check_invariants();
            }
            prop_assert!(lanes.is_empty() && lanes.lanes.is_empty());
        }
    }
}
