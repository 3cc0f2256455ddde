//! Seeing what a mount does: counters, latencies, where answers come from.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use kvfs::metrics::transfers::Direction;
use serde_json::Value;

use crate::adversary::server::{Adversary, STORE};
use crate::daemon::User;
use crate::support::mounted::{MountedSession, eventually};
use crate::support::served::{TOKEN, TestServer};

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

/// Starts `kvfs trace` and returns when nothing is missed any more.
fn follow(
    user: &User,
    args: &[&str],
) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let mut child = user
        .command(&[&["trace", "mnt"], args].concat())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("kvfs runs");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    assert!(line.contains("following"), "{line}");
    let out = BufReader::new(child.stdout.take().expect("a pipe"));
    (child, out)
}

#[test]
fn a_trace_shows_each_operation_with_its_source_until_the_mount_ends() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let (mut child, out) = follow(&user, &["--json", "--summary"]);
    for _ in 0..2 {
        assert_eq!(std::fs::read(user.path("mnt/a")).expect("it"), b"hi\n");
    }
    std::fs::read(user.path("mnt/missing")).expect_err("nothing there");
    user.works(&["unmount", "mnt"]);
    assert!(child.wait().expect("an end").success());
    let lines: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON"))
        .collect();
    let seen = |operation: &str, key: &str| -> Vec<(String, String)> {
        let wanted = |event: &&Value| event["operation"] == operation && event["key"] == key;
        let text = |event: &Value, name: &str| event[name].as_str().expect("text").to_owned();
        lines
            .iter()
            .filter(wanted)
            .map(|event| (text(event, "result"), text(event, "origin")))
            .collect()
    };
    let ok = |origin: &str| ("ok".to_owned(), origin.to_owned());
    assert_eq!(seen("lookup", "a"), [ok("network")], "{lines:?}");
    assert_eq!(seen("open", "a"), [ok("memory"), ok("kernel")], "{lines:?}");
    let missing = seen("lookup", "missing");
    assert_eq!(missing, [("ENOENT".to_owned(), "network".to_owned())]);
    let summary = &lines.last().expect("a summary")["summary"];
    assert_eq!(summary["dropped"], 0);
    let files = summary["files"].as_array().expect("a list");
    assert!(
        files
            .iter()
            .any(|file| file["name"] == "a" && file["failed"] == 0)
    );
}

#[test]
fn a_trace_ends_with_ctrl_c_and_then_sums_up_within_80_columns() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let (mut child, mut out) = follow(&user, &["--summary"]);
    std::fs::read(user.path("mnt/a")).expect("it");
    let mut line = String::new();
    while !line.contains(" open ") {
        line.clear();
        assert!(out.read_line(&mut line).expect("a line") > 0, "it ended");
    }
    assert!(line.trim_end().ends_with(" a"), "{line}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a signal");
    assert!(child.wait().expect("an end").success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("a summary");
    assert!(
        rest.contains("OPERATION") && rest.contains("FILE"),
        "{rest}"
    );
    assert!(
        rest.lines().all(|line| line.chars().count() <= 80),
        "{rest}"
    );
}

#[test]
fn refreshing_forgets_contents_absence_and_the_kernels_pages() {
    let user = User::new();
    user.works(&["mount", "--immutable", "./store", "mnt"]);
    let read = |name: &str| std::fs::read_to_string(user.path("mnt").join(name));
    let list = || std::fs::read_dir(user.path("mnt")).expect("it").count();
    assert_eq!(read("a").expect("it"), "hi\n");
    assert!(read("b").is_err());
    assert_eq!(list(), 1);
    let mut open = std::fs::File::open(user.path("mnt/a")).expect("it");
    std::fs::write(user.path("store/a"), "new!\n").expect("a record");
    std::fs::write(user.path("store/b"), "b\n").expect("a record");
    assert_eq!(read("a").expect("it"), "hi\n");
    assert!(read("b").is_err());
    let said = user.works(&["refresh", "mnt"]);
    assert!(said.contains("dropped 1 file"), "{said}");
    assert_eq!(read("a").expect("it"), "new!\n");
    assert_eq!(read("b").expect("it"), "b\n");
    assert_eq!(list(), 2);
    let mut old = String::new();
    open.read_to_string(&mut old)
        .expect("the version that it opened");
    assert_eq!(old, "hi\n");
    drop(open);
    // Nor is anything of before left for the next mount.
    std::fs::write(user.path("store/c"), "c\n").expect("a record");
    user.works(&["refresh", "mnt"]);
    user.works(&["unmount", "mnt"]);
    user.works(&["mount", "--immutable", "./store", "mnt"]);
    assert_eq!(list(), 3);
    assert_eq!(read("a").expect("it"), "new!\n");
    assert_eq!(read("b").expect("it"), "b\n");
    // One alone.
    for name in ["a", "b"] {
        std::fs::write(user.path("store").join(name), "newer\n").expect("a record");
    }
    user.works(&["refresh", "mnt", "mnt/b"]);
    assert_eq!(
        (read("a").expect("it"), read("b").expect("it")),
        ("new!\n".into(), "newer\n".into())
    );
    let said = user.fails(4, &["refresh", "mnt", "no such"]);
    assert!(said.contains("no file 'no such'"), "{said}");
}

