//! What nobody knows of the platform, each way round: nothing wrong is shown.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::adversary::server::{Adversary, Request, STORE, Then, Wire};
use crate::support::mounted::quick_retries;

/// How a server answers HEAD.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Head {
    /// As GET would be.
    Right,
    Refused,
    /// It says that there is nothing.
    Zero,
    NoLength,
    /// The length is that of the content.
    Decoded,
    /// So it is, and the encoding is not told.
    DecodedPlain,
    /// The encoding is not told.
    Hidden,
    /// Each record is twice as long.
    Double,
}

const HEADS: [Head; 8] = [
    Head::Right,
    Head::Refused,
    Head::Zero,
    Head::NoLength,
    Head::Decoded,
    Head::DecodedPlain,
    Head::Hidden,
    Head::Double,
];

/// Of each kind, plain and encoded.
const RECORDS: usize = 8;

fn content(n: usize) -> Vec<u8> {
    text(3000 + n)
}

/// Returns a record as it is stored, and whether it is encoded.
fn stored(key: &str) -> Option<(Vec<u8>, Vec<u8>, bool)> {
    let n = key.get(1..)?.parse().ok().filter(|n| *n < RECORDS)?;
    match key.get(..1)? {
        "p" => Some((content(n), content(n), false)),
        "e" => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&content(n)).expect("in memory");
            Some((gzip.finish().expect("in memory"), content(n), true))
        }
        _ => None,
    }
}

fn page() -> String {
    let keys = ["e", "p"].into_iter();
    let items: Vec<_> = keys
        .flat_map(|kind| (0..RECORDS).map(move |n| format!("{kind}{n}")))
        .map(|key| {
            let (bytes, ..) = stored(&key).expect("a record");
            serde_json::json!({"key": key, "size": bytes.len()})
        })
        .collect();
    serde_json::json!({"data": {
        "items": items, "count": items.len(), "limit": 1000, "isTruncated": false,
        "exclusiveStartKey": null, "nextExclusiveStartKey": null,
    }})
    .to_string()
}

/// How often was asked: HEAD, GET.
#[derive(Default)]
struct Asked(AtomicUsize, AtomicUsize);

fn answer(
    head: Head,
    asked: &Asked,
    request: &Request,
    wire: &mut Wire<'_>,
) -> std::io::Result<Then> {
    if request.path == format!("/v2/key-value-stores/{STORE}/keys") {
        return wire.answer(200, "application/json", page().as_bytes());
    }
    let key = request.path.rsplit('/').next().unwrap_or_default();
    let Some((bytes, content, is_encoded)) = stored(key) else {
        return wire.error(404, "record-not-found");
    };
    let is_head = request.method == "HEAD";
    let counter = if is_head { &asked.0 } else { &asked.1 };
    counter.fetch_add(1, Ordering::SeqCst);
    if is_head && head == Head::Refused {
        wire.send(b"HTTP/1.1 405 No\r\ncontent-length: 0\r\n\r\n")?;
        return Ok(Then::Listen);
    }
    let length = match head {
        _ if !is_head => Some(bytes.len()),
        Head::Zero => Some(0),
        Head::NoLength => None,
        Head::Decoded | Head::DecodedPlain => Some(content.len()),
        Head::Double => Some(bytes.len() * 2),
        Head::Right | Head::Refused | Head::Hidden => Some(bytes.len()),
    };
    let is_told = !is_head || !matches!(head, Head::DecodedPlain | Head::Hidden);
    let mut text = String::from("HTTP/1.1 200 Yes\r\ncontent-type: text/plain\r\n");
    if let Some(length) = length {
        text.push_str(&format!("content-length: {length}\r\n"));
    }
    if is_encoded && is_told {
        text.push_str("content-encoding: gzip\r\n");
    }
    wire.send((text + "\r\n").as_bytes())?;
    if !is_head {
        wire.send(&bytes)?;
    }
    Ok(Then::Listen)
}

