//! Stores that fail once, or for good, and come back.

use std::fs;
use std::time::{Duration, Instant};

use kvfs::local::fault::{Call, Cut};
use kvfs::server::Knobs;
use kvfs::store::ErrorKind;

use super::faulty;
use crate::support::mounted::MountedSession;
use crate::support::served::TestServer;

#[test]
fn a_silent_end_of_a_body_is_an_error() {
    let (store, mount) = faulty(|_| {});
    store.cut_next(1, 2, Cut::Silent);
    let error = fs::read(mount.file("b")).expect_err("a short body");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(mount.counters().last_errors.len(), 1);
    assert_eq!(mount.works("cat b"), "second");
}

#[test]
fn kinds_of_failures_have_their_errnos_and_are_not_remembered() {
    let (store, mount) = faulty(|_| {});
    for (kind, errno) in [
        (ErrorKind::Denied, libc::EACCES),
        (ErrorKind::SignatureExpired, libc::EACCES),
        (ErrorKind::Quota, libc::EDQUOT),
        (ErrorKind::RateLimited, libc::EIO),
        (ErrorKind::Timeout, libc::ETIMEDOUT),
        (ErrorKind::Network, libc::EIO),
        (ErrorKind::Server, libc::EIO),
        (ErrorKind::StoreNotFound, libc::EIO),
    ] {
        store.fail_next(Call::Get, 1, kind);
        let error = fs::read(mount.file("c")).expect_err("an injected failure");
        assert_eq!(error.raw_os_error(), Some(errno), "{kind:?}");
        let last = mount.counters().last_errors.pop().expect("an entry");
        assert!(last.message.contains(&format!("{kind:?}")), "{last:?}");
        assert_eq!(last.key.as_deref(), Some("c"));
    }
    assert_eq!(mount.works("cat c"), "third");
}

#[test]
fn a_listing_that_fails_once_is_asked_for_again() {
    let (store, mount) = faulty(|_| {});
    store.fail_next(Call::List, 1, ErrorKind::Server);
    let complaint = mount.fails("ls");
    assert!(complaint.contains("Input/output error"), "{complaint}");
    assert_eq!(mount.works("ls"), "a\nb\nc\nlarge");
}

#[test]
fn a_server_that_is_gone_leaves_what_is_cached_and_comes_back() {
    let server = TestServer::start_with(|config| config.knobs = Knobs::default());
    server.put_text("a", "first");
    server.put_text("b", "second");
    let mount = MountedSession::served_with(&server, |config| {
        config.deadline = Duration::from_secs(2);
    });
    assert_eq!(mount.works("ls; cat a"), "a\nb\nfirst");
    drop(server);
    assert_eq!(mount.works("ls; cat a"), "a\nb\nfirst");
    let start = Instant::now();
    mount.fails("cat b");
    assert!(start.elapsed() < Duration::from_secs(10));
    let errors = mount.counters().last_errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
}
