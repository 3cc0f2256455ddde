//! Records that are decoded for clients that do not take their encoding: how many at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use kvfs::server::GeneralAccess;
use kvfs::store::Encoding;

use super::{assert_error, client, header, send};
use crate::support::served::{TestServer, remembering};

/// More than the buffers of a connection hold.
const LONG: usize = 48 << 20;

/// What the memory of the server is enough for.
const AT_ONCE: usize = 2;

/// A server with a long public record, stored in few bytes of which brotli remembers 16 MiB.
fn server() -> TestServer {
    let server = TestServer::start_with(|config| {
        config.general_access = GeneralAccess::AnyoneWithNameCanRead;
        config.limits.decoders = (AT_ONCE as u64 * 20) << 20;
    });
    let stored = remembering(LONG);
    server.put("long", "text/plain", Encoding::Brotli, &stored);
    server
}

/// Asks for the record, and reads no more than the head of its answer.
fn stalled(server: &TestServer) -> TcpStream {
    let mut connection = TcpStream::connect(server.server.addr()).expect("a connection");
    let wait = Duration::from_secs(60);
    connection.set_read_timeout(Some(wait)).expect("a timeout");
    let path = server.record_url("long").replace(&server.url(), "");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).expect("a request");
    connection
}

fn head(connection: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).to_lowercase()
}

#[test]
fn no_more_records_are_decoded_at_once_than_memory_is_for() {
    let server = server();
    let mut clients: Vec<_> = (0..12).map(|_| stalled(&server)).collect();
    let heads: Vec<_> = clients.iter_mut().map(head).collect();
    let (answered, refused): (Vec<_>, Vec<_>) = heads
        .iter()
        .partition(|head| head.starts_with("http/1.1 200"));
    // Those who do not read on make way, two every two seconds, for those who wait for five.
    assert!(answered.len() >= 2 * AT_ONCE, "{heads:?}");
    assert!(!refused.is_empty(), "{heads:?}");
    for head in refused {
        assert!(head.starts_with("http/1.1 503"), "{head}");
        assert!(head.contains("\r\nretry-after: "), "{head}");
    }
}

#[test]
fn clients_that_do_not_read_on_make_way() {
    let server = server();
    let mut clients: Vec<_> = (0..AT_ONCE).map(|_| stalled(&server)).collect();
    for client in &mut clients {
        assert!(head(client).starts_with("http/1.1 200"));
    }
    // What is stored needs no decoder.
    let record = server.record_url("long");
    let stored = send(client().get(&record).header("accept-encoding", "br"));
    assert_eq!(header(&stored, "content-encoding"), Some("br"));
    let whole = send(client().get(&record));
    assert_eq!(whole.status(), 200);
    assert_eq!(whole.bytes().expect("the whole").len(), LONG);
    // One of those who had to has an answer that breaks off, which nothing takes for whole.
    let broken = clients.iter_mut().any(|client| {
        let mut rest = Vec::new();
        match client.read_to_end(&mut rest) {
            Ok(_) => !rest.ends_with(b"\r\n0\r\n\r\n"),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                true
            }
        }
    });
    assert!(broken);
}

#[test]
fn an_archive_is_made_of_records_that_are_decoded_one_by_one() {
    let server = server();
    server.put("other", "text/plain", Encoding::Brotli, &remembering(LONG));
    let archive = send(client().get(format!("{}/records", server.store_url())));
    assert_eq!(archive.status(), 200);
    assert!(archive.bytes().expect("the whole").ends_with(b"\0\0"));
    let missing = send(client().get(server.record_url("none")));
    assert_error(missing, 404, "record-not-found");
}
