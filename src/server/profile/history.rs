//! When stores were changed, and when their objects show it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::StoreClockKind;

/// How far `modifiedAt` goes back where it does.
const BACK: Duration = Duration::from_secs(3600);
/// Changes of one store that wait to be told.
const MOST_WAITING: usize = 1 << 20;

/// What all stores' objects tell.
#[derive(Debug)]
pub(super) struct Histories {
    lag: Duration,
    clock: StoreClockKind,
    rested: Duration,
    stores: Mutex<HashMap<String, History>>,
}

/// What a store object tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) created: SystemTime,
    pub(super) modified: SystemTime,
    /// Records stored and deleted.
    pub(super) writes: u64,
}

#[derive(Debug)]
struct History {
    told: Told,
    /// What the disk last said of the store: a later time means that something else wrote.
    disk: SystemTime,
    /// Changes that are not told yet; of reads, no count.
    waiting: VecDeque<(SystemTime, bool)>,
}

impl Histories {
    pub(super) fn new(lag: Duration, clock: StoreClockKind, rested: Duration) -> Self {
        Self {
            lag,
            clock,
            rested,
            stores: Mutex::default(),
        }
    }

    /// Notes a write through the server.
    pub(super) fn written(&self, id: &str, disk: SystemTime) {
        self.change(id, disk, |history| {
            history.disk = history.disk.max(disk);
            history.wait(true);
        });
    }

    /// Notes a read.
    pub(super) fn read(&self, id: &str, disk: SystemTime) {
        if self.clock == StoreClockKind::Reads {
            self.change(id, disk, |history| history.wait(false));
        }
    }

    fn change(&self, id: &str, disk: SystemTime, change: impl FnOnce(&mut History)) {
        let mut stores = self.stores.lock();
        let history = stores
            .entry(id.to_owned())
            .or_insert_with(|| self.begin(disk, disk));
        change(history);
    }

    fn begin(&self, created: SystemTime, disk: SystemTime) -> History {
        let rested = |at: SystemTime, by| match self.rested {
            Duration::ZERO => at,
            rested => at.min(SystemTime::now() - rested * by),
        };
        History {
            told: Told {
                created: rested(created, 2),
                modified: rested(disk, 1),
                writes: 0,
            },
            disk,
            waiting: VecDeque::new(),
        }
    }

    /// Returns what a store object tells now.
    pub(super) fn told(
        &self,
        id: &str,
        created: SystemTime,
        disk: SystemTime,
        now: SystemTime,
    ) -> Told {
        let mut stores = self.stores.lock();
        let history = stores
            .entry(id.to_owned())
            .or_insert_with(|| self.begin(created, disk));
        if disk > history.disk {
            // Something has written into the folder behind the server's back.
            history.disk = disk;
            history.wait(true);
        }
        while let Some((at, is_write)) = history
            .waiting
            .front()
            .filter(|(at, _)| *at + self.lag <= now)
            .copied()
        {
            history.waiting.pop_front();
            history.told.writes += u64::from(is_write);
            history.told.modified = match self.clock {
                StoreClockKind::Nothing => history.told.modified,
                StoreClockKind::Back => history.told.modified - BACK,
                StoreClockKind::Writes | StoreClockKind::Reads => history.told.modified.max(at),
            };
        }
        history.told
    }
}

impl History {
    fn wait(&mut self, is_write: bool) {
        if self.waiting.len() < MOST_WAITING {
            self.waiting.push_back((SystemTime::now(), is_write));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_after_the_lag() {
        let start = SystemTime::now() - Duration::from_secs(1000);
        let lag = Duration::from_secs(7);
        for (clock, moves) in [
            (StoreClockKind::Writes, true),
            (StoreClockKind::Nothing, false),
        ] {
            let histories = Histories::new(lag, clock, Duration::ZERO);
            let first = histories.told("s", start, start, SystemTime::now());
            assert_eq!((first.modified, first.writes), (start, 0));
            histories.written("s", start);
            assert_eq!(histories.told("s", start, start, SystemTime::now()), first);
            let later = SystemTime::now() + lag;
            let told = histories.told("s", start, start, later);
            assert_eq!((told.modified > start, told.writes), (moves, 1));
            // Behind its back.
            histories.told("s", start, SystemTime::now(), later);
            let told = histories.told("s", start, start, SystemTime::now() + lag);
            assert_eq!(told.writes, 2);
        }
    }
}
