//! What the store's `modifiedAt` proves, and whether to trust it.
//!
//! Let `asked` be when a question about the store was asked, and `lag` the time by which the answer
//! may be late. The answer shows every write up to `asked - lag`. So a content that was read after
//! the last write that the answer shows is what the store had at `asked - lag`, too.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::own::{Explained, OwnWrites, SKEW};
use super::span::{Span, back};
use super::{StoreState, USUAL_LAG};

/// A clock that differs from the time of creation by less may be nothing but that.
const CLEARLY: Duration = Duration::from_secs(10);
/// Beyond the lag, a change may take this long to show before the clock counts as one that does not
/// follow changes. Meanwhile it proves nothing.
const PATIENCE: Duration = Duration::from_secs(120);
/// Changes that wait to show, at most; they wait in order, and each proves as much as any other.
const MOST_SEEN: usize = 16;

/// How far a server's clock is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trust {
    /// Nothing shows that it moves with changes.
    #[default]
    Unproven,
    /// It has been seen to move.
    Earned,
    /// It has been seen to be wrong: the reason, for people.
    Lost(String),
}

/// What outlives a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    trust: Trust,
    /// The lag that was allowed for, in milliseconds.
    #[serde(default)]
    lag_ms: u64,
    /// The lag that was seen, where it was more.
    #[serde(default)]
    learned_ms: u64,
    /// The last `modifiedAt`, in milliseconds since 1970, with the store's count of changes.
    #[serde(default)]
    modified_ms: u64,
    #[serde(default)]
    changes: Option<u64>,
    /// What of it others have done.
    #[serde(default)]
    others_ms: u64,
    /// A change that had been seen and did not show yet.
    #[serde(default)]
    unseen_ms: Option<u64>,
    /// The latest time of a question about the store.
    #[serde(default)]
    asked_ms: u64,
}

/// A change that was seen: something was still old at `old`, and new by `new`.
#[derive(Clone, Copy, Debug)]
struct Seen {
    old: SystemTime,
    new: SystemTime,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    asked: Span,
    modified: SystemTime,
}

/// The clock of one store.
#[derive(Clone, Debug)]
pub struct StoreClock {
    /// What is allowed for, and what was seen to be needed.
    allowed: Duration,
    learned: Duration,
    trust: Trust,
    last: Option<Answer>,
    /// When others last changed something, as far as is known; `None` before the first answer.
    others: Option<SystemTime>,
    own: OwnWrites,
    seen: Vec<Seen>,
    /// The latest time of a question, also of earlier mounts, as reads are timed: at the earliest.
    latest: SystemTime,
    before: Option<Remembered>,
}

impl Default for StoreClock {
    fn default() -> Self {
        Self::new(USUAL_LAG, None)
    }
}

impl StoreClock {
    /// Returns a clock that may be late by `lag`; `before` is what an earlier mount knew.
    pub fn new(lag: Duration, before: Option<Remembered>) -> Self {
        let before = before.filter(|before| {
            // With more patience it may be right.
            !matches!(before.trust, Trust::Lost(_)) || lag <= Duration::from_millis(before.lag_ms)
        });
        let unseen = before.as_ref().and_then(|before| before.unseen_ms);
        Self {
            allowed: lag,
            learned: before.as_ref().map_or(Duration::ZERO, |before| {
                Duration::from_millis(before.learned_ms)
            }),
            trust: before
                .as_ref()
                .map_or(Trust::Unproven, |before| before.trust.clone()),
            last: None,
            others: None,
            own: OwnWrites::default(),
            seen: unseen
                .map(|unseen| Seen {
                    old: from_ms(unseen),
                    new: from_ms(unseen),
                })
                .into_iter()
                .collect(),
            latest: from_ms(before.as_ref().map_or(0, |before| before.asked_ms)),
            before,
        }
    }

    /// Returns what a later mount should know.
    pub fn remembered(&self) -> Remembered {
        let Some(last) = self.last else {
            return self.before.clone().unwrap_or_default();
        };
        Remembered {
            trust: self.trust.clone(),
            lag_ms: millis(self.lag()),
            learned_ms: millis(self.learned),
            modified_ms: to_ms(last.modified),
            // While own writes need not show yet, the count proves nothing.
            changes: self.own.settled_count(),
            others_ms: self.others.map_or(0, to_ms),
            unseen_ms: self.seen.first().map(|seen| to_ms(seen.old)),
            asked_ms: to_ms(self.latest),
        }
    }

    /// Returns how far the clock is trusted.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Returns by how much the clock may be late, as far as is known.
    pub fn lag(&self) -> Duration {
        self.allowed.max(self.learned)
    }

    /// Returns when others last changed something, as far as the store has told.
    #[cfg(feature = "testing")]
    pub fn others(&self) -> Option<SystemTime> {
        self.others
    }

    /// Notes an own write; `is_vague` if it may not have been carried out.
    pub fn wrote(&mut self, when: Span, is_vague: bool) {
        self.own.wrote(when, is_vague);
    }

    /// Notes that something that was old at `old` had changed by `new`, and not by this mount.
    pub fn saw_change(&mut self, old: SystemTime, new: SystemTime) {
        if self.seen.len() >= MOST_SEEN {
            self.seen.remove(MOST_SEEN / 2);
        }
        self.seen.push(Seen { old, new });
    }

