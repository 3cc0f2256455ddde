//! A journal entry's name and its description on disk. Pure: no file is touched here.
//!
//! ```json
//! {"version":1,"checksum":"<xxh3-128 of the text of entry>","entry":{...}}
//! ```

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use twox_hash::XxHash3_128;

use super::unanswered::{Began, Unanswered, UnansweredUploads};
use crate::store::{ETag, Encoding, ErrorKind, Key, StoreError};

/// The version of the format that this program writes.
const VERSION: u32 = 1;
/// The longest description, in bytes: a key, a type, a message.
pub const MAX_DESCRIPTION: u64 = 64 << 10;
/// The longest reason that is kept, in bytes.
const MAX_MESSAGE: usize = 4096;

/// The name of a journal entry. Entries of one owner sort by it in the order of their closing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(Arc<str>);

impl EntryId {
    /// Makes a name from a number that grows (nanoseconds since 1970) and a random one.
    pub fn new(order: u64, random: u32) -> Self {
        Self(format!("{order:020}-{random:08x}").into())
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the growing number.
    pub fn order(&self) -> u64 {
        self.0
            .split('-')
            .next()
            .and_then(|order| order.parse().ok())
            .unwrap_or(0)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EntryId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let well_formed = text.len() == 29
            && text.bytes().enumerate().all(|(at, byte)| match at {
                0..20 => byte.is_ascii_digit(),
                20 => byte == b'-',
                _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            })
            && text[..20].parse::<u64>().is_ok();
        if well_formed {
            Ok(Self(text.into()))
        } else {
            Err(format!("'{text}' is not the id of a pending upload"))
        }
    }
}

/// What is to be stored, and under which conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Pending {
    /// The record's key.
    pub key: Key,
    /// Its `Content-Type`; the store decides when it is `None`.
    pub content_type: Option<Arc<str>>,
    /// How the bytes are encoded.
    pub encoding: Encoding,
    /// Store only if this is the current version.
    pub if_match: Option<ETag>,
    /// Store only if there is no such record.
    pub if_absent: bool,
    /// Whether there was no such record when the file was made. The process that closed the file replaces
    /// what others make meanwhile, a later one does not.
    pub is_new: bool,
    /// How many bytes, from the file's start.
    pub size: u64,
    /// When the file was closed.
    pub closed_at: Timestamp,
    /// Why it is not in the store.
    pub why: Why,
    /// How often it was tried.
    pub attempts: u32,
    /// What earlier uploads of the same record under the same conditions may have left there.
    pub unanswered: UnansweredUploads,
    /// Store only if the record still has these bytes: where there is no version to name.
    pub began: Option<Began>,
}

/// Why something is not in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// `--write-back`: it will be uploaded soon, by its owner or by the next mount.
    WriteBack,
    /// The upload failed for good; `kvfs recover` can try it again.
    Failed {
        /// What kind of error, as [`ErrorKind`] spells it.
        kind: String,
        /// What was said.
        message: String,
    },
}

impl Why {
    /// Returns the reason for an upload that failed for good.
    pub fn failed(error: &StoreError) -> Self {
        Self::Failed {
            kind: format!("{:?}", error.kind()),
            message: error.to_string(),
        }
    }

    /// Returns whether the upload conflicts with a newer record.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Failed { kind, .. } if kind_of(kind) == ErrorKind::Changed)
    }

    /// Returns whether this is a kept failure.
    pub fn is_failed(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}

/// What cannot be taken for an entry's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Written by a later version of kvfs: not to be touched.
    Newer(u32),
    /// Not what was written; why.
    Damaged(String),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newer(version) => write!(f, "a newer kvfs wrote it (format {version})"),
            Self::Damaged(why) => f.write_str(why),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    checksum: String,
    entry: Box<RawValue>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    key: String,
    content_type: Option<String>,
    encoding: Option<String>,
    if_match: Option<String>,
    if_absent: bool,
    size: u64,
    closed_at: Timestamp,
    why: Why,
    attempts: u32,
    data_checksum: String,
    #[serde(default, skip_serializing_if = "is_false")]
    is_new: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unanswered: Vec<Sent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<BeganFrom>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[derive(Serialize, Deserialize)]
