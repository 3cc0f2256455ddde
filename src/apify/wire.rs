//! The JSON of the API, read leniently: unknown fields are skipped, optional ones may be missing.

use std::io::Read;
use std::time::SystemTime;

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use url::Url;

use super::answer::encoding_of;
use super::errors::Failure;
use crate::base::in_use;
use crate::base::redact::{self, SafeUrl, Secret};
use crate::base::text;
use crate::store::codec::{self, DecoderMemory, Turn};
use crate::store::freshness::StoreState;
use crate::store::{ErrorKind, Key, ListItem, ListPage, MAX_PAGE, MAX_SIZE, Result, StoreError};

/// The largest JSON answer that is read; a page of 1000 longest keys with URLs has 2 MiB.
pub const MAX_JSON_LEN: usize = 32 << 20;

/// How much of an error answer is read.
pub const MAX_ERROR_LEN: usize = 64 << 10;

/// The most of a server's message that is shown, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// What every JSON answer is wrapped in.
#[derive(Debug, Deserialize)]
pub struct Envelope<T> {
    /// The answer itself.
    pub data: T,
}

/// A store, as `GET /v2/key-value-stores/ID` describes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreObject {
    /// The canonical id.
    pub id: String,
    /// The name, unless it is unnamed.
    #[serde(default)]
    pub name: Option<String>,
    /// The key that signs links into the store; only accounts that may write see it.
    #[serde(default, rename = "urlSigningSecretKey")]
    pub signing_key: Option<Secret>,
    /// When it last changed, ISO 8601.
    #[serde(default)]
    modified_at: Option<String>,
    /// When it was made, ISO 8601.
    #[serde(default)]
    created_at: Option<String>,
    #[serde(default)]
    stats: Option<StoreStats>,
}

/// How often a store was used.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoreStats {
    #[serde(default, deserialize_with = "lenient_size")]
    write_count: Option<u64>,
    #[serde(default, deserialize_with = "lenient_size")]
    delete_count: Option<u64>,
}

impl StoreObject {
    /// Returns when the store last changed.
    pub fn modified(&self) -> Option<SystemTime> {
        time(self.modified_at.as_deref())
    }

    /// Returns when the store was made.
    pub fn created(&self) -> Option<SystemTime> {
        time(self.created_at.as_deref())
    }

    /// Returns what the object says of the store as a whole.
    pub fn state(&self) -> Option<StoreState> {
        let stats = self.stats.as_ref();
        Some(StoreState {
            modified: self.modified()?,
            created: self.created(),
            changes: stats
                .and_then(|stats| stats.write_count)
                .map(|writes| writes + stats.and_then(|stats| stats.delete_count).unwrap_or(0)),
        })
    }
}

fn time(text: Option<&str>) -> Option<SystemTime> {
    Some(text?.parse::<jiff::Timestamp>().ok()?.into())
}

/// A page of keys, with links as `L`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "L: Deserialize<'de>"))]
pub struct KeysPage<L = String> {
    items: Vec<KeyItem<L>>,
    #[serde(default)]
    is_truncated: Option<bool>,
    #[serde(default)]
    next_exclusive_start_key: Option<String>,
    /// The place after which the page begins.
    #[serde(default)]
    exclusive_start_key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "L: Deserialize<'de>"))]
struct KeyItem<L> {
    key: String,
    #[serde(default, deserialize_with = "lenient_size")]
    size: Option<u64>,
    #[serde(default)]
    record_public_url: Option<L>,
}

/// What is made of a record's link in a listing.
pub trait Link {
    /// Returns the link, if it may be followed.
    fn link(self) -> Option<SafeUrl>;
}

impl Link for String {
    fn link(self) -> Option<SafeUrl> {
        http_url(&self)
    }
}

/// Links are not looked at: they would take more time than all the rest of a large listing.
impl Link for IgnoredAny {
    fn link(self) -> Option<SafeUrl> {
        None
    }
}

/// Reads a size; whatever is not a whole number of bytes that a file can have is unknown.
fn lenient_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let size = serde_json::Value::deserialize(deserializer)?.as_u64();
    Ok(size.filter(|size| *size <= MAX_SIZE))
}

