//! Room in the cache for a content on its way, set aside as it grows: reading the first byte of a
//! record as large as the cache must not evict everything else.
//!
//! INVARIANT: what is set aside is given back, or has become an entry's (C4).

use std::sync::Arc;

use super::{DiskTier, ENTRY_OVERHEAD, Patience};
use crate::base::sync::Mutex;
use crate::base::units::MIB;

/// Set aside at once: each time may remove files.
const STEP: u64 = 4 * MIB;

/// Room for one content. Dropping it gives back what is set aside.
#[derive(Debug)]
pub struct Room {
    tier: Arc<DiskTier>,
    /// The content's greatest possible size in bytes; `None` if unknown.
    most: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of content that have been written, each as often as it was.
    used: u64,
    set_aside: u64,
}

impl Room {
    /// Makes room for a content of at most `most` bytes, and sets some of it aside; `None` when
    /// there is none.
    pub(super) fn new(tier: &Arc<DiskTier>, most: u64) -> Option<Self> {
        if most.checked_add(ENTRY_OVERHEAD)? > tier.capacity() {
            return None;
        }
        let room = Self {
            tier: Arc::clone(tier),
            most: Some(most),
            state: Mutex::default(),
        };
        room.set_aside(most.min(STEP)).then_some(room)
    }

    /// The same for a content of unknown size, with at least `least` bytes: it gets half of the cache
    /// at most, and evicts no more than a quarter. It may be worth less than that.
    pub(super) fn some(tier: &Arc<DiskTier>, least: u64) -> Option<Self> {
        let room = Self {
            tier: Arc::clone(tier),
            most: None,
            state: Mutex::default(),
        };
        room.set_aside(least).then_some(room)
    }

    /// Takes `bytes` more for what is about to be written; `false` when there is no such room.
    pub fn take(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        state.used = state.used.saturating_add(bytes);
        let needed = state.used.min(self.most.unwrap_or(u64::MAX));
        let there = state.set_aside.saturating_sub(ENTRY_OVERHEAD);
        drop(state);
        if needed <= there {
            return true;
        }
        match self.most {
            // A step more if there is room, else just what is needed.
            Some(most) => {
                self.set_aside(needed.saturating_add(STEP).min(most)) || self.set_aside(needed)
            }
            None => self.may_have(needed - there, needed) && self.set_aside(needed),
        }
    }

    /// Returns whether a content of unknown size may have `more`, and `needed` in all.
    fn may_have(&self, more: u64, needed: u64) -> bool {
        let wanted = needed.saturating_add(ENTRY_OVERHEAD);
        let index = self.tier.index.lock();
        let (capacity, free) = (index.lru.capacity(), index.lru.free());
        wanted <= capacity / 4 || (wanted <= capacity / 2 && more <= free)
    }

    /// Ensures that room for `content` bytes is set aside.
    fn set_aside(&self, content: u64) -> bool {
        let wanted = content.saturating_add(ENTRY_OVERHEAD);
        let victims = {
            let mut state = self.state.lock();
            let Some(more) = wanted.checked_sub(state.set_aside).filter(|more| *more > 0) else {
                return true;
            };
            let Some(victims) = self.tier.index.lock().reserve(more) else {
                return false;
            };
            state.set_aside = wanted;
            victims
        };
        self.tier.evict(victims);
        true
    }

    /// Returns what waits for the disk.
    pub fn patience(&self) -> &Arc<Patience> {
        self.tier.patience()
    }

    /// Returns what is set aside, which is then the caller's to give back.
    pub(super) fn give_up(&self) -> u64 {
        std::mem::take(&mut self.state.lock().set_aside)
    }

    /// Gives back what is set aside.
    pub(super) fn give_back(&self) {
        let bytes = self.give_up();
        if bytes > 0 {
            self.tier.index.lock().lru.unreserve(bytes);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.give_back();
    }
}
