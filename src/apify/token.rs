//! The token that requests carry, and the one server that may see it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Deserialize;
use url::{Origin, Url};

use crate::base::in_use;
use crate::base::redact::Secret;
use crate::store::{ErrorKind, Result, StoreError};

/// The largest token file that is read, in bytes; `auth.json` has a few kilobytes.
const MAX_FILE_LEN: u64 = 1 << 20;

/// How a token is written in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Nothing but the token; whitespace around it does not count.
    Plain,
    /// `auth.json` of the Apify CLI.
    CliLogin,
}

/// Where the token comes from.
#[derive(Debug)]
enum Source {
    Fixed(Secret),
    File {
        path: PathBuf,
        format: Format,
        read: Mutex<Option<(Stamp, Secret)>>,
    },
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    changed: (i64, i64),
    len: u64,
    inode: u64,
}

/// A token, bound to the server that it is for.
///
/// INVARIANT: it leaves this type only together with a URL of that server's origin.
#[derive(Debug)]
pub struct Token {
    source: Source,
    origin: Origin,
}

impl Token {
    /// Returns a token that never changes, for the server of `api`.
    pub fn fixed(secret: Secret, api: &Url) -> Self {
        in_use::keep_out(&secret);
        Self {
            source: Source::Fixed(secret),
            origin: api.origin(),
        }
    }

    /// Returns the token in a file, read again when that changes, for the server of `api`.
    pub fn file(path: PathBuf, format: Format, api: &Url) -> Self {
        Self {
            source: Source::File {
                path,
                format,
                read: Mutex::new(None),
            },
            origin: api.origin(),
        }
    }

    /// Returns whether the token may be sent to this address.
    pub fn is_for(&self, url: &Url) -> bool {
        self.origin == url.origin()
    }

    /// Returns the token for a request to `url`; `None` if that is another server.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] when its file cannot be read or holds none.
    pub fn for_url(&self, url: &Url) -> Result<Option<Secret>> {
        if !self.is_for(url) {
            return Ok(None);
        }
        self.current().map(Some)
    }

    /// Returns the token itself, to tell accounts apart. Never send it; see [`Token::for_url`].
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] when its file cannot be read or holds none.
    pub fn current(&self) -> Result<Secret> {
        let (path, format, read) = match &self.source {
            Source::Fixed(secret) => return Ok(secret.clone()),
            Source::File { path, format, read } => (path, *format, read),
        };
        let fail = |reason: String| {
            StoreError::new(
                ErrorKind::Denied,
                format!("the token file {} {reason}", path.display()),
            )
        };
        let cannot_read = |error: std::io::Error| {
            fail(format!("cannot be read: {error}")).with_hint(match format {
                Format::Plain => "check --token-file",
                Format::CliLogin => "run `apify login`, or give APIFY_TOKEN or --token-file",
            })
        };
        let metadata = fs::metadata(path).map_err(cannot_read)?;
        let stamp = Stamp {
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            len: metadata.len(),
            inode: metadata.ino(),
        };
        if let Some((known, secret)) = &*read.lock()
            && *known == stamp
        {
            return Ok(secret.clone());
        }
        if stamp.len > MAX_FILE_LEN {
            return Err(fail("is too large to hold a token".into()));
        }
        let text = fs::read_to_string(path).map_err(cannot_read)?;
        let secret = match format {
            Format::Plain => text.trim().to_owned(),
            Format::CliLogin => cli_token(&text)
                .map_err(|(reason, hint)| fail(reason.to_owned()).with_hint(hint))?,
        };
        if secret.is_empty() {
            return Err(fail("is empty".into()).with_hint("write the API token into it"));
        }
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(fail("holds more than a token".into())
                .with_hint("it must hold the API token and nothing else"));
        }
        let secret = Secret::new(secret);
        in_use::keep_out(&secret);
        *read.lock() = Some((stamp, secret.clone()));
        Ok(secret)
    }
}

/// Finds the token in what `apify login` wrote.
fn cli_token(text: &str) -> Result<String, (&'static str, &'static str)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct AuthFile {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        secrets_backend: Option<String>,
    }
    let file: AuthFile = serde_json::from_str(text).map_err(|_| {
        (
            "is not in the Apify CLI's format",
            "run `apify login` again",
        )
    })?;
    match (file.token, file.secrets_backend.as_deref()) {
        (Some(token), _) if !token.is_empty() => Ok(token),
        (_, Some("keyring")) => Err((
            "holds no token: the Apify CLI keeps it in the system's keyring",
            "run `apify auth token` and pass what it prints as APIFY_TOKEN or with --token-file",
        )),
        _ => Err(("holds no token", "run `apify login`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api() -> Url {
        Url::parse("https://api.apify.com").expect("a URL")
    }

    #[test]
    fn a_token_is_for_one_origin_only() {
        let token = Token::fixed(Secret::new("t"), &api());
        for (url, may) in [
            ("https://api.apify.com/v2/x", true),
            ("https://api.apify.com:443/", true),
            ("http://api.apify.com/", false),
            ("https://api.apify.com:444/", false),
            ("https://evil.com/api.apify.com", false),
            ("https://api.apify.com.evil.com/", false),
        ] {
            let url = Url::parse(url).expect("a URL");
            assert_eq!(
                token.for_url(&url).expect("a token").is_some(),
                may,
                "{url}"
            );
        }
    }

    #[test]
    fn a_token_file_is_read_again_when_it_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let token = Token::file(path.clone(), Format::Plain, &api());
        assert_eq!(
            token.current().expect_err("no file").kind(),
            ErrorKind::Denied
        );
        for text in ["one", "another", "a third one"] {
            fs::write(
                &path,
                format!("  {text}\n").replace(' ', if text == "a third one" { "" } else { " " }),
            )
            .expect("written");
            let expected = text.replace(' ', "");
            assert_eq!(token.current().expect("a token").expose(), expected);
        }
        for text in ["", " \n", "two tokens"] {
            fs::write(&path, text).expect("written");
            let error = token.current().expect_err(text);
            assert!(!error.to_string().contains("tokens"), "{error}");
        }
    }

    #[test]
    fn the_cli_login_is_understood() {
        assert_eq!(
            cli_token(r#"{"token":"t","secretsBackend":"file"}"#),
            Ok("t".into())
        );
        let (_, hint) = cli_token(r#"{"secretsBackend":"keyring","id":"x"}"#).expect_err("keyring");
        assert!(hint.contains("apify auth token"), "{hint}");
        assert!(cli_token("{}").is_err());
        assert!(cli_token("garbage").is_err());
    }
}
