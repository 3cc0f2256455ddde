//! The metadata file next to a value.
//!
//! Three writers, three shapes: Crawlee for Python `{"key","content_type","size"}`; Crawlee 4 and
//! apify-cli the same in camel case, size optional, and `filename` where the value's file is not
//! called like the quoted key (`INPUT.json` for the key `INPUT`), which then counts; Crawlee for
//! JavaScript up to 3 a JSON *string* that holds `{"extension","key","contentType"}`. kvfs writes
//! the second, which all but the last read, and adds two fields that the others ignore:
//! `contentEncoding`, and `kvfs`, which says which file the rest is about:
//!
//! ```json
//! {"key": "page", "contentType": "text/html", "size": 512, "contentEncoding": "br",
//!  "kvfs": {"file": "<inode>-<mtime ns>-<size>", "previous": {"file": "…", "content_type": "…"}}}
//! ```
//!
//! The sidecar is replaced before the value. Between the two, and for ever if the writer dies
//! there, the value on disk is the one that `previous` describes: a reader compares the value's
//! identity with `file` and takes the description that fits. A copied folder has new identities;
//! the sizes decide then. A value that fits neither was rewritten by another tool, which stores no
//! encodings.

use serde::{Deserialize, Serialize};

use super::names::is_value;
use crate::store::Encoding;

/// The content type that Crawlee for Python gives to a record of `None`: an empty file.
pub(super) const NONE_TYPE: &str = "application/x-none";

/// What a sidecar says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Sidecar {
    pub key: String,
    #[serde(
        default,
        rename = "contentType",
        alias = "content_type",
        skip_serializing_if = "Option::is_none"
    )]
    pub content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The name of the value's file, where it does not follow from that of the sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// Only in the JavaScript shape.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extension: Option<String>,
    #[serde(
        default,
        rename = "contentEncoding",
        alias = "content_encoding",
        skip_serializing_if = "Option::is_none"
    )]
    pub encoding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvfs: Option<Ours>,
}

/// Which file the sidecar describes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ours {
    pub file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

/// What the sidecar said before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Previous {
    pub file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    #[serde(
        default,
        rename = "contentEncoding",
        skip_serializing_if = "Option::is_none"
    )]
    pub encoding: Option<String>,
    #[serde(default)]
    pub size: u64,
}

/// The identity of a version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub inode: u64,
    pub mtime_ns: i128,
    pub size: u64,
}

impl Identity {
    /// Writes it as sidecars hold it.
    pub(super) fn text(&self) -> String {
        format!("{}-{}-{}", self.inode, self.mtime_ns, self.size)
    }
}

/// How the sidecar describes a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Description {
    pub content_type: Option<String>,
    pub encoding: Encoding,
    /// Whether sidecar and value certainly belong together.
    pub certain: bool,
}

