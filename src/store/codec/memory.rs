//! The memory of decoders: one bound for all that share it.
//!
//! A decoder of brotli keeps the last 16 MiB of its content, however few bytes are stored. One that
//! needs more than [`SMALL`] waits for a place, once and for all that it may ever need: so no thread
//! that has a place waits for another. A place that is not used while others wait for one is taken
//! away: its decoder has to begin again.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::process::{Resource, getrlimit};

use crate::base::clock::Deadline;
use crate::base::units::{KIB, MIB};
use crate::store::{ErrorKind, StoreError};

/// Bytes of all places together, where addresses are not limited.
const MOST: u64 = 128 * MIB;

/// The share of its addresses that a process spends on decoders.
const SHARE: u64 = 8;

/// What a decoder takes without a place: those of gzip and deflate, and most of small records.
const SMALL: u64 = 512 * KIB;

/// The most that codes take besides the window (RFC 7932: three kinds, up to 256 codes each).
const CODES: u64 = 3 * MIB;

/// Allocations below this are never refused.
const TRIFLE: u64 = 4 * KIB;

/// How long a place may be unused while others wait for one.
const UNUSED: Duration = Duration::from_secs(2);

/// How often waiting decoders look for unused places.
const LOOK: Duration = Duration::from_millis(200);

/// How long a decoder waits that needs a place only after its deadline.
const LATE: Duration = Duration::from_secs(10);

/// How long a decoder waits that works ahead: the reader of the same record may wait for it.
const AHEAD: Duration = Duration::from_secs(1);

/// The memory that decoders share.
#[derive(Clone)]
pub struct DecoderMemory(Arc<Shared>);

struct Shared {
    most: u64,
    /// Those of the standard kind: explored schedules never wait here.
    places: Mutex<Places>,
    changed: Condvar,
}

#[derive(Default)]
struct Places {
    taken: u64,
    numbers: u64,
    /// The numbers that wait, in order: decoders for readers, then decoders that work ahead.
    waiting: [VecDeque<u64>; 2],
    held: Vec<(u64, Weak<dyn Resting>)>,
}

/// What a decoder works for, and how long it may wait for memory.
#[derive(Clone, Copy, Debug)]
pub enum Turn {
    /// For a reader that waits until then.
    Reader(Deadline),
    /// For a reader that may never come: it lets others go first.
    Ahead(Deadline),
    /// It takes what it needs: for short work, which waits for nothing else.
    Now,
}

/// A decoder that may be resting.
pub(super) trait Resting: Send + Sync {
    /// Returns since when it has rested; `None` while it is at work, and without memory.
    fn since(&self) -> Option<Instant>;

    /// Gives its memory back, if it rests.
    fn give_up(&self);
}

/// Memory for one decoder, given back when dropped.
struct Place {
    memory: DecoderMemory,
    number: u64,
    bytes: u64,
}