struct BeganFrom {
    bytes: Sent,
    decoded: bool,
}

#[derive(Serialize, Deserialize)]
struct Sent {
    size: u64,
    encoding: Option<String>,
    checksum: String,
}

impl From<&Unanswered> for Sent {
    fn from(one: &Unanswered) -> Self {
        Self {
            size: one.size,
            encoding: one.encoding.header_value().map(Into::into),
            checksum: one.checksum.to_string(),
        }
    }
}

impl From<Sent> for Unanswered {
    fn from(sent: Sent) -> Self {
        Self {
            size: sent.size,
            encoding: Encoding::from_header(sent.encoding.as_deref()),
            checksum: sent.checksum.into(),
        }
    }
}

/// Returns the text of the `.json` of an entry with data of that checksum.
///
/// # Errors
/// That it cannot be written as JSON.
pub fn encode(pending: &Pending, data_checksum: &str) -> io::Result<Vec<u8>> {
    let description = Description {
        key: pending.key.as_str().to_owned(),
        content_type: pending.content_type.as_deref().map(Into::into),
        encoding: pending.encoding.header_value().map(Into::into),
        if_match: pending.if_match.as_ref().map(|tag| tag.as_str().into()),
        if_absent: pending.if_absent,
        size: pending.size,
        closed_at: pending.closed_at,
        why: match &pending.why {
            Why::WriteBack => Why::WriteBack,
            Why::Failed { kind, message } => Why::Failed {
                kind: kind.clone(),
                message: shorten(message, MAX_MESSAGE),
            },
        },
        attempts: pending.attempts,
        data_checksum: data_checksum.to_owned(),
        is_new: pending.is_new,
        unanswered: pending.unanswered.iter().map(Sent::from).collect(),
        began: pending.began.as_ref().map(|began| BeganFrom {
            bytes: Sent::from(&began.bytes),
            decoded: began.decoded,
        }),
    };
    let entry = serde_json::value::to_raw_value(&description)?;
    let envelope = Envelope {
        version: VERSION,
        checksum: hex(XxHash3_128::oneshot(entry.get().as_bytes())),
        entry,
    };
    Ok(serde_json::to_vec(&envelope)?)
}

/// Reads the text of a `.json`; returns the entry and its data's checksum.
///
/// # Errors
/// That it is damaged, or of a later version.
pub fn decode(text: &[u8]) -> Result<(Pending, String), Unreadable> {
    let damaged = |error: serde_json::Error| {
        Unreadable::Damaged(format!("its description is broken: {error}"))
    };
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(text).map_err(damaged)?;
    if version > VERSION {
        return Err(Unreadable::Newer(version));
    }
    let envelope: Envelope = serde_json::from_slice(text).map_err(damaged)?;
    if envelope.checksum != hex(XxHash3_128::oneshot(envelope.entry.get().as_bytes())) {
        return Err(Unreadable::Damaged(
            "the checksum of its description does not match".into(),
        ));
    }
    let description: Description = serde_json::from_str(envelope.entry.get()).map_err(damaged)?;
    let Some(key) = Key::new(description.key) else {
        return Err(Unreadable::Damaged("it has no key".into()));
    };
    let pending = Pending {
        key,
        content_type: description.content_type.map(Into::into),
        encoding: Encoding::from_header(description.encoding.as_deref()),
        if_match: description.if_match.map(ETag::new),
        if_absent: description.if_absent,
        is_new: description.is_new,
        size: description.size,
        closed_at: description.closed_at,
        why: description.why,
        attempts: description.attempts,
        unanswered: description
            .unanswered
            .into_iter()
            .map(Unanswered::from)
            .collect(),
        began: description.began.map(|began| Began {
            bytes: began.bytes.into(),
            decoded: began.decoded,
        }),
    };
    Ok((pending, description.data_checksum))
}

