//! What reading costs in requests, counted by a real server behind a real mount.

use std::fs;
use std::time::{Duration, Instant};

use kvfs::server::{Counts, Knobs};
use kvfs::store::Encoding;

use crate::support::mounted::{MountedSession, pattern};
use crate::support::served::TestServer;

/// A TTL that is over soon, yet not before a test's next step.
const TTL: Duration = Duration::from_millis(1500);

/// A server, a mount of it, and what was counted before.
struct Counted {
    server: TestServer,
    mount: MountedSession,
}

impl Counted {
    fn new(server: TestServer) -> Self {
        let mount = MountedSession::served_with(&server, |config| config.ttl = Some(TTL));
        Self { server, mount }
    }

    /// Returns what the server was asked while `work` ran, and that the mount counts the same.
    #[track_caller]
    fn cost(&self, work: impl FnOnce(&MountedSession)) -> Counts {
        let (before, counted) = (self.server.counts(), self.mount.counters().requests_total);
        work(&self.mount);
        let after = self.server.counts();
        let cost = Counts {
            list: after.list - before.list,
            get: after.get - before.get,
            head: after.head - before.head,
            put: after.put - before.put,
            delete: after.delete - before.delete,
            other: after.other - before.other,
            conditional: after.conditional - before.conditional,
            ranged: after.ranged - before.ranged,
            bytes_sent: after.bytes_sent - before.bytes_sent,
            ..Counts::default()
        };
        assert_eq!(
            self.mount.counters().requests_total - counted,
            cost.requests(),
            "mount and server count differently: {cost:?}"
        );
        cost
    }

    #[track_caller]
    fn costs(&self, script: &str, requests: u64) -> Counts {
        let cost = self.cost(|mount| {
            mount.works(script);
        });
        assert_eq!(
            cost.requests(),
            requests,
            "{script}: {cost:?}: {:?}",
            self.server.server.requests()
        );
        cost
    }

    /// Waits until nothing that was learned before is believed any more.
    fn outlive_ttl(&self) {
        std::thread::sleep(TTL + Duration::from_millis(50));
    }
}

fn small() -> TestServer {
    let server = TestServer::start();
    server.put_text("OUTPUT", "{}");
    server.put_encoded(
        "page.html",
        "text/html",
        Encoding::Brotli,
        &crate::support::mounted::text(50_000),
    );
    server
}

#[test]
fn reading_a_small_record_by_name_costs_one_request_and_again_none() {
    let counted = Counted::new(small());
    for name in ["OUTPUT", "page.html"] {
        let cost = counted.costs(&format!("cat {name} >/dev/null"), 1);
        assert_eq!((cost.get, cost.conditional), (1, 0), "{cost:?}");
        counted.costs(&format!("cat {name} >/dev/null; stat {name}"), 0);
        counted.costs(
            &format!("tail -c 3 {name}; wc {name}; grep -c x {name}; :"),
            0,
        );
    }
}

#[test]
fn an_unchanged_record_costs_one_conditional_request_after_the_ttl() {
    let counted = Counted::new(small());
    for name in ["OUTPUT", "page.html"] {
        counted.costs(&format!("cat {name} >/dev/null"), 1);
    }
    counted.outlive_ttl();
    for name in ["OUTPUT", "page.html"] {
        let cost = counted.costs(&format!("cat {name} >/dev/null"), 1);
        assert_eq!((cost.get, cost.conditional), (1, 1), "{cost:?}");
        assert_eq!(cost.bytes_sent, 0);
    }
}

#[test]
fn without_validators_it_costs_one_get_after_the_ttl() {
    let server = TestServer::start_with(|config| {
        config.knobs = Knobs {
            etags: false,
            ..Knobs::default()
        }
    });
    server.put_text("OUTPUT", "{}");
    let counted = Counted::new(server);
    counted.costs("cat OUTPUT >/dev/null", 1);
    counted.costs("cat OUTPUT >/dev/null", 0);
    counted.outlive_ttl();
    let cost = counted.costs("cat OUTPUT >/dev/null", 1);
    assert_eq!((cost.get, cost.conditional), (1, 0), "{cost:?}");
}

#[test]
fn a_changed_record_costs_one_request_after_the_ttl_and_is_read_new() {
    let counted = Counted::new(small());
    counted.costs("cat OUTPUT >/dev/null", 1);
    counted.server.put_text("OUTPUT", "{\"new\": true}");
    counted.costs("test \"$(cat OUTPUT)\" = '{}'", 0);
    counted.outlive_ttl();
    counted.costs("test \"$(cat OUTPUT)\" = '{\"new\": true}'", 1);
}

#[test]
fn an_old_program_that_reopens_within_the_ttl_costs_nothing_for_records_of_any_encoding() {
    let server = TestServer::start();
    for (n, encoding) in [
        Encoding::Gzip,
        Encoding::Deflate,
        Encoding::Brotli,
        Encoding::Identity,
    ]
    .into_iter()
    .enumerate()
    {
        server.put_encoded(&format!("r{n}"), "text/plain", encoding, &pattern(3000));
    }
    let counted = Counted::new(server);
    counted.costs("cat r0 r1 r2 r3 >/dev/null", 4);
    counted.costs("cat r0 r1 r2 r3 >/dev/null; md5sum *", 1);
}

