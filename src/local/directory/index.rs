//! The remembered result of a scan.
//!
//! A page of a listing must not scan a large folder again, yet a record that another process writes
//! must show up within [`MAX_AGE`]. The folder's modification time tells most changes, except
//! inside sub-directories and within one tick of the file system's clock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use super::folder::Folder;
use super::scan::{self, Claim};
use crate::store::Key;

/// How long an index stays valid although the folder may have changed.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Scans that take no longer than this are repeated whenever the folder may have changed.
const CHEAP: Duration = Duration::from_millis(3);

/// So are scans that find no more records than this, however busy the machine is.
const FEW: usize = 100;

/// How many times the duration of its scan an index stays valid, up to [`MAX_AGE`].
const AGE_PER_SCAN: u32 = 10;

/// The same beyond [`MAX_AGE`], lest a huge folder be scanned all the time.
const LEAST_AGE_PER_SCAN: u32 = 2;

/// A change this close to a scan may carry the same time as one before it.
const TICK: Duration = Duration::from_millis(20);

/// The index of one folder.
#[derive(Debug, Default)]
pub(super) struct Index {
    state: Mutex<State>,
    scanned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    claims: Arc<BTreeMap<Key, Claim>>,
    rivals: HashMap<Key, Vec<Claim>>,
    stamp: Option<Stamp>,
    scanning: bool,
    /// Own changes since the running scan began; they win over what it finds.
    journal: Vec<(Key, Option<Claim>)>,
    warned: HashSet<Key>,
    warned_unnamed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Stamp {
    folder_modified: SystemTime,
    began: Instant,
    took: Duration,
    records: usize,
    /// Whether an unchanged modification time proves an unchanged folder.
    settled: bool,
}

impl Stamp {
    fn holds(&self, folder_modified: SystemTime, tolerated: Duration) -> bool {
        let unchanged = self.settled && self.folder_modified == folder_modified;
        let believed = if self.is_cheap() {
            Duration::ZERO
        } else {
            MAX_AGE
                .min(self.took * AGE_PER_SCAN)
                .max(self.took * LEAST_AGE_PER_SCAN)
                .max(tolerated)
        };
        unchanged || self.began.elapsed() < believed
    }

    fn is_cheap(&self) -> bool {
        self.took <= CHEAP || self.records <= FEW
    }
}

impl Index {
    /// Scans the folder if it may have changed, unless the index is younger than `tolerated`
    /// and the scan not cheap. One thread scans; if the scan is long, the others go by the old
    /// index meanwhile. Own changes are in it at any age. Returns the unfinished files that were
    /// found if there was a scan.
    pub(super) fn refresh(&self, folder: &Folder, tolerated: Duration) -> io::Result<Vec<String>> {
        let modified = folder.modified()?;
        let known = {
            let mut state = self.state.lock();
            loop {
                let stamp = state.stamp;
                if stamp.is_some_and(|stamp| stamp.holds(modified, tolerated)) {
                    return Ok(Vec::new());
                }
                if !state.scanning {
                    break;
                }
                if stamp.is_some_and(|stamp| !stamp.is_cheap()) {
                    return Ok(Vec::new());
                }
                self.scanned.wait(&mut state);
            }
            state.scanning = true;
            state.journal.clear();
            state.claims.clone()
        };
        let _scanning = Scanning(self);
        let began = Instant::now();
        let wall = SystemTime::now();
        let found = scan::scan(folder, &|key| known.get(key).cloned());
        drop(known);
        let found = found?;
        let mut state = self.state.lock();
        let settled = !found.nested
            && wall
                .duration_since(modified)
                .is_ok_and(|since| since > TICK);
        state.stamp = Some(Stamp {
            folder_modified: modified,
            began,
            took: began.elapsed(),
            records: found.claims.len(),
            settled,
        });
        let mut claims = found.claims;
        for (key, change) in std::mem::take(&mut state.journal) {
            match change {
                Some(claim) => claims.insert(key, claim),
                None => claims.remove(&key),
            };
        }
        state.claims = Arc::new(claims);
        state.rivals = found.rivals;
        state.warn(found.unnamed);
        Ok(found.unfinished)
    }

    /// Returns all claims on a key, the one that counts first.
    pub(super) fn claims(&self, key: &Key) -> Vec<Claim> {
        let state = self.state.lock();
        let rivals = state.rivals.get(key).into_iter().flatten();
        state
            .claims
            .get(key)
            .into_iter()
            .chain(rivals)
            .cloned()
            .collect()
    }

    /// Returns whether a file is the value of another key.
    pub(super) fn is_of_another(&self, value: &str, key: &Key) -> bool {
        let state = self.state.lock();
        state.claims.iter().any(|(other, claim)| {
            let is_it = matches!(claim, Claim::Other(files) if files.value == value);
            is_it && other != key
        })
    }

    /// Returns up to `limit` records after `after`, and whether there are more.
    pub(super) fn page(
        &self,
        after: &str,
        prefix: &str,
        limit: usize,
    ) -> (Vec<(Key, Claim)>, bool) {
        let start = if after < prefix {
            Key::new(prefix).map_or(Bound::Unbounded, Bound::Included)
        } else {
            Key::new(after).map_or(Bound::Unbounded, Bound::Excluded)
        };
        let state = self.state.lock();
        let mut found = state
            .claims
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix));
        let page = found
            .by_ref()
            .take(limit)
            .map(|(key, claim)| (key.clone(), claim.clone()))
            .collect();
        (page, found.next().is_some())
    }

    /// Notes an own change.
    pub(super) fn note(&self, key: &Key, change: Option<Claim>) {
        let mut state = self.state.lock();
        if state.scanning {
            state.journal.push((key.clone(), change.clone()));
        }
        state.rivals.remove(key);
        let claims = Arc::make_mut(&mut state.claims);
        match change {
            Some(claim) => claims.insert(key.clone(), claim),
            None => claims.remove(key),
        };
    }
}

/// The right to scan; ends also with an error or a panic.
struct Scanning<'a>(&'a Index);

impl Drop for Scanning<'_> {
    fn drop(&mut self) {
        self.0.state.lock().scanning = false;
        self.0.scanned.notify_all();
    }
}

impl State {
    fn warn(&mut self, unnamed: usize) {
        for key in self.rivals.keys() {
            if self.warned.insert(key.clone()) {
                let files = self.claims.get(key).map(|claim| claim.files(key).value);
                let file = files.unwrap_or_default();
                tracing::warn!("several files claim the key {key}; {file} counts");
            }
        }
        if unnamed > 0 && !self.warned_unnamed {
            self.warned_unnamed = true;
            tracing::warn!(
                files = unnamed,
                "files with names that are not UTF-8 are not records"
            );
        }
    }
}
