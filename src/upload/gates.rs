//! Decides which change of a key may run, and which of its pending uploads is next. Pure: no file, no
//! store, no waiting.
//!
//! Every key that anything happens to has a gate. One change of the key at a time is inside: an
//! upload, or a change of names (a deletion, a rename, a record stored again as another type). Behind
//! the gate is the queue of what was journalled, in the order of closing; its first enters when no
//! other change is inside or wants to be.
//!
//! A gate can also be latched, for as long as its queue and the journal are changed together: that
//! takes no longer than the local disk, and happens while a change is inside, too.
//!
//! INVARIANT: at most one change of a key is inside. A gate with a queue that no change is inside
//! of, wants to enter or has latched is in exactly one of `ready` and `delayed`; any other gate is
//! in neither.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use crate::staging::entry::EntryId;
use crate::store::Key;

/// All gates.
#[derive(Debug, Default)]
pub struct Gates {
    gates: HashMap<Key, Gate>,
    ready: VecDeque<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    queued: usize,
    running: usize,
    /// Changes of names that are inside.
    renaming: usize,
}

#[derive(Debug, Default)]
struct Gate {
    queue: VecDeque<EntryId>,
    inside: Option<Inside>,
    /// How many wait to enter; the queue lets them pass.
    wanted: u32,
    latched: bool,
    /// Nothing of the queue enters before this time.
    not_before: Option<Instant>,
    /// Failures of the first of the queue in a row.
    failures: u32,
    error: Option<String>,
}

#[derive(Debug)]
enum Inside {
    /// The first of the queue is being sent.
    Queued(EntryId),
    /// A change that does not come from the queue.
    Other(Change),
}

/// The kind of change of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stores its bytes.
    Upload,
    /// Deletes it, gives it to another file or stores it as something else: until the outcome is
    /// known, opens that would change it wait.
    Name,
}

/// The visible state of one upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for its turn.
    Waiting,
    /// It is being sent.
    Running,
    /// It has failed so often in a row, and will be tried again at that time.
    Retrying(u32, String, Option<Instant>),
}

impl Gates {
    /// Returns how many uploads are queued or being sent.
    pub fn len(&self) -> usize {
        self.queued + self.running
    }

    /// Returns whether no upload is queued or being sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether any upload of `key` is queued or being sent.
    pub fn has(&self, key: &Key) -> bool {
        let gate = self.gates.get(key);
        gate.is_some_and(|gate| gate.running().is_some() || !gate.queue.is_empty())
    }

    /// Returns what is queued and being sent of `key`, in order.
    #[cfg(feature = "testing")]
    pub fn ids(&self, key: &Key) -> Vec<EntryId> {
        self.gates.get(key).map_or_else(Vec::new, |gate| {
            gate.running()
                .into_iter()
                .chain(&gate.queue)
                .cloned()
                .collect()
        })
    }

    /// Returns what is queued of `key`, in order.
    pub fn waiting(&self, key: &Key) -> Vec<EntryId> {
        self.gates
            .get(key)
            .map_or_else(Vec::new, |gate| gate.queue.iter().cloned().collect())
    }

    /// Returns what of the queue of `key` is being sent.
    pub fn running(&self, key: &Key) -> Option<&EntryId> {
        self.gates.get(key)?.running()
    }

    /// Returns the last error of an upload of `key` that is to be tried again.
    pub fn error(&self, key: &Key) -> Option<&str> {
        self.gates.get(key)?.error.as_deref()
    }

    /// Returns the state of an upload that is queued or being sent.
    pub fn progress(&self, key: &Key, id: &EntryId) -> Option<Progress> {
        let gate = self.gates.get(key)?;
        if gate.running() == Some(id) {
            return Some(Progress::Running);
        }
        let at = gate.queue.iter().position(|queued| queued == id)?;
        Some(match &gate.error {
            Some(error) if at == 0 => {
                Progress::Retrying(gate.failures, error.clone(), gate.not_before)
            }
            _ => Progress::Waiting,
        })
    }

    /// Returns whether a name of `key` is changing.
    pub fn is_renaming(&self, key: &Key) -> bool {
        self.renaming > 0
            && self
                .gates
                .get(key)
                .is_some_and(|gate| matches!(gate.inside, Some(Inside::Other(Change::Name))))
    }

