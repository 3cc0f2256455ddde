//! Which server is asked about a reference, and whether it may see the token.

use std::sync::Arc;

use url::Url;

use super::{OpenConfig, TokenSource};
use crate::apify::http::PLATFORM_HOST;
use crate::apify::plain::is_exposed;
use crate::apify::record_urls::is_signed;
use crate::apify::token::{Format, Token};
use crate::base::redact::SafeUrl;
use crate::store::reference::StoreRef;
use crate::store::{ErrorKind, Result, StoreError};

/// The domain of the platform's servers: over TLS, all of them are the platform's.
const PLATFORM_DOMAIN: &str = ".apify.com";

/// Returns the server that is asked about the reference, and the token if it may see that.
///
/// # Errors
/// That the address or the token's file cannot be used.
pub fn server(config: &OpenConfig) -> Result<(Url, Option<Arc<Token>>)> {
    let (base, signed) = match &config.reference {
        StoreRef::Url {
            base, signature, ..
        } => (base.clone(), signature.is_some()),
        StoreRef::Records(urls) => match urls.first().map(SafeUrl::expose) {
            Some(url) => (
                url.join("/").unwrap_or_else(|_| url.clone()),
                is_signed_any(urls),
            ),
            None => (api_url(config)?, false),
        },
        StoreRef::Remote(_) | StoreRef::Directory(_) | StoreRef::Bucket { .. } => {
            (api_url(config)?, false)
        }
    };
    let token = if signed || config.signature.is_some() {
        None
    } else {
        token_for(config, &base)?
    };
    if token.is_some() {
        config.plain_http.check(&base)?;
    }
    Ok((base, token))
}

fn is_signed_any(urls: &[SafeUrl]) -> bool {
    urls.iter().any(is_signed)
}

pub(super) fn api_url(config: &OpenConfig) -> Result<Url> {
    if let Some(url) = &config.api_url {
        return match url.scheme() {
            "http" | "https" => Ok(url.clone()),
            scheme => Err(StoreError::new(
                ErrorKind::Unsupported,
                format!("--api-url must be an http or https URL, not {scheme}"),
            )),
        };
    }
    Url::parse(&format!("https://{PLATFORM_HOST}")).map_err(|error| {
        StoreError::new(ErrorKind::Unsupported, "the default API URL is broken").with_source(error)
    })
}

/// Returns the token if the server at `base` may see it.
pub(super) fn token_for(config: &OpenConfig, base: &Url) -> Result<Option<Arc<Token>>> {
    let is_platform = base.scheme() == "https"
        && base.port().is_none()
        && base
            .host_str()
            .is_some_and(|host| host.ends_with(PLATFORM_DOMAIN));
    if base.origin() != api_url(config)?.origin() && !is_platform {
        if !matches!(config.token, TokenSource::None | TokenSource::Bucket(_)) {
            tracing::info!(
                host = base.host_str(),
                "the token is not sent to this server: it is not that of --api-url"
            );
        }
        return Ok(None);
    }
    let token = match &config.token {
        TokenSource::None | TokenSource::Bucket(_) => return Ok(None),
        TokenSource::Environment(secret) => Token::fixed(secret.clone(), base),
        TokenSource::File(path) => Token::file(path.clone(), Format::Plain, base),
        TokenSource::CliLogin(path) => Token::file(path.clone(), Format::CliLogin, base),
    };
    token.current()?;
    Ok(Some(Arc::new(token)))
}

/// Returns why opening the store would be refused: a secret would travel unencrypted.
pub fn refused_plain_http(config: &OpenConfig) -> Option<StoreError> {
    let refused = |url: &Url, has_secret: bool| match has_secret {
        true => config.plain_http.check(url).err(),
        false => None,
    };
    let signed = config.signature.is_some();
    match &config.reference {
        StoreRef::Directory(_) | StoreRef::Bucket { .. } => None,
        StoreRef::Records(urls) => urls.iter().find_map(|url| {
            let has_token = || token_for(config, url.expose()).is_ok_and(|token| token.is_some());
            refused(url.expose(), is_signed(url) || has_token())
        }),
        StoreRef::Url {
            base, signature, ..
        } => {
            let has_token = || token_for(config, base).is_ok_and(|token| token.is_some());
            refused(base, signed || signature.is_some() || has_token())
        }
        StoreRef::Remote(_) => {
            let base = api_url(config).ok()?;
            let has_token = || token_for(config, &base).is_ok_and(|token| token.is_some());
            refused(&base, signed || has_token())
        }
    }
}

/// Refuses to send a secret over the network unencrypted; warns where that is allowed.
pub(super) fn check_plain(config: &OpenConfig, url: &Url, has_secret: bool) -> Result<()> {
    if !has_secret || !is_exposed(url) {
        return Ok(());
    }
    config.plain_http.check(url)?;
    tracing::warn!(
        host = url.host_str(),
        "the connection is not encrypted: others on the network can read the token or signature"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::apify::plain::PlainHttp;
    use crate::base::redact::Secret;
    use crate::store::reference::RemoteRef;

    #[test]
    fn the_token_is_for_the_api_and_the_platform_only() {
        let mut config = OpenConfig {
            reference: StoreRef::Remote(RemoteRef::Id("A".into())),
            api_url: None,
            token: TokenSource::Environment(Secret::new("t")),
            signature: None,
            run_status: None,
            run_origin: None,
            plain_http: PlainHttp::default(),
            attempt_timeout: Duration::from_secs(1),
            deadline: Duration::from_secs(1),
            budget_dir: None,
        };
        let is_sent = |config: &OpenConfig, url: &str| {
            let url = Url::parse(url).expect("a URL");
            token_for(config, &url).expect("a decision").is_some()
        };
        for (url, sent) in [
            ("https://api.apify.com", true),
            ("https://api-eu.apify.com/x", true),
            ("http://api.apify.com", false),
            ("https://evilapify.com", false),
            ("https://apify.com.evil.com", false),
            ("http://localhost:3", false),
        ] {
            assert_eq!(is_sent(&config, url), sent, "{url}");
        }
        config.api_url = Some(Url::parse("http://localhost:3/x").expect("a URL"));
        assert!(is_sent(&config, "http://localhost:3"));
        assert!(!is_sent(&config, "http://localhost:4"));
    }
}
