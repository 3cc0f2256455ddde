//! Between keys and file names. Pure.
//!
//! Every key has exactly one name, and different keys have different names:
//!
//! * a key that the platform accepts is its own name, `.` and `..` excepted
//! * in any other key every byte that the platform does not accept becomes `%XX` (upper-case
//!   hex); `.` and `..` become `%2E` and `%2E%2E`. `%` itself is such a byte, so the names of
//!   these keys never collide with those of others
//! * a name that would exceed [`MAX_NAME`] is cut and ends in `%_` and a hash of the key; such
//!   a file can be opened once it has been listed

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use sha2::{Digest, Sha256};

use crate::store::Key;
use crate::store::record::{MAX_KEY_LEN, is_key_byte};

/// The longest name, in bytes: the kernel's limit for FUSE was 1024 before Linux 6.15.
pub const MAX_NAME: usize = 1000;
/// Hex digits of the hash in a cut name.
const HASH_DIGITS: usize = 40;

/// What a name can mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Exactly this key.
    Key(Key),
    /// A key that only a listing can tell: of a cut name, or one longer than the platform allows.
    Listed,
    /// No key has this name.
    Nothing,
}

/// Returns the name of a key's file.
pub fn of_key(key: &Key) -> String {
    let text = key.as_str();
    if text == "." || text == ".." {
        return text.replace('.', "%2E");
    }
    if text.len() <= MAX_NAME && text.bytes().all(is_key_byte) {
        return text.to_owned();
    }
    let mut name = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if is_key_byte(byte) {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    if name.len() > MAX_NAME {
        let mut end = MAX_NAME - HASH_DIGITS - 2;
        // Not within an escape.
        while name.as_bytes()[end.saturating_sub(2)..end].contains(&b'%') {
            end -= 1;
        }
        name.truncate(end);
        name.push_str("%_");
        for byte in &Sha256::digest(text.as_bytes())[..HASH_DIGITS / 2] {
            let _ = write!(name, "{byte:02x}");
        }
    }
    name
}

/// Returns what a name means, without asking the store.
pub fn meaning(name: &OsStr) -> Meaning {
    let bytes = name.as_bytes();
    if bytes.iter().all(|byte| is_key_byte(*byte)) {
        return match std::str::from_utf8(bytes).ok().and_then(Key::new) {
            Some(_) if bytes == b"." || bytes == b".." => Meaning::Nothing,
            Some(key) if bytes.len() <= MAX_KEY_LEN => Meaning::Key(key),
            Some(_) if bytes.len() <= MAX_NAME => Meaning::Listed,
            _ => Meaning::Nothing,
        };
    }
    if bytes.windows(2).any(|pair| pair == b"%_") {
        return Meaning::Listed;
    }
    // Only the one spelling that `of_key` makes is a name.
    let decoded: Vec<u8> = percent_encoding::percent_decode(bytes).collect();
    match String::from_utf8(decoded).ok().and_then(Key::new) {
        Some(key) if of_key(&key).as_bytes() == bytes => Meaning::Key(key),
        _ => Meaning::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).expect("a key")
    }

    #[test]
    fn names_of_valid_and_of_odd_keys() {
        for (text, name) in [
            ("INPUT", "INPUT"),
            ("a!b-c_d.e'(f)", "a!b-c_d.e'(f)"),
            (".hidden", ".hidden"),
            (".", "%2E"),
            ("..", "%2E%2E"),
            ("...", "..."),
            ("a/b", "a%2Fb"),
            ("a b", "a%20b"),
            ("100%", "100%25"),
            ("é", "%C3%A9"),
            ("nul\0", "nul%00"),
        ] {
            assert_eq!(of_key(&key(text)), name);
            assert_eq!(meaning(OsStr::new(name)), Meaning::Key(key(text)), "{name}");
        }
        for name in [
            "a b", "%2e", "a%2fb", "%41", "100%", "%", "é", "%FF", ".", "..",
        ] {
            assert_eq!(meaning(OsStr::new(name)), Meaning::Nothing, "{name}");
        }
        assert_eq!(
            meaning(OsStr::new(&"x".repeat(256))),
            Meaning::Key(key(&"x".repeat(256)))
        );
        assert_eq!(meaning(OsStr::new(&"x".repeat(257))), Meaning::Listed);
    }

    proptest! {
        #[test]
        fn every_key_has_one_usable_name_and_the_name_means_the_key(text in "\\PC{1,20}|[a-c./%_ ]{1,6}|(é|x){300,500}") {
            let key = key(&text);
            let name = of_key(&key);
            prop_assert!(!name.contains(['/', '\0']) && name != "." && name != "..");
            prop_assert!(name.len() <= MAX_NAME);
            match meaning(OsStr::new(&name)) {
                Meaning::Key(meant) => prop_assert_eq!(meant, key),
                Meaning::Listed => prop_assert!(name.len() > 256),
                Meaning::Nothing => prop_assert!(false, "{} is unreachable", name),
            }
        }

        #[test]
        fn different_keys_have_different_names(keys in proptest::collection::hash_set("[a-b./%_é]{1,4}|(é|x){330,340}", 1..40)) {
            let names: HashSet<String> = keys.iter().map(|text| of_key(&key(text))).collect();
            prop_assert_eq!(names.len(), keys.len());
        }

        #[test]
        fn a_name_means_at_most_the_key_that_has_it(bytes in proptest::collection::vec(any::<u8>(), 1..12)) {
            let name = OsStr::from_bytes(&bytes);
            if let Meaning::Key(meant) = meaning(name) {
                let back = of_key(&meant);
                prop_assert_eq!(OsStr::new(&back), name);
            }
        }
    }
}