    /// Enters the gate of `key`, unless it is occupied.
    pub fn try_enter(&mut self, key: &Key, change: Change) -> bool {
        if self
            .gates
            .get(key)
            .is_some_and(|gate| gate.inside.is_some())
        {
            return false;
        }
        self.change(key, |gate| gate.inside = Some(Inside::Other(change)));
        self.renaming += usize::from(change == Change::Name);
        true
    }

    /// Leaves the gate of `key`, which [`Gates::try_enter`] has let in.
    pub fn leave(&mut self, key: &Key) {
        let mut renaming = 0;
        self.change(key, |gate| {
            if let Some(Inside::Other(change)) = &gate.inside {
                renaming = usize::from(*change == Change::Name);
                gate.inside = None;
            }
        });
        self.renaming -= renaming;
    }

    /// Notes that one more, or one less, waits to enter: nothing of the queue enters before.
    pub fn want(&mut self, key: &Key, more: bool) {
        self.change(key, |gate| match more {
            true => gate.wanted += 1,
            false => gate.wanted = gate.wanted.saturating_sub(1),
        });
    }

    /// Latches the gate of `key`, unless it is latched: nothing of the queue enters until
    /// [`Gates::unlatch`].
    pub fn try_latch(&mut self, key: &Key) -> bool {
        if self.gates.get(key).is_some_and(|gate| gate.latched) {
            return false;
        }
        self.change(key, |gate| gate.latched = true);
        true
    }

    /// Takes the latch off.
    pub fn unlatch(&mut self, key: &Key) {
        self.change(key, |gate| gate.latched = false);
    }

    /// Queues an upload of `key`, in the order of closing; the queue waits until `not_before`, unless
    /// it waits for another try already.
    pub fn push(&mut self, key: &Key, id: EntryId, not_before: Option<Instant>) {
        self.change(key, |gate| {
            let at = gate.queue.partition_point(|queued| *queued < id);
            gate.queue.insert(at, id);
            if gate.failures == 0 {
                gate.not_before = not_before;
            }
        });
        self.queued += 1;
    }

    /// Takes a queued upload out; the caller has latched the gate.
    pub fn take(&mut self, key: &Key, id: &EntryId) {
        let mut taken = 0;
        self.change(key, |gate| {
            if let Some(at) = gate.queue.iter().position(|queued| queued == id) {
                gate.queue.remove(at);
                taken = 1;
                if at == 0 {
                    gate.begin_afresh();
                }
            }
        });
        self.queued -= taken;
    }

    /// Lets the next due upload enter.
    pub fn start(&mut self, now: Instant) -> Option<(Key, EntryId)> {
        while let Some((at, key)) = self.delayed.first().cloned() {
            if at > now {
                break;
            }
            self.delayed.pop_first();
            self.ready.push_back(key);
        }
        let key = self.ready.pop_front()?;
        let gate = self.gates.get_mut(&key)?;
        let id = gate.queue.pop_front()?;
        gate.inside = Some(Inside::Queued(id.clone()));
        self.queued -= 1;
        self.running += 1;
        Some((key, id))
    }

    /// Lets this upload enter, if it is the next of its key and nothing is in its way.
    pub fn start_this(&mut self, key: &Key, id: &EntryId) -> bool {
        let startable = self
            .gates
            .get(key)
            .is_some_and(|gate| gate.is_startable() && gate.queue.front() == Some(id));
        if startable {
            self.change(key, |gate| {
                gate.queue.pop_front();
                gate.inside = Some(Inside::Queued(id.clone()));
            });
            self.queued -= 1;
            self.running += 1;
        }
        startable
    }

