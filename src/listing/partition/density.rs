//! The density of keys, measured by their places among all texts of their letters.

use std::sync::Arc;

use super::Segment;
use crate::listing::partition::alphabet::Letters;

/// How dense the keys of a segment lie, by their places among all texts of their letters.
#[derive(Debug)]
pub(super) struct Scale<'a> {
    letters: &'a [Vec<u8>],
    /// What the keys so far have in common, up to where words and numbers begin.
    pub(super) prefix: &'a str,
    /// Whether the segment goes on behind all that begins so.
    pub(super) ends_before: bool,
    /// Places of what has been fetched, and of the segment's end or that of the prefix.
    pub(super) from: u128,
    pub(super) to: u128,
    /// This many places held this many keys.
    span: u128,
    count: u64,
}

impl<'a> Scale<'a> {
    /// Returns `None` where nothing can be told.
    pub(super) fn new(letters: &'a Letters, segment: &'a Segment) -> Option<Self> {
        Self::up_to(letters, segment, segment.end.as_ref())
    }

    /// Looks at what follows a segment, too, up to `end`.
    pub(super) fn up_to(
        letters: &'a Letters,
        segment: &'a Segment,
        end: Option<&Arc<str>>,
    ) -> Option<Self> {
        let alike = &segment.after[..common_prefix(&segment.start, &segment.after)];
        let alike = alike.trim_end_matches(|c: char| c.is_ascii_alphanumeric());
        let end = end.filter(|end| end.starts_with(alike));
        let prefix = alike;
        let len = prefix.len();
        let letters = letters.from(len);
        let place = |key: &str| place(letters, key.as_bytes().get(len..).unwrap_or_default());
        let last = letters
            .iter()
            .map(|letters| letters.len().max(1) as u128)
            .product::<u128>();
        let from = place(&segment.after);
        let to = end.map_or(last, |end| place(end).min(last));
        let span = from.checked_sub(place(&segment.start))?;
        (span > 0 && segment.count > 0 && to > from).then_some(Self {
            letters,
            prefix,
            ends_before: end.is_none(),
            from,
            to,
            span,
            count: segment.count,
        })
    }

    /// Returns how many keys seem to be left.
    pub(super) fn left(&self) -> u64 {
        self.keys_in(self.to - self.from)
    }

    pub(super) fn keys_in(&self, places: u128) -> u64 {
        let keys = places.saturating_mul(u128::from(self.count)) / self.span;
        u64::try_from(keys).unwrap_or(u64::MAX)
    }

    /// Returns over how many places `keys` keys seem to be spread.
    pub(super) fn span_of(&self, keys: u64) -> Option<u128> {
        Some(u128::from(keys).checked_mul(self.span)? / u128::from(self.count))
    }

    /// Returns whether the keys lie evenly, as numbers without gaps do.
    pub(super) fn is_exact(&self) -> bool {
        self.span.is_multiple_of(u128::from(self.count))
    }

    /// Returns the text at a place.
    pub(super) fn text(&self, place: u128) -> Arc<str> {
        let mut rest = place;
        let mut letters = Vec::with_capacity(self.letters.len());
        for position in self.letters.iter().rev() {
            let base = position.len().max(1) as u128;
            letters.push(position.get((rest % base) as usize).copied());
            rest /= base;
        }
        let mut text = self.prefix.to_owned();
        for letter in letters.into_iter().rev().map_while(|letter| letter) {
            text.push(char::from(letter));
        }
        text.into()
    }
}

/// Returns where a text lies among all texts of these letters; letters beyond count as the last.
fn place(letters: &[Vec<u8>], text: &[u8]) -> u128 {
    let mut value = 0;
    let mut exact = true;
    for (at, letters) in letters.iter().enumerate() {
        let base = letters.len().max(1) as u128;
        let digit = match text.get(at) {
            Some(byte) if exact => {
                let below = letters.partition_point(|letter| letter < byte);
                exact = letters.get(below) == Some(byte);
                below as u128
            }
            _ => 0,
        };
        value = value * base + digit;
    }
    value
}

/// Returns the length of the common beginning of two texts, in bytes; a character boundary.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars()
        .zip(b.chars())
        .take_while(|(x, y)| x == y)
        .map(|(x, _)| x.len_utf8())
        .sum()
}
