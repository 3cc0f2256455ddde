//! Answers that are wrong, endless, refused or silent.

use std::fs;
use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kvfs::store::Encoding;

use super::{fails_with, impatient, mounted};
use crate::support::mounted::{
    MountedSession, eventually, pattern, quick_retries, scripted, scripted_path, text,
};
use crate::support::scripted::{Answer, ScriptedServer, Seen};
use crate::support::served::encode;

#[test]
fn a_body_shorter_than_its_length_is_an_error() {
    fails_with(libc::EIO, &[], |_| Answer::new(200, "hello").claim_len(10));
}

#[test]
fn a_large_body_shorter_than_its_length_is_an_error_and_never_padded() {
    let content = pattern(3 << 20);
    let sent = content.clone();
    let (_server, mount) = mounted(quick_retries(), move |_| {
        Answer::new(200, sent.clone()).cut_after(2 << 20)
    });
    let file = fs::File::open(mount.file("k")).expect("an open: the head has come");
    let mut read = Vec::new();
    let error = (&file).read_to_end(&mut read).expect_err("a short body");
    assert!(
        matches!(error.raw_os_error(), Some(libc::EIO | libc::ESTALE)),
        "{error}"
    );
    assert!(content.starts_with(&read), "wrong bytes");
    assert!(!mount.counters().last_errors.is_empty());
}

#[test]
fn bytes_that_do_not_decode_are_an_error() {
    for encoding in ["gzip", "br", "deflate"] {
        fails_with(libc::EIO, &[encoding], move |_| {
            Answer::new(200, "this is not compressed at all").header("content-encoding", encoding)
        });
    }
    let mut broken = encode(&Encoding::Gzip, &text(100_000));
    let at = broken.len() - 6;
    broken[at] ^= 1;
    let cut = broken[..at].to_vec();
    fails_with(libc::EIO, &[], move |_| {
        Answer::new(200, broken.clone()).header("content-encoding", "gzip")
    });
    fails_with(libc::EIO, &[], move |_| {
        Answer::new(200, cut.clone()).header("content-encoding", "gzip")
    });
}

#[test]
fn a_large_record_that_does_not_decode_is_an_error_before_it_can_be_read() {
    let mut broken = encode(&Encoding::Gzip, &text(4 << 20));
    let at = broken.len() - 6;
    broken[at] ^= 1;
    fails_with(libc::EIO, &[], move |_| {
        Answer::new(200, broken.clone()).header("content-encoding", "gzip")
    });
}

#[test]
fn an_error_page_is_not_a_record() {
    fails_with(libc::EIO, &["502"], |_| {
        Answer::new(502, "<html><h1>Bad Gateway</h1></html>").header("content-type", "text/html")
    });
    fails_with(libc::EACCES, &[], |_| {
        Answer::error(403, "insufficient-permissions", "You may not read this")
    });
    fails_with(libc::EACCES, &["token"], |_| {
        Answer::error(401, "user-or-token-not-found", "No such token")
    });
    fails_with(libc::EIO, &["store"], |_| {
        Answer::error(404, "record-not-found", "Key-value Store was not found")
    });
    fails_with(libc::EDQUOT, &[], |_| {
        Answer::error(402, "not-enough-usage", "Pay first")
    });
    fails_with(libc::EIO, &[], |_| Answer::raw("SSH-2.0-OpenSSH_9.2\r\n"));
}

#[test]
fn redirects_without_end_are_an_error() {
    fails_with(libc::EIO, &["redirect"], |seen| {
        Answer::new(302, "").header("location", &format!("{}&again=1", seen.target))
    });
}

#[test]
fn a_redirect_to_another_host_is_followed_without_the_token() {
    let other = ScriptedServer::start(|_, _| Answer::new(200, "elsewhere").chunked());
    // Another name for this machine is another host.
    let there =
        other.url().replace("127.0.0.1", "localhost") + "bucket/object?X-Amz-Signature=s3cret";
    let (server, mount) = mounted(quick_retries(), move |_| {
        Answer::new(302, "").header("location", &there)
    });
    assert_eq!(fs::read(mount.file("k")).expect("bytes"), b"elsewhere");
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.header("authorization").is_some())
    );
    let seen = other.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].header("authorization"), None, "{:?}", seen[0]);
    assert!(!format!("{:?}", seen[0]).contains(crate::support::served::TOKEN));
    assert!(!mount.works("getfattr -d . k").contains("s3cret"));
}

#[test]
fn too_many_requests_are_waited_for_as_the_server_asks() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let (server, mount) = mounted(quick_retries(), move |_| {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            Answer::error(429, "rate-limit-exceeded", "Slow down").header("retry-after", "1")
        } else {
            Answer::new(200, "hello")
        }
    });
    let start = Instant::now();
    assert_eq!(fs::read(mount.file("k")).expect("bytes"), b"hello");
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.seen().len(), 3);
    assert_eq!(mount.counters().responses_rate_limited, 1);
    assert!(mount.counters().last_errors.is_empty());
}

#[test]
fn a_server_that_refuses_for_too_long_is_an_error_that_says_so() {
    fails_with(libc::EIO, &["429"], |_| {
        Answer::error(429, "rate-limit-exceeded", "Slow down")
    });
}