    /// Returns when the next delayed upload may start.
    pub fn next_start(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// Returns how many uploads could start at once.
    pub fn startable(&self) -> usize {
        self.ready.len()
    }

    /// Ends the upload of `key` that is being sent, for good.
    pub fn done(&mut self, key: &Key) {
        let mut ended = 0;
        self.change(key, |gate| {
            if gate.running().is_some() {
                gate.inside = None;
                ended = 1;
                gate.begin_afresh();
            }
        });
        self.running -= ended;
    }

    /// Puts the upload of `key` that is being sent back to the front, to be tried again.
    pub fn retry(&mut self, key: &Key, not_before: Instant, error: String) {
        let mut ended = 0;
        self.change(key, |gate| {
            if let Some(id) = gate.running().cloned() {
                gate.inside = None;
                ended = 1;
                gate.queue.push_front(id);
                gate.failures = gate.failures.saturating_add(1);
                gate.error = Some(error);
                gate.not_before = Some(not_before);
            }
        });
        self.running -= ended;
        self.queued += ended;
    }

    /// Returns how often the running or first upload of `key` has failed in a row.
    pub fn failures(&self, key: &Key) -> u32 {
        self.gates.get(key).map_or(0, |gate| gate.failures)
    }

    /// Lets what is queued of `key`, or of all keys, be sent at once.
    pub fn hurry(&mut self, key: Option<&Key>) {
        // Also occupied ones, which are not in the plan.
        let keys: Vec<Key> = match key {
            Some(key) => vec![key.clone()],
            None => self.gates.keys().cloned().collect(),
        };
        for key in keys {
            self.change(&key, |gate| gate.not_before = None);
        }
    }

    /// Changes a gate, and the plan with it.
    fn change(&mut self, key: &Key, change: impl FnOnce(&mut Gate)) {
        self.unplan(key);
        change(self.gates.entry(key.clone()).or_default());
        self.plan(key);
    }

    /// Takes a gate out of the plan, for a change.
    fn unplan(&mut self, key: &Key) {
        let Some(gate) = self.gates.get(key) else {
            return;
        };
        if !gate.is_startable() {
            return;
        }
        if let Some(at) = gate.not_before
            && self.delayed.remove(&(at, key.clone()))
        {
            return;
        }
        self.ready.retain(|ready| ready != key);
    }

    /// Puts a gate into the plan again, or forgets it.
    fn plan(&mut self, key: &Key) {
        let Some(gate) = self.gates.get(key) else {
            return;
        };
        if gate.is_startable() {
            match gate.not_before {
                Some(at) => {
                    self.delayed.insert((at, key.clone()));
                }
                None => self.ready.push_back(key.clone()),
            }
        } else if gate.is_useless() {
            self.gates.remove(key);
        }
    }

    /// Panics unless the invariants hold. For tests.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        let queued: usize = self.gates.values().map(|gate| gate.queue.len()).sum();
        let running = self.gates.values().filter(|gate| gate.running().is_some());
        assert_eq!((queued, running.count()), (self.queued, self.running));
        let renaming = self.gates.keys().filter(|key| self.is_renaming(key));
        assert_eq!(renaming.count(), self.renaming);
        for (key, gate) in &self.gates {
            let ready = self.ready.iter().filter(|ready| *ready == key).count();
            let delayed = self
                .delayed
                .iter()
                .filter(|(_, delayed)| delayed == key)
                .count();
            assert_eq!(
                ready + delayed,
                usize::from(gate.is_startable()),
                "{key}: {gate:?}"
            );
            assert!(!gate.is_useless(), "{key}: a useless gate");
        }
        let planned = self
            .ready
            .iter()
            .chain(self.delayed.iter().map(|(_, key)| key));
        for key in planned {
            assert!(
                self.gates.contains_key(key),
                "{key}: planned without a gate"
            );
        }
    }
}

impl Gate {
    fn running(&self) -> Option<&EntryId> {
        match &self.inside {
            Some(Inside::Queued(id)) => Some(id),
            _ => None,
        }
    }

    fn begin_afresh(&mut self) {
        (self.failures, self.error, self.not_before) = (0, None, None);
    }

    fn is_startable(&self) -> bool {
        !self.queue.is_empty() && self.inside.is_none() && self.wanted == 0 && !self.latched
    }