/// Returns the checksum of the first `size` bytes that `data` yields: xxh3-128, in hex.
///
/// # Errors
/// That it cannot be read, or is shorter.
pub fn data_checksum(data: impl Read, size: u64) -> io::Result<String> {
    let mut data = data.take(size);
    let mut sum = XxHash3_128::new();
    let mut buffer = vec![0; 256 << 10];
    let mut left = size;
    loop {
        match data.read(&mut buffer)? {
            0 if left == 0 => return Ok(hex(sum.finish_128())),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                sum.write(&buffer[..n]);
                left -= n as u64;
            }
        }
    }
}

/// Returns whether an upload that failed so may succeed when it is simply tried again.
pub fn is_transient(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::RateLimited | ErrorKind::Timeout | ErrorKind::Network | ErrorKind::Server => {
            true
        }
        ErrorKind::NotFound
        | ErrorKind::StoreNotFound
        | ErrorKind::Denied
        | ErrorKind::SignatureExpired
        | ErrorKind::InvalidKey
        | ErrorKind::TooLarge
        | ErrorKind::Quota
        | ErrorKind::Changed
        | ErrorKind::Protocol
        | ErrorKind::Corrupt
        | ErrorKind::Unsupported
        | ErrorKind::Disk => false,
    }
}

/// Returns the kind that is spelt so; an unknown one was a later version's.
pub fn kind_of(name: &str) -> ErrorKind {
    const KINDS: [ErrorKind; 16] = [
        ErrorKind::NotFound,
        ErrorKind::StoreNotFound,
        ErrorKind::Denied,
        ErrorKind::SignatureExpired,
        ErrorKind::InvalidKey,
        ErrorKind::TooLarge,
        ErrorKind::Quota,
        ErrorKind::Changed,
        ErrorKind::RateLimited,
        ErrorKind::Timeout,
        ErrorKind::Network,
        ErrorKind::Server,
        ErrorKind::Protocol,
        ErrorKind::Corrupt,
        ErrorKind::Unsupported,
        ErrorKind::Disk,
    ];
    let found = KINDS.into_iter().find(|kind| format!("{kind:?}") == name);
    found.unwrap_or(ErrorKind::Server)
}

