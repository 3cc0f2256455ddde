use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::staging::folder::StoreFile;
use crate::staging::{StagingConfig, StagingFolder, Why};
use crate::store::Encoding;
use crate::store::reference::StoreRef;

fn config(dir: &Path) -> StagingConfig {
    StagingConfig {
        dir: dir.join("staging"),
        scope: "scope".into(),
        store: StoreFile {
            reference: "here".into(),
            open: StoreRef::Directory("/here".into()),
            api_url: None,
        },
        limit: None,
    }
}

fn open(dir: &Path) -> Arc<StagingFolder> {
    StagingFolder::open(&config(dir)).expect("a staging folder")
}

fn pending(key: &str, size: usize) -> Pending {
    Pending {
        key: Key::new(key).expect("a key"),
        content_type: Some("text/plain".into()),
        encoding: Encoding::Identity,
        if_match: None,
        if_absent: false,
        size: size as u64,
        is_new: false,
        closed_at: Timestamp::from_second(1_700_000_000).expect("a time"),
        why: Why::WriteBack,
        attempts: 0,
        unanswered: Default::default(),
        began: None,
    }
}

fn staged(folder: &StagingFolder, bytes: &[u8]) -> File {
    let file = folder.new_file().expect("a staging file");
    file.write_all_at(bytes, 0).expect("room");
    file
}

/// A file that was not made by a staging folder.
fn named() -> File {
    tempfile::NamedTempFile::new().expect("a file").into_file()
}

fn keep(folder: &StagingFolder, key: &str, bytes: &[u8]) -> EntryId {
    let file = staged(folder, bytes);
    folder
        .journal()
        .keep(&file, pending(key, bytes.len()), true)
        .expect("an entry")
}

fn read(journal: &Journal, id: &EntryId) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = journal.open(id).expect("data");
    file.read_to_end(&mut bytes).expect("readable");
    bytes
}

/// All files below `dir`, with their modes.
fn files(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let metadata = entry.metadata().expect("it");
        found.push((entry.path(), metadata.permissions().mode() & 0o777));
        if metadata.is_dir() {
            found.extend(files(&entry.path()));
        }
    }
    found
}

#[test]
fn entries_are_adopted_by_the_next_owner_in_their_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = open(dir.path());
    let ids = [
        keep(&first, "a", b"one"),
        keep(&first, "b", b""),
        keep(&first, "a", b"two"),
    ];
    assert!(
        open(dir.path()).journal().entries().is_empty(),
        "its owner lives"
    );
    drop(first);
    let second = open(dir.path());
    let journal = second.journal();
    let found: Vec<EntryId> = journal
        .entries()
        .into_iter()
        .map(|entry| entry.id)
        .collect();
    assert_eq!(found, ids);
    assert_eq!(read(journal, &ids[2]), b"two");
    assert_eq!(journal.total(), (3, 6));
    assert_eq!(second.budget().used(), 6);
    let a = Key::new("a").expect("a key");
    assert_eq!(journal.of_key(&a).len(), 2);
    assert!(keep(&second, "c", b"new") > ids[2]);
    for id in &ids {
        journal.verify(id).expect("what was written");
        journal.remove(id).expect("removed");
    }
    journal.settle().expect("synced");
    assert_eq!(second.budget().used(), 3);
    assert_eq!(
        owner::owners(second.path()).expect("it").len(),
        1,
        "the dead one's folder is gone"
    );
}

#[test]
fn nothing_is_left_of_owners_that_have_nothing_pending() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = open(dir.path());
    let scope = folder.path().to_owned();
    let staging_file = staged(&folder, b"never closed");
    let id = keep(&folder, "a", b"bytes");
    folder.journal().remove(&id).expect("removed");
    drop(folder);
    drop(staging_file);
    assert!(owner::owners(&scope).expect("it").is_empty());
}

#[test]
fn what_a_killed_process_was_writing_is_cleared_and_entries_are_not() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = open(dir.path());
    let id = keep(&folder, "a", b"bytes");
    let other = EntryId::new(7, 7);
    let own = folder.own_path();
    fs::write(owner::data_path(&own, &other), "half").expect("room");
    fs::write(owner::new_path(&own, &id), "half").expect("room");
    fs::write(own.join("foreign"), "not ours").expect("room");
    drop(folder);
    let next = open(dir.path());
    assert_eq!(next.journal().entries().len(), 1);
    let mut left: Vec<_> = files(&own)
        .into_iter()
        .filter_map(|(path, _)| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        })
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            format!("{id}.data"),
            format!("{id}.json"),
            "foreign".into(),
            "lock".into()
        ]
    );
    assert!(next.damaged().is_empty());
}

