//! Secrets that cannot be printed by accident: `Debug` and `Display` hide them.

use std::fmt;
use std::sync::LazyLock;

use percent_encoding::percent_decode_str;
use regex_lite::Regex;
use serde::{Deserialize, Serialize};
use url::Url;

use super::in_use;

/// A token, signature or signing key. Only [`Secret::expose`] shows it.
///
/// Serialising does write it out: that is how the parent process hands settings to the daemon
/// through a pipe. Nothing that is logged or stored holds a `Secret`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A URL that hides credentials and the values of secret parameters in `Debug` and `Display`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SafeUrl(Url);

/// Query parameters that grant access: Apify's own, and those of redirects to the storages of Amazon,
/// Google and Microsoft.
const SECRET_PARAMETERS: [&str; 11] = [
    "signature",
    "token",
    "access_token",
    "sig",
    "x-goog-signature",
    "x-goog-credential",
    "googleaccessid",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "awsaccesskeyid",
];

impl SafeUrl {
    /// Wraps `url`.
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// Returns what in it grants access.
    pub fn secrets(&self) -> Vec<Secret> {
        let password = self.0.password().map(|password| {
            let decoded = percent_decode_str(password).decode_utf8_lossy();
            Secret::new(decoded)
        });
        self.0
            .query_pairs()
            .filter(|(name, _)| is_secret(name))
            .map(|(_, value)| Secret::new(value))
            .chain(password)
            .filter(|secret| !secret.0.is_empty())
            .collect()
    }

    /// Returns the URL with everything in it, for sending.
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        if shown.password().is_some() || !shown.username().is_empty() {
            // Both fail only for URLs that have no host, which have no credentials either.
            let _ = shown.set_password(None);
            let _ = shown.set_username("redacted");
        }
        let pairs: Vec<(String, String)> = shown.query_pairs().into_owned().collect();
        if pairs.iter().any(|(name, _)| is_secret(name)) {
            shown.query_pairs_mut().clear().extend_pairs(
                pairs
                    .iter()
                    .map(|(name, value)| (name, if is_secret(name) { "redacted" } else { value })),
            );
        }
        // A redirect may carry them under any name.
        f.write_str(&in_use::without(shown.as_str(), &self.secrets()))
    }
}

impl fmt::Debug for SafeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Returns whether a URL alone grants access.
pub fn has_secret(url: &Url) -> bool {
    // Some servers take a token for the user's name.
    let has_credentials = url.password().is_some() || !url.username().is_empty();
    has_credentials || url.query_pairs().any(|(name, _)| is_secret(&name))
}

/// Returns a URL without query and credentials.
pub fn bare(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail only for URLs that have no host, which have no credentials either.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    url.into()
}

/// Replaces what grants access in a text of any origin: the secrets in use and `known` ones, in any
/// disguise, Apify's tokens, values that are called a token, signature or password, and credentials
/// in URLs.
pub fn text(text: &str, known: &[Secret]) -> String {
    const NAMED: &str = r#"(?i)\b([\w-]*(?:token|signature|password|secret|authorization|x-(?:amz|goog)-credential|awsaccesskeyid|googleaccessid)(?:_?(?:access_)?key)?)("?\s*(?:=|:|%3D)\s*"?)(?:bearer\s+)?[^\s"'&,;)}\]]+"#;
    const PATTERNS: [(&str, &str); 5] = [
        (r"apify_(?:api|proxy)_[A-Za-z0-9]+", "[redacted]"),
        (r"(?i)\bbearer\s+[A-Za-z0-9._~+/=-]+", "Bearer [redacted]"),
        (r"(://)[^/\s@]+@", "${1}[redacted]@"),
        (r#"(?i)([?&]sig=)[^&\s"']+"#, "${1}[redacted]"),
        (NAMED, "${1}${2}[redacted]"),
    ];
    // Once: it costs more than all else that is done with an error of a server, and many a name
    // that does not exist is answered with one.
    static COMPILED: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        // That none is left out is checked by a test.
        let compiled = PATTERNS.map(|(pattern, with)| Some((Regex::new(pattern).ok()?, with)));
        compiled.into_iter().flatten().collect()
    });
    let mut text = in_use::without(text, known).into_owned();
    for (pattern, with) in &*COMPILED {
        text = pattern.replace_all(&text, *with).into_owned();
    }
    text
}

