//! Folds repeated log lines into one line in a while.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long the same line is not written again.
const WHILE: Duration = Duration::from_secs(10);

/// Lines that are remembered; when there are more, all are forgotten.
const LINES: usize = 1024;

/// The lines of late.
#[derive(Debug, Default)]
pub(super) struct Folded {
    hasher: RandomState,
    lines: Mutex<HashMap<u64, Seen>>,
}

/// A line that was written.
#[derive(Debug)]
struct Seen {
    written: Instant,
    /// How often it was not written since.
    repeats: u64,
}

impl Folded {
    /// Returns whether to write a line, and how often it has come up unwritten before.
    pub(super) fn shown(&self, line: &str) -> Option<u64> {
        self.shown_at(line, Instant::now())
    }

    fn shown_at(&self, line: &str, now: Instant) -> Option<u64> {
        let hash = self.hasher.hash_one(line);
        let mut lines = self.lines.lock();
        if let Some(seen) = lines.get_mut(&hash) {
            if now.saturating_duration_since(seen.written) < WHILE {
                seen.repeats += 1;
                return None;
            }
            seen.written = now;
            return Some(std::mem::take(&mut seen.repeats));
        }
        if lines.len() >= LINES {
            lines.clear();
        }
        let seen = Seen {
            written: now,
            repeats: 0,
        };
        lines.insert(hash, seen);
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_once_in_a_while_with_what_it_stands_for() {
        let folded = Folded::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(folded.shown_at("a", at(0)), Some(0));
        assert_eq!(folded.shown_at("a", at(1)), None);
        assert_eq!(folded.shown_at("b", at(1)), Some(0));
        assert_eq!(folded.shown_at("a", at(9)), None);
        assert_eq!(folded.shown_at("a", at(10)), Some(2));
        assert_eq!(folded.shown_at("a", at(11)), None);
        for n in 0..3000 {
            folded.shown_at(&n.to_string(), at(11));
        }
        assert!(folded.lines.lock().len() <= LINES);
    }
}
