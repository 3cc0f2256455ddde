//! Anonymous clients that mean no good, against a server that may not use much memory: they hold,
//! trickle, pipeline, overflow, smuggle and reset, and have it decode what decodes to much. A good
//! client is answered all the time, the server's memory stays what it was, and it works little.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::process::Served;
use super::{client, send};
use crate::bombs::{LARGE, bomb};
use crate::support::served::TOKEN;

/// Bytes of addresses that the server may use: its threads' stacks are most of it.
const ADDRESSES: u64 = 3 << 30;

/// KiB of memory that anything here may cost.
const COST: u64 = 48 << 10;

/// Seconds of processor time that anything here may cost, in a build without optimisations.
const EFFORT: f64 = 20.0;

/// Connections that the server takes.
const CONNECTIONS: usize = 20;

/// How long a good client waits at most; one that is held up for ever waits longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn served() -> Served {
    let most = CONNECTIONS.to_string();
    Served::within(
        ADDRESSES,
        &[
            "--public",
            "--idle-timeout",
            "2s",
            "--max-connections",
            &most,
        ],
    )
}

/// Sends bytes as they are; the server may hang up meanwhile.
fn attack(served: &Served, bytes: &[u8]) -> TcpStream {
    let mut connection = served.connection();
    connection
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    let _ = connection.write_all(bytes);
    connection
}

/// Returns whether the server ends a connection within the time that good clients wait.
fn is_hung_up(mut connection: TcpStream) -> bool {
    let mut rest = [0; 64 << 10];
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match connection.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
    false
}

#[track_caller]
fn good_client_is_answered(served: &Served) {
    let me = client().get(format!("{}/v2/users/me", served.url));
    let me = me.bearer_auth(TOKEN).timeout(PATIENCE).send();
    assert_eq!(me.expect("an answer").status(), 200);
}

/// Runs an attack and asserts what it cost.
fn costs_little(attack: impl FnOnce(&Served)) {
    let served = served();
    good_client_is_answered(&served);
    let (before, began) = (served.most_memory(), served.processor_time());
    attack(&served);
    good_client_is_answered(&served);
    let after = served.most_memory();
    let effort = served.processor_time() - began;
    assert!(effort < EFFORT, "{effort} seconds of processor time");
    assert!(
        after < before + COST,
        "{before} KiB before, {after} KiB after"
    );
}

/// A request of each kind that has a body, without a token.
fn heads(more: &str) -> Vec<Vec<u8>> {
    let store = "/v2/key-value-stores/AAAAAAAAAAAAAAAAA";
    [
        ("POST", "/v2/key-value-stores".to_owned()),
        ("PUT", store.to_owned()),
        ("GET", store.to_owned()),
        ("DELETE", store.to_owned()),
        ("PUT", format!("{store}/records/k")),
        ("POST", format!("{store}/records/k")),
        ("GET", format!("{store}/records/k")),
        ("GET", format!("{store}/keys")),
        ("PUT", "/v2/actor-runs/r/key-value-store".to_owned()),
        ("GET", "/v2/users/me".to_owned()),
        ("DELETE", "/_kvfs/stats".to_owned()),
        ("PATCH", "/nowhere".to_owned()),
    ]
    .iter()
    .map(|(method, path)| {
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").into_bytes()
    })
    .collect()
}

#[test]
fn a_body_that_never_comes_holds_no_connection() {
    costs_little(|served| {
        let mut held: Vec<TcpStream> = Vec::new();
        for announced in ["Content-Length: 10\r\n", "Transfer-Encoding: chunked\r\n"] {
            held.extend(heads(announced).iter().map(|head| attack(served, head)));
        }
        good_client_is_answered(served);
        assert!(held.into_iter().all(is_hung_up));
    });
}