#[test]
fn silence_is_an_error_within_the_deadline_and_stops_nobody_else() {
    let (_server, mount) = mounted(impatient(), |seen| {
        if seen.path() == scripted_path("good") {
            Answer::new(200, "hello")
        } else {
            Answer::silence()
        }
    });
    assert_eq!(mount.works("cat good; ls"), "hellok");
    let start = Instant::now();
    let mut reader = mount.start_sh("exec cat k");
    eventually("the reader is blocked", || {
        start.elapsed() > Duration::from_millis(100)
    });
    assert!(reader.is_running());
    // What is known is answered meanwhile, and at once.
    let other = mount.sh("ls; ls -l >/dev/null; cat good; stat good");
    assert!(other.status.success(), "{other:?}");
    let output = reader.wait(Duration::from_secs(6));
    assert!(
        output.stderr.contains("timed out") || output.stderr.contains("Input/output error"),
        "{output:?}"
    );
    assert!(output.stdout.is_empty());
    let errors = mount.counters().last_errors;
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn silence_in_the_middle_of_a_body_is_an_error() {
    let content = pattern(3 << 20);
    let sent = content.clone();
    let (_server, mount) = mounted(impatient(), move |_| {
        Answer::new(200, sent.clone()).stall_after(2 << 20)
    });
    let start = Instant::now();
    let output = mount.sh("cat k");
    assert!(!output.status.success());
    assert!(content.starts_with(&output.stdout), "wrong bytes");
    assert!(start.elapsed() < Duration::from_secs(8));
    assert_eq!(mount.works("ls"), "k");
}

/// Answers with a body that breaks at 2 MiB and, for the rest, as told.
fn breaking(
    content: Vec<u8>,
    rest: impl Fn(&Seen, u64) -> Answer + Send + Sync + 'static,
) -> (ScriptedServer, MountedSession) {
    mounted(quick_retries(), move |seen| {
        let from = seen.header("range").and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .split('-')
                .next()?
                .parse()
                .ok()
        });
        match from {
            None | Some(0) => Answer::new(200, content.clone())
                .header("etag", "\"one\"")
                .header("accept-ranges", "bytes")
                .cut_after(2 << 20),
            Some(from) => rest(seen, from),
        }
    })
}

#[test]
fn a_broken_body_is_resumed_where_it_broke() {
    let content = pattern(3 << 20);
    let whole = content.clone();
    let (server, mount) = breaking(content.clone(), move |_, from| {
        let rest = &whole[from as usize..];
        Answer::new(206, rest).header("etag", "\"one\"").header(
            "content-range",
            &format!("bytes {from}-{}/{}", whole.len() - 1, whole.len()),
        )
    });
    assert!(fs::read(mount.file("k")).expect("bytes") == content);
    let resumed = server
        .seen()
        .into_iter()
        .find(|seen| seen.header("range").is_some());
    let resumed = resumed.expect("a resumption");
    assert!(
        resumed.header("if-match").is_some() || resumed.header("if-range").is_some(),
        "{resumed:?}"
    );
    assert!(mount.counters().last_errors.is_empty());
}

#[test]
fn a_body_that_broke_and_then_changed_is_an_error_never_a_mixture() {
    let content = pattern(3 << 20);
    let other = text(3 << 20);
    for honours_condition in [true, false] {
        let other = other.clone();
        let (_server, mount) = breaking(content.clone(), move |_, from| {
            if honours_condition {
                return Answer::new(412, "");
            }
            Answer::new(206, &other[from as usize..])
                .header("etag", "\"two\"")
                .header(
                    "content-range",
                    &format!("bytes {from}-{}/{}", other.len() - 1, other.len()),
                )
        });
        let output = mount.sh("cat k");
        assert!(!output.status.success());
        assert!(
            output.stderr.contains("Stale file handle"),
            "{}",
            output.stderr
        );
        assert!(content.starts_with(&output.stdout), "a mixture of versions");
        let errors = mount.counters().last_errors;
        assert!(
            errors.iter().any(|entry| entry.errno == "ESTALE"),
            "{errors:?}"
        );
    }
}

/// Lists a store whose listing is answered so.
fn listing(
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) -> (ScriptedServer, MountedSession) {
    let server = scripted(move |seen, _| {
        if seen.path().ends_with("/keys") {
            answer(seen)
        } else {
            Answer::new(200, "hello")
        }
    });
    let mount = MountedSession::scripted(&server, quick_retries(), |config| {
        config.deadline = Duration::from_secs(3);
    });
    (server, mount)
}

#[test]
fn a_listing_that_is_none_is_an_error_and_records_can_still_be_read() {
    for answer in [
        Answer::new(200, "]garbage["),
        Answer::new(200, "<html></html>").header("content-type", "text/html"),
        Answer::new(200, r#"{"data": {"items": 7}}"#),
        Answer::new(200, r#"{"data": {"items": [{"size": 1}]}}"#),
        Answer::error(500, "internal-error", "Oops"),
    ] {
        let (_server, mount) = listing(move |_| answer.clone());
        let complaint = mount.fails("ls");
        assert!(complaint.contains("Input/output error"), "{complaint}");
        let errors = mount.counters().last_errors;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(mount.works("cat k"), "hello");
    }
}

#[test]
fn a_listing_that_never_ends_or_turns_back_is_an_error() {
    let page = |keys: &[&str], next: &str| {
        let items: Vec<_> = keys
            .iter()
            .map(|key| serde_json::json!({"key": key, "size": 5}))
            .collect();
        Answer::new(
            200,
            serde_json::json!({"data": {"items": items, "isTruncated": true, "nextExclusiveStartKey": next}})
                .to_string(),
        )
    };
    for answer in [
        page(&["a", "b"], "b"),
        page(&["b", "a"], "b"),
        page(&[], "a"),
    ] {
        let (server, mount) = listing(move |_| answer.clone());
        let output = mount.sh("ls");
        assert!(!output.status.success(), "{output:?}");
        assert!(output.took < Duration::from_secs(5));
        assert!(server.seen().len() < 20, "{} requests", server.seen().len());
        assert!(!mount.counters().last_errors.is_empty());
        assert_eq!(mount.works("cat k"), "hello");
    }
}
