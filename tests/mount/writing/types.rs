//! Content types: what a new record gets, and that an old one keeps its own.

use std::fs;

use kvfs::store::Encoding;

use super::Writable;

const JSON: &str = "application/json; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90wS\xde";

#[test]
fn new_records_get_the_type_of_their_name_or_else_of_their_bytes() {
    let writable = Writable::new();
    let gzip: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0";
    let table: [(&str, &[u8], &str); 24] = [
        ("a.json", b"{}", JSON),
        ("b.json", b"not even JSON", JSON),
        ("a.txt", b"text", TEXT),
        ("a.html", b"<p>", "text/html; charset=utf-8"),
        ("a.csv", b"a,b\n", "text/csv; charset=utf-8"),
        ("a.md", b"# a\n", "text/markdown; charset=utf-8"),
        ("a.png", b"text, in truth", "image/png"),
        ("a.jpg", b"", "image/jpeg"),
        ("a.pdf", b"%PDF-1.7\n", "application/pdf"),
        ("a.zip", b"PK\x03\x04", "application/zip"),
        ("a.bin", b"text", BYTES),
        ("A.JSON", b"[]", JSON),
        ("OUTPUT", b"{\"a\": [1, 2, null]}\n", JSON),
        ("array", b"[]", JSON),
        ("number", b" 12.5\n", JSON),
        ("almost", b"{\"a\": 1", TEXT),
        ("words", "größer\n".as_bytes(), TEXT),
        ("latin1", b"gr\xf6\xdfer\n", BYTES),
        ("zeros", &[0; 100], BYTES),
        ("picture", PNG, "image/png"),
        ("packed", gzip, "application/gzip"),
        (
            "paper",
            b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
            "application/pdf",
        ),
        (
            "archive",
            b"PK\x03\x04\x14\0\0\0\0\0!\0!\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            "application/zip",
        ),
        ("a.unknown-extension", b"[1]", JSON),
    ];
    for (name, bytes, _) in &table {
        fs::write(writable.file(name), bytes).expect("a record");
    }
    let mut wrong = Vec::new();
    for (name, bytes, expected) in &table {
        crate::support::mounted::eventually(name, || writable.stored(name).is_some());
        let (stored, meta) = writable.stored(name).expect("a record");
        assert!(stored == *bytes, "{name}");
        assert_eq!(meta.encoding, Encoding::Identity, "{name}");
        if meta.content_type.as_deref() != Some(*expected) {
            wrong.push((*name, meta.content_type, *expected));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn records_keep_their_type_however_they_are_overwritten() {
    let writable = Writable::new();
    let kept = "text/csv; charset=iso-8859-2; header=present";
    writable.put("a.json", kept, b"x");
    for script in [
        "echo 1 > a.json",
        "echo 2 >> a.json",
        "printf 3 | dd of=a.json conv=notrunc status=none",
        "truncate -s 1 a.json",
        "echo {} | sponge a.json",
        "sed -i s/x/y/ a.json",
        "cp $PYTHON_FILE a.json",
        "rsync $PYTHON_FILE a.json",
    ] {
        let script = script.replace("$PYTHON_FILE", "/etc/hostname");
        writable.changes(&script, &["PUT a.json"]);
        writable.is_typed("a.json", kept);
    }
    writable.leaves(&["a.json"]);
}

#[test]
fn renamed_records_keep_their_type_and_encoding() {
    let writable = Writable::new();
    let text = "compressed\n".repeat(500);
    let stored = writable.server.put_encoded(
        "a",
        "text/x-a; charset=utf-8",
        Encoding::Gzip,
        text.as_bytes(),
    );
    writable.put("b.json", "text/x-b", b"{}");
    writable.changes("mv a c.json", &["PUT c.json", "DELETE a"]);
    let (bytes, meta) = writable.stored("c.json").expect("a record");
    assert!(bytes == stored, "it was encoded anew");
    assert_eq!(meta.encoding, Encoding::Gzip);
    writable.is_typed("c.json", "text/x-a; charset=utf-8");
    writable.changes(
        "mv c.json b.json; cmp b.json - <<END\n$(yes compressed | head -n 500)\nEND",
        &["PUT b.json", "DELETE c.json"],
    );
    writable.is_typed("b.json", "text/x-a; charset=utf-8");
    writable.leaves(&["b.json"]);
}

#[test]
fn the_attribute_tells_and_changes_the_type() {
    let writable = Writable::new();
    writable.program(
        "a = opened('a.json', NEW)
os.setxattr('a.json', 'user.apify.content-type', b'text/x-mine')
os.write(a, b'{}')
assert os.getxattr(a, 'user.apify.content-type') == b'text/x-mine'
os.close(a)",
        &["PUT a.json"],
    );
    writable.is_typed("a.json", "text/x-mine");
    writable.changes(
        "setfattr -n user.apify.content-type -v 'text/x-other; charset=utf-8' a.json",
        &["PUT a.json"],
    );
    writable.holds("a.json", "{}");
    writable.is_typed("a.json", "text/x-other; charset=utf-8");
    assert_eq!(
        writable
            .mount
            .works("getfattr --only-values -n user.apify.content-type a.json"),
        "text/x-other; charset=utf-8"
    );
    // Said again, it changes nothing.
    writable.changes(
        "setfattr -n user.apify.content-type -v 'text/x-other; charset=utf-8' a.json",
        &[],
    );
    writable.changes("cp -a a.json b", &["PUT b"]);
    writable.is_typed("b", "text/x-other; charset=utf-8");
    for wrong in ["", "no type", "a/b\r\nX: y"] {
        let said = writable.mount.fails(&format!(
            "setfattr -n user.apify.content-type -v '{wrong}' b"
        ));
        assert!(said.contains("Invalid argument"), "{wrong}: {said}");
    }
    let said = writable.mount.fails("setfattr -n user.apify.key -v x b");
    assert!(
        said.contains("Operation not permitted") || said.contains("not supported"),
        "{said}"
    );
    writable.leaves(&["a.json", "b"]);
}
