//! Addresses of the API. Keys and names are percent-encoded here, exactly once.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::base::redact::{SafeUrl, Secret, bare};
use crate::store::{ErrorKind, Key, ListQuery, MAX_PAGE, Result, StoreError};

/// All but the unreserved characters of RFC 3986.
const RESERVED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Encodes a key or name as one segment of a path.
pub fn encode(segment: &str) -> String {
    utf8_percent_encode(segment, &RESERVED).to_string()
}

/// A store as the API names it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The store's own address, without a final `/`.
    store: Url,
}

impl Endpoint {
    /// Returns the store at `path` (after `/v2/`, encoded) of the API at `base`.
    pub fn new(base: &Url, path: &str) -> Self {
        let mut store = base.clone();
        store.set_query(None);
        store.set_fragment(None);
        let prefix = base.path().trim_end_matches('/');
        store.set_path(&format!("{prefix}/v2/{path}"));
        Self { store }
    }

    /// Returns the address of the store object.
    pub fn store(&self) -> SafeUrl {
        SafeUrl::new(self.store.clone())
    }

    /// Returns the address of the store object with query parameters.
    pub fn store_with(&self, parameters: &[(&str, &str)]) -> SafeUrl {
        let mut url = self.store.clone();
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        SafeUrl::new(url)
    }

    /// Returns the address of a page of keys.
    pub fn keys(&self, query: &ListQuery, signature: Option<&Secret>) -> SafeUrl {
        let mut url = self.store.clone();
        url.set_path(&format!("{}/keys", self.store.path()));
        let limit = page_len(query);
        {
            let mut pairs = url.query_pairs_mut();
            pairs.append_pair("limit", &limit.to_string());
            for (name, value) in [
                ("exclusiveStartKey", &query.after),
                ("prefix", &query.prefix),
                ("collection", &query.collection),
            ] {
                // To the API, an empty start or prefix is none.
                if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                    pairs.append_pair(name, value);
                }
            }
            if let Some(signature) = signature {
                pairs.append_pair("signature", signature.expose());
            }
        }
        SafeUrl::new(url)
    }

    /// Returns the address of the listing for showing: without query and credentials.
    pub fn keys_url(&self) -> String {
        format!("{}/keys", bare(&self.store))
    }

    /// Returns the address of a record for showing: without query and credentials.
    pub fn record_url(&self, key: &Key) -> Option<String> {
        Some(bare(self.record(key, false).ok()?.expose()))
    }

    /// Returns the address of a record; `attachment` keeps the platform from altering HTML.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidKey`] for `.` and `..`: as the last segment of a URL they mean the folder,
    /// escaped or not (URL Standard, "double-dot URL path segment"), so no client can name them.
    pub fn record(&self, key: &Key, attachment: bool) -> Result<SafeUrl> {
        if matches!(key.as_str(), "." | "..") {
            return Err(StoreError::new(
                ErrorKind::InvalidKey,
                format!("the record {key:?} has no address: in a URL its key means a folder"),
            )
            .with_key(key)
            .with_hint("it is listed, but can be neither read nor changed over HTTP; where the program that stored it still has the bytes, store them under another key"));
        }
        let mut url = self.store.clone();
        url.set_path(&format!(
            "{}/records/{}",
            self.store.path(),
            encode(key.as_str())
        ));
        url.set_query(attachment.then_some("attachment=true"));
        Ok(SafeUrl::new(url))
    }
}

/// Returns how many keys a page may have, as the server is asked for.
pub fn page_len(query: &ListQuery) -> usize {
    query.limit.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE)
}

/// Returns the address of a record from its link.
pub fn linked_record(link: &SafeUrl) -> SafeUrl {
    let mut url = link.expose().clone();
    if !url.query_pairs().any(|(name, _)| name == "attachment") {
        url.query_pairs_mut().append_pair("attachment", "true");
    }
    SafeUrl::new(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(base: &str) -> Endpoint {
        Endpoint::new(&Url::parse(base).expect("a URL"), "key-value-stores/me~s")
    }

    fn shown(url: &SafeUrl) -> String {
        url.expose().to_string()
    }

    #[test]
    fn keys_are_encoded_once() {
        let store = endpoint("https://h");
        for (key, path) in [
            ("a", "a"),
            ("a!'()-_.z", "a%21%27%28%29-_.z"),
            ("a/b c", "a%2Fb%20c"),
            ("%2F", "%252F"),
            ("é~", "%C3%A9~"),
            ("...", "..."),
            ("a/../b", "a%2F..%2Fb"),
            ("?#\\", "%3F%23%5C"),
        ] {
            let key = Key::new(key).expect("a key");
            let record = |attachment| store.record(&key, attachment).expect("an address");
            assert_eq!(
                shown(&record(false)),
                format!("https://h/v2/key-value-stores/me~s/records/{path}")
            );
            assert!(shown(&record(true)).ends_with("?attachment=true"));
        }
    }

    #[test]
    fn keys_that_a_url_takes_for_folders_are_refused() {
        for key in [".", ".."] {
            let key = Key::new(key).expect("a key");
            let error = endpoint("https://h")
                .record(&key, true)
                .expect_err("no address");
            assert_eq!(error.kind(), ErrorKind::InvalidKey);
            assert!(error.hint().is_some() && error.key() == Some(&key));
        }
    }

    #[test]
    fn a_base_may_have_a_path() {
        for base in ["http://h:1/x", "http://h:1/x/", "http://h:1/x/?a=b#c"] {
            assert_eq!(
                shown(&endpoint(base).store()),
                "http://h:1/x/v2/key-value-stores/me~s"
            );
        }
    }

    #[test]
    fn pages_have_a_limit_the_api_allows() {
        let query = |limit| ListQuery {
            limit,
            prefix: Some("a&b".into()),
            ..ListQuery::default()
        };
        for (limit, sent) in [(None, 1000), (Some(0), 1), (Some(7), 7), (Some(5000), 1000)] {
            let target = endpoint("http://h").keys(&query(limit), Some(&Secret::new("s=")));
            assert_eq!(
                shown(&target),
                format!(
                    "http://h/v2/key-value-stores/me~s/keys?limit={sent}&prefix=a%26b&signature=s%3D"
                )
            );
        }
    }

    #[test]
    fn addresses_for_showing_carry_nothing_secret() {
        let endpoint = endpoint("https://me:s3cret@h/base?token=s3cret");
        for (key, tail) in [("INPUT", "INPUT"), ("a/b", "a%2Fb")] {
            let key = Key::new(key).expect("a key");
            let shown = endpoint.record_url(&key).expect("an address");
            assert_eq!(
                shown,
                format!("https://h/base/v2/key-value-stores/me~s/records/{tail}")
            );
        }
    }

    #[test]
    fn links_are_asked_for_unaltered_records() {
        for (link, target) in [
            (
                "https://h/r/a?signature=s",
                "https://h/r/a?signature=s&attachment=true",
            ),
            ("https://h/r/a?attachment=1", "https://h/r/a?attachment=1"),
        ] {
            let link = SafeUrl::new(Url::parse(link).expect("a URL"));
            assert_eq!(shown(&linked_record(&link)), target);
        }
    }
}
