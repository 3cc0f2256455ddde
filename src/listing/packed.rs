//! A page of a listing, packed: about ten bytes a key beyond what it does not share with the
//! one before it.
//!
//! Entries lie one after the other: how many bytes the key shares with the one before it, the rest
//! of the key, the stored size plus one (0: unknown), and on pages where any record has a time, the
//! time. Numbers are LEB128. Every `BLOCK`th key is whole, so that a search reads no more than one
//! block.

use std::time::{Duration, SystemTime};

use crate::store::{Key, ListItem};

/// Entries from one whole key to the next.
const BLOCK: usize = 16;

/// Keys in strictly growing order, with their data from the listing.
///
/// INVARIANT: `data` is what [`Packed::new`] or [`Packed::from_bytes`] has checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    len: u32,
    has_times: bool,
    /// Where each block begins in `data`.
    blocks: Box<[u32]>,
    data: Box<[u8]>,
}

/// A listing's data of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Bytes as stored, where the store tells.
    pub stored_size: Option<u64>,
    /// Its time, where the store tells.
    pub modified: Option<SystemTime>,
}

impl Packed {
    /// Packs items; their keys must grow strictly.
    pub fn new(items: &[ListItem]) -> Self {
        let has_times = items.iter().any(|item| item.modified.is_some());
        let mut data = Vec::with_capacity(items.len() * 16);
        let mut blocks = Vec::with_capacity(items.len().div_ceil(BLOCK));
        let mut before: &[u8] = &[];
        for (at, item) in items.iter().enumerate() {
            let key = item.key.as_str().as_bytes();
            let shared = if at % BLOCK == 0 {
                blocks.push(u32::try_from(data.len()).unwrap_or(u32::MAX));
                0
            } else {
                key.iter().zip(before).take_while(|(a, b)| a == b).count()
            };
            put(&mut data, shared as u64);
            put(&mut data, (key.len() - shared) as u64);
            data.extend_from_slice(&key[shared..]);
            put(
                &mut data,
                item.stored_size.map_or(0, |size| size.saturating_add(1)),
            );
            if has_times {
                put_time(&mut data, item.modified);
            }
            before = key;
        }
        Self {
            len: items.len() as u32,
            has_times,
            blocks: blocks.into(),
            data: data.into(),
        }
    }

    /// Returns how many keys there are.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the first key, `""` where there is none.
    pub fn first_key(&self) -> &str {
        self.blocks
            .first()
            .and_then(|offset| self.key_at(*offset))
            .unwrap_or_default()
    }

    /// Returns the last key, `""` where there is none.
    pub fn last_key(&self) -> String {
        let mut walk = self.walk(self.len().saturating_sub(1));
        walk.advance()
            .map(|(key, _)| key.to_owned())
            .unwrap_or_default()
    }

    /// Returns the key at a place.
    pub fn get(&self, at: usize) -> Option<(Key, Told)> {
        let mut walk = self.walk(at);
        let (key, told) = walk.advance()?;
        Some((Key::new(key)?, told))
    }

    /// Returns the place of a key, else where it would be.
    ///
    /// # Errors
    /// The place of the first greater key.
    pub fn find(&self, key: &str) -> Result<usize, usize> {
        let block = self
            .blocks
            .partition_point(|offset| self.key_at(*offset).is_some_and(|first| first <= key));
        let Some(block) = block.checked_sub(1) else {
            return Err(0);
        };
        let from = block * BLOCK;
        let mut walk = self.walk(from);
        for at in from..self.len().min(from + BLOCK) {
            match walk.advance() {
                Some((here, _)) if here == key => return Ok(at),
                Some((here, _)) if here < key => {}
                _ => return Err(at),
            }
        }
        Err(self.len().min(from + BLOCK))
    }

