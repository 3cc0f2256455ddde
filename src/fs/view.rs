//! What is known of a record's name. One function decides, [`decide`]; all callers use
//! [`KvFs::existence`], or for what a listing shows [`KvFs::facts_of_listed`].
//!
//! | a file changed here | hidden by a rename | else the youngest of | the name |
//! | --- | --- | --- | --- |
//! | yes | | | is there, as the staging file |
//! | no | yes | | is not there |
//! | no | no | the record's slot: *present* | is there, as the store last described it |
//! | no | no | the record's slot: *absent* | is not there |
//! | no | no | the listing: *listed* | is there, as listed |
//! | no | no | the listing: *not listed* | is not there |
//! | no | no | the overlay: *made here* | is there, as it was stored |
//! | no | no | the overlay: *removed here* | is not there |
//! | no | no | none of them | is not known |
//!
//! * The age of an answer is that of its question; the age of a change made here is that of its end.
//! * What this mount stores goes into the slot first: while that is *present*, *made here* says
//!   nothing that it does not know better.
//! * At one age the overlay goes before the slot, and the slot before the listing.
//! * [`KvFs::existence`] trusts nothing that is older than the TTL. A reader of a directory sees its
//!   listing, however old that is by now, unless something younger says otherwise.

use std::time::{Duration, Instant, SystemTime};

use super::types::Ino;
use super::write::draft::Draft;
use super::write::overlay::{Change, Name};
use super::{FOREVER, KvFs};
use crate::cache::content::VersionId;
use crate::cache::records::{Known, Peek};
use crate::listing::{Entry, Found};
use crate::store::Key;

/// What is known of a record at the moment, for its attributes.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Bytes of content; the stored bytes where those of the content are not known.
    pub(super) size: Option<u64>,
    /// Bytes as stored, where the store tells.
    pub(super) stored: Option<u64>,
    pub(super) modified: Option<SystemTime>,
    /// Its number in the listing.
    pub(super) listed: Option<Ino>,
    /// Which version it is, where that is known, and since when.
    pub(super) version: Option<VersionId>,
    pub(super) at: Instant,
    /// How long this stays valid.
    pub(super) ttl: Duration,
    /// Whether the size is that of a staging file.
    pub(super) staged: bool,
}

/// Whether a record exists, as far as memory knows.
#[derive(Debug)]
pub(super) enum Existence {
    Present(Facts),
    Absent(Duration),
    Unknown,
}

/// Everything that memory knows of one key, whatever its age.
#[derive(Debug)]
struct Sources {
    /// Whether a file of this name has changes that the store lacks.
    drafted: bool,
    /// Whether the record was renamed to a scratch file.
    hidden: bool,
    overlay: Option<(Instant, Change)>,
    slot: Peek,
    listed: Found,
}

/// Which of the sources decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Draft,
    Hidden,
    Made(Instant),
    Removed(Instant),
    Described(Instant),
    Missing(Instant),
    Listed(Instant),
    Unlisted(Instant),
    Nothing,
}

impl Decision {
    /// Returns when that was so; `None` for what has no age.
    fn at(self) -> Option<Instant> {
        match self {
            Self::Draft | Self::Hidden | Self::Nothing => None,
            Self::Made(at)
            | Self::Removed(at)
            | Self::Described(at)
            | Self::Missing(at)
            | Self::Listed(at)
            | Self::Unlisted(at) => Some(at),
        }
    }
}

/// Decides by the table above. Pure.
fn decide(sources: &Sources) -> Decision {
    if sources.drafted {
        return Decision::Draft;
    }
    if sources.hidden {
        return Decision::Hidden;
    }
    let slot = match &sources.slot {
        Peek::Present(known) => Decision::Described(known.validated),
        Peek::Absent(at) => Decision::Missing(*at),
        Peek::Unknown => Decision::Nothing,
    };
    let overlay = match (sources.overlay, slot) {
        (Some((_, Change::Present { .. })), Decision::Described(_)) | (None, _) => {
            Decision::Nothing
        }
        (Some((at, Change::Present { .. })), _) => Decision::Made(at),
        (Some((at, Change::Absent)), _) => Decision::Removed(at),
    };
    let listed = match &sources.listed {
        Found::Listed(_, at) => Decision::Listed(*at),
        Found::Absent(at) => Decision::Unlisted(*at),
        Found::Unknown => Decision::Nothing,
    };
    // Of several of one age the last is taken.
    [listed, slot, overlay]
        .into_iter()
        .max_by_key(|decision| decision.at())
        .unwrap_or(Decision::Nothing)
}

