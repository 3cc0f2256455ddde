//! Whole listings on disk, kept across mounts.
//!
//! One file for each listing: a magic that says whether the store was declared never to change, the
//! packed pages with their lengths, a checksum. It is written next to its place and renamed, so
//! that it is whole or missing. Nothing is fsynced: the checksum finds what a crash has damaged,
//! and such a file is no index.
//!
//! Only `--immutable` mounts show an index as a listing, and only one that such a mount made. Any
//! other mount lists again, and takes it as a [`Guide`] to where pages begin.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use twox_hash::{XxHash3_64, XxHash3_128};

use crate::base::clock::Deadline;
use crate::base::sync::Mutex;
use crate::disk::{Patience, temp};
use crate::listing::packed::Packed;
use crate::listing::partition::Guide;
use crate::store::{Key, ListQuery};

const CHANGING: &[u8; 16] = b"kvfs listing 1c\n";
const IMMUTABLE: &[u8; 16] = b"kvfs listing 1i\n";
/// The largest index that is read: some ten million keys.
const MOST_BYTES: u64 = 1 << 30;
/// A listing that changes all the time is not written more often.
const NOT_BEFORE: Duration = Duration::from_secs(60);

/// The place of one index.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    is_immutable: bool,
    /// The checksum of what is on disk, and when it was written.
    written: Mutex<Option<(u64, Option<Instant>)>>,
    /// How often it has been forgotten: a listing from before that is not written any more.
    epoch: AtomicU64,
    disk: Option<Arc<Patience>>,
}

/// A listing as it was.
#[derive(Debug)]
pub struct Saved {
    /// Its pages.
    pub pages: Vec<Packed>,
    /// Whether it can be shown as it is.
    pub is_current: bool,
    /// How many keys come before each page.
    firsts: Vec<u64>,
}

impl Index {
    /// Returns the index in `dir` of what `query` lists; `is_immutable` says that nothing of it
    /// ever changes.
    pub fn new(dir: &Path, query: &ListQuery, is_immutable: bool) -> Self {
        let mut hash = XxHash3_128::new();
        for part in [&query.prefix, &query.collection] {
            let part = part.as_deref();
            hash.write(
                &part
                    .map_or(u64::MAX, |part| part.len() as u64)
                    .to_le_bytes(),
            );
            hash.write(part.unwrap_or_default().as_bytes());
        }
        Self {
            path: dir.join(format!("listing-{:032x}.index", hash.finish_128())),
            is_immutable,
            written: Mutex::default(),
            epoch: AtomicU64::new(0),
            disk: None,
        }
    }

    /// Has a disk that hangs not waited for.
    pub fn on(self, disk: Option<Arc<Patience>>) -> Self {
        Self { disk, ..self }
    }

    /// Returns whether this mount was told that nothing changes.
    pub fn is_immutable(&self) -> bool {
        self.is_immutable
    }

