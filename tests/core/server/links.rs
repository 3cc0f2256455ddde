//! Programs that share the folder put links, pipes and devices into it while it is served: none of
//! them leads out, and none holds the server up.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kvfs::base::clock::Deadline;
use kvfs::local::{Access, DirectoryStore};
use kvfs::server::{GeneralAccess, Server, ServerConfig};
use kvfs::store::{ListQuery, Store};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

use super::{bytes, client, owner, send};
use crate::support::served::{TOKEN, TestServer, key, soon};

/// Clients that ask all the time, and for how long.
const CLIENTS: usize = 6;
const LOAD: Duration = Duration::from_secs(8);

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
    let [exchanged, read, refused] = [0, 0, 0].map(AtomicUsize::new);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Which it is at a moment is a matter of luck: a folder, or a link out.
            for what in [&sub, &store, &stores].into_iter().cycle() {
                let aside = what.with_extension("aside");
                symlink(&outside, &aside).expect("a link");
                for _ in 0..2 {
                    renameat_with(CWD, what, CWD, &aside, RenameFlags::EXCHANGE)
                        .expect("an exchange");
                    std::thread::yield_now();
                }
                fs::remove_file(&aside).expect("the link is back");
                exchanged.fetch_add(1, Ordering::Relaxed);
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for client_number in 0..CLIENTS {
            let (server, over, read, refused) = (&server, &over, &read, &refused);
            scope.spawn(move || {
                let client = client();
                let count = |status: reqwest::StatusCode| {
                    let counter = if status.is_success() { read } else { refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                };
                let record = |key: &str| server.record_url(key);
                let stores = format!("{}/v2/key-value-stores", server.url());
                let mut round = client_number;
                while !over.load(Ordering::Relaxed) {
                    round += 1;
                    for name in ["sub%2Fprecious", "precious", "precious.txt", "mine"] {
                        let got = send(client.get(record(name)).bearer_auth(TOKEN));
                        count(got.status());
                        assert_ne!(bytes(got), b"precious", "{name}");
                    }
                    let name = format!("{stores}?name=made-{}", round % 5);
                    let renamed = format!(r#"{{"title":"round {round}"}}"#);
                    let requests = [
                        client.delete(record("sub%2Fprecious")),
                        client.put(record(&format!("new{}", round % 7))).body("new"),
                        client.delete(record(&format!("new{}", (round + 3) % 7))),
                        client.get(server.store_url()),
                        client.get(format!("{}/keys", server.store_url())),
                        client.put(server.store_url()).body(renamed),
                        client.post(name),
                        client.delete(format!("{stores}/local~made-{}", (round + 1) % 5)),
                        client.get(&stores),
                    ];
                    for request in requests {
                        count(send(request.bearer_auth(TOKEN)).status());
                    }
                    // Archives break off where a record vanishes.
                    let archive = client.get(format!("{}/records", server.store_url()));
                    let archive = archive.bearer_auth(TOKEN).send();
                    if let Ok(archive) = archive.and_then(|archive| archive.bytes()) {
                        let mut sum = flate2::Crc::new();
                        sum.update(b"precious");
                        let sum = sum.sum().to_le_bytes();
                        assert!(!archive.windows(4).any(|bytes| bytes == sum));
                    }
                }
            });
        }
        std::thread::sleep(LOAD);
        over.store(true, Ordering::Relaxed);
    });
    // All of it happened, and mostly at the same time.
    let [exchanged, read, refused] = [exchanged, read, refused].map(AtomicUsize::into_inner);
    assert!(
        exchanged > 100 && read > 100 && refused > 100,
        "{exchanged} exchanges, {read} answers, {refused} refusals"
    );
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