    /// Takes in what the server says of the store, asked at `asked`. Returns whether that is news:
    /// an answer from the past is none.
    pub fn answered(&mut self, asked: Span, state: &StoreState) -> bool {
        if matches!(self.trust, Trust::Lost(_)) {
            return false;
        }
        let mut late = None;
        if let Some(last) = self.last {
            if state.modified < back(last.modified, self.lag().max(SKEW)) {
                self.lose("its modifiedAt goes back");
                return false;
            }
            // It showed more already: another of the server's machines answers.
            if state.modified < last.modified {
                return false;
            }
            // A write that the answer before this one should have shown.
            late = last
                .asked
                .earliest
                .duration_since(state.modified)
                .ok()
                .filter(|late| state.modified > last.modified && *late > self.lag() + SKEW);
        }
        if differs_clearly(state) {
            self.earn();
        }
        self.attribute(asked, state);
        if asked.latest < back(self.latest, self.lag().max(SKEW)) {
            // The clock that reads are timed by was set back: what was read by then may be older
            // than its time says.
            self.others = self.others.max(Some(self.latest));
        }
        self.latest = self.latest.max(asked.earliest);
        self.last = Some(Answer {
            asked,
            modified: state.modified,
        });
        if let Some(late) = late {
            // What was read meanwhile may be older than that write, whatever its time says.
            self.others = Some(asked.latest);
            self.learned = self.learned.max(late + late / 4);
            if late > PATIENCE {
                self.lose("its modifiedAt follows changes too late");
            }
        }
        self.judge(asked, state.modified);
        true
    }

    /// Decides whether the answer shows own changes or those of others.
    fn attribute(&mut self, asked: Span, state: &StoreState) {
        let lag = self.lag();
        let has_moved = self.last.is_none_or(|last| state.modified > last.modified);
        let shown = match self.others {
            None => {
                let before = self.before.take().filter(|before| {
                    before.modified_ms == to_ms(state.modified)
                        && before.changes.is_some()
                        && before.changes == state.changes
                        && self.own.are_none()
                });
                let others = before.map(|before| from_ms(before.others_ms));
                self.others = Some(others.unwrap_or(state.modified));
                self.own.restart(asked, state, lag)
            }
            Some(others) => match self.own.explain(asked, state, has_moved, lag) {
                Explained::Shown(shown) => self.own.settle(asked, state, shown),
                Explained::SoFar => Vec::new(),
                Explained::Not => {
                    self.others = Some(others.max(state.modified));
                    self.own.restart(asked, state, lag)
                }
            },
        };
        for own in shown {
            if state.modified >= own.earliest {
                self.earn();
            } else {
                // Judged like any other change that does not show.
                self.saw_change(own.earliest, own.latest);
            }
        }
    }

    /// Compares what was seen to change with what the clock says.
    fn judge(&mut self, asked: Span, modified: SystemTime) {
        let mut is_late = false;
        let lag = self.lag();
        let mut earned = false;
        self.seen.retain(|seen| {
            if modified >= back(seen.old, SKEW) {
                earned |= modified >= seen.old;
                // Until then other writes of the same moment need not show.
                return seen.new > back(asked.earliest, lag);
            }
            is_late |= seen.new <= back(asked.earliest, lag + PATIENCE);
            true
        });
        if earned {
            self.earn();
        }
        if is_late {
            self.lose("a change did not move its modifiedAt");
        }
    }

    /// Returns whether a content (or a list of keys) that was read from the store at `read` or
    /// later is what the store had when the last question was asked, less the lag.
    pub fn vouches(&self, read: SystemTime) -> bool {
        let (Some(last), Some(others)) = (self.last, self.others) else {
            return false;
        };
        let shown = back(last.asked.earliest, self.lag());
        self.trust == Trust::Earned
            && read > others + SKEW
            // A store at work is asked for each record: what was just changed will change again.
            && others <= shown
            && self.seen.iter().all(|seen| {
                // A change that should show and does not: the clock proves nothing now.
                let is_overdue = seen.new <= shown && last.modified < back(seen.old, SKEW);
                !is_overdue && read > seen.new + SKEW
            })
    }

    /// Returns whether a change that was seen should show by now and does not.
    pub fn is_doubted(&self) -> bool {
        self.last.is_some_and(|last| {
            let shown = back(last.asked.earliest, self.lag());
            self.seen
                .iter()
                .any(|seen| seen.new <= shown && last.modified < back(seen.old, SKEW))
        })
    }

    /// Believes this server's clock never again.
    pub fn lose(&mut self, why: &str) {
        self.trust = Trust::Lost(why.to_owned());
        self.seen.clear();
    }

    fn earn(&mut self) {
        if self.trust == Trust::Unproven {
            self.trust = Trust::Earned;
        }
    }
}

/// Returns whether the clock shows something else than when the store was made.
fn differs_clearly(state: &StoreState) -> bool {
    state.created.is_some_and(|created| {
        let apart = state.modified.duration_since(created);
        apart.unwrap_or_else(|earlier| earlier.duration()) >= CLEARLY
    })
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn to_ms(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis)
}

fn from_ms(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
}
