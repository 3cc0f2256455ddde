//! What is read without anything around it: references, listings, errors, headers, names, codecs,
//! descriptions of pending uploads.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use kvfs::apify::answer::ContentRange;
use kvfs::apify::errors::{Failure, Subject};
use kvfs::apify::retry::parse_retry_after;
use kvfs::apify::wire::{Envelope, KeysPage, StoreObject};
use kvfs::base::redact;
use kvfs::base::signature::{keys_expiry, verify_keys, verify_record};
use kvfs::base::units::{ByteSize, parse_duration};
use kvfs::fs::name::{Meaning, meaning, of_key};
use kvfs::listing::packed::Packed;
use kvfs::staging::entry;
use kvfs::store::codec::{DecoderMemory, Turn, decoder};
use kvfs::store::reference::{StoreRef, bucket_address};
use kvfs::store::{ETag, Encoding, Key, ListItem};
use reqwest::header::{HeaderMap, HeaderValue};

use super::engine::{fuzz, is_alone};
use crate::support::served::encode;

/// The most that is decoded of one input.
const MOST_DECODED: u64 = 8 << 20;

#[test]
fn references_to_stores() {
    let samples: &[&[u8]] = &[
        b"WkzbQMuFYuamGv3YF",
        b"~name",
        b"user~name",
        b"user/name",
        b"run:HG7ML7M8z78YcAPEB",
        b"actor:apify/web-scraper",
        b"task:me~task",
        b"https://api.apify.com/v2/key-value-stores/WkzbQMuFYuamGv3YF/keys?signature=MC4wLmFiYw",
        b"https://console.apify.com/storage/key-value/WkzbQMuFYuamGv3YF",
        b"https://api.apify.com/v2/key-value-stores/a/records/OUTPUT?signature=x\nhttps://api.apify.com/v2/key-value-stores/a/records/b",
        b"./storage",
        b"file:///tmp/x",
        b"s3://bucket/prefix/store",
        b"@name",
    ];
    fuzz("reference", samples, |input| {
        let text = String::from_utf8_lossy(input);
        let arguments: Vec<String> = text.split('\n').map(Into::into).collect();
        let parsed = StoreRef::parse(&arguments);
        if let Ok(reference) = &parsed {
            // What is saved for `kvfs recover` must mean the same when it is read again.
            let saved = serde_json::to_string(reference).expect("it can be saved");
            if !saved.contains("\"signature\":\"") {
                let again: StoreRef = serde_json::from_str(&saved).expect("it can be read again");
                assert_eq!(serde_json::to_string(&again).expect("again"), saved);
            }
        }
        let _ = bucket_address(&text).map(|address| address.is_ok());
        let shown = redact::text(&text, &[]);
        let kind = match &parsed {
            Ok(reference) => format!("{:?}", std::mem::discriminant(reference)),
            Err(error) => format!("{:?}", std::mem::discriminant(error)),
        };
        (kind, shown.len() == text.len(), arguments.len().min(3))
    });
}

#[test]
fn listings() {
    let samples: &[&[u8]] = &[
        br#"{"data":{"items":[{"key":"a","size":3,"recordPublicUrl":"https://h/v2/key-value-stores/i/records/a?signature=s"},{"key":"b"}],"count":2,"limit":1000,"isTruncated":true,"exclusiveStartKey":null,"nextExclusiveStartKey":"b"}}"#,
        br#"{"data":{"items":[],"isTruncated":false,"nextExclusiveStartKey":""}}"#,
        br#"{"data":{"items":[{"key":"","size":-1}]}}"#,
        br#"{"data":{"id":"WkzbQMuFYuamGv3YF","name":"n","modifiedAt":"2024-01-02T03:04:05.678Z","urlSigningSecretKey":"k"}}"#,
    ];
    fuzz("listing", samples, |input| {
        let store = serde_json::from_slice::<Envelope<StoreObject>>(input).ok();
        let modified = store.map(|store| store.data.modified().is_some());
        let page = serde_json::from_slice::<Envelope<KeysPage>>(input)
            .ok()
            .and_then(|page| page.data.into_page(1000, None).ok());
        let packed = page.as_ref().map(|page| {
            // As listings are kept: what was packed comes out again.
            let mut items: Vec<ListItem> = page.items.clone();
            items.sort_by(|a, b| a.key.as_str().cmp(b.key.as_str()));
            items.dedup_by(|a, b| a.key == b.key);
            let packed = Packed::new(&items);
            for (at, item) in items.iter().enumerate() {
                let (key, _) = packed.get(at).expect("it was packed");
                assert_eq!(key, item.key);
                assert_eq!(packed.find(item.key.as_str()), Ok(at));
            }
            let again = Packed::from_bytes(&packed.to_bytes()).expect("it can be read again");
            assert_eq!(again, packed);
            items.len()
        });
        (modified, packed, page.map(|page| page.next.is_some()))
    });
}

