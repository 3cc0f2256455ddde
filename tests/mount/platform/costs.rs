//! What things cost.

use super::*;

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
