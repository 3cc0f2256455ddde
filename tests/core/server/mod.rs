//! The server as its clients see it.

mod access;
mod accounts;
mod adversary;
mod crash;
mod decoding;
mod described;
mod errors;
mod links;
mod platform;
mod process;
mod records;
mod rehearsal;
mod safety;
mod shared;
mod stores;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use reqwest::blocking::{Client, RequestBuilder, Response};
use serde_json::Value;

use crate::support::served::{TOKEN, TestServer};

const HTML: &str = "text/html; charset=utf-8";

pub(crate) fn client() -> Client {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(300))
        .build()
        .expect("a client")
}

pub(crate) fn send(request: RequestBuilder) -> Response {
    request.send().expect("an answer")
}

/// Asks as the owner.
fn owner(server: &TestServer, path: &str) -> Response {
    send(
        client()
            .get(format!("{}{path}", server.url()))
            .bearer_auth(TOKEN),
    )
}

pub(crate) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response
        .headers()
        .get(name)
        .map(|value| value.to_str().expect("text"))
}

fn bytes(response: Response) -> Vec<u8> {
    response.bytes().expect("a body").to_vec()
}

#[track_caller]
fn assert_error(response: Response, status: u16, kind: &str) {
    assert_eq!(response.status().as_u16(), status, "{}", response.url());
    let body: Value = serde_json::from_slice(&bytes(response)).expect("JSON");
    assert_eq!(body["error"]["type"], kind, "{body}");
    assert!(body["error"]["message"].is_string(), "{body}");
}

/// Returns what an answer holds in its envelope.
fn data(response: Response) -> Value {
    let body: Value = serde_json::from_slice(&bytes(response)).expect("JSON");
    body["data"].clone()
}

fn keys(server: &TestServer, query: &str) -> Value {
    let response = owner(
        server,
        &format!("/v2/key-value-stores/{}/keys{query}", server.entry.id),
    );
    assert_eq!(response.status(), 200);
    let body: Value = serde_json::from_slice(&bytes(response)).expect("JSON");
    body["data"].clone()
}

/// Sends bytes as they are and returns everything that comes back.
fn raw(server: &TestServer, request: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(server.server.addr()).expect("a connection");
    connection
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a timeout");
    connection.write_all(request.as_bytes()).expect("a request");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).expect("an answer");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or_else(|| panic!("no status: {text}"));
    (status, text)
}

fn raw_call(server: &TestServer, method: &str, path: &str, more: &str) -> (u16, String) {
    raw(
        server,
        &format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\
             Authorization: Bearer {TOKEN}\r\n{more}\r\n"
        ),
    )
}
