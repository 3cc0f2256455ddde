//! Seeing what a mount does: counters, latencies, where answers come from.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::daemon::User;
use crate::support::mounted::{MountedSession, eventually};
use crate::support::served::TestServer;

#[test]
fn metrics_are_served_while_the_store_is_mounted_and_count_what_programs_do() {
    let user = User::new();
    user.works(&["mount", "--metrics", "0", "./store", "mnt"]);
    let url = user.status()[0]["metrics_url"].clone();
    let url = url.as_str().expect("an address");
    let address = url
        .strip_prefix("http://")
        .and_then(|rest| rest.strip_suffix("/metrics"))
        .expect("an address of this machine");
    assert!(address.starts_with("127.0.0.1:"), "{url}");
    std::fs::read(user.path("mnt/a")).expect("a record");
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    for line in [
        r#"kvfs_operation_duration_seconds_count{operation="open"} 1"#,
        "kvfs_errors_total 0",
    ] {
        assert!(answer.contains(line), "{line}: {answer}");
    }
    user.works(&["unmount", "mnt"]);
    assert!(TcpStream::connect(address).is_err(), "it still listens");
}

#[test]
fn an_address_that_is_taken_fails_the_mount_and_leaves_nothing() {
    let user = User::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its number").port().to_string();
    let said = user.fails(1, &["mount", "--metrics", &port, "./store", "mnt"]);
    assert!(said.contains("cannot serve metrics"), "{said}");
    assert!(said.contains("another port"), "{said}");
    assert!(user.nothing_left());
}

#[test]
fn opens_are_counted_by_where_their_bytes_came_from() {
    let server = TestServer::start();
    server.put_text("a", "hello");
    let mount = MountedSession::served(&server);
    mount.works("cat a");
    let first = mount.counters();
    assert_eq!((first.cache_misses, first.cache_kernel_hits), (0, 0));
    assert_eq!(first.cache_memory_hits, 1, "the lookup had fetched it");
    mount.works("cat a");
    let again = mount.counters();
    assert_eq!((again.cache_memory_hits, again.cache_kernel_hits), (2, 1));
    assert_eq!(again.operations["open"].count, 2);
    assert_eq!(again.received_bytes - first.received_bytes, 0);
    assert!(again.transfers.is_empty(), "{:?}", again.transfers);
}

#[test]
fn what_is_fetched_ahead_is_counted_as_used_when_it_is_opened() {
    let server = TestServer::start();
    for n in 0..40 {
        server.put_text(&format!("r{n:02}"), &"x".repeat(100));
    }
    let mount = MountedSession::served(&server);
    mount.works("cat * | wc -c");
    let counters = mount.counters();
    assert!(counters.prefetch_used > 20, "{counters:?}");
    assert_eq!(counters.prefetch_wasted, 0);
    assert_eq!(counters.prefetched_bytes, counters.prefetched * 100);
}

#[test]
fn a_transfer_is_shown_while_it_is_under_way() {
    let server = TestServer::start_with(|config| config.knobs.bandwidth = Some(2 << 20));
    server.put(
        "big",
        "application/octet-stream",
        kvfs::store::Encoding::Identity,
        &vec![7; 6 << 20],
    );
    let mount = MountedSession::served(&server);
    let reading = mount.start_sh("cat big >/dev/null");
    eventually("a transfer is shown", || {
        mount.counters().transfers.iter().any(|transfer| {
            transfer.key == "big" && transfer.total_bytes == Some(6 << 20) && transfer.bytes > 0
        })
    });
    drop(reading);
    drop(mount);
}
