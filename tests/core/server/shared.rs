//! Two servers, each a process of its own, over one folder.

use std::sync::{Arc, Barrier};

use serde_json::Value;

use super::process::Served;
use super::{client, data, send};
use crate::support::served::TOKEN;

/// How often both are asked at once.
const ROUNDS: usize = 12;

/// Asks both servers at once.
fn at_once<T: Send>(servers: &[Served; 2], ask: impl Fn(&Served) -> T + Sync) -> [T; 2] {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        servers
            .each_ref()
            .map(|server| {
                scope.spawn(|| {
                    barrier.wait();
                    ask(server)
                })
            })
            .map(|asking| asking.join().expect("an answer"))
    })
}

#[test]
fn a_name_that_two_servers_make_at_once_is_one_store() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let servers = [(); 2].map(|()| Served::over(&folder, &[]));
    for round in 0..ROUNDS {
        let made = at_once(&servers, |server| {
            let post = format!("{}/v2/key-value-stores?name=n{round}", server.url);
            let answer = send(client().post(post).bearer_auth(TOKEN));
            (answer.status().as_u16(), data(answer)["id"].clone())
        });
        let [(one, id), (other, same)] = &made;
        assert_eq!(id, same, "{round}");
        assert_eq!(one + other, 201 + 200, "{round}: {made:?}");
        let id = id.as_str().expect("an id");
        for server in &servers {
            let store = format!("{}/v2/key-value-stores/{id}", server.url);
            let record = format!("{store}/records/k");
            let put = client().put(&record).bearer_auth(TOKEN).body("x");
            assert_eq!(send(put).status(), 201, "{round}");
            let name: Value = data(send(client().get(store).bearer_auth(TOKEN)))["name"].clone();
            assert_eq!(name, format!("n{round}"));
        }
    }
}

/// What one deletes while the other writes into it is gone for both, and no server's fault.
#[test]
fn a_store_that_one_server_deletes_takes_no_records_at_the_other() {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let servers = [(); 2].map(|()| Served::over(&folder, &[]));
    for round in 0..ROUNDS {
        let store = servers[0].store(&format!("d{round}"));
        let path = store.trim_start_matches(&servers[0].url).to_owned();
        let statuses = at_once(&servers, |server| {
            let store = format!("{}{path}", server.url);
            let request = match std::ptr::eq(server, &raw const servers[0]) {
                true => client().delete(store),
                false => client().put(format!("{store}/records/k")).body("x"),
            };
            send(request.bearer_auth(TOKEN)).status().as_u16()
        });
        assert_eq!(statuses[0], 204, "{round}");
        assert!([201, 404].contains(&statuses[1]), "{round}: {statuses:?}");
        for server in &servers {
            let gone = client()
                .get(format!("{}{path}", server.url))
                .bearer_auth(TOKEN);
            assert_eq!(send(gone).status(), 404, "{round}");
        }
    }
    let left = std::fs::read_dir(folder.path().join("storage/key_value_stores"));
    let left: Vec<_> = left
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    // The store that is made at the start for mounting.
    assert!(left.iter().all(|name| name == "default"), "{left:?}");
}
