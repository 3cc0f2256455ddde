//! Content types and encodings of what is stored.

use kvfs::local::memory::MemoryStore;
use kvfs::store::Encoding;

use super::gate::all_stored;
use super::{content_type, errno, meta, stored, writable};
use crate::support::core::{Setup, TTL, patient};

#[test]
fn types_come_from_the_attribute_then_the_name_then_the_bytes() {
    let (_dir, setup, core) = writable(&[]);
    core.store("a.csv", b"a,b\n").expect("stored");
    core.store("OUTPUT", b"{\"a\": 1}").expect("stored");
    core.store("text", b"hello\n").expect("stored");
    let (ino, fh) = core.create("own").expect("made");
    core.fs
        .setxattr(ino, "user.apify.content-type", b"text/x-own", patient())
        .expect("set");
    core.write_all(fh, b"x").expect("written");
    core.close(fh).expect("stored");
    for (key, expected) in [
        ("a.csv", "text/csv; charset=utf-8"),
        ("OUTPUT", "application/json; charset=utf-8"),
        ("text", "text/plain; charset=utf-8"),
        ("own", "text/x-own"),
    ] {
        assert_eq!(content_type(&setup, key), expected, "{key}");
    }
    // The type of an empty file is not known before something is in it.
    let (_, fh) = core.create("LATER").expect("made");
    core.close(fh).expect("closed");
    let (_, fh) = core.open_to_write("LATER").expect("open");
    core.write_all(fh, b"[1]").expect("written");
    core.close(fh).expect("stored");
    assert_eq!(
        content_type(&setup, "LATER"),
        "application/json; charset=utf-8"
    );
}

#[test]
fn setting_the_type_of_a_record_stores_it_again() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"same")]);
    let ino = core
        .lookup("A")
        .expect("an answer")
        .expect("present")
        .attr
        .ino;
    core.fs
        .setxattr(ino, "user.apify.content-type", b"text/markdown", patient())
        .expect("set");
    assert_eq!(content_type(&setup, "A"), "text/markdown");
    assert_eq!(stored(&setup, "A"), Some(b"same".to_vec()));
    let shown = core
        .fs
        .getxattr(ino, "user.apify.content-type", patient())
        .expect("shown");
    assert_eq!(shown, b"text/markdown");
    let bad = core
        .fs
        .setxattr(ino, "user.apify.content-type", b"nonsense", patient());
    assert_eq!(errno(bad), libc::EINVAL);
    let other = core.fs.setxattr(ino, "user.other", b"x", patient());
    assert_eq!(errno(other), libc::EOPNOTSUPP);
}

#[test]
fn compressed_uploads_show_their_content_size() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (encoding, name) in [(Encoding::Brotli, "br"), (Encoding::Gzip, "gzip")] {
        let mut setup = Setup::new(MemoryStore::new()).writable(&dir.path().join(name));
        if let Some(write) = &mut setup.fs.write {
            write.compress = Some(encoding.clone());
        }
        let core = setup.core(None);
        let text = b"some text that repeats itself\n".repeat(1000);
        core.store("a.txt", &text).expect("stored");
        core.store("small.txt", b"x").expect("stored");
        core.store("a.png", &text).expect("stored");
        assert_eq!(meta(&setup, "a.txt").encoding, encoding);
        assert!(stored(&setup, "a.txt").expect("stored").len() < 1000);
        assert_eq!(meta(&setup, "small.txt").encoding, Encoding::Identity);
        assert_eq!(meta(&setup, "a.png").encoding, Encoding::Identity);
        core.clock.advance(TTL);
        assert_eq!(core.cat("a.txt").expect("its bytes"), text);
        let fresh = setup.core(None);
        assert_eq!(fresh.cat("a.txt").expect("what others see"), text);
    }
}

#[test]
fn raw_mounts_store_bytes_as_they_are_with_the_encoding_that_was_there() {
    let (dir, _, _) = writable(&[]);
    let mut setup = Setup::new(MemoryStore::new()).writable(&dir.path().join("raw"));
    setup.records.raw = true;
    setup
        .store
        .insert("A", "text/plain", Encoding::Gzip, &b"old"[..]);
    let core = setup.core(None);
    core.store("A", b"new stored bytes").expect("stored");
    assert_eq!(meta(&setup, "A").encoding, Encoding::Gzip);
    assert_eq!(stored(&setup, "A"), Some(b"new stored bytes".to_vec()));
    let (ino, fh) = core.create("B").expect("made");
    core.fs
        .setxattr(ino, "user.apify.content-encoding", b"br", patient())
        .expect("set");
    core.write_all(fh, b"packed").expect("written");
    core.close(fh).expect("stored");
    assert_eq!(meta(&setup, "B").encoding, Encoding::Brotli);
}

#[test]
fn a_record_keeps_type_and_encoding_on_its_way_through_scratch_names() {
    for (raw, write_back) in [(false, false), (false, true), (true, false), (true, true)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let store = MemoryStore::new();
        let encoding = if raw {
            Encoding::Gzip
        } else {
            Encoding::Identity
        };
        for name in ["one.txt", "two.txt"] {
            let bytes = name.as_bytes().to_vec();
            store.insert(name, &format!("text/x-{name}"), encoding.clone(), bytes);
        }
        let mut setup = Setup::new(store);
        setup = match write_back {
            true => setup.write_back(dir.path()),
            false => setup.writable(dir.path()),
        };
        setup.records.raw = raw;
        let core = setup.core(None);
        let is = |name: &str, was: &str, bytes: &[u8]| {
            assert_eq!(stored(&setup, name).as_deref(), Some(bytes), "{name}");
            assert_eq!(content_type(&setup, name), format!("text/x-{was}"));
            assert_eq!(meta(&setup, name).encoding, encoding, "{name}");
        };
        core.rename("one.txt", "one.txt~").expect("a backup");
        core.rename("one.txt~", ".one.swp").expect("another");
        core.rename(".one.swp", "three.dat").expect("a record");
        all_stored(&setup);
        is("three.dat", "one.txt", b"one.txt");
        // Two exchange their names.
        core.rename("two.txt", "two.txt~").expect("a backup");
        core.rename("three.dat", "two.txt").expect("renamed");
        core.rename("two.txt~", "three.dat").expect("renamed");
        all_stored(&setup);
        is("two.txt", "one.txt", b"one.txt");
        is("three.dat", "two.txt", b"two.txt");
        // What is renamed while a program writes to it.
        core.rename("three.dat", "three.dat~").expect("a backup");
        let ino = core
            .lookup("three.dat~")
            .expect("an answer")
            .expect("there");
        let opened = core
            .fs
            .open_writing(ino.attr.ino, false, patient())
            .expect("open");
        core.fs
            .write(opened.fh, 0, b"TWO", patient())
            .expect("written");
        core.rename("three.dat~", "four").expect("renamed");
        core.fs.flush(opened.fh, patient()).expect("stored");
        core.fs.release(opened.fh);
        all_stored(&setup);
        is("four", "two.txt", b"TWO.txt");
    }
}