/// A question that is under way knows no more than those before it, also that of another mount.
#[test]
fn refreshing_counts_for_what_is_on_its_way() {
    for (args, by_other) in [
        (vec!["mnt"], false),
        (vec!["mnt", "mnt/rec"], false),
        (vec!["mnt"], true),
    ] {
        let (asked, was_asked) = mpsc::channel();
        let (answer, may_answer) = mpsc::channel::<()>();
        let (asked, may_answer) = (Mutex::new(asked), Mutex::new(may_answer));
        let gets = AtomicUsize::new(0);
        let server = Adversary::start(move |request, wire| {
            let body: &[u8] = match request.path.rsplit('/').next() {
                Some("rec") if gets.fetch_add(1, Ordering::SeqCst) == 0 => {
                    let _ = asked.lock().expect("no panic").send(());
                    let _ = may_answer.lock().expect("no panic").recv();
                    b"old"
                }
                Some("rec") => b"new",
                Some("other") => b"other",
                _ => return wire.error(404, "record-not-found"),
            };
            wire.answer(200, "a/b", body)
        });
        let user = User::new();
        let url = server.url();
        let mount = |at: &str| {
            let args = ["mount", "--ttl", "1h", "--api-url", &url, STORE, at];
            let output = user.command(&args).env("APIFY_TOKEN", TOKEN).output();
            assert!(output.expect("kvfs runs").status.success());
        };
        mount("mnt");
        let reader = if by_other { "other" } else { "mnt" };
        if by_other {
            std::fs::create_dir(user.path(reader)).expect("a folder");
            mount(reader);
        }
        let reading = user.path(reader).join("rec");
        let reading = std::thread::spawn(move || std::fs::read(reading));
        was_asked.recv().expect("a question");
        if args.len() > 1 {
            // So that it is a file of which something is known.
            let _ = user.command(&[&["refresh"], &args[..]].concat()).output();
        } else {
            user.works(&[&["refresh"], &args[..]].concat());
        }
        answer.send(()).expect("a server");
        let read = reading.join().expect("no panic").expect("its bytes");
        // Its lookup began before, and its open may have come later.
        assert!(read == b"old" || read == b"new", "{read:?}");
        if by_other {
            user.works(&["unmount", reader]);
        }
        let shown = || std::fs::read(user.path("mnt/rec")).expect("its bytes");
        assert_eq!(shown(), b"new");
        assert_eq!(
            std::fs::metadata(user.path("mnt/rec")).expect("it").len(),
            3
        );
        user.works(&["unmount", "mnt"]);
        mount("mnt");
        assert_eq!(shown(), b"new");
        user.works(&["unmount", "mnt"]);
    }
}

#[test]
fn refreshing_while_programs_read_and_list_stops_nobody() {
    let user = User::new();
    for n in 0..20 {
        std::fs::write(user.path("store").join(format!("r{n}")), vec![n; 700_000]).expect("it");
    }
    user.works(&["mount", "./store", "mnt"]);
    let mut readers: Vec<_> = ["cat r* | wc -c", "ls -l; stat nothing; cat r1* | wc -c"]
        .iter()
        .map(|work| {
            let script = format!("cd mnt; for i in $(seq 15); do {work}; done 2>/dev/null");
            std::process::Command::new("sh")
                .args(["-c", &script])
                .current_dir(user.path("."))
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("sh runs")
        })
        .collect();
    while readers
        .iter_mut()
        .any(|reader| reader.try_wait().expect("a status").is_none())
    {
        user.works(&["refresh", "mnt"]);
    }
    let mut out = String::new();
    let stdout = readers[0].stdout.as_mut().expect("a pipe");
    stdout.read_to_string(&mut out).expect("what it wrote");
    assert_eq!(out.lines().collect::<Vec<_>>(), ["14000000"; 15]);
}

