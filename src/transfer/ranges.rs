//! The parts of a record that have arrived: sorted, disjoint, coalesced byte ranges. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of byte positions.
///
/// INVARIANT: ranges are non-empty, and between two of them lies at least one missing byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(BTreeMap<u64, u64>);

impl RangeSet {
    /// Adds `range`.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Swallow every range that touches the new one, from the right to the left.
        while let Some((&s, &e)) = self.0.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..range.end).next_back() {
            if end <= range.start {
                return;
            }
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, end);
            }
            if start < range.start {
                self.0.insert(start, range.start);
            }
        }
    }

    /// Returns whether all of `range` is in the set; an empty range always is.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self
                .0
                .range(..=range.start)
                .next_back()
                .is_some_and(|(_, &end)| end >= range.end)
    }

    /// Returns the first missing part of `range`.
    pub fn first_missing(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let start = match self.0.range(..=range.start).next_back() {
            Some((_, &end)) => end.max(range.start),
            None => range.start,
        };
        if start >= range.end {
            return None;
        }
        let end = self
            .0
            .range(start..)
            .next()
            .map_or(range.end, |(&next, _)| next.min(range.end));
        Some(start..end)
    }

    /// Returns how many bytes in a row, up to `end`, are in the set.
    pub fn run_before(&self, end: u64) -> u64 {
        match self.0.range(..end).next_back() {
            Some((&start, &last)) if last >= end => end - start,
            _ => 0,
        }
    }

    /// Returns how many bytes are in the set.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_set_behaves_as_a_set_of_positions(
            ranges in proptest::collection::vec((0u64..60, 0u64..20, proptest::bool::weighted(0.7)), 0..20), probe in (0u64..80, 0u64..20),
        ) {
            let mut set = RangeSet::default();
            let mut model = [false; 100];
            for (start, len, add) in ranges {
                if add {
                    set.insert(start..start + len);
                } else {
                    set.remove(&(start..start + len));
                }
                model[start as usize..(start + len) as usize].fill(add);
            }
            for pair in set.0.iter().zip(set.0.iter().skip(1)) {
                prop_assert!(pair.0.1 < pair.1.0, "not coalesced: {:?}", set);
            }
            prop_assert_eq!(set.len(), model.iter().filter(|here| **here).count() as u64);
            prop_assert_eq!(set.is_empty(), !model.contains(&true));
            let probe = probe.0..probe.0 + probe.1;
            let missing: Vec<u64> = probe.clone().filter(|at| !model[*at as usize]).collect();
            prop_assert_eq!(set.contains(&probe), missing.is_empty());
            let before = model[..probe.start as usize].iter().rev().take_while(|here| **here);
            prop_assert_eq!(set.run_before(probe.start), before.count() as u64);
            let first = set.first_missing(&probe);
            prop_assert_eq!(first.as_ref().map(|range| range.start), missing.first().copied());
            if let Some(range) = first {
                prop_assert!(range.clone().all(|at| !model[at as usize]));
                prop_assert!(range.end == probe.end || model[range.end as usize]);
            }
        }
    }
}