fn shorten(text: &str, len: usize) -> String {
    let mut end = text.len().min(len);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

pub(super) fn hex(sum: u128) -> String {
    format!("{sum:032x}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pending() -> impl Strategy<Value = Pending> {
        let text = || "\\PC{0,20}";
        let why = prop_oneof![
            Just(Why::WriteBack),
            (text(), text()).prop_map(|(kind, message)| Why::Failed { kind, message }),
        ];
        let conditions = (proptest::option::of(text()), any::<bool>());
        let numbers = (any::<u64>(), 0_i64..4_000_000_000, any::<u32>());
        let types = (proptest::option::of(text()), "(|gzip|br|deflate|zstd)");
        let sent =
            (any::<u64>(), "(|gzip|br)", "[0-9a-f]{32}").prop_map(|(size, encoding, sum)| {
                Unanswered {
                    size,
                    encoding: Encoding::from_header(Some(&encoding)),
                    checksum: sum.into(),
                }
            });
        let sent = proptest::collection::vec(sent, 0..4);
        ("\\PC{1,30}", types, conditions, numbers, (why, sent)).prop_map(
            |(key, types, (if_match, if_absent), (size, at, attempts), (why, sent))| {
                let (content_type, encoding) = types;
                Pending {
                    key: Key::new(key).expect("not empty"),
                    content_type: content_type.map(Into::into),
                    encoding: Encoding::from_header(Some(&encoding)),
                    if_match: if_match.map(ETag::new),
                    if_absent,
                    is_new: attempts % 2 == 1,
                    size,
                    closed_at: Timestamp::from_second(at).expect("a time"),
                    why,
                    attempts,
                    began: sent.first().cloned().map(|bytes| Began {
                        bytes,
                        decoded: if_absent,
                    }),
                    unanswered: sent.into_iter().collect(),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back(pending in pending(), sum in "[0-9a-f]{32}") {
            let text = encode(&pending, &sum).expect("JSON");
            prop_assert_eq!(decode(&text), Ok((pending, sum)));
        }

        #[test]
        fn a_torn_or_flipped_description_is_never_taken_for_one(
            pending in pending(),
            cut in any::<prop::sample::Index>(),
            flip in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let text = encode(&pending, "0").expect("JSON");
            prop_assert!(decode(&text[..cut.index(text.len())]).is_err());
            let mut flipped = text.clone();
            flipped[flip.index(text.len())] ^= 1 << bit;
            // A flip in white space or in the case of an escape may change nothing.
            if let Ok((read, _)) = decode(&flipped) {
                prop_assert_eq!(read, pending);
            }
        }

        #[test]
        fn nonsense_is_refused_and_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(decode(&text).is_err());
        }

        #[test]
        fn other_json_is_refused(version in any::<u32>(), text in "\\PC{0,40}") {
            let json = serde_json::json!({"version": version, "checksum": text, "entry": {"key": text}});
            let expected_newer = version > VERSION;
            match decode(json.to_string().as_bytes()) {
                Err(Unreadable::Newer(_)) => prop_assert!(expected_newer),
                Err(Unreadable::Damaged(_)) => prop_assert!(!expected_newer),
                Ok(_) => prop_assert!(false, "taken for an entry"),
            }
        }

        #[test]
        fn ids_sort_by_their_number_and_parse(a in any::<u64>(), b in any::<u64>(), r in any::<u32>(), text in "\\PC{0,40}") {
            let (first, second) = (EntryId::new(a, r), EntryId::new(b, r));
            prop_assert_eq!(a.cmp(&b), first.cmp(&second));
            prop_assert_eq!(first.order(), a);
            prop_assert_eq!(first.as_str().parse::<EntryId>(), Ok(first.clone()));
            if let Ok(id) = text.parse::<EntryId>() {
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }

    #[test]
    fn descriptions_of_before_there_were_unanswered_uploads_are_read() {
        let entry = r#"{"key":"k","content_type":null,"encoding":null,"if_match":"\"1\"","if_absent":false,"size":3,"closed_at":"2026-01-02T03:04:05Z","why":"write_back","attempts":0,"data_checksum":"00"}"#;
        let checksum = hex(XxHash3_128::oneshot(entry.as_bytes()));
        let text = format!(r#"{{"version":1,"checksum":"{checksum}","entry":{entry}}}"#);
        let (pending, _) = decode(text.as_bytes()).expect("an entry");
        assert!(pending.unanswered.is_empty());
        let written = encode(&pending, "00").expect("JSON");
        assert_eq!(String::from_utf8_lossy(&written), text, "as before");
    }

    #[test]
    fn very_many_unanswered_uploads_are_neither_all_kept_nor_too_long() {
        let one = |n: u64| Unanswered {
            size: n,
            encoding: Encoding::Gzip,
            checksum: hex(u128::MAX).into(),
        };
        let mut sent: UnansweredUploads = (0..1000).map(one).collect();
        sent.add(one(0));
        assert_eq!(sent.iter().next(), Some(&one(0)));
        let sizes: Vec<u64> = sent.iter().map(|one| one.size).collect();
        assert!(sizes.len() < 100);
        assert!(sizes.contains(&0) && sizes.contains(&1) && sizes.contains(&999));
        assert!(sent.iter().count() * 100 < MAX_DESCRIPTION as usize / 2);
    }

    #[test]
    fn checksums_are_of_exactly_so_many_bytes() {
        let sum = |data: &[u8], size| data_checksum(data, size);
        assert_eq!(
            sum(b"hello world", 5).expect("enough"),
            sum(b"hello", 5).expect("enough")
        );
        assert_ne!(
            sum(b"hellO", 5).expect("enough"),
            sum(b"hello", 5).expect("enough")
        );
        assert!(sum(b"hell", 5).is_err());
    }
}
