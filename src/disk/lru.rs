//! Least-recently-used accounting in bytes. Pure: evicting is the caller's work.

use std::hash::Hash;

use lru::LruCache;

/// Entries with their sizes, least recently used first to go.
///
/// INVARIANT C4: the sizes of all entries plus what is reserved never exceed the capacity.
#[derive(Debug)]
pub struct LruBytes<K: Hash + Eq, V> {
    entries: LruCache<K, (V, u64)>,
    capacity: u64,
    used: u64,
    reserved: u64,
}

impl<K: Hash + Eq + Clone, V> LruBytes<K, V> {
    /// Makes an empty cache of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self {
            entries: LruCache::unbounded(),
            capacity,
            used: 0,
            reserved: 0,
        }
    }

    /// Returns the bytes of all entries.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Returns the most bytes that entries and reservations may have.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns the entry and makes it the most recently used one.
    pub fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Sets `bytes` of the capacity aside for an entry to come, and returns the entries that
    /// must go for it; `None`, and nothing goes, when even an empty cache has no such room.
    pub fn reserve(&mut self, bytes: u64) -> Option<Vec<(K, V)>> {
        if bytes.checked_add(self.reserved)? > self.capacity {
            return None;
        }
        self.reserved += bytes;
        let mut victims = Vec::new();
        while self.used + self.reserved > self.capacity {
            let (key, (value, size)) = self.entries.pop_lru()?;
            self.used -= size;
            victims.push((key, value));
        }
        Some(victims)
    }

    /// Returns the entry, to be changed, and makes it the most recently used one.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(value, _)| value)
    }

    /// Returns the least recently used entry.
    pub fn oldest(&self) -> Option<&V> {
        self.entries.peek_lru().map(|(_, (value, _))| value)
    }

    /// Takes the least recently used entry out.
    pub fn pop(&mut self) -> Option<(K, V)> {
        let (key, (value, size)) = self.entries.pop_lru()?;
        self.used -= size;
        Some((key, value))
    }

    /// Returns how much would have to go for `bytes` more.
    pub fn overflow(&self, bytes: u64) -> u64 {
        let wanted = self
            .used
            .saturating_add(self.reserved)
            .saturating_add(bytes);
        wanted.saturating_sub(self.capacity)
    }

    /// Returns the bytes that are set aside.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Sets `bytes` aside that are taken already, whether there is room or not.
    pub fn reserve_anyway(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    /// Returns how many bytes are neither used nor set aside.
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used + self.reserved)
    }

    /// Gives back what [`LruBytes::reserve`] set aside.
    pub fn unreserve(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Adds an entry, and returns those that must go for it, one under the same key included;
    /// `None`, and nothing changes, when it does not fit even then.
    pub fn insert(&mut self, key: K, value: V, bytes: u64) -> Option<Vec<(K, V)>> {
        let mut victims: Vec<(K, V)> = Vec::new();
        if bytes.checked_add(self.reserved)? > self.capacity {
            return None;
        }
        victims.extend(self.remove(&key).map(|old| (key.clone(), old)));
        victims.extend(self.reserve(bytes)?);
        self.unreserve(bytes);
        self.used += bytes;
        self.entries.push(key, (value, bytes));
        Some(victims)
    }

    /// Takes an entry out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (value, bytes) = self.entries.pop(key)?;
        self.used -= bytes;
        Some(value)
    }

    /// Returns the entry without using it.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.peek(key).map(|(value, _)| value)
    }

    /// Returns all keys, the most recently used first.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.iter().map(|(key, _)| key)
    }

    /// Takes all entries out; what is reserved stays so.
    pub fn clear(&mut self) -> Vec<V> {
        self.used = 0;
        std::iter::from_fn(|| self.entries.pop_lru())
            .map(|(_, (value, _))| value)
            .collect()
    }

    /// Panics unless the invariants hold. For tests.
    #[cfg(test)]
    #[cfg(feature = "testing")]
    pub fn check_invariants(&self) {
        assert_eq!(
            self.used,
            self.entries
                .iter()
                .map(|(_, (_, bytes))| bytes)
                .sum::<u64>()
        );
        assert!(
            self.used + self.reserved <= self.capacity,
            "over budget: {} + {}",
            self.used,
            self.reserved
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Insert(u8, u64),
        Get(u8),
        Remove(u8),
        Reserve(u64),
        Unreserve,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..6, 0u64..60).prop_map(|(key, bytes)| Op::Insert(key, bytes)),
            (0u8..6).prop_map(Op::Get),
            (0u8..6).prop_map(Op::Remove),
            (0u64..60).prop_map(Op::Reserve),
            Just(Op::Unreserve),
        ]
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_the_least_recently_used_go_first(ops in proptest::collection::vec(op(), 0..60)) {
            let mut lru = LruBytes::new(100);
            let mut model: Vec<(u8, u64)> = Vec::new(); // least recently used first
            let mut reserved: Vec<u64> = Vec::new();
            for op in ops {
                match op {
                    Op::Insert(key, bytes) => {
                        let held: u64 = reserved.iter().sum();
                        let inserted = lru.insert(key, (), bytes);
                        prop_assert_eq!(inserted.is_some(), held + bytes <= 100);
                        if inserted.is_some() {
                            model.retain(|entry| entry.0 != key);
                            while model.iter().map(|entry| entry.1).sum::<u64>() + held + bytes > 100 {
                                model.remove(0);
                            }
                            model.push((key, bytes));
                        }
                    }
                    Op::Get(key) => {
                        let at = model.iter().position(|entry| entry.0 == key);
                        prop_assert_eq!(lru.get(&key).is_some(), at.is_some());
                        if let Some(at) = at {
                            let entry = model.remove(at);
                            model.push(entry);
                        }
                    }
                    Op::Remove(key) => {
                        prop_assert_eq!(lru.remove(&key).is_some(), model.iter().any(|entry| entry.0 == key));
                        model.retain(|entry| entry.0 != key);
                    }
                    Op::Reserve(bytes) => {
                        let held: u64 = reserved.iter().sum();
                        let room = lru.reserve(bytes);
                        prop_assert_eq!(room.is_some(), held + bytes <= 100);
                        if room.is_some() {
                            reserved.push(bytes);
                            while model.iter().map(|entry| entry.1).sum::<u64>() + held + bytes > 100 {
                                model.remove(0);
                            }
                        }
                    }
                    Op::Unreserve => lru.unreserve(reserved.pop().unwrap_or(0)),
                }
                lru.check_invariants();
                let keys: Vec<u8> = lru.entries.iter().rev().map(|(key, _)| *key).collect();
                prop_assert_eq!(keys, model.iter().map(|entry| entry.0).collect::<Vec<_>>());
            }
        }
    }
}