impl Sidecar {
    /// Reads any of the shapes; `None` for anything else, and for one that names a file elsewhere.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        match serde_json::from_slice::<serde_json::Value>(text).ok()? {
            serde_json::Value::String(inner) => serde_json::from_str(&inner).ok(),
            value => serde_json::from_value(value).ok(),
        }
        .filter(|sidecar: &Self| {
            !sidecar.key.is_empty() && sidecar.filename.as_deref().is_none_or(is_value)
        })
    }

    /// Describes a value that has this identity.
    pub(super) fn describe(&self, identity: &Identity) -> Description {
        let main = |certain| Description {
            content_type: self.content_type.clone(),
            encoding: Encoding::from_header(self.encoding.as_deref()),
            certain,
        };
        let Some(ours) = &self.kvfs else {
            return main(self.size.is_none_or(|size| size == identity.size));
        };
        let text = identity.text();
        if ours.file == text {
            return main(true);
        }
        let previous = ours.previous.as_ref().map(|previous| {
            (
                previous,
                Description {
                    content_type: previous.content_type.clone(),
                    encoding: Encoding::from_header(previous.encoding.as_deref()),
                    certain: previous.file == text,
                },
            )
        });
        match previous {
            Some((_, description)) if description.certain => description,
            _ if self.size == Some(identity.size) => main(false),
            Some((previous, description)) if previous.size == identity.size => description,
            _ => Description {
                content_type: self.content_type.clone(),
                encoding: Encoding::Identity,
                certain: false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Identity = Identity {
        inode: 1,
        mtime_ns: 10,
        size: 5,
    };
    const NEW: Identity = Identity {
        inode: 2,
        mtime_ns: 20,
        size: 7,
    };

    fn both() -> Sidecar {
        Sidecar {
            key: "k".into(),
            content_type: Some("b/b".into()),
            size: Some(NEW.size),
            encoding: Some("br".into()),
            kvfs: Some(Ours {
                file: NEW.text(),
                previous: Some(Previous {
                    file: OLD.text(),
                    content_type: Some("a/a".into()),
                    encoding: None,
                    size: OLD.size,
                }),
            }),
            ..Sidecar::default()
        }
    }

    #[test]
    fn all_shapes_are_read() {
        for text in [
            r#"{"key":"k","content_type":"t/t","size":3}"#,
            r#"{"key":"k","contentType":"t/t"}"#,
            r#""{\"extension\":\"json\",\"key\":\"k\",\"contentType\":\"t/t\"}""#,
        ] {
            let sidecar = Sidecar::parse(text.as_bytes()).expect(text);
            assert_eq!(sidecar.key, "k");
            assert_eq!(sidecar.content_type.as_deref(), Some("t/t"));
        }
        let named =
            Sidecar::parse(br#"{"key":"INPUT","contentType":"t/t","filename":"INPUT.json"}"#);
        let named = named.expect("a sidecar");
        assert_eq!(named.filename.as_deref(), Some("INPUT.json"));
        for text in [
            "",
            "{",
            "{}",
            "[]",
            r#""no json""#,
            r#"{"key":""}"#,
            r#"{"key":"k","filename":"../../etc/passwd"}"#,
            r#"{"key":"k","filename":"/etc/passwd"}"#,
            r#"{"key":"k","filename":"sub/file"}"#,
            r#"{"key":"k","filename":".."}"#,
            r#"{"key":"k","filename":""}"#,
            r#"{"key":"k","filename":"__metadata__.json"}"#,
            r#"{"key":"k","filename":"other.__metadata__.json"}"#,
            r#"{"key":"k","filename":".%kvfs-secret"}"#,
        ] {
            assert_eq!(Sidecar::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_description_that_fits_the_file_is_taken() {
        let sidecar = both();
        let new = sidecar.describe(&NEW);
        assert_eq!(
            (new.content_type.as_deref(), new.certain),
            (Some("b/b"), true)
        );
        assert_eq!(new.encoding, Encoding::Brotli);
        let old = sidecar.describe(&OLD);
        assert_eq!(
            (old.content_type.as_deref(), old.certain),
            (Some("a/a"), true)
        );
        assert_eq!(old.encoding, Encoding::Identity);
    }

    #[test]
    fn sizes_decide_in_a_copied_folder_and_strangers_store_no_encoding() {
        let copied = Identity { inode: 9, ..NEW };
        assert_eq!(both().describe(&copied).encoding, Encoding::Brotli);
        let copied = Identity { inode: 9, ..OLD };
        assert_eq!(
            both().describe(&copied).content_type.as_deref(),
            Some("a/a")
        );
        let rewritten = Identity { size: 99, ..NEW };
        let description = both().describe(&rewritten);
        assert_eq!(description.encoding, Encoding::Identity);
        assert_eq!(description.content_type.as_deref(), Some("b/b"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = serde_json::to_vec(&both()).expect("JSON");
        assert_eq!(Sidecar::parse(&text), Some(both()));
    }
}
