//! Decides where a redirect or link may lead: not into the open, not from the Internet to what only this
//! machine or its network reaches, and to no other server with a change or with the question which
//! store changes go to.

use std::net::Ipv4Addr;

use reqwest::header::LOCATION;
use url::{Host, Url};

use super::call::Purpose;
use super::errors::Failure;
use super::plain::PlainHttp;
use super::transport::{Reply, is_loopback};
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
    if leads_inside(from, &next) {
        return Err(refuse(
            "leads from a public server to an address of this machine or its network",
        ));
    }
    match purpose {
        Purpose::Put | Purpose::Delete | Purpose::Create => {
            if !matches!(reply.status, 307 | 308) {
                return Err(refuse("does not say to repeat the request elsewhere"));
            }
            if next.origin() != from.origin() {
                return Err(refuse("would send a change to another server"));
            }
        }
        Purpose::Other if !is_same_server(from, &next) => {
            return Err(refuse(
                "would let another server say which store this is, and so where changes go",
            ));
        }
        Purpose::Other | Purpose::List | Purpose::Get | Purpose::Head => {}
    }
    Ok(next)
}

/// Returns whether an address is of the same server, or of what encrypts for it.
fn is_same_server(from: &Url, to: &Url) -> bool {
    let is_encrypted_now = (from.scheme(), to.scheme()) == ("http", "https");
    from.origin() == to.origin() || is_encrypted_now && from.host() == to.host()
}

/// Returns whether a server of the Internet sends its clients to an address that it cannot know: that
/// of this machine, or of a network around it. Only what the addresses themselves show counts.
pub(super) fn leads_inside(from: &Url, to: &Url) -> bool {
    let is_public = from.domain().is_some_and(|name| {
        let local = ["localhost", "local", "internal", "lan", "home", "test"];
        let top = name
            .trim_end_matches('.')
            .rsplit_once('.')
            .map(|(_, top)| top);
        top.is_some_and(|top| !local.contains(&top))
    });
    is_public && is_inside(to)
}

fn is_inside(url: &Url) -> bool {
    let is_inside_v4 = |address: Ipv4Addr| {
        address.is_private()
            || address.is_loopback()
            || address.is_link_local()
            || address.is_unspecified()
    };
    match url.host() {
        Some(Host::Domain(_)) => is_loopback(url),
        Some(Host::Ipv4(address)) => is_inside_v4(address),
        Some(Host::Ipv6(address)) => {
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.to_ipv4_mapped().is_some_and(is_inside_v4)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::apify::body::HttpBody;

    #[test]
    fn the_internet_does_not_lead_into_networks_behind_it() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        for inside in [
            "https://10.0.0.1/",
            "https://192.168.1.1:8443/x",
            "https://172.16.0.1/",
            "https://169.254.169.254/latest",
            "https://127.0.0.1/",
            "https://0.0.0.0/",
            "https://localhost/",
            "https://a.localhost/",
            "https://[::1]/",
            "https://[fd00::1]/",
            "https://[fe80::1]/",
            "https://[::ffff:10.0.0.1]/",
        ] {
            assert!(
                leads_inside(&url("https://api.apify.com/"), &url(inside)),
                "{inside}"
            );
            // A server inside knows its network.
            for from in [
                "https://10.0.0.2/",
                "https://nas/",
                "https://apify.lan/",
                "http://localhost/",
            ] {
                assert!(!leads_inside(&url(from), &url(inside)), "{from} {inside}");
            }
        }
        for outside in [
            "https://s3.amazonaws.com/",
            "https://8.8.8.8/",
            "https://[2001:db8::1]/",
        ] {
            assert!(
                !leads_inside(&url("https://api.apify.com/"), &url(outside)),
                "{outside}"
            );
        }
    }

    #[test]
    fn no_redirect_hands_a_change_or_the_choice_of_the_store_to_another_server() {
        let from = Url::parse("http://h/a").expect("a URL");
        for (purpose, status, to, follows) in [
            (Purpose::Create, 302, "http://h/b", false),
            (Purpose::Create, 303, "http://other/b", false),
            (Purpose::Create, 307, "http://other/b", false),
            (Purpose::Create, 308, "http://h:81/b", false),
            (Purpose::Create, 307, "http://h/b", true),
            (Purpose::Put, 307, "http://h/b", true),
            (Purpose::Put, 307, "https://h/b", false),
            (Purpose::Delete, 308, "http://other/b", false),
            (Purpose::Delete, 302, "http://h/b", false),
            (Purpose::Other, 302, "http://other/b", false),
            (Purpose::Other, 307, "http://h:81/b", false),
            (Purpose::Other, 302, "http://h/b", true),
            (Purpose::Other, 301, "https://h/b", true),
            (Purpose::Other, 301, "https://other/b", false),
            (Purpose::Get, 302, "http://other/b", true),
            (Purpose::Head, 302, "http://other/b", true),
            (Purpose::List, 302, "http://other/b", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, to.parse().expect("a header"));
            let reply = Reply {
                version: reqwest::Version::HTTP_11,
                status,
                headers,
                body: HttpBody::buffered(Bytes::new()),
            };
            let found = redirect_target(&reply, &from, purpose, PlainHttp::ThisMachine);
            assert_eq!(found.is_ok(), follows, "{purpose:?} {status} {to}");
        }
    }

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
                    version: reqwest::Version::HTTP_11,
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
