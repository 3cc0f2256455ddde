//! What comes over the network: requests to the server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::engine::fuzz;
use crate::support::served::{TOKEN, TestServer};

#[test]
fn requests_to_the_server() {
    let server = TestServer::start();
    server.put_text("k", "a value");
    server.put_encoded("z", "text/plain", kvfs::store::Encoding::Gzip, b"zipped");
    let store = format!("/v2/key-value-stores/{}", server.entry.id);
    let request = |method: &str, path: &str, more: &str, body: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
             Authorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n{more}\r\n{body}",
            body.len()
        )
    };
    let samples = [
        request(
            "GET",
            &format!("{store}/records/k"),
            "Range: bytes=1-3\r\n",
            "",
        ),
        request(
            "GET",
            &format!("{store}/records/z"),
            "Accept-Encoding: gzip;q=0.5, br\r\n",
            "",
        ),
        request(
            "HEAD",
            &format!("{store}/records/k"),
            "If-None-Match: \"x\", W/\"y\"\r\n",
            "",
        ),
        request(
            "GET",
            &format!("{store}/keys?limit=10&exclusiveStartKey=a&prefix=k"),
            "",
            "",
        ),
        request("GET", &format!("{store}/records?format=zip"), "", ""),
        request(
            "PUT",
            &format!("{store}/records/new"),
            "If-Match: \"x\"\r\nContent-Encoding: br\r\n",
            "abc",
        ),
        request(
            "PUT",
            &store,
            "Content-Type: application/json\r\n",
            r#"{"name":"n","generalAccess":"ANYONE_WITH_ID_CAN_READ"}"#,
        ),
        request("POST", "/v2/key-value-stores?name=other", "", ""),
        request(
            "GET",
            "/v2/actor-runs/run0000000000000A/key-value-store/records/k",
            "",
            "",
        ),
        request(
            "GET",
            "/v2/actors/me~my-actor/runs/last?status=SUCCEEDED",
            "",
            "",
        ),
        request("GET", "/v2/users/me", "", ""),
        request(
            "OPTIONS",
            &format!("{store}/records/k"),
            "Origin: http://a\r\nAccess-Control-Request-Method: PUT\r\n",
            "",
        ),
        request("GET", "/_kvfs/stats", "", ""),
        request(
            "GET",
            &format!("{store}/records/%2E%2E?signature=MC4w&disableRedirect=1"),
            "",
            "",
        ),
        "PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"
            .into(),
    ];
    let samples: Vec<&[u8]> = samples.iter().map(String::as_bytes).collect();
    let address = server.server.addr();
    let wait = Duration::from_secs(8);
    fuzz("request", &samples, |input| {
        let mut connection = TcpStream::connect(address).expect("the server is there");
        connection.set_read_timeout(Some(wait)).expect("a timeout");
        // It may have answered and hung up before everything is sent.
        let _ = connection.write_all(input);
        let _ = connection.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer);
        let head = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        assert!(head.is_empty() || head.starts_with("HTTP/1."), "{head}");
        assert!(
            !head.starts_with("HTTP/1.1 500"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        head
    });
    // It still works, and nothing is there that nobody put.
    let mut connection = TcpStream::connect(address).expect("the server is there");
    let last = request("GET", &format!("{store}/keys"), "", "");
    connection.write_all(last.as_bytes()).expect("a request");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
