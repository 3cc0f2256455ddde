//! What others do in the folder, and what is left there.

use super::*;

#[test]
fn a_crash_between_the_two_renames_leaves_the_old_version() {
    let (dir, store) = folder(&[]);
    put(&store, "k", Encoding::Identity, "old");
    let old = fs::read(dir.path().join("k")).expect("a value");
    let old_meta = store.head(&key("k"), soon()).expect("a head");
    let kept = dir.path().join("kept");
    fs::hard_link(dir.path().join("k"), &kept).expect("a link");
    let request = PutRequest {
        content_type: Some("text/newer".into()),
        encoding: Encoding::Gzip,
        ..PutRequest::default()
    };
    store
        .put(&key("k"), &request, Upload::Bytes(b"new"), soon())
        .expect("a put");
    // The second rename undone: the sidecar is the new one, the value the old one.
    fs::rename(&kept, dir.path().join("k")).expect("a rename");
    assert_eq!(fs::read(dir.path().join("k")).expect("a value"), old);
    let meta = store.head(&key("k"), soon()).expect("a head");
    assert_eq!(meta, old_meta);
    // A new record without a value is none.
    fs::remove_file(dir.path().join("k")).expect("a removal");
    let error = store.head(&key("k"), soon()).expect_err("no record");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(keys(&store).is_empty());
    put(&store, "k", Encoding::Identity, "healed");
    assert_eq!(read(&store, "k").0, "healed");
}

#[test]
fn changes_by_others_are_seen() {
    let (dir, store) = folder(&[("a.txt", "one")]);
    let first = store.head(&key("a"), soon()).expect("a head");
    fs::write(dir.path().join("a.txt"), "three").expect("a write");
    let second = store.head(&key("a"), soon()).expect("a head");
    assert_eq!(second.stored_size, Some(5));
    assert_ne!(first.etag, second.etag);
    assert_eq!(keys(&store), ["a"]);
    fs::write(dir.path().join("b.txt"), "b").expect("a write");
    fs::remove_file(dir.path().join("a.txt")).expect("a removal");
    assert_eq!(keys(&store), ["b"]);
    let error = store.head(&key("a"), soon()).expect_err("no record");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn a_folder_that_is_made_anew_is_read_anew() {
    let (dir, store) = folder(&[("s/a.txt", "one")]);
    drop(store);
    let path = dir.path().join("s");
    let store = DirectoryStore::open(&path, Access::ReadWrite).expect("a store");
    assert_eq!(read(&store, "a").0, "one");
    fs::remove_dir_all(&path).expect("a removal");
    let error = store.head(&key("a"), soon()).expect_err("no store");
    assert_eq!(error.kind(), ErrorKind::StoreNotFound);
    fs::create_dir(&path).expect("a folder");
    fs::write(path.join("b.txt"), "two").expect("a file");
    assert_eq!(keys(&store), ["b"]);
    assert_eq!(read(&store, "b").0, "two");
}

#[test]
fn writing_into_a_file_that_is_being_read_is_an_error_not_a_mixture() {
    let (dir, store) = folder(&[("a.txt", "0123456789")]);
    let outcome = store.get(&key("a"), &GetRequest::default(), soon());
    let Ok(GetOutcome::Found(mut found)) = outcome else {
        panic!("{outcome:?}");
    };
    let mut part = [0; 4];
    found.body.read_exact(&mut part).expect("a beginning");
    fs::write(dir.path().join("a.txt"), "abcdefghijk").expect("a write");
    let error = found
        .body
        .read_to_end(&mut Vec::new())
        .expect_err("a change");
    let error = StoreError::from_io(error, ErrorKind::Disk);
    assert_eq!(error.kind(), ErrorKind::Changed);
}

#[test]
fn links_out_of_the_folder_are_no_records() {
    let (outside, _) = folder(&[("secret.txt", "s")]);
    let (dir, store) = folder(&[("inside.txt", "i")]);
    symlink(
        outside.path().join("secret.txt"),
        dir.path().join("out.txt"),
    )
    .expect("a link");
    symlink("inside.txt", dir.path().join("in.txt")).expect("a link");
    symlink(outside.path(), dir.path().join("folder")).expect("a link");
    symlink("loop.txt", dir.path().join("loop.txt")).expect("a link");
    assert_eq!(keys(&store), ["in", "inside"]);
    for name in ["out", "folder/secret", "../secret", "loop"] {
        let error = store.head(&key(name), soon()).expect_err("no record");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name}");
    }
    assert_eq!(read(&store, "in").0, "i");
}

