//! Parsers of option values.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use crate::base::units::{ByteSize, parse_duration};
use crate::daemon::LogFormat;
use crate::daemon::registry::process::id_of;

/// Parses permission bits in octal.
pub fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| {
            format!("'{text}' is not a file mode: write octal permission bits such as 0444 or 640")
        })
}

/// Parses a user's number or name.
pub fn user_id(text: &str) -> Result<u32, String> {
    id_of(text, "/etc/passwd", "user")
}

/// Parses a group's number or name.
pub fn group_id(text: &str) -> Result<u32, String> {
    id_of(text, "/etc/group", "group")
}

/// Parses how log lines look.
pub fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("'{text}' is not a log format: write text or json")),
    }
}

/// Parses `NAME:TOKEN-FILE`.
pub fn account(text: &str) -> Result<(String, PathBuf), String> {
    let wrong = || {
        format!(
            "'{text}' is not an account: write NAME:TOKEN-FILE, the name of letters, digits, '.', \
             '_' and '-'"
        )
    };
    let (name, file) = text.split_once(':').ok_or_else(wrong)?;
    let name = user_name(name).map_err(|_| wrong())?;
    if file.is_empty() {
        return Err(wrong());
    }
    Ok((name, file.into()))
}

/// Parses the name of an account.
pub fn user_name(text: &str) -> Result<String, String> {
    let named = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if text.is_empty() || !named {
        return Err(format!(
            "'{text}' is not the name of an account: write letters, digits, '.', '_' and '-'"
        ));
    }
    Ok(text.to_owned())
}

/// Parses where to serve metrics: `PORT`, which this machine alone can reach, or `ADDRESS:PORT`.
pub fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<u16>() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => text
            .parse()
            .map_err(|_| format!("'{text}' is no address: write for example 9184 or [::1]:9184")),
    }
}

/// Parses where to listen: `PORT`, which this machine alone can reach, or `ADDRESS:PORT`.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<u16>() {
        Ok(port) => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Err(_) => text.parse().map_err(|_| {
            format!("'{text}' is no address: write for example 8010, 127.0.0.1:8010 or [::]:8010")
        }),
    }
}

/// Parses a size that is not 0.
pub fn positive_size(text: &str) -> Result<ByteSize, String> {
    match text.parse()? {
        ByteSize(0) => Err(format!(
            "'{text}' lets nothing through: write for example 64MiB"
        )),
        size => Ok(size),
    }
}

/// Parses a number that is not 0.
pub fn positive_number(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err(format!("'{text}' lets nothing through: write 1 or more")),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("'{text}' is not a number")),
    }
}

/// Parses a duration that is not 0.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|duration| {
        if duration.is_zero() {
            Err(format!("'{text}' leaves no time: write for example 30s"))
        } else {
            Ok(duration)
        }
    })
}

/// By how much the store's clock may be late; `None` not to look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockLag(pub Option<Duration>);

/// Parses a duration, or `never`.
pub fn clock_lag(text: &str) -> Result<ClockLag, String> {
    match text {
        "never" => Ok(ClockLag(None)),
        text => parse_duration(text).map(|lag| ClockLag(Some(lag))),
    }
}

/// Parses the API's base URL; an ending `/v2`, which the official clients add, is dropped.
pub fn api_url(text: &str) -> Result<Url, String> {
    // The text is not repeated: it may hold a token.
    let bad = || "not the address of an API: write for example https://api.apify.com".to_owned();
    let mut url = Url::parse(text.trim()).map_err(|_| bad())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad());
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix("/v2").unwrap_or(path).to_owned();
    url.set_path(&path);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_permission_bits() {
        assert_eq!(mode("0444"), Ok(0o444));
        assert_eq!(mode("640"), Ok(0o640));
        for bad in ["", "8", "01777", "rw", "-1"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn api_urls_lose_their_version() {
        for typed in [
            "http://h:1",
            "http://h:1/",
            "http://h:1/v2",
            "http://h:1/v2/?a=b",
        ] {
            assert_eq!(api_url(typed).map(String::from), Ok("http://h:1/".into()));
        }
        assert_eq!(
            api_url("https://h/proxy/v2").map(String::from),
            Ok("https://h/proxy".into())
        );
        for bad in ["", "h:1", "api.apify.com", "ftp://h", "file:///x"] {
            assert!(api_url(bad).is_err(), "{bad}");
        }
    }
}
