//! What things cost where the server answers as the platform does, and that nothing wrong is shown
//! whatever the store's clock does.

use std::path::Path;
use std::time::{Duration, Instant};

use kvfs::mount::build::{DiskCacheConfig, MountConfig};
use kvfs::server::{Platform, StoreClockKind};
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, eventually, make_writable, pattern, text};
use crate::support::served::{TOKEN, TestServer};

mod unknown;

const TTL: Duration = Duration::from_millis(1500);
/// How late the server's clock is, and how late it may be.
const LAG: Duration = Duration::from_millis(300);
const ALLOWED: Duration = Duration::from_secs(2);

/// A server that answers as the platform, with stores that have rested for an hour.
fn platform(change: impl FnOnce(&mut Platform)) -> TestServer {
    TestServer::start_with(|config| {
        let mut platform = Platform {
            lag: LAG,
            rested: Duration::from_secs(3600),
            ..Platform::default()
        };
        change(&mut platform);
        config.platform = Some(platform);
    })
}

fn mount(server: &TestServer, change: impl FnOnce(&mut MountConfig)) -> MountedSession {
    MountedSession::served_with(server, |config| {
        config.ttl = Some(TTL);
        config.clock_lag = Some(ALLOWED);
        change(config);
    })
}

/// As [`mount`], with a cache that outlives the mount.
fn mount_with_cache(server: &TestServer, cache: &Path) -> MountedSession {
    mount(server, |config| {
        config.disk_cache = Some(DiskCacheConfig {
            dir: cache.to_owned(),
            size: kvfs::base::units::ByteSize(1 << 30),
        });
    })
}

/// Stores a record as others do: through the server.
fn put(server: &TestServer, key: &str, bytes: &[u8]) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder().no_proxy().build();
    let answer = client
        .expect("a client")
        .put(server.record_url(key))
        .bearer_auth(TOKEN)
        .body(bytes.to_vec())
        .send()
        .expect("an answer");
    assert_eq!(answer.status(), 201);
}

fn outlive_ttl() {
    std::thread::sleep(TTL + Duration::from_millis(100));
}

/// What was asked of a server meanwhile, but for the puts of [`put`].
#[derive(Debug)]
struct Cost {
    /// Methods and paths.
    requests: Vec<String>,
}

impl Cost {
    fn of(server: &TestServer, work: impl FnOnce()) -> Self {
        let before = server.server.requests().len();
        work();
        let requests = server.server.requests();
        let since = requests[before.min(requests.len())..].iter();
        Self {
            requests: since
                .map(|request| format!("{} {}", request.method, request.path))
                .collect(),
        }
    }

    fn bodies(&self) -> usize {
        let is_body = |line: &&String| line.starts_with("GET") && line.contains("/records/");
        self.requests.iter().filter(is_body).count()
    }

    fn heads(&self) -> usize {
        let is_head = |line: &&String| line.starts_with("HEAD");
        self.requests.iter().filter(is_head).count()
    }

    fn puts(&self) -> usize {
        let is_put = |line: &&String| line.starts_with("PUT");
        self.requests.iter().filter(is_put).count()
    }

    /// Checks that there were so many requests, and one more to check the clock.
    #[track_caller]
    fn is_at_most(&self, most: usize) {
        assert!(self.requests.len() <= most + 1, "{self:#?}");
    }
}

/// Fills a store with small records, some encoded.
fn fill(server: &TestServer, count: usize) {
    for n in 0..count {
        let content = text(2000 + n);
        let encoding = if n % 3 == 0 {
            Encoding::Brotli
        } else {
            Encoding::Identity
        };
        server.put_encoded(
            &format!("record-{n:03}.txt"),
            "text/plain",
            encoding,
            &content,
        );
    }
}

#[test]
fn a_walk_over_an_unchanged_store_costs_three_requests_after_the_ttl_and_after_a_remount() {
    let server = platform(|_| {});
    fill(&server, 120);
    let cache = tempfile::tempdir().expect("a folder");
    let first = mount_with_cache(&server, cache.path());
    let sum = first.works("cat * | md5sum");
    outlive_ttl();
    let cost = Cost::of(&server, || assert_eq!(first.works("cat * | md5sum"), sum));
    cost.is_at_most(3);
    assert_eq!(
        first.status()["held_current"]["by"],
        "the store's modifiedAt"
    );
    drop(first);
    let next = mount_with_cache(&server, cache.path());
    let cost = Cost::of(&server, || assert_eq!(next.works("cat * | md5sum"), sum));
    cost.is_at_most(3);
    outlive_ttl();
    Cost::of(&server, || assert_eq!(next.works("cat * | md5sum"), sum)).is_at_most(3);
}