impl KvFs {
    /// Returns what memory knows of a record; makes no request.
    pub(super) fn existence(&self, key: &Key) -> Existence {
        let sources = self.sources(key, self.records.listed(key));
        match self.view(key, &sources) {
            Some((None, None)) => Existence::Absent(Duration::ZERO),
            Some((Some(facts), Some(at))) if self.records.is_fresh_name(at) => {
                Existence::Present(facts)
            }
            // An open asks again what it finds, but nothing asks again for a name that is missing.
            Some((None, Some(at))) if self.records.is_fresh(at) => {
                Existence::Absent(self.believed(at))
            }
            Some((Some(facts), None)) => Existence::Present(facts),
            _ => Existence::Unknown,
        }
    }

    /// Returns the facts of a record that a page asked for at `at` lists, or `None` if it is gone
    /// by now.
    pub(super) fn facts_of_listed(&self, entry: &Entry, at: Instant) -> Option<Facts> {
        let sources = self.sources(&entry.key, Found::Listed(entry.clone(), at));
        self.view(&entry.key, &sources)?.0
    }

    fn sources(&self, key: &Key, listed: Found) -> Sources {
        let side = self.writing.as_ref();
        Sources {
            drafted: self.dirty_draft(key).is_some(),
            hidden: side.is_some_and(|side| side.drafts.is_hidden(key)),
            overlay: side
                .and_then(|side| side.overlay.lock().get(&Name::Record(key.clone()), None)),
            slot: self.records.recall(key),
            listed,
        }
    }

    /// Returns the facts of what is there, or none, and since when that is so; `None` where nothing
    /// is known.
    fn view(&self, key: &Key, sources: &Sources) -> Option<(Option<Facts>, Option<Instant>)> {
        let decision = decide(sources);
        let facts = match (decision, sources) {
            (Decision::Nothing, _) => return None,
            // It may have been stored since the table was looked at.
            (Decision::Draft, _) => Some(staged_facts(self, &*self.dirty_draft(key)?)),
            (
                Decision::Hidden
                | Decision::Removed(_)
                | Decision::Missing(_)
                | Decision::Unlisted(_),
                _,
            ) => None,
            (
                Decision::Made(at),
                Sources {
                    overlay:
                        Some((
                            _,
                            Change::Present {
                                ino,
                                size,
                                modified,
                            },
                        )),
                    ..
                },
            ) => Some(Facts {
                size: Some(*size),
                stored: None,
                modified: Some(*modified),
                listed: Some(*ino),
                version: None,
                at,
                ttl: self.believed(at),
                staged: true,
            }),
            (
                Decision::Described(_),
                Sources {
                    slot: Peek::Present(known),
                    ..
                },
            ) => Some(self.facts(known, sources)),
            (
                Decision::Listed(at),
                Sources {
                    listed: Found::Listed(entry, _),
                    ..
                },
            ) => Some(self.facts_of_entry(entry, at)),
            _ => return None,
        };
        Some((facts, decision.at()))
    }

    /// Returns a record's facts from a listing alone, and from what is remembered of that version.
    pub(super) fn facts_of_entry(&self, entry: &Entry, at: Instant) -> Facts {
        let stored = entry.stored_size;
        Facts {
            size: self
                .records
                .exact_size(&entry.key, stored)
                .or(stored)
                .or_else(|| self.records.last_size(&entry.key)),
            stored,
            modified: Some(self.records.listed_time(&entry.key, stored, entry.modified)),
            listed: Some(Ino(entry.ino)),
            version: None,
            at,
            ttl: self.believed(at),
            staged: false,
        }
    }

    fn facts(&self, known: &Known, sources: &Sources) -> Facts {
        let listed = match (&sources.listed, sources.overlay) {
            (_, Some((_, Change::Present { ino, .. }))) => Some(ino),
            (Found::Listed(entry, _), _) => Some(Ino(entry.ino)),
            _ => None,
        };
        self.facts_of_known(known, listed)
    }

