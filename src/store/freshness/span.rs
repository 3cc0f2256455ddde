//! A moment by the server's clock, as well as it is known from here.

use std::time::{Duration, SystemTime};

/// Bounds of a moment by the server's clock.
///
/// INVARIANT: the moment is no earlier than `earliest` and no later than `latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The moment is not before this.
    pub earliest: SystemTime,
    /// The moment is not after this.
    pub latest: SystemTime,
}

impl Span {
    /// Returns the bounds of a moment that this machine's clock tells, which may differ from the
    /// server's by `margin` either way.
    pub fn around(at: SystemTime, margin: Duration) -> Self {
        Self {
            earliest: back(at, margin),
            latest: at + margin,
        }
    }

    /// Returns the bounds of the beginning of a stretch that ends at this moment and took this
    /// long.
    pub fn begun(self, before: Duration) -> Self {
        Self {
            earliest: back(self.earliest, before),
            latest: self.latest,
        }
    }
}

/// Returns a time so much earlier, not before 1970.
pub(super) fn back(at: SystemTime, by: Duration) -> SystemTime {
    at.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
}
