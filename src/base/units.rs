//! Sizes and durations as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The unit of the sizes that decide how bytes are fetched and kept. Smaller where schedules are
/// explored, so that a large record costs little there.
pub(crate) const KIB: u64 = if cfg!(feature = "shuttle") {
    1
} else {
    1 << 10
};
/// 1024 of them.
pub(crate) const MIB: u64 = KIB << 10;

/// A number of bytes, written as `64MiB`, `2GiB`, `500k` or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Returns `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// Returns `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", bytesize::ByteSize(self.0))
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.trim()
            .parse::<bytesize::ByteSize>()
            .map(|size| Self(size.0))
            .map_err(|_| format!("'{text}' is not a size: write for example 64MiB, 2GiB or 0"))
    }
}

/// Parses a duration such as `10s`, `1m30s`, `250ms`; a bare number means seconds.
///
/// # Errors
/// Returns a sentence that shows the accepted forms.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    if let Ok(seconds) = trimmed.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| bad_duration(text));
    }
    humantime::parse_duration(trimmed).map_err(|_| bad_duration(text))
}

fn bad_duration(text: &str) -> String {
    format!("'{text}' is not a duration: write for example 10s, 250ms, 5m or 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("64MiB", 64 << 20),
            ("2 GiB", 2 << 30),
            ("5k", 5000),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        assert!("many".parse::<ByteSize>().is_err());
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("0", 0),
            ("10", 10_000),
            ("0.5", 500),
            ("250ms", 250),
            ("1m 30s", 90_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        assert!(parse_duration("-1").is_err());
        assert!(parse_duration("soon").is_err());
    }
}
