//! What is believed by the store's clock, and what is not.

use super::*;

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