impl<L: Link> KeysPage<L> {
    /// Turns the answer into a page of the store contract.
    ///
    /// A page that says it was cut but not where it continues goes on after its last key, and so
    /// does one that says nothing of it and is as long as the `asked` keys: a listing never ends
    /// early without an error. One of that length that says both that it was the last and where it
    /// continues goes on. `after` is the place after which the page was asked to begin.
    ///
    /// # Errors
    /// [`ErrorKind::Protocol`] when it holds an empty key or more keys than a page can, was cut
    /// before its first key and does not say where it continues, or says that it begins elsewhere.
    pub fn into_page(self, asked: usize, after: Option<&str>) -> Result<ListPage> {
        let begins = self.exclusive_start_key.filter(|begins| !begins.is_empty());
        if begins.is_some() && begins.as_deref() != after {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                "the server answered with another page of the listing than it was asked for",
            )
            .with_hint("a cache on the way to the server may ignore what is asked for"));
        }
        if self.items.len() > MAX_PAGE {
            return Err(StoreError::new(
                ErrorKind::Protocol,
                format!("a page of the listing holds {} keys", self.items.len()),
            ));
        }
        let items = self
            .items
            .into_iter()
            .map(|item| {
                Ok(ListItem {
                    key: Key::new(item.key).ok_or_else(|| {
                        StoreError::new(ErrorKind::Protocol, "the listing holds an empty key")
                    })?,
                    stored_size: item.size,
                    modified: None,
                    public_url: item.record_public_url.and_then(Link::link),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let told = self
            .next_exclusive_start_key
            .filter(|next| !next.is_empty());
        let last = || items.iter().map(|item| item.key.as_str()).max();
        let goes_on = |told: &String| items.len() >= asked && last() <= Some(told.as_str());
        let next = match (self.is_truncated, told) {
            (Some(false), told) => told.filter(goes_on),
            (_, Some(told)) => Some(told),
            (Some(true), None) => Some(last().map(str::to_owned).ok_or_else(|| {
                StoreError::new(
                    ErrorKind::Protocol,
                    "a page of the listing was cut, with neither keys nor the place to continue",
                )
            })?),
            (None, None) => last().filter(|_| items.len() >= asked).map(str::to_owned),
        };
        Ok(ListPage {
            items,
            next: next.map(Into::into),
        })
    }
}

/// Reads a link that may be followed.
fn http_url(text: &str) -> Option<SafeUrl> {
    let url = Url::parse(text).ok()?;
    matches!(url.scheme(), "http" | "https").then(|| SafeUrl::new(url))
}

/// The error that an answer holds, as far as it is one of the API.
#[derive(Debug, Default, PartialEq)]
pub struct ApiError {
    /// Its type, such as `record-not-found`.
    pub api_type: Option<String>,
    /// What the server says; fit for showing.
    pub message: Option<String>,
}

impl ApiError {
    /// Reads the body of an error answer. Pages for browsers, garbage and nothing are fine.
    /// `sent` are secrets that the server may quote, besides those in use.
    pub fn parse(headers: &HeaderMap, body: &[u8], sent: &[Secret]) -> Self {
        #[derive(Deserialize)]
        struct Outer {
            error: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(default, rename = "type")]
            api_type: Option<String>,
            #[serde(default)]
            message: Option<String>,
        }
        if let Ok(Outer { error }) = serde_json::from_slice(body) {
            return Self {
                api_type: error.api_type.map(|text| presentable(&text, sent)),
                message: error.message.map(|text| presentable(&text, sent)),
            };
        }
        let message = (is_web_page(headers) && !body.is_empty())
            .then(|| "a web page instead of an API answer; is this the API's address?".to_owned());
        Self {
            api_type: None,
            message,
        }
    }
}

/// Undoes the encoding of an answer that is the API's own, at most [`MAX_JSON_LEN`] bytes of it.
///
/// # Errors
/// Transient: the bytes do not decode as the headers say. Permanent: there are too many.
pub fn decoded(headers: &HeaderMap, body: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let encoding = encoding_of(headers);
    if encoding.is_identity() {
        return Ok(body);
    }
    let corrupt = |error: StoreError| {
        Failure::transient(
            ErrorKind::Protocol,
            format!("the answer cannot be read: {error}"),
        )
    };
    // At once: a record that is being decoded may wait for this answer.
    let memory = DecoderMemory::of_process();
    let mut text = Vec::new();
    codec::decoder(&encoding, Box::new(body.as_slice()), memory, Turn::Now)
        .map_err(corrupt)?
        .take(MAX_JSON_LEN as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| corrupt(StoreError::from_io(error, ErrorKind::Protocol)))?;
    if text.len() > MAX_JSON_LEN {
        return Err(Failure::permanent(
            ErrorKind::Protocol,
            format!("the answer is longer than {MAX_JSON_LEN} bytes"),
        ));
    }
    Ok(text)
}

/// Returns whether an answer is a page for browsers.
pub fn is_web_page(headers: &HeaderMap) -> bool {
    has_type(headers, "text/html")
}

/// Returns whether an answer is JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    has_type(headers, "application/json")
}

fn has_type(headers: &HeaderMap, expected: &str) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|value| value.trim().eq_ignore_ascii_case(expected))
}