#[test]
fn damaged_entries_are_put_aside_and_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = open(dir.path());
    let own = folder.own_path();
    let torn = keep(&folder, "torn", b"bytes");
    let short = keep(&folder, "short", b"bytes");
    let lost = keep(&folder, "lost", b"bytes");
    let flipped = keep(&folder, "flipped", b"bytes");
    let newer = keep(&folder, "newer", b"bytes");
    let text = fs::read(owner::json_path(&own, &torn)).expect("it");
    fs::write(owner::json_path(&own, &torn), &text[..text.len() - 9]).expect("room");
    fs::write(owner::data_path(&own, &short), "byt").expect("room");
    fs::remove_file(owner::data_path(&own, &lost)).expect("removed");
    fs::write(owner::data_path(&own, &flipped), "bites").expect("room");
    fs::write(owner::json_path(&own, &newer), r#"{"version":2,"new":1}"#).expect("room");
    drop(folder);
    let next = open(dir.path());
    let entries = next.journal().entries();
    assert_eq!(entries.len(), 1, "{entries:?}");
    let error = next.journal().verify(&flipped).expect_err("other bytes");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    next.journal()
        .quarantine(&flipped, "its checksum does not match");
    assert_eq!(next.damaged(), [torn.clone(), short, lost, flipped]);
    assert!(next.journal().entries().is_empty());
    assert_eq!(
        fs::read(
            next.path()
                .join(owner::DAMAGED)
                .join(format!("{torn}.data"))
        )
        .expect("kept"),
        b"bytes"
    );
    assert!(
        owner::json_path(&own, &newer).exists(),
        "left to the newer kvfs"
    );
    assert!(
        owner::data_path(&own, &newer).exists(),
        "left to the newer kvfs"
    );
}

#[test]
fn one_file_can_be_kept_again_and_files_from_elsewhere_are_copied() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = open(dir.path());
    let file = staged(&folder, b"same bytes");
    let first = folder
        .journal()
        .keep(&file, pending("a", 4), true)
        .expect("kept");
    folder.journal().remove(&first).expect("removed");
    let again = folder
        .journal()
        .keep(&file, pending("a", 10), false)
        .expect("kept again");
    assert_eq!(read(folder.journal(), &again), b"same bytes");
    let elsewhere = named();
    elsewhere.write_all_at(b"from elsewhere", 0).expect("room");
    let copied = folder
        .journal()
        .keep(&elsewhere, pending("b", 14), true)
        .expect("copied");
    elsewhere.write_all_at(b"changed", 0).expect("room");
    assert_eq!(read(folder.journal(), &copied), b"from elsewhere");
    assert!(
        folder
            .journal()
            .keep(&file, pending("a", 11), true)
            .is_err(),
        "there are not that many bytes"
    );
    assert_eq!(folder.journal().entries().len(), 2);
}

#[test]
fn a_full_staging_folder_refuses_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = StagingFolder::open(&StagingConfig {
        limit: Some(5),
        ..config(dir.path())
    })
    .expect("a folder");
    let elsewhere = named();
    elsewhere.write_all_at(b"123456", 0).expect("room");
    let error = folder
        .journal()
        .keep(&elsewhere, pending("a", 6), true)
        .expect_err("too much");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(folder.budget().used(), 0);
    assert_eq!(files(&folder.own_path()).len(), 1, "the lock");
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "it distinguishes child and parent"
)]
fn folders_and_files_are_closed_to_others_also_under_an_open_umask() {
    // The umask is the process's: a child, so that other tests do not notice.
    if std::env::var_os("KVFS_TEST_OPEN_UMASK").is_none() {
        let status = std::process::Command::new(std::env::current_exe().expect("this"))
            .args(["--exact", "staging::journal::tests::folders_and_files_are_closed_to_others_also_under_an_open_umask"])
            .env("KVFS_TEST_OPEN_UMASK", "1")
            .stdout(std::process::Stdio::null())
            .status()
            .expect("a child");
        assert!(status.success());
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    rustix::process::umask(rustix::fs::Mode::empty());
    let folder = open(dir.path());
    keep(&folder, "linked", b"bytes");
    let elsewhere = named();
    folder
        .journal()
        .keep(&elsewhere, pending("copied", 0), true)
        .expect("copied");
    let found = files(&dir.path().join("staging"));
    assert!(found.len() > 6, "{found:?}");
    for (path, mode) in found {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, expected, "{}", path.display());
    }
    let mode = folder
        .new_file()
        .expect("a file")
        .metadata()
        .expect("it")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn planted_folders_are_refused_and_open_ones_closed() {
    let dir = tempfile::tempdir().expect("a folder");
    let target = dir.path().join("target");
    let staging = dir.path().join("staging");
    fs::create_dir_all(&target).expect("a folder");
    fs::create_dir_all(staging.join("kvfs-1")).expect("a folder");
    std::os::unix::fs::symlink(&target, staging.join("kvfs-1/scope")).expect("a link");
    let error = StagingFolder::open(&config(dir.path())).expect_err("a planted link");
    assert!(
        error.to_string().contains("not a folder of this user"),
        "{error}"
    );
    fs::remove_file(staging.join("kvfs-1/scope")).expect("removed");
    fs::set_permissions(staging.join("kvfs-1"), fs::Permissions::from_mode(0o777)).expect("opened");
    drop(open(dir.path()));
    let mode = fs::metadata(staging.join("kvfs-1"))
        .expect("it")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[derive(Clone, Debug)]
enum Op {
    Keep {
        key: u8,
        len: usize,
        linked: bool,
        durable: bool,
    },
    Update {
        which: usize,
        key: u8,
    },
    Remove {
        which: usize,
    },
    Settle,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0_u8..3, 0_usize..4000, any::<bool>(), any::<bool>())
            .prop_map(|(key, len, linked, durable)| Op::Keep { key, len, linked, durable }),
        2 => (any::<usize>(), 0_u8..3).prop_map(|(which, key)| Op::Update { which, key }),
        2 => any::<usize>().prop_map(|which| Op::Remove { which }),
        1 => Just(Op::Settle),
    ]
}

