//! How records are stored where a mount is told otherwise than by default: whatever version there
//! is, compressed, or as they are.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;

use kvfs::fs::write::Overwrite;
use kvfs::store::Encoding;
use kvfs::store::codec::{DecoderMemory, Turn, decoder};

use super::{Writable, writing};
use crate::support::mounted::{MountedSession, pattern, text};

impl Writable {
    /// Changes a record here and, before that is stored, over the API.
    fn written_at_the_same_time(&self) -> std::io::Result<()> {
        self.put("a", "text/plain", b"one");
        let file = File::options().write(true).open(self.file("a"))?;
        file.write_all_at(b"mine", 0)?;
        self.server.put_text("a", "theirs");
        file.sync_all()
    }

    /// Returns a record as somebody sees it who asks for it decoded, and how it is stored.
    fn seen_decoded(&self, name: &str) -> (Vec<u8>, Encoding, usize) {
        let (stored, meta) = self.stored(name).expect("a record");
        let size = stored.len();
        let reader = Box::new(std::io::Cursor::new(stored));
        let memory = DecoderMemory::of_process();
        let decoder = decoder(&meta.encoding, reader, memory, Turn::Now);
        let mut decoder = decoder.expect("a decoder");
        let mut decoded = Vec::new();
        decoder.read_to_end(&mut decoded).expect("decoded");
        (decoded, meta.encoding, size)
    }
}

#[test]
fn with_overwrite_always_the_last_writer_wins() {
    let writable = Writable::mounted(|config| writing(config).overwrite = Overwrite::Always);
    writable.written_at_the_same_time().expect("stored");
    writable.holds("a", "mine");
    writable.leaves(&["a"]);
}

#[test]
fn where_the_server_has_no_entity_tags_an_edit_is_compared_before_it_replaces() {
    let writable = Writable::with(|server| server.knobs.etags = false, |_| {});
    let refused = writable.written_at_the_same_time();
    let error = refused.expect_err("somebody else was faster");
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    writable.holds("a", "theirs");
    // What is written as a whole replaces what there is.
    writable.mount.works("echo mine > a");
    writable.holds("a", "mine\n");
    // What was stored here is known here; it is asked for only to be compared.
    writable.changes("echo more >> a; cat a", &["PUT a"]);
    writable.holds("a", "mine\nmore\n");
    assert_eq!(writable.mount.works("cat a"), "mine\nmore");
    writable.leaves(&["a"]);
}

#[test]
fn what_is_worth_compressing_is_stored_compressed_and_shown_as_it_was_written() {
    for (name, encoding) in [("br", Encoding::Brotli), ("gzip", Encoding::Gzip)] {
        let writable = Writable::mounted(|config| writing(config).compress = Some(name.into()));
        let identity = Encoding::Identity;
        let plain = &b"\x89PNG\r\n\x1a\n".repeat(500)[..];
        let files: [(&str, &[u8], &Encoding); 6] = [
            ("below.txt", &text(1023), &identity),
            ("from.txt", &text(1024), &encoding),
            ("more.json", &text(300_000), &encoding),
            ("a.png", plain, &identity),
            ("a.zip", plain, &identity),
            ("guessed", &text(5000), &encoding),
        ];
        for (file, bytes, stored_as) in &files {
            fs::write(writable.file(file), bytes).expect("a record");
            let (decoded, found, size) = writable.seen_decoded(file);
            assert_eq!(found, **stored_as, "{file}");
            assert!(decoded == *bytes, "{file}");
            assert_eq!(size < bytes.len(), found != identity, "{file}: {size}");
            let shown = fs::metadata(writable.file(file)).expect("metadata").len();
            assert_eq!(shown, bytes.len() as u64, "{file}");
        }
        // A part of it is changed as of any other.
        writable.changes(
            "printf X | dd of=more.json conv=notrunc status=none",
            &["PUT more.json"],
        );
        let (decoded, found, _) = writable.seen_decoded("more.json");
        assert_eq!(found, encoding);
        assert!(decoded[0] == b'X' && decoded[1..] == text(300_000)[1..]);
        // What does not become smaller is stored as it is.
        let packed = noise(5000);
        fs::write(writable.file("noise.txt"), &packed).expect("a record");
        assert_eq!(writable.seen_decoded("noise.txt").1, identity);
        writable.holds("noise.txt", &packed);
        let others = MountedSession::served(&writable.server);
        for (file, bytes, _) in files.iter().filter(|(file, ..)| *file != "more.json") {
            assert!(
                fs::read(others.file(file)).expect("a file") == *bytes,
                "{file}"
            );
        }
    }
}

#[test]
fn a_raw_mount_stores_what_is_written_with_the_encoding_that_was_there_or_is_said() {
    let writable = Writable::mounted(|config| config.raw = true);
    let packed = |seed: usize| pattern(2000 + seed);
    let stored_as = |name: &str, bytes: &[u8], encoding: Encoding| {
        let (stored, meta) = writable.stored(name).expect("a record");
        assert!(stored == bytes, "{name} has {} bytes", stored.len());
        assert_eq!(meta.encoding, encoding, "{name}");
    };
    let beside = writable.mount.beside();
    for seed in 0..4 {
        fs::write(beside.join(seed.to_string()), packed(seed)).expect("a file");
    }
    let kept = "text/x-kept; charset=utf-8";
    writable.server.put("a", kept, Encoding::Gzip, &packed(9));
    assert!(fs::read(writable.file("a")).expect("its bytes") == packed(9));
    writable.changes("cp $BESIDE/0 a", &["PUT a"]);
    stored_as("a", &packed(0), Encoding::Gzip);
    writable.is_typed("a", kept);
    let said = "setfattr -n user.apify.content-encoding -v";
    writable.changes(&format!("{said} br a"), &["PUT a"]);
    stored_as("a", &packed(0), Encoding::Brotli);
    writable.is_typed("a", kept);
    writable.changes(&format!("{said} br a"), &[]);
    writable.changes(&format!("{said} identity a"), &["PUT a"]);
    stored_as("a", &packed(0), Encoding::Identity);
    // A new one is stored unencoded unless it is said while it is written.
    writable.changes("cp $BESIDE/1 b", &["PUT b"]);
    stored_as("b", &packed(1), Encoding::Identity);
    writable.program(
        "bytes = open(os.environ['BESIDE'] + '/2', 'rb').read()
c = opened('c', NEW)
os.setxattr(c, 'user.apify.content-encoding', b'gzip')
os.write(c, bytes)
os.close(c)",
        &["PUT c"],
    );
    stored_as("c", &packed(2), Encoding::Gzip);
    // Renaming and changing a part keep it.
    writable.changes("mv c d", &["PUT d", "DELETE c"]);
    stored_as("d", &packed(2), Encoding::Gzip);
    writable.changes("cat $BESIDE/3 >> d", &["PUT d"]);
    stored_as("d", &[packed(2), packed(3)].concat(), Encoding::Gzip);
    let refused = writable.mount.fails(&format!("{said} 'no encoding' d"));
    assert!(refused.contains("Invalid argument"), "{refused}");
    writable.leaves(&["a", "b", "d"]);
}

/// Returns bytes that cannot be made smaller, but pass for text by their name.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}
