//! Tools that write, as people use them: what is stored is what they wrote, and each closed file
//! is one PUT, however many writes it took.

use std::fs;

use super::Writable;
use crate::support::mounted::{eventually, pattern, text};

#[test]
fn the_shell_writes_a_record_with_one_put() {
    let writable = Writable::new();
    writable.changes("echo one > a", &["PUT a"]);
    writable.holds("a", "one\n");
    writable.changes("echo two >> a", &["PUT a"]);
    writable.holds("a", "one\ntwo\n");
    writable.changes("echo three > a", &["PUT a"]);
    writable.holds("a", "three\n");
    writable.changes("(echo 1; echo 2; printf '3\\n4\\n') > a", &["PUT a"]);
    writable.holds("a", "1\n2\n3\n4\n");
    writable.changes("seq 1 50000 | tee b c | wc -l", &["PUT b", "PUT c"]);
    let numbers: String = (1..=50_000).map(|n| format!("{n}\n")).collect();
    writable.holds("b", &numbers);
    writable.holds("c", &numbers);
    writable.changes("echo end | tee -a b > /dev/null", &["PUT b"]);
    writable.holds("b", numbers + "end\n");
    writable.leaves(&["a", "b", "c"]);
}

#[test]
fn an_empty_file_is_a_record_of_no_bytes() {
    let writable = Writable::new();
    writable.changes("touch NEW", &["PUT NEW"]);
    writable.holds("NEW", "");
    writable.changes(": > empty", &["PUT empty"]);
    writable.holds("empty", "");
    writable.changes("cp empty copy", &["PUT copy"]);
    writable.holds("copy", "");
    writable.changes("echo x > full", &["PUT full"]);
    writable.changes(": > full", &["PUT full"]);
    writable.holds("full", "");
    writable.changes("truncate -s 5 full", &["PUT full"]);
    writable.holds("full", [0; 5]);
    writable.changes("truncate -s 0 full", &["PUT full"]);
    writable.holds("full", "");
    assert_eq!(
        writable.mount.works("ls; wc -c < NEW; stat -c %s full"),
        "NEW\ncopy\nempty\nfull\n0\n0"
    );
    writable.leaves(&["NEW", "copy", "empty", "full"]);
}

#[test]
fn what_is_opened_for_writing_and_not_changed_costs_no_put() {
    let writable = Writable::new();
    writable.put("a", "text/plain", b"content");
    writable.changes("touch a; : >> a; exec 3<>a; cat <&3; exec 3>&-", &[]);
    writable.changes("chmod 600 a; chown 1:1 a; touch -d 2020-01-02 a", &[]);
    assert_eq!(
        writable
            .mount
            .works("stat -c '%a %u %g' a; date -u -r a +%F"),
        "600 1 1\n2020-01-02"
    );
    writable.changed_by("opens", &[], |mount| {
        mount.python(
            "import os\n\
             for how in ('r+b', 'ab'):\n    open('a', how).close()\n\
             fd = os.open('a', os.O_WRONLY)\n\
             os.fsync(fd)\n\
             assert os.write(fd, b'') == 0\n\
             os.ftruncate(fd, 7)\n\
             os.close(fd)\n",
        )
    });
    writable.holds("a", "content");
    writable.leaves(&["a"]);
}

#[test]
fn files_are_copied_moved_and_removed() {
    let writable = Writable::new();
    let bytes = pattern(3_000_000);
    let beside = writable.mount.beside();
    fs::write(beside.join("big"), &bytes).expect("a file");
    fs::write(beside.join("small"), "small\n").expect("a file");
    writable.changes("cp $BESIDE/big $BESIDE/small .", &["PUT big", "PUT small"]);
    writable.holds("big", &bytes);
    writable.changes("cp -p big copy", &["PUT copy"]);
    writable.holds("copy", &bytes);
    writable.changes("cp small copy", &["PUT copy"]);
    writable.holds("copy", "small\n");
    writable.changes("mv copy moved", &["PUT moved", "DELETE copy"]);
    writable.holds("moved", "small\n");
    writable.changes("mv big moved", &["PUT moved", "DELETE big"]);
    writable.holds("moved", &bytes);
    // Across filesystems, mv deletes what it is about to replace.
    writable.changes("mv $BESIDE/small .", &["DELETE small", "PUT small"]);
    writable.changes("mv small $BESIDE", &["DELETE small"]);
    assert_eq!(fs::read(beside.join("small")).expect("a file"), b"small\n");
    writable.changes(
        "cp moved 1; cp moved 2; ln moved 3 || true; ln -s moved 4 || true",
        &["PUT 1", "PUT 2"],
    );
    assert_eq!(writable.mount.works("ls"), "1\n2\nmoved");
    writable.changed_by("rm", &["DELETE 1", "DELETE 2"], |mount| {
        mount.works("rm 1 2; ! cat 1")
    });
    writable.changes("rm -f 1 moved; ! rm moved", &["DELETE moved"]);
    writable.changes("mv $BESIDE/big x && rm x && ls", &["PUT x", "DELETE x"]);
    writable.leaves(&[]);
}