fn name(key: u8) -> String {
    format!("k{key}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever was promised is there after a crash at any step, byte for byte; what was not is
    /// there whole or not at all; nothing else is left.
    #[test]
    fn a_crash_at_any_step_leaves_whole_entries_only(
        ops in proptest::collection::vec(op(), 1..12),
        crash_after in 0_i64..80,
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = open(dir.path());
        let journal = Arc::clone(folder.journal());
        // What must be there, and what else may be.
        let mut sure: BTreeMap<EntryId, (Key, Vec<u8>)> = BTreeMap::new();
        let mut maybe: Vec<(Option<EntryId>, Key, Vec<u8>)> = Vec::new();
        journal.steps.0.store(crash_after, Ordering::Relaxed);
        for (n, op) in ops.into_iter().enumerate() {
            let pick = |which: usize| sure.keys().nth(which % sure.len().max(1)).cloned();
            let done = match op {
                Op::Keep { key, len, linked, durable } => {
                    let bytes = vec![n as u8 + 1; len];
                    let file = if linked {
                        staged(&folder, &bytes)
                    } else {
                        let file = named();
                        file.write_all_at(&bytes, 0).expect("room");
                        file
                    };
                    let kept = journal.keep(&file, pending(&name(key), len), durable);
                    let key = Key::new(name(key)).expect("a key");
                    match kept {
                        Ok(id) => sure.insert(id, (key, bytes)).is_none(),
                        Err(_) => {
                            maybe.push((None, key, bytes));
                            false
                        }
                    }
                }
                Op::Update { which, key } => {
                    let Some(id) = pick(which) else { continue };
                    let key = Key::new(name(key)).expect("a key");
                    let changed = journal.update(&id, |pending| pending.key = key.clone());
                    let (before, bytes) = sure.remove(&id).expect("picked");
                    if changed.is_ok() {
                        sure.insert(id, (key, bytes)).is_none()
                    } else {
                        maybe.push((Some(id.clone()), key, bytes.clone()));
                        maybe.push((Some(id), before, bytes));
                        false
                    }
                }
                Op::Remove { which } => {
                    let Some(id) = pick(which) else { continue };
                    let removed = journal.remove(&id);
                    let (key, bytes) = sure.remove(&id).expect("picked");
                    if removed.is_err() {
                        maybe.push((Some(id), key, bytes));
                    }
                    removed.is_ok()
                }
                Op::Settle => journal.settle().is_ok(),
            };
            if !done {
                break;
            }
        }
        drop(folder);
        drop(journal);

        let next = open(dir.path());
        let journal = next.journal();
        prop_assert!(next.damaged().is_empty());
        for entry in journal.entries() {
            prop_assert!(journal.verify(&entry.id).is_ok());
            let bytes = read(journal, &entry.id);
            prop_assert_eq!(bytes.len() as u64, entry.pending.size);
            match sure.remove(&entry.id) {
                Some((key, expected)) => {
                    prop_assert_eq!(&entry.pending.key, &key);
                    prop_assert_eq!(bytes, expected);
                }
                None => prop_assert!(
                    maybe.iter().any(|(id, key, expected)| {
                        id.as_ref().is_none_or(|id| *id == entry.id)
                            && *key == entry.pending.key
                            && *expected == bytes
                    }),
                    "{:?} was never written", entry
                ),
            }
            journal.remove(&entry.id).expect("removed");
        }
        // An update that crashed must have left its entry, old or new.
        prop_assert!(sure.is_empty(), "lost: {:?}", sure);
        let scope = next.path().to_owned();
        drop(next);
        prop_assert!(owner::owners(&scope).expect("it").is_empty(), "leaked: {:?}", files(&scope));
    }
}