#[test]
fn what_is_warm_costs_nothing_and_can_be_read_without_the_store() {
    let user = User::new();
    for n in 0..300 {
        std::fs::write(user.path("store").join(format!("r{n:03}")), "{}").expect("it");
    }
    std::fs::write(user.path("store/big"), vec![9; 3 << 20]).expect("it");
    user.works(&["mount", "--immutable", "./store", "mnt"]);
    let warm = |args: &[&str]| -> Value {
        let (code, out, err) = user.run(&[&["warm", "mnt", "--json"], args].concat());
        assert_eq!(code, 0, "{out}{err}");
        serde_json::from_str(&out).expect("JSON")
    };
    let first = warm(&["r00?"]);
    assert_eq!(
        (&first["asked"], &first["cached"]),
        (&10.into(), &0.into()),
        "{first}"
    );
    let prefix = warm(&["r0"]);
    assert_eq!(
        (&prefix["asked"], &prefix["cached"]),
        (&90.into(), &10.into()),
        "{prefix}"
    );
    let all = warm(&[]);
    assert_eq!(
        (&all["asked"], &all["cached"]),
        (&202.into(), &100.into()),
        "{all}"
    );
    assert_eq!(all["records"], 302);
    let again = warm(&[]);
    assert_eq!(
        (&again["asked"], &again["cached"]),
        (&0.into(), &302.into()),
        "{again}"
    );
    assert_eq!(
        std::fs::read_dir(user.path("mnt")).expect("it").count(),
        302
    );
    user.works(&["unmount", "mnt"]);
    user.works(&["mount", "--immutable", "./store", "mnt"]);
    assert_eq!(warm(&["r0"])["records"], 100);
    user.works(&["unmount", "mnt"]);
    user.works(&["mount", "--immutable", "./store", "mnt"]);
    assert_eq!(
        std::fs::read_dir(user.path("mnt")).expect("it").count(),
        302
    );
    // The folder is gone, the contents are not.
    std::fs::rename(user.path("store"), user.path("away")).expect("a rename");
    let read = |name: &str| std::fs::read(user.path("mnt").join(name)).expect("it");
    assert_eq!(read("r123"), b"{}");
    assert_eq!(read("big"), vec![9; 3 << 20]);
}

