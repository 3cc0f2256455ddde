//! Names for what may be seen of a store: what is cached for one account is not shown to another.

use sha2::{Digest, Sha256};
use url::Url;

use crate::apify::record::RecordApi;
use crate::store::Result;

/// How much of the hash a cache scope keeps, in bytes.
const SCOPE_HASH_LEN: usize = 16;

/// The most of a store's id that a cache scope shows, in characters.
const SCOPE_ID_LEN: usize = 32;

/// Returns an identity of the account, to separate what accounts may see.
pub(super) fn access_of(api: &RecordApi) -> Result<String> {
    Ok(match &api.token {
        Some(token) => format!("token:{}", token.current()?.expose()),
        None => "public".to_owned(),
    })
}

/// Returns a name for what may be seen of a store; fit for a folder's name.
///
/// Only a hash of the credential goes in, cut so far that nothing of it can be recovered.
pub(super) fn cache_scope(server: &Url, id: &str, access: &str) -> String {
    let mut hash = Sha256::new();
    for part in [
        &server.origin().ascii_serialization(),
        server.path(),
        id,
        access,
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let shown: String = id
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(SCOPE_ID_LEN)
        .collect();
    let digest: String = hash
        .finalize()
        .iter()
        .take(SCOPE_HASH_LEN)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{shown}-{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_scopes_differ_by_server_store_and_access() {
        let scope =
            |server, id, access| cache_scope(&Url::parse(server).expect("a URL"), id, access);
        let first = scope("https://h", "me~s", "token:a");
        assert_eq!(first, scope("https://h/", "me~s", "token:a"));
        assert!(first.starts_with("me-s-"), "{first}");
        for other in [
            scope("https://h:1", "me~s", "token:a"),
            scope("https://h", "me-s", "token:a"),
            scope("https://h", "me~s", "token:b"),
            scope("https://h", "me~s", "public"),
        ] {
            assert_ne!(first, other);
        }
    }
}