    /// Walks over the entries from a place on.
    pub fn walk(&self, from: usize) -> Walk<'_> {
        let mut walk = Walk {
            packed: self,
            at: from / BLOCK * BLOCK,
            offset: self
                .blocks
                .get(from / BLOCK)
                .map_or(self.data.len(), |offset| *offset as usize),
            key: String::new(),
        };
        while walk.at < from && walk.advance().is_some() {}
        walk
    }

    /// Returns the bytes that it takes in memory, about.
    #[cfg(feature = "testing")]
    pub fn memory(&self) -> usize {
        size_of::<Self>() + self.blocks.len() * 4 + self.data.len()
    }

    /// Returns a form for the disk; [`Packed::from_bytes`] reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.data.len() + 12);
        put(&mut bytes, u64::from(self.len));
        bytes.push(u8::from(self.has_times));
        bytes.extend_from_slice(&self.data);
        bytes
    }

    /// Reads what [`Packed::to_bytes`] wrote; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let len = u32::try_from(take(&mut rest)?).ok()?;
        let (has_times, data) = rest.split_first()?;
        let mut packed = Self {
            len,
            has_times: *has_times == 1,
            blocks: Box::default(),
            data: data.into(),
        };
        // Every entry is read once: what does not make sense is noticed here and nowhere else.
        let mut blocks = Vec::new();
        let (mut before, mut key) = (Vec::new(), Vec::new());
        let mut rest = &*packed.data;
        for at in 0..packed.len() {
            let offset = packed.data.len() - rest.len();
            let shared = usize::try_from(take(&mut rest)?).ok()?;
            let more = usize::try_from(take(&mut rest)?).ok()?;
            if at % BLOCK == 0 {
                blocks.push(u32::try_from(offset).ok()?);
                if shared != 0 {
                    return None;
                }
            }
            key.truncate(shared);
            if key.len() != shared {
                return None;
            }
            key.extend_from_slice(rest.get(..more)?);
            rest = rest.get(more..)?;
            take(&mut rest)?;
            if packed.has_times {
                take_time(&mut rest)?;
            }
            if key <= before || std::str::from_utf8(&key).is_err() {
                return None;
            }
            before.clone_from(&key);
        }
        if !rest.is_empty() {
            return None;
        }
        packed.blocks = blocks.into();
        Some(packed)
    }

    /// Returns the whole key of the block that begins at `offset`.
    fn key_at(&self, offset: u32) -> Option<&str> {
        let mut rest = self.data.get(offset as usize..)?;
        take(&mut rest)?;
        let len = usize::try_from(take(&mut rest)?).ok()?;
        std::str::from_utf8(rest.get(..len)?).ok()
    }
}

/// Reads entries one after the other, into one buffer.
#[derive(Debug)]
pub struct Walk<'a> {
    packed: &'a Packed,
    at: usize,
    offset: usize,
    key: String,
}

impl Walk<'_> {
    /// Returns the next entry; `None` after the last one.
    pub fn advance(&mut self) -> Option<(&str, Told)> {
        if self.at >= self.packed.len() {
            return None;
        }
        let mut rest = self.packed.data.get(self.offset..)?;
        let shared = usize::try_from(take(&mut rest)?).ok()?;
        let more = usize::try_from(take(&mut rest)?).ok()?;
        // Keys may share a part of a character: then the buffer is no text for a moment.
        let mut key = std::mem::take(&mut self.key).into_bytes();
        key.truncate(shared);
        key.extend_from_slice(rest.get(..more)?);
        self.key = String::from_utf8(key).ok()?;
        rest = rest.get(more..)?;
        let stored_size = take(&mut rest)?.checked_sub(1);
        let modified = if self.packed.has_times {
            take_time(&mut rest)?
        } else {
            None
        };
        self.at += 1;
        self.offset = self.packed.data.len() - rest.len();
        Some((
            &self.key,
            Told {
                stored_size,
                modified,
            },
        ))
    }
}

fn put(data: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        data.push(number as u8 | 0x80);
        number >>= 7;
    }
    data.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for at in 0..10 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Writes 0, or 1 and a time after 1970, or 2 and one before it.