#[test]
fn silent_and_trickling_clients_make_way() {
    costs_little(|served| {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for number in 0..CONNECTIONS * 2 {
                let over = &over;
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let mut connection = served.connection();
                        // Silent, in the middle of a head, or of a body that nothing wants.
                        let trickle: &[u8] = match number % 3 {
                            0 => b"",
                            1 => b"GET /v2/users/me HTTP/1.1\r\nHost: localhost\r\nX: ",
                            _ => b"PUT /v2/key-value-stores/A HTTP/1.1\r\nContent-Length: 999\r\n\r\n",
                        };
                        let _ = connection.write_all(trickle);
                        let until = Instant::now() + Duration::from_secs(10);
                        while !over.load(Ordering::Relaxed) && Instant::now() < until {
                            std::thread::sleep(Duration::from_millis(50));
                            if number % 3 > 0 && connection.write_all(b"x").is_err() {
                                break;
                            }
                        }
                    }
                });
            }
            for _ in 0..5 {
                good_client_is_answered(served);
            }
            over.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn clients_that_ask_and_keep_their_connections_make_way() {
    costs_little(|served| {
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let ask = b"GET /v2/users/local HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let mut connection = attack(served, ask);
            let mut begin = [0; 12];
            connection.read_exact(&mut begin).expect("an answer");
            held.push(connection);
        }
        good_client_is_answered(served);
    });
}

/// Stores a record that fills the buffers of a connection many times over.
fn put_large(served: &Served) -> String {
    let store = served.store("results");
    let bytes: Vec<u8> = (0..24 << 20).map(|_| fastrand::u8(..)).collect();
    let put = client().put(format!("{store}/records/large"));
    assert_eq!(send(put.bearer_auth(TOKEN).body(bytes)).status(), 201);
    store
}