#[test]
fn parts_of_a_record_are_changed_in_place() {
    let writable = Writable::new();
    let mut bytes = pattern(100_000);
    writable.put("a", "application/x-a", &bytes);
    writable.changes(
        "printf hello | dd of=a bs=1 seek=5000 conv=notrunc status=none",
        &["PUT a"],
    );
    bytes[5000..5005].copy_from_slice(b"hello");
    writable.holds("a", &bytes);
    writable.changed_by("r+", &["PUT a"], |mount| {
        mount.python("f = open('a', 'r+b'); f.seek(-3, 2); f.write(b'END?'); f.seek(0); f.write(b'BEGIN'); f.close()")
    });
    bytes.truncate(100_000 - 3);
    bytes.extend(b"END?");
    bytes[..5].copy_from_slice(b"BEGIN");
    writable.holds("a", &bytes);
    writable.changed_by("mmap", &["PUT a"], |mount| {
        mount.python(
            "import mmap\n\
             with open('a', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:\n    \
                 m[70000:70006] = b'MAPPED'\n    m[0:1] = b'b'\n    m.flush()\n",
        )
    });
    bytes[70_000..70_006].copy_from_slice(b"MAPPED");
    bytes[0] = b'b';
    writable.holds("a", &bytes);
    writable.changes("truncate -s 10 a", &["PUT a"]);
    writable.changed_by("os.truncate", &["PUT a"], |mount| {
        mount.python("import os; os.truncate('a', 12)")
    });
    writable.holds("a", [&bytes[..10], &[0; 2]].concat());
    writable.changes(
        "fallocate -l 20 a; fallocate -p -o 0 -l 4 a",
        &["PUT a", "PUT a"],
    );
    writable.holds("a", [&[0; 4], &bytes[4..10], &[0; 10]].concat());
    writable.is_typed("a", "application/x-a");
    writable.leaves(&["a"]);
}

/// A file mapped and written to after its descriptor was closed: nothing but the last unmapping
/// tells the filesystem.
#[test]
fn a_mapping_that_outlives_its_descriptor_is_stored() {
    let writable = Writable::new();
    writable.put("a", "text/plain", &text(9000));
    writable.changed_by("mmap", &["PUT a"], |mount| {
        mount.python(
            "import mmap, os\n\
             fd = os.open('a', os.O_RDWR)\n\
             m = mmap.mmap(fd, 0)\n\
             os.close(fd)\n\
             m[5000:5004] = b'LATE'\n\
             m.close()\n",
        )
    });
    let mut bytes = text(9000);
    bytes[5000..5004].copy_from_slice(b"LATE");
    writable.holds("a", bytes);
    writable.leaves(&["a"]);
}

#[test]
fn rsync_copies_once_and_then_sees_that_nothing_changed() {
    let writable = Writable::new();
    let from = writable.mount.beside().join("from");
    fs::create_dir(&from).expect("a folder");
    for n in 0..5 {
        fs::write(from.join(format!("r{n}.txt")), pattern(n * 1000)).expect("a file");
    }
    let puts: Vec<String> = (0..5).map(|n| format!("PUT r{n}.txt")).collect();
    let puts: Vec<&str> = puts.iter().map(String::as_str).collect();
    writable.changes("rsync -a $BESIDE/from/ .", &puts);
    for n in 0..5 {
        writable.holds(&format!("r{n}.txt"), pattern(n * 1000));
    }
    writable.changes("rsync -a $BESIDE/from/ .", &[]);
    fs::write(from.join("r3.txt"), "changed").expect("a file");
    writable.changes("rsync -a $BESIDE/from/ .", &["PUT r3.txt"]);
    writable.holds("r3.txt", "changed");
    fs::write(from.join("r3.txt"), "changed in place").expect("a file");
    writable.changes("rsync -a --inplace $BESIDE/from/ .", &["PUT r3.txt"]);
    writable.holds("r3.txt", "changed in place");
    fs::remove_file(from.join("r0.txt")).expect("a file");
    writable.changes("rsync -a --delete $BESIDE/from/ .", &["DELETE r0.txt"]);
    writable.leaves(&["r1.txt", "r2.txt", "r3.txt", "r4.txt"]);
}