/// Cuts the queries of all URLs in a text.
pub fn without_queries(text: &str) -> String {
    const QUERY: &str = r#"(://[^\s?"'<>]*)\?[^\s"'<>)]*"#;
    static COMPILED: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(QUERY).ok());
    match &*COMPILED {
        Some(query) => query.replace_all(text, "${1}?[redacted]").into_owned(),
        None => text.to_owned(),
    }
}

fn is_secret(parameter: &str) -> bool {
    SECRET_PARAMETERS
        .iter()
        .any(|secret| parameter.eq_ignore_ascii_case(secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_show_no_token_no_signature_and_no_password() {
        let url =
            Url::parse("https://me:pw@h/keys?prefix=a&Signature=abc&token=xyz").expect("a URL");
        let shown = format!("{0} {0:?}", SafeUrl::new(url));
        for secret in ["abc", "xyz", "pw", "me:"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("prefix=a"), "{shown}");
    }

    #[test]
    fn urls_show_no_secret_in_use_under_any_name() {
        in_use::keep_out(&Secret::new("redirected/Token_00abc"));
        for url in [
            "https://h/none?tok=redirected%2FToken_00abc",
            "https://h/none?tok=redirected/Token_00abc&token=redirected/Token_00abc",
            "https://h/redirected/Token_00abc",
            "https://redirected%2FToken_00abc.h/#redirected/Token_00abc",
        ] {
            let Ok(url) = Url::parse(url) else { continue };
            let shown = SafeUrl::new(url).to_string();
            assert!(!shown.contains("oken_00abc"), "{shown}");
        }
        let url = Url::parse("https://h/?a=abc0&sig=abc0").expect("a URL");
        assert_eq!(
            SafeUrl::new(url).to_string(),
            "https://h/?a=[redacted]&sig=redacted"
        );
    }

    #[test]
    fn every_form_of_access_in_a_url_is_known() {
        for (url, expected) in [
            ("https://h/keys?prefix=a", false),
            ("https://me@h/", true),
            ("https://me:pw@h/", true),
            ("https://h/?Sig=x", true),
            ("https://h/?X-Goog-Signature=x", true),
            ("https://h/?X-Amz-Signature=x", true),
            ("https://h/?access_token=x", true),
            ("https://h/?design=x", false),
        ] {
            let url = Url::parse(url).expect("a URL");
            assert_eq!(has_secret(&url), expected, "{url}");
        }
    }

    #[test]
    fn texts_lose_whatever_grants_access() {
        let known = [Secret::new("kn0wn")];
        for line in [
            "sent kn0wn to the server",
            "GET https://h/keys?limit=1&signature=s3cret&prefix=a",
            "token=s3cret",
            "{\"urlSigningSecretKey\":\"x\",\"token\": \"s3cret\"}",
            "authorization: Bearer s3cret",
            "Bearer s3cret",
            "the token apify_api_s3cret is not known",
            "https://me:s3cret@h/",
            "X-Amz-Signature=s3cret",
            "X-Goog-Credential=s3cret",
            "https://h/b/k?sv=2024&sig=s3cret&se=2030",
            "proxy-password%3Ds3cret",
            "AWS_SECRET_ACCESS_KEY=s3cret",
        ] {
            let shown = text(line, &known);
            assert!(
                !shown.contains("s3cret") && !shown.contains("kn0wn"),
                "{shown}"
            );
            assert!(shown.contains("[redacted]"), "{shown}");
        }
        let plain = "GET https://h/keys?limit=1 took 3 ms: 404, no token was sent";
        assert_eq!(text(plain, &known), plain);
        let link = text("https://h/keys?signature=s3cret&limit=1", &[]);
        assert!(link.ends_with("&limit=1"), "{link}");
    }

    #[test]
    fn texts_lose_the_queries_of_urls() {
        for (line, shown) in [
            (
                "GET http://h/b?key=s3cret failed",
                "GET http://h/b?[redacted] failed",
            ),
            ("url (http://h/?a=s3cret&b=1)", "url (http://h/?[redacted])"),
            (
                "\"https://h/b?x=s3cret/y\", why?",
                "\"https://h/b?[redacted]\", why?",
            ),
            ("what? nothing", "what? nothing"),
        ] {
            assert_eq!(without_queries(line), shown);
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(
            format!("{0} {0:?}", Secret::new("s3cret")),
            "[redacted] [redacted]"
        );
    }
}