fn put_time(data: &mut Vec<u8>, time: Option<SystemTime>) {
    let (tag, span) = match time.map(|time| time.duration_since(SystemTime::UNIX_EPOCH)) {
        None => return data.push(0),
        Some(Ok(span)) => (1, span),
        Some(Err(before)) => (2, before.duration()),
    };
    data.push(tag);
    put(data, span.as_secs());
    put(data, u64::from(span.subsec_nanos()));
}

fn take_time(rest: &mut &[u8]) -> Option<Option<SystemTime>> {
    let (tag, after) = rest.split_first()?;
    *rest = after;
    if *tag == 0 {
        return Some(None);
    }
    let seconds = take(rest)?;
    let nanos = u32::try_from(take(rest)?)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    let span = Duration::new(seconds, nanos);
    let time = if *tag == 1 {
        SystemTime::UNIX_EPOCH.checked_add(span)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(span)
    };
    time.map(Some)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(
        keys: std::collections::BTreeMap<String, (Option<u64>, Option<i32>)>,
    ) -> Vec<ListItem> {
        keys.into_iter()
            .map(|(key, (stored_size, time))| ListItem {
                key: Key::new(key).expect("a key"),
                stored_size,
                modified: time.map(|time| {
                    let span = Duration::from_millis(u64::from(time.unsigned_abs()));
                    if time < 0 {
                        SystemTime::UNIX_EPOCH - span
                    } else {
                        SystemTime::UNIX_EPOCH + span
                    }
                }),
                public_url: None,
            })
            .collect()
    }

    proptest! {
        #[test]
        fn what_is_packed_is_found_again(
            keys in proptest::collection::btree_map("[ab]{1,3}|key-[0-9]{1,4}|é[é-í]{0,2}|\\PC{1,9}", (any::<Option<u64>>(), any::<Option<i32>>()), 0..80),
            absent in "[ab]{1,3}|key-[0-9]{1,4}",
        ) {
            let items = items(keys.into_iter().map(|(key, (size, time))| (key, (size.map(|size| size / 2), time))).collect());
            let packed = Packed::new(&items);
            prop_assert_eq!(packed.len(), items.len());
            for (at, item) in items.iter().enumerate() {
                let (key, told) = packed.get(at).expect("packed");
                prop_assert_eq!(&key, &item.key);
                prop_assert_eq!(told.stored_size, item.stored_size);
                prop_assert_eq!(told.modified, item.modified);
                prop_assert_eq!(packed.find(key.as_str()), Ok(at));
            }
            let at = items.binary_search_by(|item| item.key.as_str().cmp(&absent));
            prop_assert_eq!(packed.find(&absent), at);
            prop_assert_eq!(Packed::from_bytes(&packed.to_bytes()), Some(packed.clone()));
            prop_assert_eq!(packed.last_key(), items.last().map(|item| item.key.as_str().to_owned()).unwrap_or_default());
        }

        #[test]
        fn whatever_is_on_disk_it_is_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..60), flip in any::<(usize, u8)>()) {
            let _ = Packed::from_bytes(&bytes);
            let keys = items((0..40).map(|i| (format!("k{i:03}"), (Some(i), None))).collect());
            bytes = Packed::new(&keys).to_bytes();
            let at = flip.0 % bytes.len();
            bytes[at] ^= flip.1;
            if let Some(packed) = Packed::from_bytes(&bytes) {
                let mut walk = packed.walk(0);
                let mut count = 0;
                while walk.advance().is_some() {
                    count += 1;
                }
                prop_assert_eq!(count, packed.len());
            }
        }
    }

    #[test]
    fn a_usual_key_takes_about_ten_bytes() {
        let keys = items(
            (0..1000)
                .map(|i| (format!("rec-{i:07}.json"), (Some(4096), None)))
                .collect(),
        );
        let memory = Packed::new(&keys).memory();
        assert!(memory <= 14_000, "{memory}");
    }
}