#[test]
fn a_large_record_is_not_fetched_again_while_the_store_rests() {
    let server = platform(|_| {});
    let content = pattern(6 << 20);
    server.put("large.bin", "video/mp4", Encoding::Identity, &content);
    let cache = tempfile::tempdir().expect("a folder");
    let first = mount_with_cache(&server, cache.path());
    let sum = first.works("md5sum large.bin");
    outlive_ttl();
    let cost = Cost::of(&server, || assert_eq!(first.works("md5sum large.bin"), sum));
    assert_eq!((cost.bodies(), cost.requests.len()), (0, 1), "{cost:?}");
    drop(first);
    let next = mount_with_cache(&server, cache.path());
    let cost = Cost::of(&server, || assert_eq!(next.works("md5sum large.bin"), sum));
    assert_eq!(cost.bodies(), 0, "{cost:?}");
}

#[test]
fn one_small_record_is_asked_for_itself_and_its_change_is_seen_at_once_after_the_ttl() {
    let server = platform(|_| {});
    put(&server, "OUTPUT", b"one");
    put(&server, "other", b"x");
    let mount = mount(&server, |_| {});
    assert_eq!(mount.works("cat OUTPUT"), "one");
    for content in ["two", "six", "ten"] {
        put(&server, "OUTPUT", content.as_bytes());
        outlive_ttl();
        let cost = Cost::of(&server, || assert_eq!(mount.works("cat OUTPUT"), content));
        assert_eq!((cost.bodies(), cost.requests.len()), (1, 1), "{cost:?}");
    }
}