#[test]
fn archives_are_unpacked_with_a_put_for_each_file() {
    let writable = Writable::new();
    let from = writable.mount.beside().join("from");
    fs::create_dir(&from).expect("a folder");
    for n in 0..4 {
        fs::write(from.join(format!("t{n}")), text(n * 2000)).expect("a file");
    }
    let unpacked = |script: &str| {
        writable.changes(script, &["PUT t0", "PUT t1", "PUT t2", "PUT t3"]);
        for n in 0..4 {
            writable.holds(&format!("t{n}"), text(n * 2000));
        }
        writable.changes(
            "rm t?",
            &["DELETE t0", "DELETE t1", "DELETE t2", "DELETE t3"],
        );
    };
    unpacked("tar c -C $BESIDE/from t0 t1 t2 t3 | tar x");
    unpacked("cd $BESIDE/from && zip -q ../a.zip t0 t1 t2 t3 && cd - && unzip -q $BESIDE/a.zip");
    unpacked("cp -r $BESIDE/from/. .");
    writable.leaves(&[]);
}

#[test]
fn pipelines_replace_the_record_that_they_read() {
    let writable = Writable::new();
    writable.put("a.json", "application/json", br#"{"n": 1, "b": [true]}"#);
    writable.changes("jq -c '.n += 1' a.json | sponge a.json", &["PUT a.json"]);
    writable.holds("a.json", "{\"n\":2,\"b\":[true]}\n");
    writable.changes(
        "sort -r -o list <<'END'\n1\n2\nEND\nsort -o list list",
        &["PUT list", "PUT list"],
    );
    writable.holds("list", "1\n2\n");
    writable.leaves(&["a.json", "list"]);
}

#[test]
fn a_database_lives_in_a_record_and_its_journal_does_not() {
    let writable = Writable::new();
    writable
        .mount
        .works("sqlite3 db 'create table t(n); begin; insert into t values (1), (2); commit'");
    assert_eq!(
        writable
            .mount
            .works("sqlite3 db 'insert into t values (3); select sum(n) from t'"),
        "6"
    );
    // An open transaction is rolled back from the journal.
    assert_eq!(
        writable
            .mount
            .works("sqlite3 db 'begin; delete from t; rollback; select count(*) from t'"),
        "3"
    );
    assert_eq!(
        writable.mount.works("sqlite3 db 'pragma integrity_check'"),
        "ok"
    );
    let changes = writable.seen();
    assert!(
        changes.iter().all(|change| change == "PUT db"),
        "{changes:?}"
    );
    let copy = writable.mount.beside().join("copy");
    fs::write(&copy, writable.stored("db").expect("a record").0).expect("a file");
    assert_eq!(
        writable
            .mount
            .works("sqlite3 $BESIDE/copy 'select sum(n) from t'"),
        "6"
    );
    writable.leaves(&["db"]);
}

#[test]
fn changes_are_shown_by_git_without_a_repository() {
    let writable = Writable::new();
    writable.changes(
        "echo old > old.txt; echo new > new.txt",
        &["PUT old.txt", "PUT new.txt"],
    );
    let differences = writable.changes("git diff --no-index old.txt new.txt || true", &[]);
    assert!(differences.ends_with("-old\n+new"), "{differences}");
    writable.leaves(&["new.txt", "old.txt"]);
}

#[test]
fn what_a_store_cannot_have_is_refused_and_said() {
    let writable = Writable::new();
    for (script, why) in [
        ("mkdir d", "Operation not permitted"),
        ("ln -s a b", "Operation not permitted"),
        ("touch a && ln a b", "Operation not permitted"),
        ("mkfifo p", "Operation not permitted"),
        ("echo x > 'a b'", "Invalid argument"),
        ("cp $BESIDE/../mnt/a 'é'", "Invalid argument"),
        // What it says for "invalid argument".
        ("mv a 'a b'", "to a subdirectory of itself"),
        ("rmdir .", "Invalid argument"),
    ] {
        let said = writable
            .mount
            .fails(&format!("LC_ALL=C bash -c \"{script}\""));
        assert!(said.contains(why), "{script}: {said}");
    }
    let long = "x".repeat(300);
    let said = writable.mount.fails(&format!("touch {long}"));
    assert!(
        said.contains("File name too long") || said.contains("Invalid argument"),
        "{said}"
    );
    // Nobody waits for the upload of an empty file.
    eventually("the empty file is stored", || writable.keys() == ["a"]);
    writable.changes("rm a; ls", &["DELETE a"]);
    writable.leaves(&[]);
}