#[test]
fn listing_four_thousand_keys_costs_four_requests_and_again_none() {
    let server = TestServer::start();
    let folder = server.store_folder();
    fs::create_dir_all(&folder).expect("a folder");
    for n in 0..4_000 {
        fs::write(folder.join(format!("key-{n:05}.json")), "{}").expect("a record");
    }
    let counted = Counted::new(server);
    let start = Instant::now();
    let cost = counted.costs("test $(ls -l | wc -l) = 4001", 4);
    assert_eq!(cost.list, 4);
    if start.elapsed() < TTL / 2 {
        counted.costs("test $(ls | wc -l) = 4000", 0);
    }
    let long = Duration::from_secs(3600);
    let other = MountedSession::served_with(&counted.server, |config| config.ttl = Some(long));
    let before = counted.server.counts().requests();
    assert_eq!(other.works("ls | wc -l"), "4000");
    assert_eq!(other.works("ls -l | wc -l; ls | wc -l"), "4001\n4000");
    assert_eq!(other.works("find . -size +1c -type f | wc -l"), "4000");
    assert_eq!(other.works("du -a . | wc -l"), "4001");
    assert_eq!(
        other.python("import os; print(sum(e.stat().st_size for e in os.scandir('.')))"),
        "8000"
    );
    assert_eq!(counted.server.counts().requests() - before, 4);
}

#[test]
fn names_that_cannot_be_keys_cost_nothing() {
    let counted = Counted::new(small());
    let long = "x".repeat(300);
    for name in [
        "a b", "é", "a%2fb", "a~", "{}", "a:b", "100%", ".#lock:1", &long,
    ] {
        counted.costs(&format!("! stat './{name}' 2>/dev/null"), 0);
        counted.costs(&format!("! cat './{name}' 2>/dev/null"), 0);
    }
}

#[test]
fn a_missing_record_costs_one_request_and_again_none() {
    let counted = Counted::new(small());
    counted.costs("! cat MISSING 2>/dev/null", 1);
    counted.costs("! cat MISSING 2>/dev/null; ! stat MISSING 2>/dev/null", 0);
    counted.outlive_ttl();
    counted.costs("! cat MISSING 2>/dev/null", 1);
    assert_eq!(counted.mount.counters().errors_total, 0);
}

#[test]
fn the_listing_answers_for_names_that_are_not_in_it() {
    let counted = Counted::new(small());
    counted.costs("ls", 1);
    counted.costs("! cat MISSING 2>/dev/null; ! stat AAA zzz 2>/dev/null", 0);
    counted.costs("ls -l; stat OUTPUT page.html; test -e OUTPUT", 0);
}

#[test]
fn many_names_that_do_not_exist_cost_a_few_requests_in_all() {
    let server = small();
    let mount = MountedSession::served(&server);
    let counted = Counted { server, mount };
    let cost = counted.costs(
        "for n in $(seq 60); do ! test -e missing-$n || exit 1; done",
        4,
    );
    assert_eq!(cost.list, 1);
    counted.costs("test -e OUTPUT", 0);
}

#[test]
fn a_listed_record_costs_one_request_to_read() {
    let counted = Counted::new(small());
    counted.costs("ls -l", 1);
    counted.costs("cat OUTPUT >/dev/null", 1);
    counted.costs("cat page.html >/dev/null", 1);
    counted.costs(
        "cat * >/dev/null; getfattr -d OUTPUT page.html; tar cf - . | wc -c",
        0,
    );
}

#[test]
fn attributes_of_the_root_and_df_cost_nothing() {
    let counted = Counted::new(small());
    counted.costs("stat . ; df . ; getfattr -d . ; test -d .", 0);
}

#[test]
fn the_beginning_of_a_large_record_transfers_little_of_it() {
    let server = TestServer::start();
    server.put_text("large", "");
    let folder = server.store_folder();
    let value = fs::read_dir(&folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.file_name().is_some_and(|name| name == "large"))
        .expect("the record's file");
    fs::OpenOptions::new()
        .write(true)
        .open(value)
        .expect("the record")
        .set_len(256 << 20)
        .expect("a sparse file");
    let counted = Counted::new(server);
    let received = counted.mount.counters().received_bytes;
    let cost = counted.cost(|mount| {
        assert_eq!(mount.works("head -c 100 large | wc -c"), "100");
    });
    assert!(cost.requests() <= 2, "{cost:?}");
    let received = counted.mount.counters().received_bytes - received;
    assert!(received < 8 << 20, "{received} bytes for 100");
    // And its end, through a range of its own.
    let cost = counted.cost(|mount| {
        assert_eq!(mount.works("tail -c 100 large | wc -c"), "100");
    });
    assert!(cost.requests() <= 2, "{cost:?}");
    let received = counted.mount.counters().received_bytes;
    assert!(received < 12 << 20, "{received} bytes for 200");
}