    /// Returns what the store last said of a record.
    pub(super) fn facts_of_known(&self, known: &Known, listed: Option<Ino>) -> Facts {
        Facts {
            size: known.size.or(known.meta.stored_size),
            stored: known.meta.stored_size,
            modified: Some(known.modified),
            listed,
            version: Some(known.version),
            at: known.validated,
            ttl: self.believed(known.validated),
            staged: false,
        }
    }

    /// Returns how much longer an answer of that age is valid.
    pub(super) fn believed(&self, at: Instant) -> Duration {
        if self
            .forgotten
            .lock()
            .is_some_and(|forgotten| at < forgotten)
        {
            return Duration::ZERO;
        }
        match self.records.config().ttl {
            None => FOREVER,
            Some(ttl) => ttl.saturating_sub(self.clock.now().saturating_duration_since(at)),
        }
    }
}

/// Returns the state of a file with its newest bytes in a staging file.
fn staged_facts(fs: &KvFs, draft: &Draft) -> Facts {
    Facts {
        size: Some(draft.size()),
        stored: None,
        modified: Some(draft.modified()),
        listed: Some(draft.ino),
        version: None,
        at: fs.clock.now(),
        ttl: Duration::ZERO,
        staged: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RecordMeta;

    /// What a source says of the name, and how old that is: the larger, the younger.
    type Says = Option<(bool, u64)>;

    /// The table once more, in another form: by looking for the youngest that says anything.
    fn expected(drafted: bool, hidden: bool, [overlay, slot, listed]: [Says; 3]) -> Option<bool> {
        if drafted || hidden {
            return Some(drafted);
        }
        let overlay = match (overlay, slot) {
            (Some((true, _)), Some((true, _))) => None,
            _ => overlay,
        };
        let mut best: Says = None;
        for says in [overlay, slot, listed].into_iter().flatten() {
            if best.is_none_or(|best| says.1 > best.1) {
                best = Some(says);
            }
        }
        best.map(|best| best.0)
    }

    fn sources(
        start: Instant,
        drafted: bool,
        hidden: bool,
        [overlay, slot, listed]: [Says; 3],
    ) -> Sources {
        let at = |age: u64| start + Duration::from_secs(age);
        let key = Key::new("k").expect("a key");
        Sources {
            drafted,
            hidden,
            overlay: overlay.map(|(there, age)| {
                let made = Change::Present {
                    ino: Ino(7),
                    size: 1,
                    modified: SystemTime::UNIX_EPOCH,
                };
                (at(age), if there { made } else { Change::Absent })
            }),
            slot: match slot {
                None => Peek::Unknown,
                Some((false, age)) => Peek::Absent(at(age)),
                Some((true, age)) => Peek::Present(Known::for_test(RecordMeta::default(), at(age))),
            },
            listed: match listed {
                None => Found::Unknown,
                Some((false, age)) => Found::Absent(at(age)),
                Some((true, age)) => {
                    let entry = Entry {
                        key,
                        ino: 5,
                        stored_size: None,
                        modified: None,
                    };
                    Found::Listed(entry, at(age))
                }
            },
        }
    }

    fn says(decision: Decision) -> Option<bool> {
        match decision {
            Decision::Nothing => None,
            Decision::Draft | Decision::Made(_) | Decision::Described(_) | Decision::Listed(_) => {
                Some(true)
            }
            Decision::Hidden
            | Decision::Removed(_)
            | Decision::Missing(_)
            | Decision::Unlisted(_) => Some(false),
        }
    }

    /// Every combination of what the five sources can say, at three ages each.
    #[test]
    fn every_combination_of_sources_is_decided_by_the_table() {
        let every: Vec<Says> = [None]
            .into_iter()
            .chain((0..3).flat_map(|age| [Some((true, age)), Some((false, age))]))
            .collect();
        let start = Instant::now();
        let mut cases = 0;
        for (drafted, hidden) in [(false, false), (false, true), (true, false), (true, true)] {
            for overlay in &every {
                for slot in &every {
                    for listed in &every {
                        let case = [*overlay, *slot, *listed];
                        let decision = decide(&sources(start, drafted, hidden, case));
                        let wanted = expected(drafted, hidden, case);
                        assert_eq!(says(decision), wanted, "{drafted} {hidden} {case:?}");
                        cases += 1;
                    }
                }
            }
        }
        assert_eq!(cases, 4 * 7 * 7 * 7);
    }
}
