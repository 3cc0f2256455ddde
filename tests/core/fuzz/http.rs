//! What comes over the network: requests to the server, answers to the client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use kvfs::apify::http::HttpOptions;
use kvfs::apify::plain::PlainHttp;
use kvfs::apify::retry::RetryPolicy;
use kvfs::base::clock::Deadline;
use kvfs::base::redact::Secret;
use kvfs::metrics::Metrics;
use kvfs::mount::open::{OpenConfig, TokenSource, open_with};
use kvfs::store::{ErrorKind, GetOutcome, GetRequest, Key, ListQuery, Store, StoreError};
use parking_lot::Mutex;

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

/// What the server below answers for a record that nothing is wrong with.
const GOOD: &[u8] = b"exactly these bytes";

/// Answers requests: for the record `good` well, for any other record or listing with `answer`,
/// after which it hangs up.
fn misanswer(stream: TcpStream, answer: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let (mut first, mut line) = (String::new(), String::new());
        if requests.read_line(&mut first)? == 0 {
            return Ok(());
        }
        while requests.read_line(&mut line)? > 2 {
            line.clear();
        }
        let body = if first.contains("/records/good") {
            GOOD
        } else if first.contains("/records/") || first.contains("/keys") {
            let answer = answer.lock().clone();
            stream.write_all(&answer)?;
            return stream.shutdown(Shutdown::Both);
        } else {
            br#"{"data":{"id":"WkzbQMuFYuamGv3YF","name":"n"}}"#
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body].concat())?;
    }
}

fn open_misanswered(address: &str) -> Arc<dyn Store> {
    let config = OpenConfig {
        reference: "WkzbQMuFYuamGv3YF".parse().expect("a reference"),
        api_url: Some(address.parse().expect("a URL")),
        token: TokenSource::Environment(Secret::new(TOKEN)),
        signature: None,
        run_status: None,
        run_origin: None,
        plain_http: PlainHttp::default(),
        attempt_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(20),
        budget_dir: None,
    };
    let options = HttpOptions {
        retry: RetryPolicy {
            attempts: 2,
            base_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(1),
        },
        ..HttpOptions::new(Duration::from_secs(10))
    };
    open_with(&config, options, Arc::new(Metrics::default())).expect("a store")
}

/// Returns the bytes of a record, or what was wrong with the answers.
fn read(store: &dyn Store, key: &str, deadline: Deadline) -> Result<Option<Vec<u8>>, ErrorKind> {
    let key = Key::new(key).expect("a key");
    let kind = |error: StoreError| error.kind();
    match store
        .get(&key, &GetRequest::default(), deadline)
        .map_err(kind)?
    {
        GetOutcome::NotModified => Ok(None),
        GetOutcome::Found(mut fetched) => {
            let mut bytes = Vec::new();
            let read = fetched.body.read_to_end(&mut bytes);
            let failed = |error| StoreError::from_io(error, ErrorKind::Network).kind();
            read.map(|_| Some(bytes)).map_err(failed)
        }
    }
}

#[test]
fn answers_of_a_server() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}/", listener.local_addr().expect("an address"));
    let answer = Arc::new(Mutex::new(Vec::new()));
    let answered = Arc::clone(&answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answered);
            // Errors are the client's doing: it closed the connection.
            std::thread::spawn(move || misanswer(stream, &answer));
        }
    });
    let mut store = open_misanswered(&address);
    fuzz("answer", &[], |input| {
        input.clone_into(&mut answer.lock());
        let soon = || Deadline::after(Duration::from_millis(300));
        let bytes = read(&*store, "a", soon());
        if let Ok(Some(bytes)) = &bytes {
            assert!(bytes.len() <= input.len(), "{} bytes", bytes.len());
        }
        let page = store.list_page(&ListQuery::default(), soon());
        let page = page.map(|page| (page.items.len().min(3), page.next.is_some()));
        let page = page.map_err(|error| error.kind());
        let slows_down = [bytes.as_ref().err(), page.as_ref().err()]
            .into_iter()
            .flatten()
            .any(|kind| matches!(kind, ErrorKind::RateLimited | ErrorKind::Timeout));
        // From then on the good answers would be a gateway's.
        let names_limit = String::from_utf8_lossy(input)
            .to_ascii_lowercase()
            .contains("x-ratelimit-limit");
        if slows_down || names_limit {
            store = open_misanswered(&address);
        }
        // Nothing of an answer gets into the next.
        let good = read(&*store, "good", Deadline::after(Duration::from_secs(20)));
        assert_eq!(good, Ok(Some(GOOD.to_vec())));
        let size = bytes.map(|bytes| bytes.map(|bytes| bytes.len().checked_ilog2()));
        (format!("{size:?}"), format!("{page:?}"))
    });
}
