//! A machine that was suspended: clocks apart, connections dead, and everything that was believed old.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kvfs::apify::http::HttpOptions;
use kvfs::base::manual_clock::ManualClock;

use crate::adversary::server::{Adversary, STORE, Then};
use crate::support::mounted::{MountedSession, eventually, quick_retries};

const NIGHT: Duration = Duration::from_secs(9 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn a_night_in_a_suspended_machine_is_longer_than_any_ttl() {
    let slept = Arc::new(AtomicBool::new(false));
    // Connections from before say nothing any more; who holds one must find that out.
    let (newest, dead) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = {
        let (slept, newest, dead) = (Arc::clone(&slept), Arc::clone(&newest), Arc::clone(&dead));
        Adversary::start(move |request, wire| {
            newest.fetch_max(request.connection, Ordering::SeqCst);
            if request.connection <= dead.load(Ordering::SeqCst) {
                return Ok(Then::Silence);
            }
            let slept = slept.load(Ordering::SeqCst);
            if request.path == format!("/v2/key-value-stores/{STORE}/keys") {
                let more = if slept {
                    r#",{"key":"new","size":3}"#
                } else {
                    ""
                };
                let size = if slept { 13 } else { 7 };
                let page = format!(
                    r#"{{"data":{{"items":[{{"key":"log","size":{size}}}{more}],"count":1,"limit":1000,"isTruncated":false,"exclusiveStartKey":null,"nextExclusiveStartKey":null}}}}"#
                );
                return wire.answer(200, "application/json", page.as_bytes());
            }
            match (request.path.rsplit('/').next(), slept) {
                (Some("log"), false) => wire.answer(200, "a/b", b"evening"),
                (Some("log"), true) => wire.answer(200, "a/b", b"the next day\n"),
                (Some("new"), true) => wire.answer(200, "a/b", b"new"),
                _ => wire.error(404, "record-not-found"),
            }
        })
    };
    let clock = ManualClock::default();
    let options = HttpOptions {
        attempt_timeout: Duration::from_secs(2),
        ..quick_retries()
    };
    let mount =
        MountedSession::by_clock(&server.url(), options, Arc::new(clock.clone()), |config| {
            config.ttl = Some(DAY / 4);
        });
    assert_eq!(mount.works("cat log; stat -c %s log; ls"), "evening7\nlog");
    mount.fails("stat new");
    slept.store(true, Ordering::SeqCst);
    assert_eq!(
        mount.works("cat log; stat -c %s log"),
        "evening7",
        "believed"
    );
    mount.fails("stat new");
    dead.store(newest.load(Ordering::SeqCst), Ordering::SeqCst);
    clock.suspend(NIGHT);
    // The kernel's own beliefs go once the thread that looks after this has looked.
    eventually("the new day", || {
        mount.sh("stat -c %s log").stdout == b"13\n" && mount.sh("stat new").status.success()
    });
    assert_eq!(mount.works("cat log new; ls"), "the next day\nnewlog\nnew");
}
