//! Translates keys to file names and back, in the two layouts.
//!
//! Quoted layout (Crawlee for Python, Crawlee 4, and what kvfs writes): the file is
//! `quote(key)` as Python's `urllib.parse.quote(key, safe="")` makes it, except that `.` and
//! `..`, which Python leaves alone, become `%2E` and `%2E%2E`. Plain layout (Crawlee for
//! JavaScript up to 3, apify-cli): the file is the key, unescaped, mostly with the extension of
//! its content type.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::media;

/// What a value's file name is followed by in the name of its sidecar.
pub(super) const SIDECAR_SUFFIX: &str = ".__metadata__.json";

/// The file that describes the store itself.
pub(crate) const STORE_METADATA: &str = "__metadata__.json";

/// The file with the secret of the server of this folder; hidden as unfinished files are.
pub(crate) const SECRET: &str = ".%kvfs-secret";

/// How the names of unfinished files begin: `%k` appears in no quoted name.
pub(super) const UNFINISHED: &str = ".%kvfs-";

/// The longest name of a value that leaves room for its sidecar's name (`NAME_MAX` is 255).
const MAX_NAME: usize = 255 - SIDECAR_SUFFIX.len();

/// How much of an over-long quoted name is kept in front of its hash.
const KEPT: usize = 150;

const QUOTED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'_')
    .remove(b'.')
    .remove(b'-')
    .remove(b'~');

/// Quotes a key as Python does; `.` and `..` are quoted in full.
pub(super) fn quote(key: &str) -> String {
    match key {
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => utf8_percent_encode(key, QUOTED).to_string(),
    }
}

/// Undoes [`quote`]; `None` where `name` is not exactly what quoting gives.
pub(super) fn unquote(name: &str) -> Option<String> {
    let key = percent_decode_str(name).decode_utf8().ok()?;
    (quote(&key) == name).then(|| key.into_owned())
}

/// Returns the file name that a new record gets, if nothing else is in its way.
pub(super) fn file_name(key: &str) -> String {
    let quoted = quote(key);
    let reserved = quoted.len() > MAX_NAME
        || quoted == STORE_METADATA
        || quoted.ends_with(SIDECAR_SUFFIX)
        || is_unfinished(&quoted);
    if reserved { other_name(key) } else { quoted }
}

/// Returns a file name for a key when its quoted name is too long or taken. Only the sidecar holds
/// the key then. `%~` appears in no quoted name.
pub(super) fn other_name(key: &str) -> String {
    let mut name = quote(key);
    name.truncate(KEPT);
    let hash = Sha256::digest(key.as_bytes());
    name.push_str("%~");
    for byte in &hash[..16] {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

/// Returns the name (or relative path) of a value's sidecar.
pub(super) fn sidecar_name(value: &str) -> String {
    format!("{value}{SIDECAR_SUFFIX}")
}

/// Returns whether a sidecar may give a value's file this name: that of a file in its own folder
/// that can hold a record. The writer of a sidecar could name any other file.
pub(super) fn is_value(name: &str) -> bool {
    !matches!(name, "" | "." | ".." | STORE_METADATA)
        && name.len() <= 255
        && !name.contains(['/', '\0'])
        && !name.ends_with(SIDECAR_SUFFIX)
        && !is_unfinished(name)
        && !name.starts_with(SECRET)
}

/// Returns whether a file is one that is still being written: ours, or one of Crawlee for Python's
/// (`mkstemp` with the prefix `<name>.` and the suffix `<.ext>.tmp`).
pub(super) fn is_unfinished(name: &str) -> bool {
    if name.starts_with(UNFINISHED) {
        return true;
    }
    let Some(stem) = name.strip_suffix(".tmp") else {
        return false;
    };
    stem.split('.').skip(1).any(|part| {
        part.len() == 8
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    })
}

/// Returns the key of a file that has no sidecar: its name without the last extension, when
/// that is the extension of some content type.
pub(super) fn bare_key(path: &str) -> &str {
    let start = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[start..].rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && media::is_extension(extension) => {
            &path[..start + stem.len()]
        }
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_as_python_does() {
        for (key, name) in [
            ("INPUT", "INPUT"),
            ("a!'()-_.z~", "a%21%27%28%29-_.z~"),
            ("a/b", "a%2Fb"),
            ("é", "%C3%A9"),
            (".", "%2E"),
            ("..", "%2E%2E"),
            ("...", "..."),
            ("a b?%#", "a%20b%3F%25%23"),
        ] {
            assert_eq!(quote(key), name);
            assert_eq!(unquote(name).as_deref(), Some(key));
        }
        for name in ["a b", "%2e", "%zz", "a%2Bé"] {
            assert_eq!(unquote(name), None, "{name}");
        }
    }

    #[test]
    fn reserved_and_long_names_get_another() {
        let long = "x".repeat(256);
        for key in [&*long, "__metadata__.json", "a.__metadata__.json"] {
            let name = file_name(key);
            assert!(name.contains("%~"), "{name}");
            assert!(sidecar_name(&name).len() <= 255);
        }
        assert!(sidecar_name(&file_name(&"é".repeat(128))).len() <= 255);
    }

    #[test]
    fn files_without_a_sidecar_lose_the_extension_of_a_content_type() {
        for (path, key) in [
            ("INPUT.json", "INPUT"),
            ("INPUT", "INPUT"),
            ("odd.bin", "odd"),
            ("page.html", "page"),
            ("a/b.txt", "a/b"),
            ("a.json/b", "a.json/b"),
            ("...txt", ".."),
            ("v1.0.txt", "v1.0"),
            ("v1.weird-thing", "v1.weird-thing"),
            (".json", ".json"),
        ] {
            assert_eq!(bare_key(path), key, "{path}");
        }
    }

    #[test]
    fn unfinished_files_are_known_by_their_names() {
        assert!(is_unfinished(".%kvfs-1-abc.tmp"));
        assert!(is_unfinished("INPUT.json.a8_k2m1z.json.tmp"));
        assert!(is_unfinished("INPUT.a8_k2m1z.tmp"));
        assert!(!is_unfinished("notes.tmp"));
        assert!(!is_unfinished("INPUT.json"));
    }
}