#[test]
fn warming_takes_names_from_standard_input_and_tells_what_failed() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    let mut child = user
        .command(&["warm", "mnt", "-"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("kvfs runs");
    let mut names = child.stdin.take().expect("a pipe");
    names.write_all(b"a\nno such\nmissing\n").expect("names");
    drop(names);
    let output = child.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cached 1 file"), "{said}");
    assert!(said.contains("2 files could not be fetched"), "{said}");
    assert!(said.contains("missing: there is no such file"), "{said}");
}

#[test]
fn what_does_not_fit_is_told_and_drives_nothing_out() {
    let user = User::new();
    for n in 0..8 {
        std::fs::write(user.path("store").join(format!("r{n}")), vec![n; 300_000]).expect("it");
    }
    user.works(&[
        "mount",
        "--immutable",
        "--cache-size",
        "1MiB",
        "./store",
        "mnt",
    ]);
    let said = user.fails(1, &["warm", "mnt", "r"]);
    assert!(said.contains("cached 3 files"), "{said}");
    assert!(said.contains("5 files (1.4 MiB) did not fit"), "{said}");
    assert!(said.contains("--cache-size"), "{said}");
    std::fs::rename(user.path("store"), user.path("away")).expect("a rename");
    for n in 0..3 {
        let bytes = std::fs::read(user.path("mnt").join(format!("r{n}"))).expect("it");
        assert_eq!(bytes, vec![n; 300_000]);
    }
}

#[test]
fn files_in_a_mount_are_shared_without_a_token_at_hand() {
    let server = TestServer::start();
    server.put_text("OUTPUT", "shared\n");
    let user = User::new();
    let mounting = user
        .command(&["mount", "--api-url", &server.url(), &server.entry.id, "mnt"])
        .env("APIFY_TOKEN", crate::support::served::TOKEN)
        .output()
        .expect("kvfs runs");
    assert!(mounting.status.success(), "{mounting:?}");
    let link = |args: &[&str]| -> String {
        let (code, out, err) = user.run(&[&["share"], args].concat());
        assert_eq!(code, 0, "{out}{err}");
        out.trim().to_owned()
    };
    let record = link(&["mnt/OUTPUT"]);
    assert!(record.contains("/records/OUTPUT?signature="), "{record}");
    let absolute = user.path("mnt");
    let store = link(&[absolute.to_str().expect("text"), "--expires", "7d"]);
    for url in [&record, &store] {
        std::fs::create_dir_all(user.path("other")).expect("a folder");
        user.works(&["mount", url, "other"]);
        let read = std::fs::read_to_string(user.path("other/OUTPUT"));
        assert_eq!(read.expect("it"), "shared\n");
        user.works(&["unmount", "other"]);
    }
    let said = user.fails(4, &["share", "mnt/MISSING"]);
    assert!(said.contains("no file 'MISSING'"), "{said}");
    let said = user.fails(2, &["share", "mnt/OUTPUT", "--expires", "1d"]);
    assert!(said.contains("cannot expire"), "{said}");
}

#[test]
fn watching_without_a_terminal_prints_a_line_a_second_until_the_mount_ends() {
    let user = User::new();
    user.works(&["mount", "./store", "mnt"]);
    for json in [false, true] {
        let mut args = vec!["status", "--watch"];
        args.extend(if json {
            vec!["--json", "mnt"]
        } else {
            vec!["mnt"]
        });
        let mut child = user
            .command(&args)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("kvfs runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        for _ in 0..2 {
            let line = lines.next().expect("a line").expect("text");
            if json {
                let state: Value = serde_json::from_str(&line).expect("JSON");
                assert_eq!(state["state"], "live");
            } else {
                assert!(line.contains("req/s 0 in"), "{line}");
                assert!(line.ends_with("moving 0 errors 0"), "{line}");
            }
        }
        if json {
            user.works(&["unmount", "mnt"]);
            assert_eq!(child.wait().expect("an end").code(), Some(3));
        } else {
            // Whoever reads has seen enough: no failure.
            drop(lines);
            assert_eq!(child.wait().expect("an end").code(), Some(0));
        }
    }
    user.fails(3, &["status", "--watch", "mnt"]);
}

#[test]
fn an_upload_is_shown_while_it_is_under_way() {
    let server = TestServer::start_with(|config| config.knobs.bandwidth = Some(2 << 20));
    let mount = MountedSession::served_writable(&server);
    let writing = mount.start_sh("head -c 6291456 /dev/zero > big");
    eventually("an upload is shown", || {
        mount.counters().transfers.iter().any(|transfer| {
            transfer.key == "big"
                && transfer.direction == Direction::Up
                && transfer.total_bytes == Some(6 << 20)
                && transfer.bytes > 0
        })
    });
    drop(writing);
    drop(mount);
}

#[test]
fn a_trace_names_what_is_made_renamed_and_removed() {
    let server = TestServer::start();
    let user = User::new();
    let (id, url) = (&server.entry.id, server.url());
    let mounting = user
        .command(&["mount", "--rw", "--api-url", &url, id, "mnt"])
        .env("APIFY_TOKEN", TOKEN)
        .output()
        .expect("kvfs runs");
    assert!(mounting.status.success(), "{mounting:?}");
    let (mut child, out) = follow(&user, &["--json"]);
    std::fs::write(user.path("mnt/new"), "hello").expect("a file");
    std::fs::rename(user.path("mnt/new"), user.path("mnt/other")).expect("another name");
    std::fs::remove_file(user.path("mnt/other")).expect("no file");
    std::fs::remove_dir(user.path("mnt/folder")).expect_err("there is none");
    user.works(&["unmount", "mnt"]);
    assert!(child.wait().expect("an end").success());
    let lines: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON"))
        .collect();
    let seen: Vec<(&str, &str, &str)> = lines
        .iter()
        .map(|event| {
            let text = |name: &str| event[name].as_str().unwrap_or("-");
            (text("operation"), text("key"), text("origin"))
        })
        .collect();
    for expected in [
        ("create", "new", "memory"),
        ("write", "new", "memory"),
        ("close", "new", "network"),
        ("rename", "new -> other", "network"),
        ("unlink", "other", "network"),
    ] {
        assert!(seen.contains(&expected), "{expected:?}: {seen:?}");
    }
}
