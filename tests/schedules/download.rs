//! A download and those who wait for parts of it: each gets its bytes or an error, none waits in
//! vain, and what was borrowed is given back.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kvfs::base::clock::{Deadline, Wait};
use kvfs::base::sync::{Mutex, now, thread};
use kvfs::base::workers::Workers;
use kvfs::cache::content::{Content, Data, VersionId};
use kvfs::disk::{DiskTier, Spool};
use kvfs::metrics::Metrics;
use kvfs::store::{ETag, ErrorKind, RecordMeta, Store};
use kvfs::transfer::download::Download;
use kvfs::transfer::fill::Outcome;
use kvfs::transfer::stream::Origin;
use kvfs::transfer::tools::Tools;
use shuttle::rand::{Rng, thread_rng};

use crate::explore;
use crate::stage::{Body, Pieces, Stage, assert_nobody_overslept, folder, key, kind, long};

/// "MiB", as small as they are here.
const MIB: u64 = 1 << 10;
const CAPACITY: u64 = 1 << 20;

/// A download of `size` bytes, what it is kept in, and what it borrows.
struct Scene {
    content: Arc<Content>,
    disk: Arc<DiskTier>,
    tools: Tools,
    metrics: Arc<Metrics>,
    stage: Arc<Stage>,
    spool: Mutex<Option<Spool>>,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(size: u64, part: Pieces) -> Self {
        let stage = Arc::new(Stage::default());
        stage.put("a", size as usize);
        stage.pace(part, part);
        let folder = folder();
        let metrics = Arc::new(Metrics::default());
        let disk = DiskTier::open(folder.path(), CAPACITY, "test", Arc::clone(&metrics))
            .expect("a cache folder");
        let meta = RecordMeta {
            stored_size: Some(stage.bytes("a").len() as u64),
            etag: Some(ETag::new("\"1\"")),
            accepts_ranges: true,
            ..RecordMeta::default()
        };
        let tools = Tools::new(Workers::new("kvfs-download", 8, 8, Arc::clone(&metrics)));
        let spool = disk.spool(meta.stored_size.expect("known")).expect("room");
        let store = Arc::<Stage>::clone(&stage) as Arc<dyn Store>;
        let origin = Origin::new(store, key("a"), meta.clone(), false);
        let download = Download::new(origin, &spool, meta.stored_size, None, tools.clone());
        let content = Arc::new(Content {
            read: None,
            key: key("a"),
            version: VersionId(1),
            meta,
            modified: SystemTime::UNIX_EPOCH,
            data: Data::Download(download),
        });
        Self {
            content,
            disk,
            tools,
            metrics,
            stage,
            spool: Mutex::new(Some(spool)),
            _folder: folder,
        }
    }

    fn download(&self) -> &Arc<Download> {
        match &self.content.data {
            Data::Download(download) => download,
            _ => unreachable!("it is one"),
        }
    }

    /// Fills it front to back over one connection; helpers may join.
    fn fill(&self, whole: Pieces) -> Outcome {
        let bytes = self.stage.bytes("a");
        let spool = self.spool.lock().take().expect("once");
        let body = Body {
            bytes,
            at: 0,
            pieces: whole,
        };
        self.download().fill(&[], Some(Box::new(body)), spool)
    }

    /// Everything that was borrowed is there again.
    fn assert_all_back(self) {
        let day = Deadline::after(Duration::from_secs(24 * 3600));
        assert!(self.tools.fillers.wait_idle(day), "somebody still fills");
        drop(self.content);
        assert_eq!(self.tools.blocks.in_use(), 0, "blocks");
        assert!(
            self.disk.spool(CAPACITY - 4096).is_some(),
            "room on disk was not given back"
        );
        assert_eq!(self.metrics.panics_total.get(), 0);
    }
}

/// Reads and compares; returns what went wrong.
fn read(
    reader: &kvfs::cache::content::ContentReader,
    all: &[u8],
    offset: u64,
    len: u64,
    wait: Wait,
) -> Option<ErrorKind> {
    match reader.read_at(offset, len as usize, wait) {
        Err(error) => Some(kind(&error)),
        Ok(bytes) => {
            let end = (offset + len).min(all.len() as u64);
            assert!(
                bytes == all[offset as usize..end as usize],
                "wrong bytes in {offset}..{end}"
            );
            None
        }
    }
}

/// Fills while up to three programs read: front to back, here and there (waiting for `patience`), only
/// the end. Returns how filling ended and how many reads failed.
///
/// One scope: shuttle's may not be nested.
fn scene(
    scene: &Scene,
    whole: Pieces,
    allowed: &[ErrorKind],
    patience: Option<Duration>,
) -> (Outcome, usize) {
    let all = scene.stage.bytes("a");
    let size = all.len() as u64;
    let (failed, outcome) = (Mutex::new(0), Mutex::new(None));
    let count = |failure: Option<ErrorKind>| {
        if let Some(kind) = failure {
            assert!(allowed.contains(&kind), "{kind:?}");
            *failed.lock() += 1;
        }
        failure.is_none()
    };
    let open = || scene.content.reader().ok();
    // Sometimes nobody reads the end, which would have all of it fetched.
    let parts = thread_rng().gen_range(1..=3);
    thread::scope(|scope| {
        let (all, count, open) = (&all, &count, &open);
        scope.spawn(|| {
            let end = scene.fill(whole);
            *outcome.lock() = Some(end);
        });
        scope.spawn(move || {
            let Some(reader) = open() else { return };
            let mut at = 0;
            while at < size && count(read(&reader, all, at, 3 * MIB, long())) {
                at += 3 * MIB;
            }
        });
        scope.spawn(move || {
            let Some(reader) = open().filter(|_| parts >= 2) else {
                return;
            };
            for _ in 0..4 {
                let at = thread_rng().gen_range(0..size);
                let wait = match patience {
                    Some(span) => Wait::Until(Deadline::after(span)),
                    None => long(),
                };
                count(read(&reader, all, at, 2 * MIB, wait));
            }
        });
        scope.spawn(move || {
            let Some(reader) = open().filter(|_| parts >= 3) else {
                return;
            };
            count(read(&reader, all, size - 100, 100, long()));
        });
    });
    let failed = *failed.lock();
    let outcome = outcome.lock().take().expect("it ended");
    (outcome, failed)
}