#[test]
fn exact_sizes_are_right_however_head_is_answered() {
    for head in HEADS {
        let asked = Arc::new(Asked::default());
        let counts = Arc::clone(&asked);
        let server = Adversary::start(move |request, wire| answer(head, &counts, request, wire));
        let mount = MountedSession::at(&server.url(), quick_retries(), |config| {
            config.ttl = Some(TTL);
            config.exact_sizes = true;
        });
        let sizes = |names: &str| mount.works(&format!("stat -c %s {names}"));
        let right = |n: usize| content(n).len().to_string();
        let all = || {
            let one: Vec<_> = (0..RECORDS).map(right).collect();
            [one.clone(), one].concat().join("\n")
        };
        let list = "ls -l | awk 'NF > 2 {print $5}'";
        if head == Head::Hidden {
            // Nothing tells until one has been read.
            mount.works(list);
            mount.works("cat e0 > /dev/null");
            assert_eq!(sizes("e0"), right(0));
            eventually("all sizes are right", || mount.works(list) == all());
        } else {
            assert_eq!(mount.works(list), all(), "{head:?}");
        }
        let (heads, gets) = (
            asked.0.load(Ordering::SeqCst),
            asked.1.load(Ordering::SeqCst),
        );
        match head {
            Head::Right | Head::Decoded => assert_eq!((heads, gets), (2 * RECORDS, RECORDS)),
            // It is given up soon.
            Head::Zero | Head::NoLength | Head::Double => {
                assert!(gets == 2 * RECORDS, "{head:?}: {heads} and {gets}");
            }
            Head::Refused => assert!(heads <= RECORDS * 2, "{heads} and {gets}"),
            Head::DecodedPlain | Head::Hidden => {}
        }
        outlive_ttl();
        assert_eq!(mount.works(list), all(), "{head:?}");
        for n in 0..RECORDS {
            for key in [format!("p{n}"), format!("e{n}")] {
                let sum = format!("cmp {key} -");
                let beside = mount.beside().join(&key);
                std::fs::write(&beside, content(n)).expect("a file");
                mount.works(&format!("{sum} < {}", beside.display()));
            }
        }
    }
}

/// A change shows within the TTL and the lag, that of the server or the setting, whichever is longer;
/// that it was longer than the setting is learnt.
#[test]
fn a_change_shows_within_the_ttl_and_the_lag_however_long_that_is() {
    std::thread::scope(|scope| {
        for lag in [0, 1900, 5000].map(Duration::from_millis) {
            scope.spawn(move || {
                let server = platform(|platform| platform.lag = lag);
                for key in ["a", "b", "c", "d", "e"] {
                    put(&server, key, b"1");
                }
                let rest = lag.max(ALLOWED) + Duration::from_secs(3);
                std::thread::sleep(rest);
                let mount = mount(&server, |_| {});
                assert_eq!(mount.works("cat a b c d e"), "11111");
                for round in 2..4 {
                    std::thread::sleep(rest);
                    put(&server, "d", &[b'0' + round]);
                    let expected = format!("111{}1", char::from(b'0' + round));
                    let within = TTL + lag.max(ALLOWED) + Duration::from_secs(2);
                    converges(&mount, &expected, within);
                    outlive_ttl();
                    assert_eq!(mount.works("cat a b c d e"), expected, "lag {lag:?}");
                }
            });
        }
    });
}