impl DecoderMemory {
    /// Makes memory of `most` bytes. A decoder that needs more gets it while it is the only one.
    pub fn new(most: u64) -> Self {
        Self(Arc::new(Shared {
            most,
            places: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Returns that of this process.
    pub fn of_process() -> &'static Self {
        static OF_PROCESS: LazyLock<DecoderMemory> =
            LazyLock::new(|| DecoderMemory::new(DecoderMemory::most()));
        &OF_PROCESS
    }

    /// Returns how much a process may spend: less where its addresses are limited.
    pub fn most() -> u64 {
        let addresses = getrlimit(Resource::As).current;
        addresses.map_or(MOST, |addresses| MOST.min(addresses / SHARE))
    }

    /// Returns how many bytes are taken.
    #[cfg(any(test, feature = "testing"))]
    pub fn taken(&self) -> u64 {
        self.0.places.lock().taken
    }

    /// Returns how many decoders wait.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.0.places.lock().waiting.iter().map(VecDeque::len).sum()
    }

    fn take(&self, bytes: u64, turn: Turn, holder: Weak<dyn Resting>) -> Result<Place, StoreError> {
        let (class, deadline) = match turn {
            Turn::Reader(deadline) => (Some(0), deadline),
            Turn::Ahead(deadline) => (Some(1), deadline.min(Deadline::after(AHEAD))),
            Turn::Now => (None, Deadline::after(Duration::ZERO)),
        };
        let deadline = match deadline.remaining() {
            Some(_) => deadline,
            None => Deadline::after(LATE),
        };
        let mut places = self.0.places.lock();
        let number = places.numbers;
        places.numbers += 1;
        if let Some(class) = class {
            places.waiting[class].push_back(number);
            let in_time = self.wait(&mut places, bytes, number, deadline);
            places.waiting[class].retain(|other| *other != number);
            // The next in line may go now, too.
            self.0.changed.notify_all();
            if !in_time {
                return Err(no_place());
            }
        }
        places.taken += bytes;
        places.held.push((number, holder));
        Ok(Place {
            memory: self.clone(),
            number,
            bytes,
        })
    }

    /// Waits until there is room for the next one in line; `false` if that takes too long.
    fn wait(
        &self,
        places: &mut MutexGuard<'_, Places>,
        bytes: u64,
        number: u64,
        deadline: Deadline,
    ) -> bool {
        loop {
            let [readers, ahead] = &places.waiting;
            let is_next = readers.front().or(ahead.front()) == Some(&number);
            if is_next && (places.taken == 0 || places.taken + bytes <= self.0.most) {
                return true;
            }
            if deadline.remaining().is_none() {
                return false;
            }
            if !is_next || !self.end_unused(places) {
                let look = Deadline::after(LOOK).min(deadline);
                self.0.changed.wait_until(places, look.instant());
            }
        }
    }

    /// Takes the place away that has been unused longest; `false` if all are used.
    fn end_unused(&self, places: &mut MutexGuard<'_, Places>) -> bool {
        let held: Vec<_> = places
            .held
            .iter()
            .filter_map(|(_, holder)| holder.upgrade())
            .collect();
        // What is dropped here gives its place back under the lock.
        MutexGuard::unlocked(places, move || {
            let rests = held
                .iter()
                .filter_map(|holder| Some((holder.since()?, holder)));
            match rests.min_by_key(|(since, _)| *since) {
                Some((since, holder)) if since.elapsed() >= UNUSED => {
                    holder.give_up();
                    true
                }
                _ => false,
            }
        })
    }
}

impl fmt::Debug for DecoderMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecoderMemory")
            .field("most", &self.0.most)
            .finish_non_exhaustive()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.memory.0.places.lock();
        places.taken -= self.bytes;
        places.held.retain(|(number, _)| *number != self.number);
        self.memory.0.changed.notify_all();
    }
}

/// What one decoder has taken.
pub(super) struct Account {
    memory: DecoderMemory,
    turn: Turn,
    /// Bytes of its largest window.
    window: AtomicU64,
    own: AtomicU64,
    place: Mutex<Option<Place>>,
    refusal: Mutex<Option<StoreError>>,
    holder: OnceLock<Weak<dyn Resting>>,
}

impl Account {
    pub(super) fn new(memory: &DecoderMemory, turn: Turn) -> Self {
        Self {
            memory: memory.clone(),
            turn,
            window: AtomicU64::new(16 * MIB),
            own: AtomicU64::new(0),
            place: Mutex::new(None),
            refusal: Mutex::new(None),
            holder: OnceLock::new(),
        }
    }

    /// Sets whose account it is.
    pub(super) fn belongs_to(&self, holder: Weak<dyn Resting>) {
        let _ = self.holder.set(holder);
    }

    /// Sets how large the window may become.
    pub(super) fn set_window(&self, bytes: u64) {
        self.window.store(bytes, Ordering::Relaxed);
    }

    /// Takes memory; `false` if there is none in time.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let own = self.own.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if own <= SMALL || bytes < TRIFLE || self.place.lock().is_some() {
            return true;
        }
        let Some(holder) = self.holder.get() else {
            return true;
        };
        let most = self.window.load(Ordering::Relaxed) + CODES;
        match self.memory.take(most, self.turn, holder.clone()) {
            Ok(place) => {
                *self.place.lock() = Some(place);
                true
            }
            Err(refusal) => {
                self.own.fetch_sub(bytes, Ordering::Relaxed);
                *self.refusal.lock() = Some(refusal);
                false
            }
        }
    }

    /// Notes that memory was freed.
    pub(super) fn give(&self, bytes: u64) {
        self.own.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Gives the place back, when all memory is freed.
    pub(super) fn close(&self) {
        let place = self.place.lock().take();
        drop(place);
    }

    /// Returns why memory was refused, if it was.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        self.refusal.lock().take()
    }
}

/// The cause of an error: there was no place in time.
#[derive(Debug)]
struct NoPlace;

/// The cause of an error: the place was taken away.
#[derive(Debug)]
struct MadeWay;

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory of decoders is taken")
    }
}

impl fmt::Display for MadeWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the memory of an unused decoder was needed elsewhere")
    }
}

impl Error for NoPlace {}
impl Error for MadeWay {}

fn no_place() -> StoreError {
    let message = "too many large records are being decoded at once";
    StoreError::new(ErrorKind::Timeout, message)
        .with_hint("read fewer files at once, or try again in a moment")
        .with_source(NoPlace)
}

