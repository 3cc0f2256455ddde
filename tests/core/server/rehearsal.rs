//! Servers that are slow, strict or broken on purpose.

use std::io::Read;
use std::time::{Duration, Instant};

use kvfs::server::Knobs;
use kvfs::store::{Encoding, GetOutcome, GetRequest};
use serde_json::Value;

use super::{assert_error, bytes, client, header, owner, send};
use crate::support::served::{TOKEN, TestServer, key, soon};

fn broken(rules: &[&str]) -> TestServer {
    let server = TestServer::start_with(|config| {
        config.knobs = Knobs {
            faults: rules
                .iter()
                .map(|rule| rule.parse().expect("a rule"))
                .collect(),
            ..Knobs::default()
        };
    });
    server.put_text("k", "0123456789");
    server.put_text("other", "0123456789");
    server
}

/// Gets a record whole, or tells that this failed.
fn get(server: &TestServer, key: &str) -> Result<String, String> {
    let request = client().get(server.record_url(key)).bearer_auth(TOKEN);
    let answer = request.send().map_err(|error| format!("{error:?}"))?;
    let status = answer.status();
    let text = answer.text().map_err(|error| format!("{error:?}"))?;
    if status.is_success() {
        Ok(text)
    } else {
        Err(status.to_string())
    }
}

#[test]
fn faults_hit_the_requests_that_they_are_about() {
    let server = broken(&[
        "status=503,method=GET,key=k*,skip=1,count=2",
        "status=429,method=LIST",
    ]);
    let path = format!("/v2/key-value-stores/{}/keys", server.entry.id);
    assert_error(owner(&server, &path), 429, "rate-limit-exceeded");
    let whole = Ok("0123456789".to_owned());
    assert_eq!(get(&server, "other"), whole);
    assert_eq!(get(&server, "k"), whole);
    for _ in 0..2 {
        assert_eq!(get(&server, "k"), Err("503 Service Unavailable".into()));
    }
    assert_eq!(get(&server, "k"), whole);
    // The server's own counters are never broken.
    assert_eq!(owner(&server, "/_kvfs/stats").status(), 200);
}

#[test]
fn a_seed_gives_the_same_faults_each_time() {
    let pattern = || -> Vec<bool> {
        let server = broken(&["status=500,probability=0.5,seed=42"]);
        (0..32).map(|_| get(&server, "k").is_ok()).collect()
    };
    let first = pattern();
    assert!(first.contains(&true) && first.contains(&false), "{first:?}");
    assert_eq!(pattern(), first);
}

#[test]
fn a_failed_upload_stores_nothing_and_a_lost_one_all() {
    let server = broken(&[
        "status=500,method=PUT,key=failed",
        "lose,method=PUT,key=lost",
        "reset,key=reset",
    ]);
    let put = |key: &str| {
        let put = client().put(server.record_url(key));
        put.bearer_auth(TOKEN).body("x".repeat(300_000)).send()
    };
    assert_eq!(put("failed").expect("an answer").status(), 500);
    put("lost").expect_err("no answer");
    put("reset").expect_err("no answer");
    assert_eq!(get(&server, "lost").map(|text| text.len()), Ok(300_000));
    for absent in ["failed", "reset"] {
        let outcome = server
            .store()
            .get(&key(absent), &GetRequest::default(), soon());
        assert!(!matches!(outcome, Ok(GetOutcome::Found(_))), "{outcome:?}");
    }
}

#[test]
fn bodies_break_in_the_middle() {
    let server = broken(&[
        "truncate,count=1,key=k",
        "corrupt=2,count=1,key=k",
        "stall=20ms,count=1,key=k",
    ]);
    let cut = get(&server, "k").expect_err("a short body");
    assert!(
        cut.contains("IncompleteMessage") || cut.contains("UnexpectedEof"),
        "{cut}"
    );
    assert_eq!(get(&server, "k"), Ok("0133456789".into()));
    assert_eq!(get(&server, "k"), Ok("0123456789".into()));
    assert_eq!(get(&server, "k"), Ok("0123456789".into()));
}

#[test]
fn a_stall_lasts_until_the_client_gives_up() {
    let server = broken(&["stall,count=1"]);
    let mut answer = send(
        client()
            .get(server.record_url("k"))
            .bearer_auth(TOKEN)
            .timeout(Duration::from_millis(300)),
    );
    assert_eq!(header(&answer, "content-length"), Some("10"));
    let mut text = Vec::new();
    answer.read_to_end(&mut text).expect_err("a stall");
    assert_eq!(text, b"01234");
    assert_eq!(get(&server, "k"), Ok("0123456789".into()));
}

#[test]
fn latency_and_bandwidth_slow_down() {
    let server = TestServer::start_with(|config| {
        config.knobs.latency = Duration::from_millis(50);
        config.knobs.bandwidth = Some(1 << 20);
    });
    let content = vec![b'x'; 200 << 10];
    server.put("k", "text/plain", Encoding::Identity, &content);
    let began = Instant::now();
    let answer = owner(
        &server,
        &format!("/v2/key-value-stores/{}/records/k", server.entry.id),
    );
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert!(bytes(answer) == content);
    // 200 KiB at 1 MiB/s, less one piece that may flow at once.
    assert!(
        began.elapsed() >= Duration::from_millis(170),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn counters_tell_of_bytes_and_concurrency() {
    let server = broken(&["stall,key=k,count=1"]);
    let put = client().put(server.record_url("new")).bearer_auth(TOKEN);
    assert_eq!(send(put.body("12345")).status(), 201);
    let stalled = send(client().get(server.record_url("k")).bearer_auth(TOKEN));
    assert_eq!(get(&server, "other"), Ok("0123456789".into()));
    let stats = bytes(owner(&server, "/_kvfs/stats"));
    let stats: Value = serde_json::from_slice(&stats).expect("JSON");
    let counts = &stats["counts"];
    assert_eq!(
        (&counts["bytes_received"], &counts["put"], &counts["get"]),
        (&5.into(), &1.into(), &2.into())
    );
    assert_eq!(counts["in_flight"], 1, "{counts}");
    assert!(counts["most_in_flight"].as_u64() >= Some(2), "{counts}");
    assert!(counts["connections"].as_u64() >= Some(1), "{counts}");
    drop(stalled);
}