#[test]
fn pages_that_did_not_change_cost_no_body_where_the_server_says_so() {
    for says_so in [true, false] {
        let server = platform(|platform| platform.not_modified = says_so);
        fill(&server, 300);
        let mount = mount(&server, |_| {});
        let names = mount.works("ls");
        let page = mount.counters().received_bytes;
        outlive_ttl();
        let before = mount.counters();
        let cost = Cost::of(&server, || assert_eq!(mount.works("ls"), names));
        assert_eq!((cost.bodies(), cost.requests.len()), (0, 1), "{cost:?}");
        let again = mount.counters().received_bytes - before.received_bytes;
        if says_so {
            assert_eq!(again, 0, "a page has {page} bytes");
        } else {
            assert!(again > 1000, "{again}");
        }
        put(&server, "record-000.txt", b"shorter");
        put(&server, "zzz", b"new");
        outlive_ttl();
        assert_eq!(mount.works("ls"), format!("{names}\nzzz"));
        assert_eq!(mount.works("stat -c %s record-000.txt"), "7");
    }
}

/// Load balancers close connections that are idle, at a time that no answer tells.
#[test]
fn connections_that_the_server_closes_when_they_are_idle_fail_nothing() {
    const IDLE: Duration = Duration::from_millis(300);
    let server = TestServer::start_with(|config| {
        config.platform = Some(Platform::default());
        config.limits.idle = IDLE;
    });
    fill(&server, 40);
    let mount = mount(&server, |config| {
        config.ttl = Some(Duration::ZERO);
        make_writable(config);
    });
    // Before, at and after the end of what is idle.
    for n in 0..24 {
        std::thread::sleep(IDLE - Duration::from_millis(60) + Duration::from_millis(n * 5));
        let at = n as usize;
        let expected = String::from_utf8(text(2000 + at)).expect("text");
        let shown = mount.works(&format!("cat record-{n:03}.txt"));
        assert_eq!(shown.trim_end(), expected.trim_end());
        std::thread::sleep(IDLE - Duration::from_millis(60) + Duration::from_millis(n * 5));
        mount.works(&format!("echo {n} > new"));
        assert_eq!(mount.works("cat new"), n.to_string());
    }
    // Closed right behind each answer, without a word.
    let asked = Arc::new(Asked::default());
    let counts = Arc::clone(&asked);
    let server = Adversary::start(move |request, wire| {
        answer(Head::Right, &counts, request, wire).map(|_| Then::Close)
    });
    let mount = MountedSession::at(&server.url(), quick_retries(), |config| {
        config.ttl = Some(Duration::ZERO);
    });
    for n in 0..RECORDS {
        let expected = String::from_utf8(content(n)).expect("text");
        let shown = mount.works(&format!("cat p{n}"));
        assert_eq!(shown.trim_end(), expected.trim_end());
    }
    mount.works("cat e* p* > /dev/null");
}

#[test]
fn a_size_that_was_seen_is_shown_where_the_listing_tells_none() {
    let asked = Arc::new(Asked::default());
    let server = Adversary::start(move |request, wire| {
        if request.path == format!("/v2/key-value-stores/{STORE}/keys") {
            let page = r#"{"data":{"items":[{"key":"e1"},{"key":"p1","size":null}],"count":2,"limit":1000,"exclusiveStartKey":null,"isTruncated":false,"nextExclusiveStartKey":null}}"#;
            return wire.answer(200, "application/json", page.as_bytes());
        }
        answer(Head::Right, &asked, request, wire)
    });
    let cache = tempfile::tempdir().expect("a folder");
    let mount = || {
        MountedSession::at(&server.url(), quick_retries(), |config| {
            config.ttl = Some(TTL);
            config.disk_cache = Some(DiskCacheConfig {
                dir: cache.path().to_owned(),
                size: kvfs::base::units::ByteSize(1 << 30),
            });
        })
    };
    let list = "ls -l | awk 'NF > 2 {print $5}'";
    let size = content(1).len();
    let first = mount();
    assert_eq!(first.works(list), "1\n1", "never 0");
    first.works("cat e1 p1 > /dev/null");
    for _ in 0..2 {
        outlive_ttl();
        assert_eq!(first.works(list), format!("{size}\n{size}"));
    }
    drop(first);
    // A content as it is stored needs no line of its own.
    let shown = mount().works(list);
    assert!(shown.starts_with(&size.to_string()), "{shown}");
}
