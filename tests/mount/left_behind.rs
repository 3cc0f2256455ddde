//! Files that a killed mount has left: other mounts of the store show and upload them, or say where they
//! are; none writes newer ones of the same name that they would replace later.

use std::fs;
use std::time::{Duration, Instant};

use super::write_back::Writer;
use crate::support::served::STORE;

/// A server that takes no upload at first, and a user whose mount was killed with two files waiting.
fn killed(more: &[&str]) -> Writer {
    let writer = Writer::new(|config| {
        config.knobs.faults = vec!["status=503,method=PUT,count=25".parse().expect("a rule")];
    });
    let more = [&["--deadline", "1s"], more].concat();
    writer.mount(&more);
    writer.write("K", &text(b"first "));
    writer.write("new", b"first");
    writer.kill();
    assert_eq!((writer.stored("K"), writer.stored("new")), (None, None));
    writer
}

fn text(word: &[u8]) -> Vec<u8> {
    word.repeat(1000)
}

#[test]
fn what_a_killed_mount_left_is_seen_to_by_mounts_with_other_settings() {
    for (before, after) in [(None, Some("--raw")), (Some("--raw"), None), (None, None)] {
        let writer = killed(&before.into_iter().collect::<Vec<_>>());
        // By another name of the same server.
        let url = writer.server.url().replace("127.0.0.1", "localhost");
        let mut more = vec!["--deadline", "1s", "--api-url", &url];
        more.extend(after);
        writer.mount(&more);
        assert_eq!(writer.read("K"), text(b"first "), "{after:?}");
        assert_eq!(writer.read("new"), b"first", "{after:?}");
        writer.write("new", b"second");
        writer.works(&["sync", "mnt"]);
        assert_eq!(writer.stored("K"), Some(text(b"first ")));
        assert_eq!(writer.stored("new").as_deref(), Some(&b"second"[..]));
        assert_eq!(writer.waiting(), 0);
        writer.works(&["unmount", "mnt"]);
        writer.mount(&[]);
        writer.works(&["sync", "mnt"]);
        assert_eq!(writer.stored("new").as_deref(), Some(&b"second"[..]));
        writer.works(&["unmount", "mnt"]);
    }
}

#[test]
fn what_a_killed_mount_left_compressed_is_shown_as_it_is_stored_with_raw() {
    let writer = killed(&["--compress", "gzip"]);
    writer.mount(&["--deadline", "1s", "--raw"]);
    let raw = writer.read("K");
    assert!(raw.starts_with(&[0x1f, 0x8b]), "{raw:?}");
    writer.works(&["sync", "mnt"]);
    assert_eq!(writer.stored("K"), Some(raw));
    writer.works(&["unmount", "mnt"]);
    writer.mount(&[]);
    assert_eq!(writer.read("K"), text(b"first "));
    writer.works(&["unmount", "mnt"]);
}

#[test]
fn files_that_wait_in_another_staging_folder_are_told_and_nothing_is_written_over_them() {
    let writer = killed(&["--staging-dir", "elsewhere"]);
    let store = format!("~{STORE}");
    let mount = |more: &[&str]| {
        let args = [&["mount", "--deadline", "1s"], more, &[&store, "mnt"]].concat();
        writer.run(&args)
    };
    let names_it = |said: &str| {
        assert!(said.contains("elsewhere"), "{said}");
        assert!(said.contains("kvfs recover --staging-dir"), "{said}");
    };
    let (code, said) = mount(&["--rw"]);
    assert_ne!(code, 0, "{said}");
    assert!(
        said.contains("2 closed files wait for this store"),
        "{said}"
    );
    names_it(&said);
    // A read-only one changes nothing, and says what is not in the store.
    let (code, said) = mount(&[]);
    assert_eq!(code, 0, "{said}");
    names_it(&said);
    let (code, said) = writer.run(&["sync", "mnt"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("2 files of earlier mounts are not in the store"),
        "{said}"
    );
    names_it(&said);
    let (code, said) = writer.run(&["status", "mnt"]);
    assert_eq!(code, 0, "{said}");
    names_it(&said);
    let (code, said) = writer.run(&["unmount", "mnt"]);
    assert_eq!(code, 0, "{said}");
    names_it(&said);
    // With its own folder the mount uploads them.
    let (code, said) = mount(&["--rw", "--staging-dir", "elsewhere"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(writer.read("new"), b"first");
    writer.works(&["sync", "mnt"]);
    assert_eq!(writer.stored("new").as_deref(), Some(&b"first"[..]));
    writer.works(&["unmount", "mnt"]);
    let (code, said) = mount(&["--rw"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        writer
            .works(&["sync", "mnt"])
            .contains("everything is in the store")
    );
    writer.works(&["unmount", "mnt"]);
}

#[test]
fn a_read_only_mount_says_what_waits_for_its_store() {
    let writer = killed(&[]);
    let store = format!("~{STORE}");
    writer.works(&["mount", &store, "mnt"]);
    let (code, said) = writer.run(&["sync", "mnt"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("2 files of earlier mounts are not in the store"),
        "{said}"
    );
    writer.works(&["unmount", "mnt"]);
    fs::write(writer.user.path("mnt/below"), "").expect("unmounted");
    fs::remove_file(writer.user.path("mnt/below")).expect("removed");
}

#[test]
fn a_sync_waits_no_longer_than_it_is_told_for_a_daemon_that_stands_still() {
    let writer = Writer::new(|_| {});
    writer.mount(&[]);
    writer.write("K", b"bytes");
    writer.user.signal("-STOP");
    let began = Instant::now();
    let (code, said) = writer.run(&["sync", "--timeout", "2s", "mnt"]);
    let took = began.elapsed();
    writer.user.signal("-CONT");
    assert_ne!(code, 0, "{said}");
    assert!(said.contains("does not answer"), "{said}");
    // It used to be 12 seconds.
    assert!(took < Duration::from_secs(6), "{took:?}");
    writer.works(&["sync", "mnt"]);
    writer.works(&["unmount", "mnt"]);
}
