//! `Range` requests: one range of bytes; several are answered with the whole record.

use std::ops::Range;

/// What a `Range` header comes to for a record of a known size.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// No range, or one that may be ignored.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Nothing of the record: 416.
    Nothing,
}

/// Returns the part that a `Range` header names by its start, before the record's size is known;
/// [`u64::MAX`] stands for the end.
pub(super) fn asked(header: &str) -> Option<Range<u64>> {
    match wanted(Some(header), u64::MAX) {
        Wanted::Part(part) if !header.contains("=-") => Some(part),
        _ => None,
    }
}

/// Reads a `Range` header (RFC 9110, 14.2). What cannot be understood is ignored.
pub(super) fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some(spec) = header.and_then(|text| text.trim().strip_prefix("bytes=")) else {
        return Wanted::Whole;
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Wanted::Whole;
    };
    let (first, last) = (first.trim(), last.trim());
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Numbers too large to hold lie behind every end.
        true if !text.is_empty() => Some(text.parse::<u64>().unwrap_or(u64::MAX)),
        _ => None,
    };
    match (number(first), number(last)) {
        (Some(first), _) if last.is_empty() => part(first, size, size),
        (Some(first), Some(last)) if first <= last => part(first, last.saturating_add(1), size),
        (None, Some(count)) if first.is_empty() => {
            if count == 0 {
                Wanted::Nothing
            } else {
                part(size.saturating_sub(count), size, size)
            }
        }
        _ => Wanted::Whole,
    }
}

fn part(start: u64, end: u64, size: u64) -> Wanted {
    if start >= size {
        Wanted::Nothing
    } else {
        Wanted::Part(start..end.min(size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (header, wanted_here) in [
            ("bytes=0-3", Wanted::Part(0..4)),
            ("bytes=4-", Wanted::Part(4..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-30", Wanted::Part(0..10)),
            ("bytes=8-99999999999999999999999", Wanted::Part(8..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=0-1,4-5", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("items=0-1", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(header), 10), wanted_here, "{header}");
        }
        assert_eq!(asked("bytes=2-4"), Some(2..5));
        assert_eq!(asked("bytes=2-"), Some(2..u64::MAX));
        assert_eq!(asked("bytes=-3"), None);
        assert_eq!(wanted(None, 10), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Nothing);
    }
}