/// Returns the error of a decoder that has lost its place.
pub(super) fn made_way() -> StoreError {
    let message = "the record was not read on for a while, and others wait to be decoded";
    StoreError::new(ErrorKind::Timeout, message)
        .with_hint("read it again from its start")
        .with_source(MadeWay)
}

/// Returns whether a decoder failed because there was no memory for it in time.
pub fn is_no_place(error: &StoreError) -> bool {
    error.source().is_some_and(|cause| cause.is::<NoPlace>())
}

/// Returns whether a decoder failed because it was unused and had to make way: decoding can begin
/// again.
pub fn has_made_way(error: &StoreError) -> bool {
    error.source().is_some_and(|cause| cause.is::<MadeWay>())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};

    use super::*;
    use crate::store::Encoding;
    use crate::store::codec::decoder;

    /// Of which brotli remembers 16 MiB.
    const LONG: usize = 12 << 20;

    /// A content of this length, as it is stored.
    fn stored(len: usize) -> Vec<u8> {
        let mut stored = Vec::new();
        let mut writer = brotli::CompressorWriter::new(&mut stored, 1 << 16, 5, 24);
        writer.write_all(&vec![7; len]).expect("in memory");
        drop(writer);
        stored
    }

    fn reading<'a>(stored: &'a [u8], memory: &DecoderMemory, turn: Turn) -> Box<dyn Read + 'a> {
        decoder(&Encoding::Brotli, Box::new(stored), memory, turn).expect("a decoder")
    }

    fn within(seconds: u64) -> Turn {
        Turn::Reader(Deadline::after(Duration::from_secs(seconds)))
    }

    fn some(reader: &mut dyn Read) -> Result<(), StoreError> {
        let read = reader.read_exact(&mut vec![0; 2 << 20]);
        read.map_err(|error| StoreError::from_io(error, ErrorKind::Disk))
    }

    #[test]
    fn windows_are_bounded_together_and_given_back_at_the_end() {
        let (stored, memory) = (stored(LONG), DecoderMemory::new(24 * MIB));
        let mut first = reading(&stored, &memory, within(60));
        some(&mut first).expect("there is room");
        assert_eq!(memory.taken(), 16 * MIB + CODES);
        let soon = Turn::Reader(Deadline::after(Duration::from_millis(50)));
        let mut second = reading(&stored, &memory, soon);
        let refused = some(&mut second).expect_err("there is no room for two");
        assert!(is_no_place(&refused), "{refused:?}");
        assert_eq!(refused.kind(), ErrorKind::Timeout);
        assert_eq!(memory.waiting(), 0);
        io::copy(&mut first, &mut io::sink()).expect("the rest");
        assert_eq!(memory.taken(), 0, "before it is dropped");
        let mut third = reading(&stored, &memory, within(60));
        some(&mut third).expect("there is room again");
        drop(third);
        assert_eq!(memory.taken(), 0);
    }

    #[test]
    fn a_decoder_that_rests_makes_way_for_one_that_is_waited_for() {
        let (stored, memory) = (stored(LONG), DecoderMemory::new(24 * MIB));
        let mut first = reading(&stored, &memory, within(60));
        some(&mut first).expect("there is room");
        let mut second = reading(&stored, &memory, within(60));
        let read = io::copy(&mut second, &mut io::sink()).expect("its turn comes");
        assert_eq!(read, LONG as u64);
        for _ in 0..2 {
            let error = some(&mut first).expect_err("its state is gone");
            assert_eq!(error.kind(), ErrorKind::Timeout);
        }
    }

    #[test]
    fn what_works_ahead_gives_up_first_and_short_work_never_waits() {
        let (stored, memory) = (stored(LONG), DecoderMemory::new(24 * MIB));
        let mut first = reading(&stored, &memory, within(60));
        some(&mut first).expect("there is room");
        let ahead = Turn::Ahead(Deadline::after(Duration::from_secs(60)));
        let refused = some(&mut reading(&stored, &memory, ahead)).expect_err("there is no room");
        assert!(is_no_place(&refused), "{refused:?}");
        some(&mut reading(&stored, &memory, Turn::Now)).expect("at once");
        assert_eq!(memory.taken(), 16 * MIB + CODES);
        some(&mut first).expect("the rest");
    }

    #[test]
    fn small_records_need_no_place() {
        let memory = DecoderMemory::new(0);
        let (long, small) = (stored(LONG), stored(100_000));
        let mut first = reading(&long, &memory, within(60));
        some(&mut first).expect("one always has a place");
        let mut read = Vec::new();
        let mut second = reading(
            &small,
            &memory,
            Turn::Reader(Deadline::after(Duration::ZERO)),
        );
        second.read_to_end(&mut read).expect("it needs none");
        assert_eq!(read.len(), 100_000);
    }
}