/// Has strangers ask for something long and take next to nothing of it while `meanwhile` runs.
fn hardly_taken(served: &Served, url: &str, strangers: usize, meanwhile: impl FnOnce()) {
    let path = url.trim_start_matches(&*served.url);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (begun, all_begun) = std::sync::mpsc::channel();
        for _ in 0..strangers {
            let (over, request, begun) = (&over, &request, begun.clone());
            scope.spawn(move || {
                let mut connection = attack(served, request.as_bytes());
                let brief = Some(Duration::from_millis(50));
                connection.set_read_timeout(brief).expect("a timeout");
                let mut little = [0; 512];
                while !over.load(Ordering::Relaxed) {
                    match connection.read(&mut little) {
                        Ok(0) => break,
                        // Nothing more is waited for than that the first of it came.
                        Ok(_) => begun.send(()).unwrap_or_default(),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
        }
        for _ in 0..strangers.min(4) {
            all_begun.recv_timeout(PATIENCE).expect("an answer");
        }
        meanwhile();
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn clients_that_hardly_take_their_answers_make_way() {
    costs_little(|served| {
        let store = put_large(served);
        let record = format!("{store}/records/large");
        hardly_taken(served, &record, CONNECTIONS * 2, || {
            good_client_is_answered(served);
        });
    });
}

#[test]
fn archives_that_are_hardly_taken_make_way() {
    costs_little(|served| {
        let store = put_large(served);
        let archive = format!("{store}/records");
        hardly_taken(served, &archive, 8, || {
            let deadline = Instant::now() + PATIENCE;
            let ask = || send(client().get(&archive).bearer_auth(TOKEN).timeout(PATIENCE));
            loop {
                let answer = ask();
                if answer.status() == 200 {
                    assert!(answer.bytes().expect("an archive").len() > 24 << 20);
                    break;
                }
                assert_eq!(answer.status(), 429);
                assert!(Instant::now() < deadline, "no archive is to be had");
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    });
}

#[test]
fn what_strangers_ask_for_is_not_kept_at_length() {
    costs_little(|served| {
        let long = "a".repeat(60_000);
        let requests = [
            format!("GET /x{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!("GET /x HTTP/1.1\r\nHost: localhost\r\nRange: bytes={long}\r\n\r\n"),
            format!(
                "{} /x HTTP/1.1\r\nHost: localhost\r\n\r\n",
                "B".repeat(30_000)
            ),
            format!("GET /v2/key-value-stores/{long}/keys HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            format!("GET /v2/key-value-stores?name={long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ];
        for request in requests.iter().cycle().take(2000) {
            let mut connection = attack(served, request.as_bytes());
            let _ = connection.shutdown(Shutdown::Write);
            let _ = connection.read_to_end(&mut Vec::new());
        }
        let stats = client().get(format!("{}/_kvfs/stats", served.url));
        let stats = send(stats.bearer_auth(TOKEN)).bytes().expect("a body");
        assert!(stats.len() < 8 << 20, "{} bytes", stats.len());
    });
}

#[test]
fn pipelined_requests_whose_answers_are_not_read_cost_nothing() {
    costs_little(|served| {
        let one = b"GET /v2/users/local HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let many = one.repeat(20_000);
        let held: Vec<_> = std::thread::scope(|scope| {
            let attackers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut connection = served.connection();
                        let limit = Some(Duration::from_secs(5));
                        connection.set_write_timeout(limit).expect("a timeout");
                        let _ = connection.write_all(&many);
                        connection
                    })
                })
                .collect();
            good_client_is_answered(served);
            attackers
                .into_iter()
                .map(|attacker| attacker.join().expect("an attacker"))
                .collect()
        });
        assert!(held.into_iter().all(|connection| {
            connection
                .set_read_timeout(Some(PATIENCE))
                .expect("a timeout");
            is_hung_up(connection)
        }));
    });
}

#[test]
fn overflowing_and_smuggling_requests_are_refused() {
    costs_little(|served| {
        let header = format!("X-A: {}\r\n", "b".repeat(8000));
        let requests: Vec<Vec<u8>> = vec![
            format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", header.repeat(1000)).into_bytes(),
            format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "a: b\r\n".repeat(5000)).into_bytes(),
            format!("GET /{} HTTP/1.1\r\n", "y".repeat(1 << 20)).into_bytes(),
            vec![0; 1 << 20],
            b"POST /v2/key-value-stores HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
            b"POST /v2/key-value-stores HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde".to_vec(),
            b"POST /v2/key-value-stores HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n".to_vec(),
            // What is behind the end of the first request must not count as a request of its own.
            b"POST /v2/key-value-stores HTTP/1.1\r\nHost: h\r\nContent-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v2/users/local HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
            b"POST /v2/key-value-stores HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\nGET /v2/users/local HTTP/1.1\r\nHost: h\r\n\r\n".to_vec(),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        ];
        for request in requests {
            let mut connection = attack(served, &request);
            let _ = connection.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            let _ = connection.read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer);
            assert!(!answer.contains("\"local\""), "smuggled: {answer}");
        }
        let me = client().get(format!("{}/v2/users/me", served.url));
        assert_eq!(send(me).status(), 401);
    });
}

#[test]
fn resets_in_the_middle_cost_nothing() {
    costs_little(|served| {
        let store = served.store("results");
        let put = client().put(format!("{store}/records/large"));
        let put = put.bearer_auth(TOKEN).body(vec![7; 8 << 20]);
        assert_eq!(send(put).status(), 201);
        let path = store.trim_start_matches(&served.url).to_owned();
        for number in 0..100 {
            let method = ["GET", "PUT", "HEAD"][number % 3];
            let head = format!(
                "{method} {path}/records/large HTTP/1.1\r\nHost: localhost\r\n\
                 Content-Length: 9999\r\n\r\n"
            );
            let connection = attack(served, head.as_bytes());
            let linger = reset_at_the_end(&connection);
            assert!(linger, "a reset cannot be forced");
        }
    });
}

/// Has a connection end with a reset instead of orderly.
fn reset_at_the_end(connection: &TcpStream) -> bool {
    rustix::net::sockopt::set_socket_linger(connection, Some(Duration::ZERO)).is_ok()
}

#[test]
fn records_that_decode_to_much_cost_little() {
    costs_little(|served| {
        let store = served.store("results");
        for kind in ["text/plain", "text/html"] {
            let put = client()
                .put(format!("{store}/records/{}", kind.replace('/', "-")))
                .header("content-type", kind)
                .header("content-encoding", "br");
            assert_eq!(send(put.bearer_auth(TOKEN).body(bomb())).status(), 201);
        }
        for record in ["text-plain", "text-html", "text-html?attachment=1"] {
            let record = format!("{store}/records/{record}");
            let head = send(client().head(&record).header("accept-encoding", "identity"));
            assert_eq!(head.status(), 200, "{record}");
            let get = client().get(&record).header("accept-encoding", "identity");
            let mut begin = vec![1; 1 << 20];
            send(get).read_exact(&mut begin).expect("the beginning");
            let stored = send(client().get(&record).header("accept-encoding", "br"));
            // A page for browsers always goes out decoded.
            if !record.ends_with("html") {
                assert!(begin.iter().all(|byte| *byte == 0), "{record}");
                assert!(stored.bytes().expect("a body") == bomb(), "{record}");
            }
        }
        // An archive would be small, and all the work the server's: it breaks off.
        let archive = client().get(format!("{store}/records")).send();
        let archive = archive.and_then(|archive| archive.bytes());
        assert!(archive.is_err(), "{LARGE} bytes were packed");
    });
}
