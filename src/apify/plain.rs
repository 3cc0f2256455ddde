//! Secrets over connections that are not encrypted.
//!
//! INVARIANT: a token or signature is sent over `http://` to this machine only, and then past any
//! proxy, unless the user has said that the network may see it. [`super::transport::Transport::send`]
//! asks before every request, whatever led to it: an address that was given, a link, a redirect.

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use crate::store::{ErrorKind, Result, StoreError};

/// How far secrets may travel unencrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlainHttp {
    /// Not beyond this machine.
    #[default]
    ThisMachine,
    /// Wherever the user sends them (`--insecure-http`).
    Anywhere,
}

impl PlainHttp {
    /// Checks that a secret may go to `url`.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`]; names the option that allows it.
    pub fn check(self, url: &Url) -> Result<()> {
        if self == Self::Anywhere || !is_exposed(url) {
            return Ok(());
        }
        let host = url.host_str().unwrap_or("that server");
        let message = format!(
            "the token or signature would go to {host} unencrypted, for others on the network to read: refused without --insecure-http"
        );
        Err(StoreError::new(ErrorKind::Denied, message).with_hint(
            "use https:// where the server has it; --insecure-http is for networks that you trust",
        ))
    }
}

/// Whether others on a network could read what is sent to `url`.
pub fn is_exposed(url: &Url) -> bool {
    let stays_here = match url.host() {
        // Not `x.localhost`, which some resolvers ask the network for.
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() != "https" && !stays_here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_unencrypted_to_this_machine_only_unless_allowed() {
        for (url, exposed) in [
            ("https://api.apify.com", false),
            ("https://10.0.0.1", false),
            ("http://localhost:8010/x", false),
            ("http://LOCALHOST", false),
            ("http://127.0.0.1", false),
            ("http://127.9.9.9:1/", false),
            ("http://127.1/", false),
            ("http://[::1]:8010/", false),
            ("http://api.apify.com", true),
            ("http://nas", true),
            ("http://10.0.0.1", true),
            ("http://0.0.0.0", true),
            ("http://[::]", true),
            ("http://[::ffff:7f00:1]", true),
            ("http://a.localhost", true),
            ("http://localhost.", true),
            ("http://localhost.evil.com", true),
            ("http://localhost@evil.com", true),
            ("http://127.0.0.1.evil.com", true),
        ] {
            let url = Url::parse(url).expect("a URL");
            assert_eq!(is_exposed(&url), exposed, "{url}");
            assert_eq!(
                PlainHttp::ThisMachine.check(&url).is_err(),
                exposed,
                "{url}"
            );
            assert!(PlainHttp::Anywhere.check(&url).is_ok());
        }
    }

    #[test]
    fn the_refusal_names_the_option_in_one_line_and_no_secret() {
        let url = Url::parse("http://me:s3cret@nas:1/keys?signature=s3cret").expect("a URL");
        let error = PlainHttp::ThisMachine.check(&url).expect_err("refused");
        let said = error.to_string();
        assert!(said.contains("nas") && said.contains("--insecure-http"));
        assert!(!said.contains('\n') && !format!("{error:?}").contains("s3cret"));
    }
}
