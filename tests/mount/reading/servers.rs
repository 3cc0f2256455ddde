//! Records from servers that tell less than they could.

use std::fs;
use std::time::Duration;

use kvfs::server::Knobs;
use kvfs::store::Encoding;

use super::{SAMPLES, Twins};
use crate::support::mounted::MountedSession;
use crate::support::served::TestServer;

/// Puts the samples into a server's store and compares them with a folder through the real client.
#[track_caller]
fn served_reads(knobs: Knobs, change: impl FnOnce(&mut kvfs::mount::build::MountConfig)) {
    let server = TestServer::start_with(|config| config.knobs = knobs);
    let twins = Twins::new();
    for sample in &*SAMPLES {
        server.put(
            &sample.name,
            "application/octet-stream",
            sample.encoding.clone(),
            &sample.stored,
        );
    }
    let mount = MountedSession::served_with(&server, |config| {
        // Of long records without a length the sizes are known for this long.
        config.ttl = Some(Duration::from_secs(3600));
        change(config);
    });
    mount.works("ls -l");
    twins.agree_in(&mount, "for f in *; do wc -c $f; done");
    twins.agree_in(
        &mount,
        "tar cf - . | tar xf - -C $OUT && cd $OUT && md5sum *",
    );
    twins.agree_in(&mount, "for f in *; do tail -c 4000 $f | md5sum; done");
    twins.agree_in(&mount, "stat -c '%n %s' *");
    let again = MountedSession::served(&server);
    again.works("ls -l");
    twins.agree_in(&again, "for f in *; do tail -c 4000 $f | md5sum; done");
}

#[test]
fn records_come_right_from_a_server_that_does_all_it_can() {
    served_reads(Knobs::default(), |_| {});
}

#[test]
fn records_come_right_from_a_server_that_sends_no_lengths() {
    served_reads(
        Knobs {
            content_length: false,
            ..Knobs::default()
        },
        |_| {},
    );
}

#[test]
fn records_come_right_from_a_server_without_validators_or_ranges() {
    served_reads(
        Knobs {
            etags: false,
            ranges: false,
            ..Knobs::default()
        },
        |_| {},
    );
}

#[test]
fn records_come_right_from_a_server_that_tells_nothing_and_with_next_to_no_caches() {
    served_reads(
        Knobs {
            etags: false,
            ranges: false,
            content_length: false,
            ..Knobs::default()
        },
        |config| {
            config.memory_cache = kvfs::base::units::ByteSize(4096);
            config.disk_cache = None;
            config.ttl = Some(Duration::ZERO);
        },
    );
}

#[test]
fn records_come_right_with_a_disk_cache_that_is_too_small_for_some() {
    served_reads(Knobs::default(), |config| {
        config.memory_cache = kvfs::base::units::ByteSize(100_000);
        if let Some(disk) = &mut config.disk_cache {
            disk.size = kvfs::base::units::ByteSize(3 << 20);
        }
    });
}

#[test]
fn an_unknown_content_type_changes_nothing() {
    let server = TestServer::start();
    let page = b"<html><script>alert(1)</script><base href=x></html>";
    for (name, content_type) in [
        ("odd", "chemical/x-unheard-of; a=\"b;c\""),
        ("html", "text/html; charset=utf-8"),
        ("svg", "image/svg+xml"),
    ] {
        server.put(name, content_type, Encoding::Identity, page);
    }
    let mount = MountedSession::served(&server);
    for name in ["odd", "html", "svg"] {
        assert_eq!(fs::read(mount.file(name)).expect("bytes"), page);
    }
    assert_eq!(
        mount.works("getfattr --only-values -n user.apify.content-type odd"),
        "chemical/x-unheard-of; a=\"b;c\""
    );
}
