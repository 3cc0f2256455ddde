//! Where a redirect may lead: not into the open, and with a change to no other server.

use reqwest::header::LOCATION;
use url::Url;

use super::call::Purpose;
use super::errors::Failure;
use super::plain::PlainHttp;
use super::transport::Reply;
use crate::store::ErrorKind;

/// Finds out where a redirect leads, and whether it may.
pub(super) fn redirect_target(
    reply: &Reply,
    from: &Url,
    purpose: Purpose,
    plain: PlainHttp,
) -> Result<Url, Failure> {
    let refuse = |reason: &str| Failure {
        status: Some(reply.status),
        ..Failure::permanent(
            ErrorKind::Protocol,
            format!("the server's redirect {reason}"),
        )
    };
    let next = reply
        .headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|location| from.join(location).ok())
        .ok_or_else(|| refuse("names no address"))?;
    match (from.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") if plain == PlainHttp::Anywhere => {}
        ("https", "http") => {
            return Err(refuse(
                "leads from an encrypted to a plain connection: refused without --insecure-http",
            ));
        }
        _ => return Err(refuse("leads to something that is not HTTP")),
    }
    let changes = matches!(purpose, Purpose::Put | Purpose::Delete);
    if changes && !matches!(reply.status, 307 | 308) {
        return Err(refuse("does not say to repeat the request elsewhere"));
    }
    if changes && next.origin() != from.origin() {
        return Err(refuse("would send a change to another server"));
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::apify::body::HttpBody;

    #[test]
    fn a_redirect_never_leads_from_an_encrypted_connection_to_a_plain_one_unasked() {
        for (from, to, plain, follows) in [
            ("https", "https", PlainHttp::ThisMachine, true),
            ("http", "https", PlainHttp::ThisMachine, true),
            ("http", "http", PlainHttp::ThisMachine, true),
            ("https", "http", PlainHttp::ThisMachine, false),
            ("https", "http", PlainHttp::Anywhere, true),
            ("https", "ftp", PlainHttp::Anywhere, false),
        ] {
            for host in ["h", "127.0.0.1"] {
                let from = Url::parse(&format!("{from}://h/a")).expect("a URL");
                let mut headers = HeaderMap::new();
                let location = format!("{to}://{host}/b?signature=s3cret");
                headers.insert(LOCATION, location.parse().expect("a header"));
                let reply = Reply {
                    status: 302,
                    headers,
                    body: HttpBody::buffered(Bytes::new()),
                };
                let found = redirect_target(&reply, &from, Purpose::Get, plain);
                assert_eq!(found.is_ok(), follows, "{from} {location}");
                if let Err(failure) = found
                    && to == "http"
                {
                    assert!(failure.message.contains("--insecure-http"), "{failure:?}");
                    assert!(!failure.message.contains("s3cret"), "{failure:?}");
                }
            }
        }
    }
}