#[test]
fn packed_pages() {
    let item = |n: u64| ListItem {
        key: Key::new(format!("page-{n:04}/{}", n * n)).expect("a key"),
        stored_size: (!n.is_multiple_of(3)).then_some(n << (n % 40)),
        modified: None,
        public_url: None,
    };
    let pages = [0, 1, 15, 16, 17, 100].map(|len| {
        let items: Vec<ListItem> = (0..len).map(item).collect();
        Packed::new(&items).to_bytes()
    });
    let samples: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
    fuzz("page", &samples, |input| {
        let page = Packed::from_bytes(input)?;
        let walked = {
            let mut walk = page.walk(0);
            std::iter::from_fn(|| walk.advance().map(|_| ()))
                .take(10_000)
                .count()
        };
        let _ = (page.first_key(), page.last_key(), page.memory());
        let _ = (page.get(page.len()), page.get(7), page.find("page-0007"));
        Some((walked, page.is_empty()))
    });
}

#[test]
fn bodies_of_errors() {
    let samples: &[&[u8]] = &[
        br#"404 {"error":{"type":"record-not-found","message":"Key-value store record not found"}}"#,
        br#"403 {"error":{"type":"insufficient-permissions","message":"no\u0000\n\u001b[31m"}}"#,
        b"502 <html><body>Bad gateway</body></html>",
        b"429 {}",
        b"408 ",
        br#"400 {"error":{"type":"invalid-signature","message":"https://h/?token=apify_api_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}}"#,
    ];
    let key = Key::new("k").expect("a key");
    fuzz("error", samples, |input| {
        let (status, body) = input.split_at(input.len().min(4));
        let status = String::from_utf8_lossy(status);
        let status = status.trim().parse().unwrap_or(500u16);
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(body) {
            headers.insert("retry-after", value.clone());
            headers.insert("content-type", value);
        }
        let subject = Subject::Record(&key);
        let failure =
            Failure::from_answer(status, &headers, body, subject, &[], SystemTime::UNIX_EPOCH);
        let kind = format!("{:?} {:?}", failure.kind, failure.verdict);
        let shown = failure
            .into_error(subject, 1, Duration::ZERO)
            .with_key(&key)
            .to_string();
        assert!(shown.len() < 4096, "{shown}");
        assert!(!shown.contains(['\n', '\u{1b}', '\0']), "{shown:?}");
        assert!(
            !shown.contains("apify_api_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            "{shown}"
        );
        kind
    });
}

#[test]
fn headers_and_numbers() {
    let samples: &[&[u8]] = &[
        b"bytes 0-1023/146515",
        b"bytes */1000",
        b"bytes 5-5/*",
        b"120",
        b"Sun, 06 Nov 1994 08:49:37 GMT",
        b"W/\"abc\"",
        b"gzip, br",
        b"1h30m",
        b"2GiB",
        b"1.5MB",
    ];
    fuzz("header", samples, |input| {
        let text = String::from_utf8_lossy(input);
        let range = ContentRange::parse(&text);
        if let Some(range) = range {
            assert!(range.bytes.is_none_or(|(first, end)| first < end));
        }
        let wait = parse_retry_after(&text, SystemTime::UNIX_EPOCH).is_some();
        let strong = ETag::new(&*text).is_strong();
        let encoding = Encoding::from_header(Some(&text));
        let again = encoding.header_value().map(str::to_owned);
        assert_eq!(
            Encoding::from_header(again.as_deref()).header_value(),
            encoding.header_value()
        );
        let duration = parse_duration(&text).is_ok();
        let size = text.parse::<ByteSize>().is_ok();
        let encoding = std::mem::discriminant(&encoding);
        let part = range.map(|range| (range.bytes.is_some(), range.total.is_some()));
        (part, wait, strong, encoding, duration, size)
    });
}

#[test]
fn signatures() {
    let secret = redact::Secret::new("a-signing-key");
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    let signed = kvfs::base::signature::sign_keys(&secret, "store", Some(expires));
    let forever = kvfs::base::signature::sign_keys(&secret, "store", None);
    let record = kvfs::base::signature::sign_record(&secret, "key");
    let samples = [&signed, &forever, &record].map(|signature| signature.expose().as_bytes());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    fuzz("signature", &samples, |input| {
        let text = String::from_utf8_lossy(input);
        let expiry = keys_expiry(&text).map(|expiry| expiry.time().is_some());
        let opens = verify_keys(&secret, "store", &text, now);
        // Nothing but what was signed opens anything; base64 has several spellings of one text.
        if opens {
            let known = [&signed, &forever].map(|known| keys_expiry(known.expose()));
            assert!(known.contains(&keys_expiry(&text)), "{text}");
        }
        let record = verify_record(&secret, "key", &text);
        (expiry, opens, record)
    });
}

#[test]
fn names_and_keys() {
    let samples: &[&[u8]] = &[
        b"INPUT",
        b"a/b",
        b"..",
        b"%2E%2E",
        "\u{e9}".as_bytes(),
        b"a%_0123456789012345678901234567890123456789",
        b"\xff\xfe",
        b"with blank\0and nul",
    ];
    fuzz("name", samples, |input| {
        let what = meaning(OsStr::from_bytes(input));
        if let Meaning::Key(key) = &what {
            assert_eq!(of_key(key).as_bytes(), input, "two names for one key");
        }
        if let Some(key) = std::str::from_utf8(input).ok().and_then(Key::new) {
            let name = of_key(&key);
            assert!(!name.contains(['/', '\0']) && name != "." && name != "..");
            assert!(!name.is_empty() && name.len() <= 1000);
            let back = meaning(OsStr::new(&name));
            assert!(
                back == Meaning::Key(key) || back == Meaning::Listed,
                "{name}"
            );
        }
        match what {
            Meaning::Key(_) => 0,
            Meaning::Listed => 1,
            Meaning::Nothing => 2,
        }
    });
}

/// Decodes what comes after the first byte, which says how.
fn decode(input: &[u8]) -> (usize, Result<u32, String>) {
    let encodings = [Encoding::Gzip, Encoding::Deflate, Encoding::Brotli];
    let Some((first, body)) = input.split_first() else {
        return (9, Ok(0));
    };
    let which = usize::from(*first) % encodings.len();
    let mut out = 0u64;
    let memory = DecoderMemory::of_process();
    let result = decoder(&encodings[which], Box::new(body), memory, Turn::Now)
        .map_err(|error| error.to_string())
        .and_then(|mut content| {
            let mut buffer = [0; 16 << 10];
            while out < MOST_DECODED {
                match content.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(len) => out += len as u64,
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(())
        });
    (which, result.map(|()| out.checked_ilog2().unwrap_or(0)))
}

#[test]
fn decoders() {
    let contents: [&[u8]; 4] = [
        b"",
        b"all work and no play\n",
        &[0; 70_000],
        b"{\"a\": [1, 2]}",
    ];
    let encodings = [Encoding::Gzip, Encoding::Deflate, Encoding::Brotli];
    let samples: Vec<Vec<u8>> = (0u8..)
        .zip(&encodings)
        .flat_map(|(which, encoding)| {
            contents.iter().map(move |content| {
                let mut sample = vec![which];
                sample.extend(encode(encoding, content));
                sample
            })
        })
        .collect();
    for sample in &samples {
        assert!(decode(sample).1.is_ok());
        for len in 2..sample.len().min(60) {
            let torn = decode(&sample[..len]);
            assert!(
                torn.1.is_err(),
                "{len} bytes of {sample:?} are taken for whole"
            );
        }
    }
    let samples: Vec<&[u8]> = samples.iter().map(Vec::as_slice).collect();
    let before = most_memory();
    fuzz("decode", &samples, decode);
    // Alone, this is about the decoders; beside other tests it says nothing.
    if is_alone() {
        let grown = most_memory() - before;
        assert!(grown < 256 << 10, "{grown} KiB for streams of 64 KiB");
    }
}

/// Returns the most memory that this process has had, in KiB.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
        .expect("a number")
}

#[test]
fn descriptions_of_pending_uploads() {
    let now = "2026-01-02T03:04:05Z".parse().expect("a time");
    let pending = entry::Pending {
        key: Key::new("k").expect("a key"),
        content_type: Some("text/plain".into()),
        encoding: Encoding::Gzip,
        if_match: Some(ETag::new("\"e\"")),
        if_absent: false,
        size: 12,
        is_new: false,
        closed_at: now,
        why: entry::Why::WriteBack,
        attempts: 3,
        unanswered: Default::default(),
        began: None,
    };
    let written = entry::encode(&pending, "0123").expect("a description");
    assert_eq!(entry::decode(&written), Ok((pending, "0123".to_owned())));
    fuzz("pending", &[&written], |input| {
        let read = entry::decode(input);
        // A checksum covers it: nothing but what was written can be read.
        if let Ok((entry, _)) = &read {
            assert_eq!((entry.size, entry.attempts), (12, 3));
        }
        match read {
            Ok(_) => "ok".to_owned(),
            Err(entry::Unreadable::Newer(_)) => "newer".to_owned(),
            Err(entry::Unreadable::Damaged(why)) => {
                why.chars().filter(|c| !c.is_ascii_digit()).collect()
            }
        }
    });
}
