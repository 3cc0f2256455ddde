//! `kvfs recover` without a mount, and how it keeps out of the way of a living one.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvfs::staging::folder::{StoreFile, scope_name};
use kvfs::staging::{EntryId, Pending, StagingConfig, StagingFolder, Why};
use kvfs::store::reference::{RemoteRef, StoreRef};
use kvfs::store::{Encoding, ErrorKind, StoreError};

use crate::bombs::{bomb, limited};
use crate::cli::{Ran, User, ran};
use crate::support::served::{TOKEN, TestServer, key, soon};

struct Desk {
    server: TestServer,
    user: User,
}

impl Desk {
    fn new() -> Self {
        Self {
            server: TestServer::start(),
            user: User::new(),
        }
    }

    /// What a mount of the store opens.
    fn folder(&self) -> Arc<StagingFolder> {
        let id = self.server.entry.id.clone();
        StagingFolder::open(&StagingConfig {
            dir: self.user.path("state/kvfs/staging"),
            scope: scope_name(&id),
            store: StoreFile {
                reference: "~test-store".into(),
                open: StoreRef::Remote(RemoteRef::Id(id)),
                api_url: Some(self.server.url().parse().expect("a URL")),
            },
            limit: None,
        })
        .expect("a staging folder")
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut command = self.user.kvfs();
        command.arg("recover").args(args).env("APIFY_TOKEN", TOKEN);
        ran(command.output().expect("kvfs runs"))
    }

    fn items(&self) -> Vec<serde_json::Value> {
        let listed = self.run(&["--json"]);
        assert_eq!(listed.code, 0, "{listed:?}");
        serde_json::from_str(&listed.out).expect("JSON")
    }

    fn stored(&self, name: &str) -> Option<String> {
        let found = self
            .server
            .store()
            .get(&key(name), &Default::default(), soon());
        let mut text = String::new();
        match found {
            Ok(kvfs::store::GetOutcome::Found(mut found)) => {
                found.body.read_to_string(&mut text).expect("a text");
                Some(text)
            }
            _ => None,
        }
    }
}

/// Leaves something behind as a mount does that is killed, or whose upload is refused.
fn leave(folder: &StagingFolder, name: &str, text: &str, refused: Option<ErrorKind>) -> EntryId {
    leave_stored(folder, name, (Encoding::Identity, text.as_bytes()), refused)
}

fn leave_stored(
    folder: &StagingFolder,
    name: &str,
    bytes: (Encoding, &[u8]),
    refused: Option<ErrorKind>,
) -> EntryId {
    leave_as(folder, name, bytes, refused, false)
}

fn leave_as(
    folder: &StagingFolder,
    name: &str,
    (encoding, bytes): (Encoding, &[u8]),
    refused: Option<ErrorKind>,
    is_new: bool,
) -> EntryId {
    let file = folder.new_file().expect("a staging file");
    file.write_all_at(bytes, 0).expect("room");
    let pending = Pending {
        key: key(name),
        content_type: Some("text/x-left; charset=utf-8".into()),
        encoding,
        if_match: refused
            .filter(|kind| *kind == ErrorKind::Changed)
            .map(|_| kvfs::store::ETag::new("\"long gone\"")),
        if_absent: false,
        size: bytes.len() as u64,
        is_new,
        closed_at: "2026-02-03T04:05:06Z".parse().expect("a time"),
        why: refused.map_or(Why::WriteBack, |kind| {
            Why::failed(&StoreError::new(kind, "the store did not like it"))
        }),
        attempts: 1,
        unanswered: Default::default(),
        began: None,
    };
    folder.journal().keep(&file, pending, true).expect("kept")
}

#[test]
fn what_waits_goes_to_another_machine_unencrypted_only_if_that_is_allowed() {
    let desk = Desk::new();
    // No address of this machine, though it leads there.
    let away = desk.server.url().replace("127.0.0.1", "0.0.0.0");
    let id = desk.server.entry.id.clone();
    let folder = StagingFolder::open(&StagingConfig {
        dir: desk.user.path("state/kvfs/staging"),
        scope: scope_name(&id),
        store: StoreFile {
            reference: "~test-store".into(),
            open: StoreRef::Remote(RemoteRef::Id(id)),
            api_url: Some(away.parse().expect("a URL")),
        },
        limit: None,
    });
    leave(&folder.expect("a folder"), "new", "text", None);
    desk.run(&["--upload"]).fails(5, &["--insecure-http"]);
    assert_eq!(desk.items().len(), 1);
    assert_eq!(desk.stored("new"), None);
    let uploaded = desk.run(&["--upload", "--insecure-http"]);
    assert_eq!(uploaded.code, 0, "{uploaded:?}");
    assert_eq!(desk.stored("new").as_deref(), Some("text"));
}

