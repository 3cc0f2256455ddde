//! Fetching ahead of scans: bounded, one request a record, and everything given back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvfs::base::clock::SystemClock;
use kvfs::base::sync::{now, thread};
use kvfs::base::workers::Workers;
use kvfs::cache::records::{Records, RecordsConfig};
use kvfs::listing::{Listing, PAGES_AT_ONCE, Source};
use kvfs::metrics::Metrics;
use kvfs::prefetch::detector::WINDOW;
use kvfs::prefetch::{AT_ONCE, Prefetcher};
use kvfs::store::{ListQuery, Store};
use shuttle::rand::{Rng, thread_rng};

use crate::explore;
use crate::stage::{Stage, assert_nobody_overslept, cat, key, long};

const RECORDS: usize = 14;

struct Scene {
    stage: Arc<Stage>,
    records: Arc<Records>,
    prefetcher: Prefetcher,
    listing: Arc<Listing>,
    metrics: Arc<Metrics>,
    begun: Instant,
}

fn name(at: usize) -> String {
    format!("k{at:02}")
}

impl Scene {
    fn new() -> Self {
        let stage = Arc::new(Stage::default());
        for at in 0..RECORDS {
            stage.put(&name(at), 200);
        }
        let metrics = Arc::new(Metrics::default());
        let store: Arc<dyn Store> = Arc::<Stage>::clone(&stage);
        let config = RecordsConfig {
            raw: false,
            max_content: None,
            ttl: Some(Duration::from_secs(3600)),
            memory_capacity: 1 << 20,
            clock_lag: None,
            asks_each_time: false,
            keeps_plain_sizes: false,
        };
        let records = Records::new(
            Arc::clone(&store),
            config,
            None,
            Arc::new(SystemClock),
            Arc::clone(&metrics),
        );
        let source = Source {
            store,
            query: ListQuery::default(),
            deadline: Duration::from_secs(60),
            clock: Arc::new(SystemClock),
            workers: Workers::new("kvfs-list", PAGES_AT_ONCE, 64, Arc::clone(&metrics)),
            index: None,
        };
        let listing = Listing::new(source, now(), None);
        listing
            .page(1 << 20, long(), &|_, before| before.unwrap_or(1))
            .expect("a listing");
        let hour = Duration::from_secs(3600);
        let prefetcher = Prefetcher::new(Arc::clone(&records), Arc::clone(&metrics), hour)
            .expect("it is of use");
        Self {
            stage,
            records,
            prefetcher,
            listing,
            metrics,
            begun: now(),
        }
    }

    /// Opens and reads a record as a program does.
    fn open(&self, at: usize) {
        let name = name(at);
        self.prefetcher.opened(&self.listing, &key(&name));
        let bytes = cat(&self.records, &name, 1000).expect("bytes");
        assert!(self.stage.had(&name, &bytes), "wrong bytes");
    }

    /// Nobody opens any more, after `opened` records: a window at most was fetched in vain, each
    /// record once.
    fn assert_bounds(&self, opened: usize, programs: usize) {
        assert_nobody_overslept(self.begun);
        thread::sleep(Duration::from_secs(600));
        assert_eq!(self.metrics.panics_total.get(), 0);
        for at in 0..RECORDS {
            assert!(self.stage.gets(&name(at)) <= 1, "{} twice", name(at));
        }
        let in_vain = self.stage.all_gets().saturating_sub(opened);
        assert!(in_vain <= WINDOW.1, "{in_vain} fetched in vain");
        let at_once = self.stage.most_at_once();
        assert!(at_once <= AT_ONCE + programs, "{at_once} at once");
        let unused = self.metrics.prefetched.get() - self.metrics.prefetch_used.get();
        assert!(unused <= WINDOW.1 as u64, "{unused} unused");
    }
}

#[test]
fn a_scan_is_fetched_ahead_each_record_once_and_a_window_at_most_in_vain() {
    explore("scan", 130, 0, || {
        let scene = Scene::new();
        let stops = thread_rng().gen_range(1..=RECORDS);
        let program = || (0..stops).for_each(|at| scene.open(at));
        thread::scope(|scope| {
            scope.spawn(program);
        });
        scene.assert_bounds(stops, 1);
    });
}

#[test]
fn programs_that_share_a_scan_get_each_record_for_one_request() {
    explore("shared_scan", 130, 0, || {
        let scene = Scene::new();
        let stops = thread_rng().gen_range(4..=RECORDS);
        thread::scope(|scope| {
            for first in 0..2 {
                let scene = &scene;
                // As `xargs -P 2` does; the second program reads some of the first one's again.
                scope.spawn(move || {
                    (first..stops)
                        .step_by(2 - first)
                        .for_each(|at| scene.open(at))
                });
            }
        });
        scene.assert_bounds(stops, 2);
    });
}

#[test]
fn a_record_that_is_forgotten_while_it_is_fetched_ahead_is_read_anew() {
    explore("forgotten", 130, 0, || {
        let scene = Scene::new();
        thread::scope(|scope| {
            scope.spawn(|| (0..8).for_each(|at| scene.open(at)));
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(thread_rng().gen_range(0..6)));
                for at in [4, 5, 6] {
                    scene.stage.put(&name(at), 300);
                    scene.records.evict(&[key(&name(at))]);
                    // Told: from now on nobody may see the version before.
                    let bytes = scene.stage.bytes(&name(at));
                    let seen = cat(&scene.records, &name(at), 1000).expect("bytes");
                    assert!(seen == bytes, "an old version");
                }
            });
        });
    });
}
