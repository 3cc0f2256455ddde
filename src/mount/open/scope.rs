//! Names for what may be seen of a store: what is cached for one account is not shown to another.

use sha2::{Digest, Sha256};
use url::{Host, Url};

use crate::apify::record::RecordApi;
use crate::store::Result;

/// How much of the hash a cache scope keeps, in bytes.
const SCOPE_HASH_LEN: usize = 16;

/// The most of a store's id that a cache scope shows, in characters.
const SCOPE_ID_LEN: usize = 32;

/// Takes the place of a credential, where the account does not matter.
const ANY_ACCOUNT: &str = "anybody";

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

/// Returns a name for a store as changes of it see it, whoever makes them. This machine's own names
/// mean the same server.
pub(super) fn upload_scope(server: &Url, id: &str) -> String {
    let mut server = server.clone();
    let is_own = match server.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if is_own && server.set_host(Some("127.0.0.1")).is_err() {
        tracing::debug!("the server's name stays as it is");
    }
    cache_scope(&server, id, ANY_ACCOUNT)
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

    #[test]
    fn names_of_this_machine_are_one_server_for_changes() {
        let scope = |server: &str| upload_scope(&Url::parse(server).expect("a URL"), "id");
        let first = scope("http://127.0.0.1:8080/base");
        assert_eq!(first, scope("http://localhost:8080/base"));
        assert_eq!(first, scope("http://[::1]:8080/base"));
        for other in [
            "http://localhost:8081/base",
            "http://localhost:8080",
            "https://localhost:8080/base",
            "http://h:8080/base",
        ] {
            assert_ne!(first, scope(other), "{other}");
        }
    }
}