/// What is kept of a file that no version was known of.
#[test]
fn what_was_stored_since_a_dead_mount_closed_a_file_is_overwritten_only_by_id() {
    for is_new in [false, true] {
        let desk = Desk::new();
        let id = leave_as(
            &desk.folder(),
            "K",
            (Encoding::Identity, b"mine"),
            None,
            is_new,
        );
        desk.server.put_text("K", "theirs");
        let refused = desk.run(&["--upload"]);
        assert_ne!(refused.code, 0, "{is_new}: {refused:?}");
        assert_eq!(desk.stored("K").as_deref(), Some("theirs"), "{is_new}");
        assert_eq!(desk.items()[0]["state"], "kept", "{is_new}");
        let uploaded = desk.run(&["--upload", id.as_str()]);
        assert_eq!(uploaded.code, 0, "{is_new}: {uploaded:?}");
        assert_eq!(desk.stored("K").as_deref(), Some("mine"), "{is_new}");
        assert!(desk.items().is_empty());
    }
}

#[test]
fn what_a_dead_mount_left_is_listed_and_uploaded() {
    let desk = Desk::new();
    let nothing = desk.run(&[]);
    assert_eq!((nothing.code, nothing.out.as_str()), (0, ""));
    assert!(nothing.err.contains("nothing is waiting"), "{nothing:?}");

    desk.server.put_text("changed", "theirs");
    let folder = desk.folder();
    leave(&folder, "new", "closed in time", None);
    leave(&folder, "new", "closed last", None);
    let refused = leave(&folder, "changed", "mine", Some(ErrorKind::Changed));
    drop(folder);

    let items = desk.items();
    assert_eq!(items.len(), 3);
    assert_eq!(items[0]["state"], "waiting");
    assert_eq!(items[2]["id"], refused.as_str());
    assert_eq!(items[2]["store"], "~test-store");
    assert_eq!(items[2]["key"], "changed");
    assert_eq!(items[2]["size"], 4);
    assert_eq!(items[2]["closed_at"], "2026-02-03T04:05:06Z");
    assert_eq!(items[2]["state"], "kept");
    assert_eq!(items[2]["reason"], "the store did not like it");
    let listed = desk.run(&["--list"]).out;
    for expected in [
        "~test-store",
        "changed",
        "2026-02-03 04:05:06Z",
        refused.as_str(),
        "kept",
    ] {
        assert!(listed.contains(expected), "no {expected} in {listed}");
    }

    let uploaded = desk.run(&["--upload", "new"]);
    assert_eq!(uploaded.code, 0, "{uploaded:?}");
    assert_eq!(desk.stored("new").as_deref(), Some("closed last"));
    assert_eq!(
        desk.stored("changed").as_deref(),
        Some("theirs"),
        "not asked for"
    );
    for how in [&["--upload"][..], &["--upload", "changed"]] {
        desk.run(how).fails(
            1,
            &["the record has changed in the store", refused.as_str()],
        );
        assert_eq!(desk.stored("changed").as_deref(), Some("theirs"), "unasked");
    }
    let uploaded = desk.run(&["--upload", refused.as_str()]);
    assert_eq!(uploaded.code, 0, "{uploaded:?}");
    assert!(uploaded.err.contains("uploaded 1 file"), "{uploaded:?}");
    assert_eq!(
        desk.stored("changed").as_deref(),
        Some("mine"),
        "on purpose"
    );
    let meta = desk
        .server
        .store()
        .head(&key("changed"), soon())
        .expect("a record");
    assert_eq!(
        meta.content_type.as_deref(),
        Some("text/x-left; charset=utf-8")
    );
    assert!(desk.items().is_empty());
}

