//! Programs that share the folder put links, pipes and devices into it while it is served: none of
//! them leads out, and none holds the server up.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvfs::base::clock::Deadline;
use kvfs::local::{Access, DirectoryStore};
use kvfs::server::{GeneralAccess, Server, ServerConfig};
use kvfs::store::{ListQuery, Store};
use tempfile::TempDir;

use super::{bytes, client, owner, send};
use crate::support::served::{TOKEN, TestServer, key, soon};

/// A folder beside what is served, with what nobody may see or lose.
fn outside() -> (TempDir, PathBuf) {
    let outside = tempfile::tempdir().expect("a folder");
    let path = outside.path().canonicalize().expect("a path");
    fs::write(path.join("precious.txt"), "precious").expect("a file");
    (outside, path)
}

#[track_caller]
fn is_as_it_was(outside: &Path) {
    let names: Vec<_> = fs::read_dir(outside)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["precious.txt"]);
    let content = fs::read(outside.join("precious.txt")).expect("the file");
    assert_eq!(content, b"precious");
}

fn exchange(link: &Path, target: &Path) {
    fs::rename(link, link.with_extension("gone")).expect("a move");
    symlink(target, link).expect("a link");
}

/// Asks for everything that reads, changes or deletes, behind an exchanged link.
fn attack(store: &dyn Store, keys: &[&str]) {
    for name in keys {
        let key = key(name);
        let _ = store.get(&key, &Default::default(), soon());
        let _ = store.head(&key, soon());
        let _ = store.delete(&key, soon());
        let request = kvfs::store::PutRequest::default();
        let _ = store.put(&key, &request, kvfs::store::Upload::Bytes(b"new"), soon());
    }
    if let Ok(page) = store.list_page(&ListQuery::default(), soon()) {
        for item in page.items {
            assert_ne!(item.stored_size, Some(8), "{}", item.key);
        }
    }
}

#[test]
fn a_link_in_place_of_a_sub_folder_leads_nowhere() {
    let (_kept, outside) = outside();
    let folder = tempfile::tempdir().expect("a folder");
    let sub = folder.path().join("sub");
    fs::create_dir(&sub).expect("a folder");
    // Large enough that the index of it is believed for a while.
    for n in 0..300 {
        fs::write(folder.path().join(format!("r{n}.txt")), "x").expect("a file");
    }
    fs::write(sub.join("precious.txt"), "other").expect("a file");
    let store = DirectoryStore::open(folder.path(), Access::ReadWrite).expect("a store");
    assert!(store.head(&key("sub/precious"), soon()).is_ok());
    exchange(&sub, &outside);
    attack(&store, &["sub/precious", "sub/precious.txt", "sub/new"]);
    is_as_it_was(&outside);
}

#[test]
fn a_link_in_place_of_the_folder_itself_leads_nowhere() {
    let (_kept, outside) = outside();
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("store");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("precious.txt"), "other").expect("a file");
    let store = DirectoryStore::open(&folder, Access::ReadWrite).expect("a store");
    assert!(store.head(&key("precious"), soon()).is_ok());
    exchange(&folder, &outside);
    attack(&store, &["precious", "precious.txt", "new"]);
    let gone = store.head(&key("precious"), soon()).expect_err("a link");
    assert_eq!(gone.kind(), kvfs::store::ErrorKind::StoreNotFound, "{gone}");
    is_as_it_was(&outside);
}

#[test]
fn links_that_come_and_go_while_the_folder_is_served_lead_nowhere() {
    let (_kept, outside) = outside();
    let server = TestServer::start_with(|config| {
        config.general_access = GeneralAccess::AnyoneWithNameCanRead;
    });
    server.put_text("mine", "mine");
    let stores = server.folder.path().join("key_value_stores");
    let store = server.store_folder();
    let sub = store.join("sub");
    fs::create_dir(&sub).expect("a folder");
    fs::write(sub.join("precious.txt"), "other").expect("a file");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Which it is at a moment is a matter of luck: a folder, a link out, or nothing.
            let mut turn = 0;
            while !over.load(Ordering::Relaxed) {
                let what = [&sub, &store, &stores][turn % 3];
                let aside = what.with_extension("aside");
                let moved = fs::rename(what, &aside).is_ok();
                if moved && symlink(&outside, what).is_ok() {
                    std::thread::yield_now();
                    let _ = fs::remove_file(what);
                }
                if moved {
                    fs::rename(&aside, what).expect("the folder comes back");
                }
                turn += 1;
            }
        });
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            let record = |key: &str| server.record_url(key);
            for name in ["sub%2Fprecious", "precious", "precious.txt", "mine"] {
                let got = send(client().get(record(name)).bearer_auth(TOKEN));
                assert_ne!(bytes(got), b"precious", "{name}");
                send(client().delete(record("sub%2Fprecious")).bearer_auth(TOKEN));
                send(client().put(record("new")).bearer_auth(TOKEN).body("new"));
            }
            send(client().get(format!("{}/keys", server.store_url())));
        }
        over.store(true, Ordering::Relaxed);
    });
    is_as_it_was(&outside);
    let delete = client().delete(server.store_url()).bearer_auth(TOKEN);
    assert_eq!(send(delete).status(), 204);
    is_as_it_was(&outside);
}

#[test]
fn a_folder_whose_stores_lie_outside_is_refused() {
    let (_kept, outside) = outside();
    let folder = tempfile::tempdir().expect("a folder");
    symlink(&outside, folder.path().join("key_value_stores")).expect("a link");
    let error = Server::start(ServerConfig::new(folder.path())).expect_err("a link");
    assert!(error.to_string().contains("leads out"), "{error}");
    is_as_it_was(&outside);
}

#[test]
fn metadata_files_of_any_kind_hold_nothing_up_and_tell_nothing() {
    let (_kept, outside) = outside();
    let told = r#"{"id":"QwErTyUiOpAsDfGhJ","name":"told","title":"from outside"}"#;
    fs::write(outside.join("precious.txt"), told).expect("a file");
    let server = TestServer::start();
    let stores = server.folder.path().join("key_value_stores");
    let metadata = |name: &str| {
        fs::create_dir(stores.join(name)).expect("a folder");
        stores.join(name).join("__metadata__.json")
    };
    let pipe = metadata("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.expect("mkfifo").success());
    symlink("/dev/zero", metadata("zero")).expect("a link");
    symlink(outside.join("precious.txt"), metadata("told-by")).expect("a link");
    symlink("__metadata__.json", metadata("circle")).expect("a link");
    fs::create_dir(metadata("folder")).expect("a folder");
    fs::File::create(metadata("huge"))
        .and_then(|file| file.set_len(1 << 40))
        .expect("a file");
    let until = Deadline::after(Duration::from_secs(60));
    for path in ["QwErTyUiOpAsDfGhJ", "local~told", "AAAAAAAAAAAAAAAAA"] {
        let got = owner(&server, &format!("/v2/key-value-stores/{path}"));
        assert_eq!(got.status(), 404, "{path}");
    }
    let all = owner(&server, "/v2/key-value-stores?unnamed=1");
    let all = String::from_utf8(bytes(all)).expect("text");
    assert!(!all.contains("from outside"), "{all}");
    assert!(until.remaining().is_some(), "it took a minute");
}
