//! Addresses of buckets, and of the stores in them. They hold no credentials.

use url::Url;

use super::forms::is_name;
use super::{ReferenceError, StoreRef};
use crate::base::redact::bare;

/// The schemes of addresses of buckets.
const BUCKETS: [&str; 3] = ["s3", "gs", "az"];

/// Reads the address of a bucket, or of a part of one; `None` for what is none.
pub fn bucket_address(text: &str) -> Option<Result<Url, ReferenceError>> {
    let (scheme, _) = text.split_once("://")?;
    if !BUCKETS
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known))
    {
        return None;
    }
    let parsed = Url::parse(text);
    // Of what cannot be taken apart nothing is shown: it may hold credentials.
    let url = parsed.as_ref().map_or(format!("{scheme}://"), bare);
    let refuse = |reason| Some(Err(ReferenceError::Url { url, reason }));
    match parsed {
        Ok(url) if !url.has_host() => refuse("it names no bucket"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => refuse(
            "it must hold no credentials; give them in the variables AWS_…, GOOGLE_… or AZURE_…",
        ),
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            refuse("nothing can follow the prefix")
        }
        Ok(url) => Some(Ok(url)),
        Err(_) => refuse("it is not a well-formed URL"),
    }
}

/// Takes the store off the end of an address.
pub(super) fn in_bucket(mut address: Url) -> Result<StoreRef, ReferenceError> {
    let path = address.path().trim_matches('/').to_owned();
    let (prefix, store) = path.rsplit_once('/').unwrap_or(("", &path));
    if !is_name(store) {
        return Err(ReferenceError::Url {
            url: bare(&address),
            reason: "the name or id of a store must follow the bucket and the prefix",
        });
    }
    address.set_path(prefix);
    let store = store.to_owned();
    Ok(StoreRef::Bucket { address, store })
}