    fn is_useless(&self) -> bool {
        self.queue.is_empty() && self.inside.is_none() && self.wanted == 0 && !self.latched
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
        Push(u8, Option<u64>),
        Enter(u8, Change),
        Leave(u8),
        Want(u8, bool),
        Latch(u8),
        Unlatch(u8),
        Take(u8),
        Start,
        Done(u8),
        Retry(u8, u64),
        Hurry(Option<u8>),
        Pass(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        let key = || 0_u8..3;
        let change = || prop_oneof![Just(Change::Upload), Just(Change::Name)];
        prop_oneof![
            4 => (key(), proptest::option::of(0_u64..5)).prop_map(|(key, at)| Op::Push(key, at)),
            2 => (key(), change()).prop_map(|(key, change)| Op::Enter(key, change)),
            3 => key().prop_map(Op::Leave),
            2 => (key(), any::<bool>()).prop_map(|(key, more)| Op::Want(key, more)),
            1 => key().prop_map(Op::Latch),
            2 => key().prop_map(Op::Unlatch),
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
        /// One change of a key at a time is inside, uploads of the queue enter in their order, and
        /// none is forgotten, whatever happens between.
        #[test]
        fn one_change_of_a_key_at_a_time_is_inside_and_no_upload_is_forgotten(
            ops in proptest::collection::vec(op(), 1..60),
        ) {
            let mut gates = Gates::default();
            let mut now = Instant::now();
            let mut model: HashMap<u8, VecDeque<EntryId>> = HashMap::new();
            let (mut running, mut latched) = (HashSet::new(), HashSet::new());
            let mut inside: HashMap<u8, Change> = HashMap::new();
            let mut wanted: HashMap<u8, u32> = HashMap::new();
            for (n, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Push(k, after) => {
                        let id = EntryId::new(n as u64, 0);
                        let at = after.map(|after| now + Duration::from_secs(after));
                        gates.push(&key(k), id.clone(), at);
                        model.entry(k).or_default().push_back(id);
                    }
                    Op::Enter(k, change) => {
                        let free = !running.contains(&k) && !inside.contains_key(&k);
                        prop_assert_eq!(gates.try_enter(&key(k), change), free);
                        if free {
                            inside.insert(k, change);
                        }
                    }
                    Op::Leave(k) => {
                        if inside.remove(&k).is_some() {
                            gates.leave(&key(k));
                        }
                    }
                    Op::Want(k, more) => {
                        let count = wanted.entry(k).or_default();
                        if more || *count > 0 {
                            *count = if more { *count + 1 } else { *count - 1 };
                            gates.want(&key(k), more);
                        }
                    }
                    Op::Latch(k) => {
                        prop_assert_eq!(gates.try_latch(&key(k)), latched.insert(k));
                    }
                    Op::Unlatch(k) => {
                        if latched.remove(&k) {
                            gates.unlatch(&key(k));
                        }
                    }
                    Op::Take(k) => {
                        if latched.contains(&k) && let Some(id) = gates.waiting(&key(k)).first() {
                            gates.take(&key(k), id);
                            if let Some(queue) = model.get_mut(&k) {
                                queue.retain(|queued| queued != id);
                            }
                        }
                    }
                    Op::Start => {
                        if let Some((started, id)) = gates.start(now) {
                            let k = (0..3).find(|k| key(*k) == started).expect("known");
                            prop_assert!(running.insert(k), "two of one key");
                            prop_assert!(!inside.contains_key(&k) && !latched.contains(&k));
                            prop_assert!(wanted.get(&k).is_none_or(|count| *count == 0));
                            prop_assert_eq!(model[&k].front(), Some(&id));
                            prop_assert_eq!(gates.progress(&started, &id), Some(Progress::Running));
                        }
                    }
                    Op::Done(k) => {
                        if running.remove(&k) {
                            gates.done(&key(k));
                            model.get_mut(&k).and_then(VecDeque::pop_front);
                        }
                    }
                    Op::Retry(k, after) => {
                        if running.remove(&k) {
                            gates.retry(&key(k), now + Duration::from_secs(after), "e".into());
                        }
                    }
                    Op::Hurry(k) => gates.hurry(k.map(key).as_ref()),
                    Op::Pass(seconds) => now += Duration::from_secs(seconds),
                }
                gates.check_invariants();
                for k in 0..3 {
                    let expected: Vec<_> = model.get(&k).into_iter().flatten().cloned().collect();
                    prop_assert_eq!(gates.ids(&key(k)), expected);
                    let renaming = inside.get(&k) == Some(&Change::Name);
                    prop_assert_eq!(gates.is_renaming(&key(k)), renaming);
                }
            }
            for k in inside.into_keys() {
                gates.leave(&key(k));
            }
            for (k, count) in wanted {
                (0..count).for_each(|_| gates.want(&key(k), false));
            }
            for k in latched {
                gates.unlatch(&key(k));
            }
            for k in running {
                gates.done(&key(k));
            }
            gates.hurry(None);
            while let Some((key, _)) = gates.start(now) {
                gates.done(&key);
                gates.check_invariants();
            }
            prop_assert!(gates.is_empty() && gates.gates.is_empty());
        }
    }
}
