//! Signatures that open a record or a listing without a token.
//!
//! Pure functions, equal to those of the platform's own clients (`@apify/utilities` 3): a record
//! signature is HMAC-SHA256 over the key, its first 30 hexadecimal digits written in base 62; a
//! keys signature is base64url of `0.EXPIRES.SIG`, where SIG signs `0.EXPIRES.STORE_ID` in the
//! same way and EXPIRES is in milliseconds since 1970, 0 meaning never.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::base::redact::Secret;

/// Digits of base 62 in the platform's order.
const BASE62: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The version that keys signatures begin with; there is no other.
const VERSION: &str = "0";

/// How much of the HMAC is kept: 30 hexadecimal digits.
const KEPT_BYTES: usize = 15;

/// The longest keys signature that is looked at, in bytes; real ones have about 60.
const MAX_SIGNATURE_LEN: usize = 1024;

/// Signs a record's key, not percent-encoded. Such a signature never expires.
pub fn sign_record(secret: &Secret, key: &str) -> Secret {
    Secret::new(sign(secret, key))
}

/// Returns whether `signature` is that of the record, in a time that does not depend on where they
/// differ.
pub fn verify_record(secret: &Secret, key: &str, signature: &str) -> bool {
    constant_time_eq(sign(secret, key).as_bytes(), signature.as_bytes())
}

/// Signs the listing of a store until `expires`, `None` meaning for ever.
///
/// The time is cut to whole milliseconds; one before 1970 counts as 1970-01-01T00:00:00.001Z, so
/// that it is expired rather than unlimited.
pub fn sign_keys(secret: &Secret, store_id: &str, expires: Option<SystemTime>) -> Secret {
    let expires = expires.map_or(0, unix_millis);
    let signed = sign(secret, &format!("{VERSION}.{expires}.{store_id}"));
    Secret::new(URL_SAFE_NO_PAD.encode(format!("{VERSION}.{expires}.{signed}")))
}

/// Returns whether `signature` opens the listing of the store at the time `now`.
pub fn verify_keys(secret: &Secret, store_id: &str, signature: &str, now: SystemTime) -> bool {
    let Some((expires, signed)) = decode(signature) else {
        return false;
    };
    let wanted = sign(secret, &format!("{VERSION}.{expires}.{store_id}"));
    constant_time_eq(wanted.as_bytes(), signed.as_bytes())
        && (expires == 0 || unix_millis(now) < expires)
}

/// When a keys signature stops being accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    Never,
    /// At this time.
    At(SystemTime),
}

impl Expiry {
    /// Returns the time, `None` for never.
    pub fn time(self) -> Option<SystemTime> {
        match self {
            Self::Never => None,
            Self::At(time) => Some(time),
        }
    }
}

/// Reads when a keys signature expires; `None` if it is not a keys signature at all.
///
/// Base64 padding may be there, be missing, or still be percent-encoded.
pub fn keys_expiry(signature: &str) -> Option<Expiry> {
    let (expires, _) = decode(signature)?;
    Some(match expires {
        0 => Expiry::Never,
        millis => Expiry::At(SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))?),
    })
}

/// Compares in a time that depends on the lengths only.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0u8, |sum, (a, b)| sum | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

fn sign(secret: &Secret, message: &str) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()) else {
        unreachable!("HMAC takes keys of any length");
    };
    mac.update(message.as_bytes());
    let digest = mac.finalize().into_bytes();
    base62(
        digest
            .iter()
            .take(KEPT_BYTES)
            .fold(0, |number, byte| number << 8 | u128::from(*byte)),
    )
}

/// Writes a number in base 62 with the platform's digits, the most significant first.
pub fn base62(mut number: u128) -> String {
    let mut digits = Vec::with_capacity(21);
    loop {
        digits.push(char::from(BASE62[(number % 62) as usize]));
        number /= 62;
        if number == 0 {
            break;
        }
    }
    digits.iter().rev().collect()
}

/// Takes a keys signature apart: its expiry in milliseconds and its record-like signature.
fn decode(signature: &str) -> Option<(u64, String)> {
    if signature.len() > MAX_SIGNATURE_LEN {
        return None;
    }
    let unpadded = signature.replace("%3D", "=").replace("%3d", "=");
    let bytes = URL_SAFE_NO_PAD
        .decode(unpadded.trim_end_matches('='))
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let mut parts = text.splitn(3, '.');
    let (version, expires, signed) = (parts.next()?, parts.next()?, parts.next()?);
    if version != VERSION || signed.is_empty() || !expires.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((expires.parse().ok()?, signed.to_owned()))
}

fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
        .max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: &str = "urlSigningSecretKey-1234567890abcdef";

    fn at(millis: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn record_signatures_equal_those_of_the_official_clients() {
        for (secret, key, expected) in [
            ("secret", "OUTPUT", "1i8Igbei9uoBwpEshyavA"),
            (LONG, "my!key'(v1).json", "1k6nINzyijT8VW6FOaCVW"),
            ("ACkdZis9vA4UnE29V", "INPUT", "1vUMbfu4E6q5gBpjrNIxO"),
            ("secret", "k37474", "23jXuWVPS2PSTRh4mU"),
        ] {
            let secret = Secret::new(secret);
            assert_eq!(sign_record(&secret, key).expose(), expected);
            assert!(verify_record(&secret, key, expected));
            assert!(!verify_record(&secret, "other", expected));
            assert!(!verify_record(&secret, key, &expected[1..]));
        }
        assert_eq!(base62(0), "0");
    }

    #[test]
    fn keys_signatures_equal_those_of_the_official_clients() {
        let day = 24 * 3600 * 1000;
        let now = 1_700_000_000_000;
        for (secret, store, expires, expected) in [
            (
                "secret",
                "WkzbQMuFYuamGv3YF",
                None,
                "MC4wLm5ua25zbmw4VjJ2T1JmN1haSnVk",
            ),
            (
                "secret",
                "WkzbQMuFYuamGv3YF",
                Some(now + 3_600_000),
                "MC4xNzAwMDAzNjAwMDAwLjhvcDB0aFlNV1lFbEFOSTFEbVBG",
            ),
            (
                LONG,
                "U2vinFuyziFx0l9p5",
                Some(now + 14 * day),
                "MC4xNzAxMjA5NjAwMDAwLk05QW9xSUxhZ0F6YzJPdzFUU3Bo",
            ),
            ("secret", "A2", None, "MC4wLjFhRmtpMlJCcFBZa0NraGIyaklubA"),
        ] {
            let secret = Secret::new(secret);
            let signature = sign_keys(&secret, store, expires.map(at));
            assert_eq!(signature.expose(), expected);
            assert!(verify_keys(&secret, store, expected, at(now)));
            assert!(!verify_keys(&secret, "other", expected, at(now)));
            assert_eq!(
                keys_expiry(expected).expect("an expiry").time(),
                expires.map(at)
            );
            if let Some(expires) = expires {
                assert!(!verify_keys(&secret, store, expected, at(expires)));
            }
        }
    }

    #[test]
    fn padding_may_be_there_or_not_or_be_encoded() {
        let secret = Secret::new("secret");
        for padding in ["", "==", "%3D%3D", "%3d%3d"] {
            let signature = format!("MC4wLjFhRmtpMlJCcFBZa0NraGIyaklubA{padding}");
            assert_eq!(keys_expiry(&signature), Some(Expiry::Never));
            assert!(verify_keys(&secret, "A2", &signature, at(1)));
        }
    }

    #[test]
    fn what_is_no_keys_signature_has_no_expiry() {
        for text in [
            "",
            "1i8Igbei9uoBwpEshyavA",
            "MS4wLmFi",
            "MC4wLg",
            "MC4rMS5h",
        ] {
            assert_eq!(keys_expiry(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_read_but_never_panics(text in ".{0,80}") {
            let _ = keys_expiry(&text);
            prop_assert!(!verify_keys(&Secret::new("secret"), "A2", &text, at(1)));
        }

        #[test]
        fn what_was_signed_verifies(secret in ".{0,40}", key in ".{1,40}", expires in 2u64..1 << 50) {
            let secret = Secret::new(secret);
            let signature = sign_record(&secret, &key);
            prop_assert!(verify_record(&secret, &key, signature.expose()));
            let keys = sign_keys(&secret, &key, Some(at(expires)));
            prop_assert!(verify_keys(&secret, &key, keys.expose(), at(expires - 1)));
            prop_assert!(!verify_keys(&secret, &key, keys.expose(), at(expires)));
        }
    }
}