    /// Returns what a listing that begins now hands to [`Index::save`].
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Removes it on request.
    pub fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        *self.written.lock() = None;
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(
                "cannot remove {}: {error}; remove it, or the next mount may show the old listing",
                self.path.display()
            );
        }
    }

    /// Reads it, as long as a disk that is well needs for that.
    pub fn load_within(self: &Arc<Self>, deadline: Deadline) -> Option<Saved> {
        let Some(disk) = &self.disk else {
            return self.load();
        };
        let index = Arc::clone(self);
        disk.wait(Patience::of(deadline), move || index.load())?
    }

    /// Reads it; `None` if there is none that is whole.
    pub fn load(&self) -> Option<Saved> {
        let size = fs::metadata(&self.path).ok()?.len();
        let bytes = (size <= MOST_BYTES).then(|| fs::read(&self.path).ok())??;
        let Some((pages, was_immutable, sum)) = parse(&bytes) else {
            tracing::info!("the saved listing is broken; listing again");
            let _ = fs::remove_file(&self.path);
            return None;
        };
        *self.written.lock() = Some((sum, None));
        Some(Saved::new(pages, self.is_immutable && was_immutable))
    }

    /// Writes a listing that began in `epoch`, if it is another than the one on disk.
    ///
    /// What goes wrong is logged: the next mount lists without it.
    pub fn save<'a>(&self, pages: impl Iterator<Item = &'a Packed>, now: Instant, epoch: u64) {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(if self.is_immutable {
            IMMUTABLE
        } else {
            CHANGING
        });
        for page in pages {
            let page = page.to_bytes();
            bytes.extend_from_slice(&(page.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&page);
        }
        let sum = XxHash3_64::oneshot(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        let mut written = self.written.lock();
        let is_there = written.is_some_and(|(on_disk, at)| {
            on_disk == sum || at.is_some_and(|at| now.saturating_duration_since(at) < NOT_BEFORE)
        });
        if is_there || self.epoch() != epoch {
            return;
        }
        *written = Some((sum, Some(now)));
        drop(written);
        if let Err(error) = self.replace(&bytes) {
            tracing::debug!(
                "cannot keep the listing in {}: {error}",
                self.path.display()
            );
        }
        if self.epoch() != epoch {
            // It was forgotten while it was written.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let dir = self.path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut file = temp::create(dir)?;
        file.write_all(bytes)?;
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Returns the pages, whether they never change, and the checksum; `None` unless all is right.
fn parse(bytes: &[u8]) -> Option<(Vec<Packed>, bool, u64)> {
    let (content, sum) = bytes.split_last_chunk::<8>()?;
    let sum = u64::from_le_bytes(*sum);
    let (magic, mut rest) = content.split_first_chunk::<16>()?;
    if ![CHANGING, IMMUTABLE].contains(&magic) || XxHash3_64::oneshot(content) != sum {
        return None;
    }
    let mut pages: Vec<Packed> = Vec::new();
    let mut last = String::new();
    while let Some((len, after)) = rest.split_first_chunk::<8>() {
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        let page = Packed::from_bytes(after.get(..len)?)?;
        if page.is_empty() || (!pages.is_empty() && page.first_key() <= last.as_str()) {
            return None;
        }
        last = page.last_key();
        rest = &after[len..];
        pages.push(page);
    }
    rest.is_empty().then_some((pages, magic == IMMUTABLE, sum))
}

impl Saved {
    fn new(pages: Vec<Packed>, is_current: bool) -> Self {
        let mut before = 0;
        let firsts = pages
            .iter()
            .map(|page| {
                before += page.len() as u64;
                before - page.len() as u64
            })
            .collect();
        Self {
            pages,
            is_current,
            firsts,
        }
    }

    fn page_of(&self, rank: u64) -> Option<(&Packed, usize)> {
        let at = self
            .firsts
            .partition_point(|first| *first <= rank)
            .checked_sub(1)?;
        let place = usize::try_from(rank - self.firsts.get(at)?).ok()?;
        Some((self.pages.get(at)?, place))
    }
}

impl Guide for Saved {
    fn keys(&self) -> u64 {
        self.pages.iter().map(|page| page.len() as u64).sum()
    }

    fn rank_of(&self, key: &str) -> u64 {
        let after = self.pages.partition_point(|page| page.first_key() <= key);
        let Some(at) = after.checked_sub(1) else {
            return 0;
        };
        let place = match self.pages[at].find(key) {
            Ok(place) => place + 1,
            Err(place) => place,
        };
        self.firsts[at] + place as u64
    }

    fn key_at(&self, rank: u64) -> Option<Arc<str>> {
        let (page, place) = self.page_of(rank.checked_sub(1)?)?;
        let (key, _): (Key, _) = page.get(place)?;
        Some(key.as_str().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ListItem;

    fn page(keys: std::ops::Range<u64>) -> Packed {
        let items: Vec<ListItem> = keys
            .map(|i| ListItem {
                key: Key::new(format!("key-{i:05}")).expect("a key"),
                stored_size: Some(i),
                modified: None,
                public_url: None,
            })
            .collect();
        Packed::new(&items)
    }

    #[test]
    fn an_index_is_shown_only_by_mounts_that_were_told_that_nothing_changes() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let query = ListQuery::default();
        let open = |is_immutable| Index::new(dir.path(), &query, is_immutable);
        assert!(open(true).load().is_none());
        let pages = [page(0..1000), page(1000..1500)];
        for (made, used, is_current) in [
            (false, true, false),
            (true, false, false),
            (true, true, true),
        ] {
            open(made).save(pages.iter(), Instant::now(), 0);
            let saved = open(used).load().expect("an index");
            assert_eq!((&*saved.pages, saved.is_current), (&pages[..], is_current));
            assert_eq!((saved.keys(), saved.rank_of("key-01000")), (1500, 1001));
            assert_eq!(saved.rank_of("key-00999x"), 1000);
            assert_eq!(saved.key_at(1001).as_deref(), Some("key-01000"));
            assert_eq!(saved.key_at(1501), None);
        }
        let other = ListQuery {
            prefix: Some("key".into()),
            ..query.clone()
        };
        assert!(Index::new(dir.path(), &other, true).load().is_none());
    }

    #[test]
    fn a_torn_or_broken_index_is_none_and_goes_away() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let index = Index::new(dir.path(), &ListQuery::default(), true);
        index.save([page(0..300)].iter(), Instant::now(), 0);
        let whole = fs::read(&index.path).expect("an index");
        for len in (0..whole.len()).step_by(7) {
            fs::write(&index.path, &whole[..len]).expect("a torn index");
            assert!(index.load().is_none(), "{len} of {}", whole.len());
            assert!(!index.path.exists());
        }
        for at in (0..whole.len()).step_by(5) {
            let mut broken = whole.clone();
            broken[at] ^= 0x10;
            fs::write(&index.path, &broken).expect("a broken index");
            assert!(index.load().is_none(), "byte {at}");
        }
        let left = fs::read_dir(dir.path()).expect("the folder").count();
        assert_eq!(left, 0, "nothing is left behind");
    }

    #[test]
    fn an_unchanged_listing_is_not_written_again() {
        let dir = tempfile::tempdir().expect("a temp folder");
        let index = Index::new(dir.path(), &ListQuery::default(), false);
        let now = Instant::now();
        index.save([page(0..300)].iter(), now, 0);
        fs::remove_file(&index.path).expect("an index");
        index.save([page(0..300)].iter(), now + NOT_BEFORE * 2, 0);
        assert!(!index.path.exists());
        index.save([page(0..301)].iter(), now + NOT_BEFORE / 2, 0);
        assert!(!index.path.exists(), "it changes all the time");
        index.save([page(0..301)].iter(), now + NOT_BEFORE * 2, 0);
        assert!(index.path.exists());
        index.forget();
        assert!(!index.path.exists());
        index.save([page(0..302)].iter(), now + NOT_BEFORE * 4, 0);
        assert!(!index.path.exists(), "that listing is from before");
        index.save([page(0..302)].iter(), now + NOT_BEFORE * 4, index.epoch());
        assert!(index.path.exists());
    }
}