fn assert_whole(scene: &Scene, outcome: Outcome) {
    if let Outcome::Whole(spool, size, _) = outcome {
        let all = scene.stage.bytes("a");
        assert_eq!(size, all.len() as u64);
        let mut kept = vec![0; all.len()];
        spool.file().read_exact_at(&mut kept, 0).expect("all of it");
        assert!(kept == all, "wrong bytes are to be published");
    }
}

fn pieces(size: usize, pause_ms: u64) -> Pieces {
    Pieces {
        size,
        pause: Duration::from_millis(pause_ms),
        breaks: None,
    }
}

#[test]
fn all_who_wait_get_their_bytes() {
    explore("bytes", 70, 0, || {
        let begun = now();
        let size = [9 * MIB, 20 * MIB][thread_rng().gen_range(0..2)];
        let stage = Scene::new(size, pieces(700, 0));
        let (outcome, failed) = scene(&stage, pieces(1500, 0), &[], None);
        assert_eq!(failed, 0);
        assert_whole(&stage, outcome);
        assert_nobody_overslept(begun);
        stage.assert_all_back();
    });
}

#[test]
fn slow_connections_get_helpers_and_all_who_wait_their_bytes() {
    explore("helpers", 50, 0, || {
        let begun = now();
        let stage = Scene::new(30 * MIB, pieces(900, 40));
        let (outcome, failed) = scene(&stage, pieces(900, 40), &[], None);
        assert_eq!(failed, 0);
        assert_nobody_overslept(begun);
        assert_whole(&stage, outcome);
        stage.assert_all_back();
    });
}

#[test]
fn when_it_breaks_off_all_who_wait_are_told() {
    explore("breaks", 70, 0, || {
        let breaks = |size| {
            let at = thread_rng().gen_range(0..size);
            Some((at, thread_rng().gen_range(0..2) == 0))
        };
        let part = Pieces {
            breaks: breaks(600).filter(|_| thread_rng().gen_range(0..2) == 0),
            ..pieces(300, 0)
        };
        let whole = Pieces {
            breaks: breaks(12 * MIB),
            ..pieces(1500, [0, 50][thread_rng().gen_range(0..2)])
        };
        let begun = now();
        let stage = Scene::new(12 * MIB, part);
        let allowed = [ErrorKind::Network, ErrorKind::Protocol, ErrorKind::Changed];
        let (outcome, _) = scene(&stage, whole, &allowed, None);
        assert_whole(&stage, outcome);
        assert_nobody_overslept(begun);
        stage.assert_all_back();
    });
}

#[test]
fn who_gives_up_waiting_takes_nobody_along() {
    explore("patience", 70, 0, || {
        let begun = now();
        let stage = Scene::new(12 * MIB, pieces(300, 30));
        let patience = Some(Duration::from_millis(100));
        let allowed = [ErrorKind::Timeout];
        let (outcome, _) = scene(&stage, pieces(1000, 60), &allowed, patience);
        assert_nobody_overslept(begun);
        assert_whole(&stage, outcome);
        stage.assert_all_back();
    });
}

/// Programs come and go while the download is about to be given up.
#[test]
fn a_download_that_nobody_uses_ends_and_one_that_somebody_uses_does_not() {
    explore("abandoned", 70, 40, || {
        // Larger than what is fetched for those who read: it waits for them.
        let stage = Scene::new(40 * MIB, pieces(300, 0));
        let all = stage.stage.bytes("a");
        let outcome = Mutex::new(None);
        thread::scope(|scope| {
            scope.spawn(|| {
                let end = stage.fill(pieces(1000, 10));
                *outcome.lock() = Some(end);
            });
            for _ in 0..2 {
                let (stage, all) = (&stage, &all);
                scope.spawn(move || {
                    for round in 0..3 {
                        thread::sleep(Duration::from_secs(thread_rng().gen_range(0..5)));
                        // Refused: it is over.
                        let Ok(reader) = stage.content.reader() else {
                            return;
                        };
                        let at = round * 4 * MIB;
                        // Who has it open is never told that it was given up.
                        let failure = read(&reader, all, at, 2 * MIB, long());
                        assert!(
                            matches!(failure, None | Some(ErrorKind::Timeout)),
                            "{failure:?}"
                        );
                    }
                });
            }
        });
        let end = outcome.lock().take().expect("it ended");
        assert_whole(&stage, end);
        drop(stage.download().resume());
        stage.assert_all_back();
    });
}
