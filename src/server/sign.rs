//! Signatures of public URLs, as the platform's clients compute them.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const ALPHABET: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// Signs a message: the first 30 hex digits of its HMAC-SHA256, in base 62.
pub(super) fn record_signature(secret: &str, message: &str) -> String {
    // HMAC takes keys of any length, so there is no failing.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(message.as_bytes());
    let digest = mac.finalize().into_bytes();
    // 30 hex digits are 15 bytes.
    let number = digest[..15]
        .iter()
        .fold(0u128, |number, byte| (number << 8) | u128::from(*byte));
    base62(number)
}

/// Writes a number in base 62, most significant digit first.
pub(super) fn base62(mut number: u128) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(ALPHABET[(number % 62) as usize]);
        number /= 62;
        if number == 0 {
            break;
        }
    }
    digits.reverse();
    digits.into_iter().map(char::from).collect()
}

/// Signs the listing of a store until `expires` (milliseconds since 1970; 0: for ever).
pub(super) fn keys_signature(secret: &str, store_id: &str, expires: u64) -> String {
    let signature = record_signature(secret, &format!("0.{expires}.{store_id}"));
    URL_SAFE_NO_PAD.encode(format!("0.{expires}.{signature}"))
}

/// Tells whether a record's signature is right.
pub(super) fn record_is_signed(secret: &str, key: &str, signature: &str) -> bool {
    equal(&record_signature(secret, key), signature)
}

/// Tells whether a listing's signature is right and not expired; padding does not matter.
pub(super) fn keys_are_signed(
    secret: &str,
    store_id: &str,
    signature: &str,
    now: SystemTime,
) -> bool {
    let decoded = URL_SAFE_NO_PAD
        .decode(signature.trim_end_matches('='))
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let Some((expires, given)) = decoded
        .as_deref()
        .and_then(|text| text.strip_prefix("0."))
        .and_then(|text| text.split_once('.'))
    else {
        return false;
    };
    let Ok(millis) = expires.parse::<u64>() else {
        return false;
    };
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64);
    let fresh = millis == 0 || now <= millis;
    let right = record_signature(secret, &format!("0.{expires}.{store_id}"));
    fresh && equal(&right, given)
}

/// Compares without telling by its duration where the difference is.
pub(super) fn equal(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |differences, (a, b)| differences | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn signatures_are_those_of_the_platform() {
        for (secret, message, signature) in [
            ("secret", "OUTPUT", "1i8Igbei9uoBwpEshyavA"),
            (
                "urlSigningSecretKey-1234567890abcdef",
                "my!key'(v1).json",
                "1k6nINzyijT8VW6FOaCVW",
            ),
            ("ACkdZis9vA4UnE29V", "INPUT", "1vUMbfu4E6q5gBpjrNIxO"),
            ("secret", "k37474", "23jXuWVPS2PSTRh4mU"),
        ] {
            assert_eq!(record_signature(secret, message), signature);
        }
        assert_eq!(
            keys_signature("secret", "WkzbQMuFYuamGv3YF", 0),
            "MC4wLm5ua25zbmw4VjJ2T1JmN1haSnVk"
        );
    }

    #[test]
    fn keys_signatures_expire_and_padding_does_not_matter() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        let signature = "MC4xNzAwMDAzNjAwMDAwLjhvcDB0aFlNV1lFbEFOSTFEbVBG";
        let store = "WkzbQMuFYuamGv3YF";
        assert!(keys_are_signed(
            "secret",
            store,
            signature,
            at(1_700_003_600_000)
        ));
        assert!(!keys_are_signed(
            "secret",
            store,
            signature,
            at(1_700_003_600_001)
        ));
        for signature in [
            "MC4wLjFhRmtpMlJCcFBZa0NraGIyaklubA",
            "MC4wLjFhRmtpMlJCcFBZa0NraGIyaklubA==",
        ] {
            assert!(keys_are_signed("secret", "A2", signature, at(0)));
            assert!(!keys_are_signed("other", "A2", signature, at(0)));
        }
        assert!(!keys_are_signed("secret", "A2", "nonsense", at(0)));
    }
}
