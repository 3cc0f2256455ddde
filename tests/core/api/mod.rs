//! The API client against a server that misbehaves on command.

mod account;
mod changes;
mod failures;
mod fetching;
mod opening;
mod pages;
mod resuming;
mod secrets;
mod signed;

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use kvfs::apify::http::HttpOptions;
use kvfs::apify::plain::PlainHttp;
use kvfs::apify::retry::RetryPolicy;
use kvfs::base::clock::Deadline;
use kvfs::base::redact::Secret;
use kvfs::metrics::Metrics;
use kvfs::mount::open::{OpenConfig, TokenSource, open_with};
use kvfs::store::{ErrorKind, Fetched, GetOutcome, GetRequest, Key, Result, Store, StoreError};
use url::Url;

use crate::support::scripted::{Answer, ScriptedServer, Seen};

const ID: &str = "WkzbQMuFYuamGv3YF";

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn key(text: &str) -> Key {
    Key::new(text).expect("a key")
}

fn options() -> HttpOptions {
    HttpOptions {
        retry: RetryPolicy {
            attempts: 4,
            base_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(4),
        },
        resume_timeout: Duration::from_secs(10),
        ..HttpOptions::new(Duration::from_secs(10))
    }
}

/// Options for tests in which the server falls silent.
fn impatient() -> HttpOptions {
    HttpOptions {
        attempt_timeout: Duration::from_millis(100),
        ..options()
    }
}

fn config(reference: &str, server: &ScriptedServer) -> OpenConfig {
    OpenConfig {
        reference: reference.parse().expect("a reference"),
        api_url: Some(Url::parse(&server.url()).expect("a URL")),
        token: TokenSource::Environment(Secret::new("s3cret")),
        signature: None,
        run_status: None,
        run_origin: None,
        plain_http: PlainHttp::default(),
        attempt_timeout: Duration::from_secs(10),
        deadline: Duration::from_secs(20),
        budget_dir: None,
    }
}

fn store_object() -> Answer {
    Answer::new(
        200,
        format!(r#"{{"data":{{"id":"{ID}","name":"n","modifiedAt":"2024-01-02T03:04:05.678Z"}}}}"#),
    )
}

/// A store whose requests other than opening it are answered by a script.
struct Scripted {
    server: ScriptedServer,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl Scripted {
    fn with(
        options: HttpOptions,
        handler: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let server = ScriptedServer::start(move |seen, count| match count {
            0 => store_object(),
            _ => handler(seen, count - 1),
        });
        let metrics = Arc::new(Metrics::default());
        let store =
            open_with(&config(ID, &server), options, Arc::clone(&metrics)).expect("a store");
        Self {
            server,
            store,
            metrics,
        }
    }

    fn queue(answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers: Vec<_> = answers.into_iter().collect();
        Self::with(options(), move |_, count| {
            let over = || Answer::new(418, "the script is over");
            answers.get(count).cloned().unwrap_or_else(over)
        })
    }

    /// Returns the requests after opening.
    fn seen(&self) -> Vec<Seen> {
        self.server.seen().split_off(1)
    }

    fn get(&self, name: &str) -> Result<Fetched> {
        self.get_with(name, &GetRequest::default())
    }

    fn get_with(&self, name: &str, request: &GetRequest) -> Result<Fetched> {
        match self.store.get(&key(name), request, deadline())? {
            GetOutcome::Found(fetched) => Ok(fetched),
            GetOutcome::NotModified => panic!("not modified"),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        read(self.get(name)?)
    }
}

fn read(mut fetched: Fetched) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match fetched.body.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(StoreError::from_io(error, ErrorKind::Network)),
    }
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(len)
        .collect()
}

fn shown(error: &StoreError) -> String {
    let text = format!("{error} {error:?} {:?}", error.hint());
    for secret in ["s3cret", "c2lnbmVk"] {
        assert!(!text.contains(secret), "{text}");
    }
    text
}

fn open(config: &OpenConfig) -> Result<Arc<dyn Store>> {
    open_with(config, options(), Arc::default())
}