/// Reads all records until they are what they should be, and fails if that takes longer than the
/// TTL and the lag.
#[track_caller]
fn converges(mount: &MountedSession, expected: &str, within: Duration) {
    let start = Instant::now();
    loop {
        let asked = start.elapsed();
        if mount.works("cat a b c d e") == expected {
            return;
        }
        assert!(
            asked < within,
            "after {asked:?}: {}",
            mount.works("cat a b c d e")
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_change_of_the_same_size_shows_within_the_ttl_and_the_lag() {
    let server = platform(|_| {});
    for key in ["a", "b", "c", "d", "e"] {
        put(&server, key, b"1");
    }
    std::thread::sleep(ALLOWED + Duration::from_secs(3));
    let mount = mount(&server, |_| {});
    assert_eq!(mount.works("cat a b c d e"), "11111");
    for round in 2..5 {
        std::thread::sleep(ALLOWED + Duration::from_secs(3));
        assert!(
            !mount
                .works("cat a b c d e")
                .contains(char::from(b'0' + round))
        );
        put(&server, "d", &[b'0' + round]);
        let expected = format!("111{}1", char::from(b'0' + round));
        converges(
            &mount,
            &expected,
            TTL + ALLOWED + Duration::from_millis(500),
        );
    }
}

#[test]
fn clocks_that_are_no_use_cost_requests_and_show_nothing_wrong() {
    for clock in [
        StoreClockKind::Nothing,
        StoreClockKind::Reads,
        StoreClockKind::Back,
    ] {
        let server = platform(|platform| {
            platform.clock = clock;
            // It shows nothing but when the store was made.
            platform.rested = Duration::ZERO;
        });
        for key in ["a", "b", "c", "d", "e"] {
            put(&server, key, b"1");
        }
        let mount = mount(&server, |_| {});
        assert_eq!(mount.works("cat a b c d e"), "11111", "{clock:?}");
        for round in 2..5 {
            put(&server, "d", &[b'0' + round]);
            outlive_ttl();
            let expected = format!("111{}1", char::from(b'0' + round));
            assert_eq!(mount.works("cat a b c d e"), expected, "{clock:?}");
        }
    }
}

#[test]
fn a_clock_that_was_believed_and_stands_still_is_found_out() {
    let server = platform(|platform| platform.clock = StoreClockKind::Nothing);
    for key in ["a", "b", "c", "d", "e"] {
        put(&server, key, b"1");
    }
    let mount = mount(&server, |_| {});
    assert_eq!(mount.works("cat a b c d e"), "11111");
    outlive_ttl();
    assert_eq!(mount.works("cat a b c d e"), "11111");
    assert_eq!(
        mount.status()["held_current"]["by"],
        "the store's modifiedAt"
    );
    // Seen at once, as it is the first that is asked for.
    put(&server, "a", b"2");
    outlive_ttl();
    assert_eq!(mount.works("cat a b c d e"), "21111");
    put(&server, "d", b"2");
    // What was read before the change that was seen is not believed any more.
    outlive_ttl();
    assert_eq!(mount.works("cat a b c d e"), "21121");
    std::thread::sleep(ALLOWED);
    outlive_ttl();
    assert_eq!(mount.works("cat a b c d e"), "21121");
    assert_eq!(mount.status()["held_current"]["by"], "each record");
}

#[test]
fn what_this_mount_writes_does_not_make_it_fetch_the_rest_again() {
    let server = platform(|_| {});
    fill(&server, 60);
    let mount = mount(&server, make_writable);
    let sum = mount.works("cat record-* | md5sum");
    mount.works("echo edited > record-new");
    for _ in 0..3 {
        outlive_ttl();
        let cost = Cost::of(&server, || {
            assert_eq!(mount.works("cat record-0* | md5sum"), sum);
        });
        cost.is_at_most(4);
    }
}

#[test]
fn looking_at_names_fetches_no_record() {
    let server = platform(|_| {});
    fill(&server, 30);
    for n in 0..30 {
        server.put(
            &format!("shot-{n:02}.png"),
            "image/png",
            Encoding::Identity,
            &pattern(150_000),
        );
    }
    // Listed and never read.
    let mount = mount(&server, |_| {});
    mount.works("ls");
    for names in ["shot-*.png", "record-*.txt"] {
        outlive_ttl();
        let cost = Cost::of(&server, || {
            mount.works(&format!("for n in {names}; do stat $n; test -e $n; done"));
        });
        assert_eq!(
            (cost.bodies(), cost.requests.len()),
            (0, 1),
            "{names}: {cost:?}"
        );
    }
    // Names that the shell does not list, one by one.
    outlive_ttl();
    let cost = Cost::of(&server, || {
        mount.works("for n in 00 07 11 23; do stat shot-$n.png; done");
    });
    assert_eq!((cost.bodies(), cost.requests.len()), (0, 1), "{cost:?}");
    let other = self::mount(&server, |_| {});
    let cost = Cost::of(&server, || {
        other.python(
            "import os; n = 'shot-07.png'; print([os.getxattr(n, a) for a in os.listxattr(n)])",
        );
    });
    assert!(cost.requests.len() <= 2, "{cost:?}");
}

#[test]
fn a_record_that_changed_between_mounts_shows_one_time_before_and_after_it_is_read() {
    let server = platform(|_| {});
    put(&server, "a.txt", b"one");
    put(&server, "b.txt", b"one");
    let cache = tempfile::tempdir().expect("a folder");
    mount_with_cache(&server, cache.path()).works("cat a.txt b.txt");
    put(&server, "a.txt", b"another");
    let times = "ls >/dev/null; stat -c %Y a.txt b.txt";
    let next = mount_with_cache(&server, cache.path());
    let shown = next.works(times);
    assert_eq!(next.works("cat a.txt"), "another");
    assert_eq!(next.works(times), shown);
    drop(next);
    let last = mount_with_cache(&server, cache.path());
    assert_eq!(last.works(times), shown);
    // Within a mount a change shows as one, with one time.
    last.works("cat a.txt");
    put(&server, "a.txt", b"a third one");
    outlive_ttl();
    let before = last.works(times);
    assert_ne!(before, shown);
    assert_eq!(last.works("cat a.txt"), "a third one");
    assert_eq!(last.works(times), before);
}

/// Its clock proves nothing, so each open asks for its record; looking at names need not.
#[test]
fn looking_at_cached_names_of_a_store_at_work_fetches_no_more_than_one() {
    let server = platform(|_| {});
    fill(&server, 30);
    let mount = mount(&server, |config| {
        config.clock_lag = Some(Duration::from_secs(600));
    });
    mount.works("cat * >/dev/null");
    put(&server, "record-000.txt", b"changed");
    outlive_ttl();
    let cost = Cost::of(&server, || {
        mount.works("for n in $(seq -w 000 029); do stat record-$n.txt; done");
    });
    assert!(cost.bodies() <= 1 && cost.requests.len() <= 3, "{cost:#?}");
}

#[test]
fn attributes_of_what_was_read_once_cost_no_request_each() {
    let server = platform(|_| {});
    fill(&server, 40);
    let cache = tempfile::tempdir().expect("a folder");
    let first = mount_with_cache(&server, cache.path());
    first.works("cat * >/dev/null");
    let script = "import os; names = [e.name for e in os.scandir('.') if e.stat().st_size]\n\
                  print(sum(os.getxattr(n, 'user.apify.content-type') == b'text/plain' for n in names))";
    for _ in 0..2 {
        outlive_ttl();
        let cost = Cost::of(&server, || assert_eq!(first.python(script), "40"));
        assert_eq!(cost.bodies(), 0, "{cost:?}");
        cost.is_at_most(2);
    }
    drop(first);
    let next = mount_with_cache(&server, cache.path());
    let cost = Cost::of(&server, || assert_eq!(next.python(script), "40"));
    assert_eq!(cost.bodies(), 0, "{cost:?}");
    cost.is_at_most(2);
}

/// The platform tells no versions: the bytes are compared before the old record is deleted. The kernel
/// repeats a rename that is told of the other version, and that takes it along.
#[test]
fn a_record_that_somebody_stores_while_it_is_renamed_is_not_lost() {
    let server = TestServer::start_with(|config| {
        config.platform = Some(Platform::default());
        let slow = "delay=2s,method=PUT,key=new.txt".parse();
        config.knobs.faults = vec![slow.expect("a rule")];
    });
    put(&server, "old.txt", b"mine");
    let mount = mount(&server, make_writable);
    mount.works("cat old.txt");
    std::thread::scope(|scope| {
        let renamed = scope.spawn(|| mount.works("mv old.txt new.txt"));
        // All other requests are answered at once.
        let is_slow = || {
            let asked = server.server.requests().len();
            std::thread::sleep(Duration::from_millis(200));
            server.server.counts().in_flight == 1 && server.server.requests().len() == asked
        };
        eventually("its copy is on its way", is_slow);
        put(&server, "old.txt", b"theirs");
        renamed.join().expect("no panic");
    });
    assert_eq!(mount.works("cat new.txt; ls"), "theirsnew.txt");
}

#[test]
fn copying_over_existing_files_costs_a_put_each() {
    let server = platform(|_| {});
    fill(&server, 40);
    let mount = mount(&server, make_writable);
    mount.works("mkdir -p $BESIDE/in; for n in $(seq -w 000 039); do echo $n > $BESIDE/in/record-$n.txt; done");
    mount.works("cat * >/dev/null");
    outlive_ttl();
    let start = Instant::now();
    let cost = Cost::of(&server, || {
        mount.works("cp $BESIDE/in/* .");
    });
    // On a machine that is so slow, names are looked for again after the TTL.
    let more = 2 * (start.elapsed().as_millis() / TTL.as_millis()) as usize;
    // One small record that is cached is asked for itself, as it may be read.
    assert!(cost.bodies() <= 2 + more && cost.puts() == 40, "{cost:#?}");
    assert!(cost.requests.len() <= 40 + 3 + more, "{cost:#?}");
    assert_eq!(mount.works("cat record-007.txt record-039.txt"), "007\n039");
}

#[test]
fn copying_over_files_that_were_never_read_costs_a_put_each_too() {
    let server = platform(|_| {});
    fill(&server, 60);
    put(&server, "notes", b"without an extension");
    let mount = mount(&server, make_writable);
    mount.works("mkdir -p $BESIDE/in; for n in $(seq -w 000 059); do echo $n > $BESIDE/in/record-$n.txt; done");
    let start = Instant::now();
    let cost = Cost::of(&server, || {
        mount.works("cp $BESIDE/in/* .");
    });
    // Names are looked for again after the TTL.
    let more = 2 * (start.elapsed().as_millis() / TTL.as_millis()) as usize;
    // The first two may be read as well.
    assert!(cost.puts() == 60 && cost.bodies() <= 2, "{cost:#?}");
    assert!(cost.requests.len() <= 60 + 3 + more, "{cost:#?}");
    assert_eq!(mount.works("cat record-007.txt record-059.txt"), "007\n059");
    // What the name does not tell is asked.
    Cost::of(&server, || {
        mount.works("echo x > notes");
    })
    .is_at_most(2);
    let kept = mount.works("getfattr --only-values -n user.apify.content-type notes");
    assert_eq!(kept, "application/octet-stream");
}

#[test]
fn copying_new_files_in_costs_a_put_each_and_a_page_a_second() {
    let server = platform(|_| {});
    let mount = mount(&server, make_writable);
    mount.works(
        "mkdir -p $BESIDE/in; for n in $(seq -w 000 059); do echo $n > $BESIDE/in/new-$n.txt; done",
    );
    let start = Instant::now();
    let cost = Cost::of(&server, || {
        mount.works("cp $BESIDE/in/* .");
    });
    // A page a second, names that are looked for again after the TTL.
    let more = 3 * (1 + start.elapsed().as_secs() as usize);
    assert_eq!(cost.puts(), 60, "{cost:#?}");
    assert!(cost.requests.len() <= 60 + 8 + more, "{cost:#?}");
}

#[test]
fn asking_every_time_asks_once_for_what_is_asked_in_one_go() {
    let server = platform(|_| {});
    fill(&server, 141);
    let mount = mount(&server, |config| config.ttl = Some(Duration::ZERO));
    let cost = Cost::of(&server, || {
        assert_eq!(mount.works("ls -l | wc -l"), "142");
    });
    assert_eq!(cost.bodies(), 0, "{cost:?}");
    assert!(cost.requests.len() <= 2, "{cost:?}");
    let cost = Cost::of(&server, || {
        mount.works("grep -l . record-00*");
    });
    assert!(cost.bodies() <= 10 && cost.requests.len() <= 12, "{cost:?}");
    put(&server, "record-000.txt", b"other");
    assert_eq!(mount.works("cat record-000.txt"), "other");
}

#[test]
fn exact_sizes_of_plain_records_cost_a_head_each_and_no_body() {
    let server = platform(|_| {});
    for n in 0..200 {
        let name = format!("plain-{n:03}.txt");
        server.put(&name, "text/csv", Encoding::Identity, &text(1000 + n));
    }
    let cache = tempfile::tempdir().expect("a folder");
    let exact = || {
        mount(&server, |config| {
            config.exact_sizes = true;
            config.disk_cache = Some(DiskCacheConfig {
                dir: cache.path().to_owned(),
                size: kvfs::base::units::ByteSize(1 << 30),
            });
        })
    };
    let content: usize = (0..200).map(|n| 1000 + n).sum();
    let list = |mount: &MountedSession| {
        let sum = mount.works("ls -l | awk '{s += $5} END {print s}'");
        assert_eq!(sum, content.to_string());
    };
    let first = exact();
    let cost = Cost::of(&server, || list(&first));
    assert_eq!((cost.heads(), cost.bodies()), (200, 0), "{cost:#?}");
    assert!(cost.requests.len() <= 202, "{cost:#?}");
    // What HEAD has told is known.
    let types = "getfattr --only-values -n user.apify.content-type plain-00*";
    let cost = Cost::of(&server, || {
        assert_eq!(first.works(types), "text/csv".repeat(10));
    });
    assert_eq!(cost.requests.len(), 0, "{cost:#?}");
    outlive_ttl();
    let cost = Cost::of(&server, || list(&first));
    assert_eq!((cost.heads(), cost.bodies()), (0, 0), "{cost:#?}");
    drop(first);
    let next = exact();
    let cost = Cost::of(&server, || list(&next));
    assert!(cost.requests.len() <= 3, "{cost:#?}");
    assert_eq!(cost.bodies(), 0, "{cost:#?}");
}

#[test]
fn exact_sizes_are_asked_for_once() {
    let server = platform(|_| {});
    fill(&server, 60);
    let cache = tempfile::tempdir().expect("a folder");
    let exact = |server: &TestServer| {
        mount(server, |config| {
            config.exact_sizes = true;
            config.disk_cache = Some(DiskCacheConfig {
                dir: cache.path().to_owned(),
                size: kvfs::base::units::ByteSize(1 << 30),
            });
        })
    };
    let first = exact(&server);
    let script = "ls -l | awk '{s += $5} END {print s}'";
    let mut sum = String::new();
    let cost = Cost::of(&server, || sum = first.works(script));
    // A HEAD each, and a third are encoded.
    assert_eq!(cost.heads(), 60, "{cost:#?}");
    assert_eq!(cost.bodies(), 20, "{cost:#?}");
    let content: usize = (0..60).map(|n| 2000 + n).sum();
    assert_eq!(sum, content.to_string());
    outlive_ttl();
    Cost::of(&server, || assert_eq!(first.works(script), sum)).is_at_most(3);
    drop(first);
    let next = exact(&server);
    Cost::of(&server, || assert_eq!(next.works(script), sum)).is_at_most(3);
}