/// Makes a server's text fit for showing: one line, bounded, no secrets.
fn presentable(text: &str, sent: &[Secret]) -> String {
    // Before it is cut, or half a secret would not be known for one; before what is dangerous becomes
    // spaces, and after, when it stands between a name and its value no more.
    let shown = redact::text(&text::plain(&in_use::without(text, sent)), &[]);
    shown.chars().take(MAX_MESSAGE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(json: &str) -> ListPage {
        let envelope: Envelope<KeysPage> = serde_json::from_str(json).expect(json);
        envelope.data.into_page(2, None).expect(json)
    }

    #[test]
    fn a_listing_may_lack_all_but_its_keys() {
        let page = page(
            r#"{"data":{"isTruncated":false,"items":[{"key":"a"},{"key":"b","size":null,"x":1},{"key":"c","size":7,"recordPublicUrl":"ftp://x"},{"key":"d","size":9223372036854775808}]}}"#,
        );
        let sizes: Vec<_> = page.items.iter().map(|item| item.stored_size).collect();
        assert_eq!(sizes, [None, None, Some(7), None]);
        assert_eq!(page.items[2].public_url, None);
        assert_eq!(page.next, None);
    }

    #[test]
    fn a_listing_goes_on_only_when_it_was_cut() {
        for (rest, next) in [
            (r#""isTruncated":false,"nextExclusiveStartKey":"a""#, None),
            (
                r#""isTruncated":false,"nextExclusiveStartKey":"b""#,
                Some("b"),
            ),
            (
                r#""isTruncated":true,"nextExclusiveStartKey":"z""#,
                Some("z"),
            ),
            (
                r#""isTruncated":true,"nextExclusiveStartKey":null"#,
                Some("b"),
            ),
            (r#""isTruncated":false,"nextExclusiveStartKey":null"#, None),
            (r#""nextExclusiveStartKey":"z""#, Some("z")),
            (r#""nextExclusiveStartKey":null"#, Some("b")),
            (r#""limit":1000"#, Some("b")),
        ] {
            let json = format!(r#"{{"data":{{"items":[{{"key":"a"}},{{"key":"b"}}],{rest}}}}}"#);
            assert_eq!(page(&json).next.as_deref(), next, "{rest}");
        }
        assert_eq!(page(r#"{"data":{"items":[{"key":"a"}]}}"#).next, None);
    }

    #[test]
    fn a_page_for_another_place_breaks_the_protocol() {
        for (after, begins, is_it) in [
            (None, "null", true),
            (None, "\"\"", true),
            (None, "\"k\"", false),
            (Some("k"), "\"k\"", true),
            (Some("k"), "null", true),
            (Some("k"), "\"j\"", false),
        ] {
            let json = format!(
                r#"{{"data":{{"items":[{{"key":"z"}}],"exclusiveStartKey":{begins},"isTruncated":false}}}}"#
            );
            let envelope: Envelope<KeysPage> = serde_json::from_str(&json).expect("JSON");
            let page = envelope.data.into_page(1000, after);
            assert_eq!(page.is_ok(), is_it, "asked after {after:?}: {json}");
        }
    }

    #[test]
    fn a_cut_page_without_keys_and_place_is_no_end() {
        let json = r#"{"data":{"items":[],"isTruncated":true,"nextExclusiveStartKey":null}}"#;
        let envelope: Envelope<KeysPage> = serde_json::from_str(json).expect("JSON");
        let error = envelope.data.into_page(1000, None).expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }

    #[test]
    fn an_empty_key_breaks_the_protocol() {
        let envelope: Envelope<KeysPage> =
            serde_json::from_str(r#"{"data":{"items":[{"key":""}]}}"#).expect("JSON");
        let error = envelope
            .data
            .into_page(1000, None)
            .expect_err("an empty key");
        assert_eq!(error.kind(), ErrorKind::Protocol);
    }

    #[test]
    fn error_answers_may_be_anything() {
        let mut headers = HeaderMap::new();
        let parse =
            |headers: &HeaderMap, body: &str| ApiError::parse(headers, body.as_bytes(), &[]);
        for body in ["", "garbage", "{}", "[]", r#"{"error":"x"}"#] {
            assert_eq!(parse(&headers, body), ApiError::default(), "{body}");
        }
        let error = parse(
            &headers,
            "{\"error\":{\"type\":\"t\",\"message\":\"a\\nb ?signature=s3cret&token=s3cret Bearer s3cret\"}}",
        );
        assert_eq!(error.api_type.as_deref(), Some("t"));
        let message = error.message.expect("a message");
        assert!(
            message.starts_with("a b ?signature=[redacted]&"),
            "{message}"
        );
        assert!(!message.contains("s3cret"), "{message}");
        headers.insert(CONTENT_TYPE, "text/html".parse().expect("a header"));
        let html = parse(&headers, "<html>s3cret</html>")
            .message
            .expect("a message");
        assert!(
            html.contains("web page") && !html.contains("s3cret"),
            "{html}"
        );
    }

    #[test]
    fn a_store_object_needs_an_id_only() {
        let store: StoreObject = serde_json::from_str(r#"{"id":"A","stats":{}}"#).expect("a store");
        assert_eq!(store.modified(), None);
        let store: StoreObject = serde_json::from_str(
            r#"{"id":"A","name":null,"modifiedAt":"1970-01-01T00:00:01.000Z"}"#,
        )
        .expect("a store");
        assert_eq!(
            store.modified(),
            Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1))
        );
    }
}