#[test]
fn what_a_mount_of_a_local_folder_left_is_stored_there() {
    let user = User::new();
    let store = user.path("storage");
    std::fs::create_dir_all(&store).expect("a folder");
    let open = StoreRef::Directory(store.clone());
    let folder = StagingFolder::open(&StagingConfig {
        dir: user.path("state/kvfs/staging"),
        scope: scope_name(&open.to_string()),
        store: StoreFile {
            reference: open.to_string(),
            open,
            api_url: None,
        },
        limit: None,
    })
    .expect("a staging folder");
    leave(&folder, "waiting.txt", "closed in time", None);
    leave(&folder, "kept.txt", "mine", Some(ErrorKind::Denied));
    drop(folder);
    let mut command = user.kvfs();
    let ran = ran(command
        .args(["recover", "--upload"])
        .output()
        .expect("kvfs runs"));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("uploaded 2 files"), "{ran:?}");
    for (name, text) in [("waiting.txt", "closed in time"), ("kept.txt", "mine")] {
        assert_eq!(
            std::fs::read_to_string(store.join(name)).expect("stored"),
            text
        );
    }
}

#[test]
fn what_cannot_be_uploaded_stays_and_says_why() {
    let desk = Desk::new();
    leave(&desk.folder(), "k", "text", None);
    let mut command = desk.user.kvfs();
    command
        .args(["recover", "--upload"])
        .env("APIFY_TOKEN", "wrong");
    ran(command.output().expect("kvfs runs")).fails(5, &["cannot open the store ~test-store"]);
    assert_eq!(desk.items().len(), 1);

    let small = TestServer::start_with(|config| config.limits.record = Some(2));
    let desk = Desk {
        server: small,
        user: User::new(),
    };
    leave(&desk.folder(), "k", "text", None);
    desk.run(&["--upload"]).fails(
        1,
        &[
            "1 of 1 could not be uploaded",
            "the first of them k",
            "the bytes are still safe in",
        ],
    );
    let items = desk.items();
    assert_eq!(items[0]["state"], "kept");
    assert!(
        items[0]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("record-too-large")),
        "{items:?}"
    );
}

#[test]
fn only_what_is_named_is_dropped() {
    let desk = Desk::new();
    let folder = desk.folder();
    let first = leave(&folder, "a", "text", None);
    leave(&folder, "b", "text", Some(ErrorKind::TooLarge));
    leave(&folder, "c", "text", None);
    drop(folder);
    desk.run(&["--discard"]).fails(2, &["name them", "--all"]);
    desk.run(&["--discard", "unknown"])
        .fails(1, &["no file of 'unknown'"]);
    assert_eq!(desk.items().len(), 3);
    let dropped = desk.run(&["--discard", first.as_str(), "b"]);
    assert!(dropped.err.contains("dropped 2 files"), "{dropped:?}");
    assert_eq!(desk.items().len(), 1);
    let dropped = desk.run(&["--discard", "--all"]);
    assert!(dropped.err.contains("dropped 1 file"), "{dropped:?}");
    assert!(desk.items().is_empty());
    assert_eq!(desk.server.counts().put, 0);
}

#[test]
fn what_a_living_mount_has_is_left_to_it() {
    let desk = Desk::new();
    let living = desk.folder();
    leave(&living, "its", "text", None);
    let items = desk.items();
    assert_eq!(items[0]["owner_pid"], std::process::id());
    let uploaded = desk.run(&["--upload"]);
    assert_eq!(uploaded.code, 0, "{uploaded:?}");
    let dropped = desk.run(&["--discard", "--all"]);
    assert!(
        dropped.err.contains("a mount is uploading them"),
        "{dropped:?}"
    );
    assert_eq!(desk.items().len(), 1);
    assert_eq!(desk.server.counts().put, 0);
    // What it gave up is asked for, and this test is no daemon that could be asked.
    leave(&living, "refused", "text", Some(ErrorKind::TooLarge));
    desk.run(&["--upload"])
        .fails(1, &["has the files and is no mount"]);
    assert_eq!(desk.items().len(), 2);
}

#[test]
fn what_decodes_to_much_is_uploaded_as_it_is_stored() {
    let desk = Desk::new();
    let folder = desk.folder();
    let left = (Encoding::Brotli, bomb());
    leave_stored(&folder, "bomb", left, Some(ErrorKind::Quota));
    drop(folder);
    for args in [&["recover"][..], &["recover", "--upload"]] {
        let done = ran(limited(&desk.user, args).output().expect("a shell"));
        assert_eq!(done.code, 0, "{done:?}");
    }
    let found = desk
        .server
        .store()
        .get(&key("bomb"), &Default::default(), soon());
    let Ok(kvfs::store::GetOutcome::Found(mut found)) = found else {
        panic!("{found:?}");
    };
    let mut bytes = Vec::new();
    found.body.read_to_end(&mut bytes).expect("its bytes");
    assert!(bytes == bomb());
}