#[test]
fn read_only_stores_refuse_and_missing_folders_say_so() {
    let (dir, _) = folder(&[("a.txt", "a")]);
    let store = crate::local::open_directory(dir.path()).expect("a store");
    let error = store.delete(&key("a"), soon()).expect_err("a refusal");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for name in ["none", "a.txt"] {
        let error = crate::local::open_directory(&dir.path().join(name)).expect_err("no folder");
        assert_eq!(error.kind(), ErrorKind::StoreNotFound);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn modification_times_of_own_writes_never_repeat() {
    let (dir, store) = folder(&[]);
    let mut seen = HashSet::new();
    for _ in 0..20 {
        put(&store, "k", Encoding::Identity, "same");
        let metadata = fs::metadata(dir.path().join("k")).expect("a file");
        assert!(seen.insert((metadata.mtime(), metadata.mtime_nsec())));
    }
}

#[test]
fn a_large_folder_is_listed_page_by_page_and_own_writes_show_at_once() {
    let (dir, store) = folder(&[]);
    for n in 0..5000 {
        fs::write(dir.path().join(format!("k{n:05}.json")), "{}").expect("a file");
    }
    let store = Arc::new(store);
    let mut pager = crate::store::pager::Pager::new(ListQuery::default());
    let mut listed = 0;
    while let Some(page) = pager.next_page(&*store, soon()).expect("a page") {
        listed += page.len();
    }
    assert_eq!(listed, 5000);
    put(&store, "k00000x", Encoding::Identity, "new");
    let query = ListQuery {
        prefix: Some("k00000".into()),
        ..ListQuery::default()
    };
    let page = store.list_page(&query, soon()).expect("a page");
    assert_eq!(page.items.len(), 2);
    store.delete(&key("k00000"), soon()).expect("a delete");
    let page = store.list_page(&query, soon()).expect("a page");
    assert_eq!(page.items.len(), 1);
}

#[test]
fn what_nobody_is_writing_any_more_is_removed_if_the_folder_may_be_written_to() {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux");
    let left = &format!(".%kvfs-{}-1-2-3.tmp", &boot[..8]);
    let of_others = ".%kvfs-0b00tid0-1-2-3.tmp";
    let names = [
        left,
        of_others,
        "INPUT.json.a8_k2m1z.json.tmp",
        ".%kvfs-notes",
    ];
    let (dir, store) = folder(&names.map(|name| (name, "half")));
    fs::create_dir(dir.path().join(".%kvfs-4-5-6.tmp")).expect("a folder");
    let there = |name: &str| dir.path().join(name).exists();

    let reader = DirectoryStore::open(dir.path(), Access::ReadOnly).expect("a store");
    assert_eq!(keys(&reader), Vec::<String>::new());
    assert!(there(left), "a reader removes nothing");

    let held = Unfinished::create(store.folder.dir().expect("it")).expect("a file");
    assert_eq!(keys(&store), Vec::<String>::new());
    assert!(!there(left));
    // Other programs' and the one that is being written stay.
    assert!(names[1..].iter().all(|name| there(name)));
    assert!(there(".%kvfs-4-5-6.tmp"));
    // Of another machine: not before it is old.
    let file = fs::File::options()
        .write(true)
        .open(dir.path().join(of_others));
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    file.and_then(|file| file.set_modified(long_ago))
        .expect("made old");
    fs::write(dir.path().join("fresh"), "").expect("a file");
    assert_eq!(keys(&store), ["fresh"]);
    assert!(!there(of_others));
    fs::remove_file(dir.path().join("fresh")).expect("removed");
    held.publish("held").expect("published");
    assert_eq!(keys(&store), ["held"]);
}
