//! Several servers over a real S3 implementation whose answers are late, lost and repeated.
#![allow(clippy::never_loop, reason = "the first finding ends the test")]

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use kvfs::bucket::{Bucket, Description, Options};
use kvfs::store::{ErrorKind, GetOutcome, GetRequest, ListQuery, PutRequest, Store, Upload};

use crate::support::served::{key, soon};
use crate::support::storage;

/// What each client asks for.
const STEPS: usize = 40;

/// Starts a proxy that now and then loses, delays or repeats; returns its address. It ends with
/// the tests.
fn unreliable(storage: &str, seed: u64) -> String {
    let to = storage.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (Ok(client), to) = (client, to.clone()) else {
                return;
            };
            let rng = Rng::with_seed(seed ^ number as u64);
            // A connection that breaks is what this is for.
            std::thread::spawn(move || serve(client, &to, rng).is_ok());
        }
    });
    format!("http://{address}")
}

fn serve(mut client: TcpStream, to: &str, mut rng: Rng) -> io::Result<()> {
    while let Some(request) = request(&mut client)? {
        let fate = rng.u32(..100);
        if fate < 6 {
            std::thread::sleep(Duration::from_millis(rng.u64(..60)));
        }
        let mut answer = ask(to, &request)?;
        match fate {
            // Done, but nobody hears of it.
            10..13 => return Ok(()),
            13..16 => {
                let busy = "<Error><Code>SlowDown</Code></Error>";
                let length = busy.len();
                answer = format!(
                    "HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\n\
                     content-length: {length}\r\n\r\n{busy}"
                )
                .into_bytes();
            }
            // Done twice.
            16..19 => answer = ask(to, &request)?,
            _ => {}
        }
        client.write_all(&answer)?;
        // The storage says no more on its connection, and how long bodies are it may not have said.
        return Ok(());
    }
    Ok(())
}

/// Reads a whole request; `None` at the end.
fn request(client: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Ok(None);
        }
        request.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    // Said once: the storage hangs up behind its answer.
    request.truncate(request.len() - 2);
    request.extend_from_slice(b"connection: close\r\n\r\n");
    request.extend(body);
    Ok(Some(request))
}

/// Has the storage answer one request at a time: moto looks whether an object is there and puts it
/// afterwards, so that two requests at once both meet `If-None-Match: *`. S3 lets one of them win.
fn ask(to: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut storage = TcpStream::connect(to)?;
    storage.write_all(request)?;
    let mut answer = Vec::new();
    storage.read_to_end(&mut answer)?;
    Ok(answer)
}

/// What clients were told.
#[derive(Debug, Default)]
struct Told {
    made: HashSet<String>,
    /// Stores whose deletion was asked for, and those where it was confirmed.
    doomed: HashSet<String>,
    gone: HashSet<String>,
    /// Records that were confirmed.
    records: HashMap<(String, String), Vec<u8>>,
}

#[test]
fn faults_of_a_real_storage_mix_up_no_stores() {
    let storage = storage::s3();
    for seed in 0..2 {
        let address = storage.address();
        let proxy = unreliable(&storage.url, seed);
        let through = |(name, value): (String, String)| match value == storage.url {
            true => (name, proxy.clone()),
            false => (name, value),
        };
        let options: Options = storage.variables().into_iter().map(through).collect();
        let told = Mutex::new(Told::default());
        std::thread::scope(|scope| {
            for at in 0..3 {
                let bucket = Bucket::open(&address, &options).expect("a bucket");
                let told = &told;
                scope.spawn(move || client(&bucket, at, Rng::with_seed(seed * 8 + at), told));
            }
        });
        let told = told.into_inner().expect("no panic");
        assert!(!told.made.is_empty() && !told.records.is_empty());
        judge(
            &Bucket::open(&address, &storage.options()).expect("a bucket"),
            &told,
        );
    }
}

fn client(bucket: &Bucket, at: u64, mut rng: Rng, told: &Mutex<Told>) {
    let told = || told.lock().expect("no panic");
    let mut mine: Option<Description> = None;
    for step in 0..STEPS {
        let name = ["a", "b"][rng.usize(..2)];
        let Some(store) = mine.clone().filter(|_| rng.u32(..4) > 0) else {
            let new = Description {
                id: format!("C{at}S{step}xxxxxxxxxxx"),
                name: Some(name.to_owned()),
                ..Description::default()
            };
            // What another client deletes while this one asks is no fault.
            let gone = told().gone.clone();
            if let Ok((made, _)) = bucket.create(&new, soon()) {
                assert_eq!(
                    made.name.as_deref(),
                    Some(name),
                    "a store that is not called so"
                );
                assert!(!gone.contains(&made.id), "a deleted store came back");
                told().made.insert(made.id.clone());
                mine = Some(made);
            }
            continue;
        };
        match rng.u32(..10) {
            0 => {
                told().doomed.insert(store.id.clone());
                if matches!(bucket.remove(&store.id, soon()), Ok(true)) {
                    told().gone.insert(store.id.clone());
                }
                mine = None;
            }
            1..4 => {
                // Whether it may have the name is the others' affair.
                let _ = bucket.change(&store.id, |store| store.name = Some(name.into()), soon());
            }
            _ => {
                let (record, value) = (format!("r{at}"), format!("{at}-{step}").into_bytes());
                let gone = told().gone.contains(&store.id);
                let put = bucket.store(&store).put(
                    &key(&record),
                    &PutRequest::default(),
                    Upload::Bytes(&value),
                    soon(),
                );
                let place = (store.id.clone(), record);
                match put {
                    Ok(_) => {
                        assert!(!gone, "a write into a deleted store was confirmed");
                        told().records.insert(place, value);
                    }
                    // It may be done all the same.
                    Err(error) if error.kind() != ErrorKind::StoreNotFound => {
                        told().records.remove(&place);
                    }
                    Err(_) => mine = None,
                }
            }
        }
    }
}

fn judge(bucket: &Bucket, told: &Told) {
    let stores = bucket.descriptions(soon()).expect("a list");
    let named: Vec<&str> = stores
        .iter()
        .filter_map(|store| store.name.as_deref())
        .collect();
    let unique: HashSet<&str> = named.iter().copied().collect();
    assert_eq!(
        named.len(),
        unique.len(),
        "two stores of one name: {stores:?}"
    );
    for name in unique {
        let found = bucket.named(None, name, Duration::ZERO, soon());
        let found = found.expect("an answer").expect("the store of the name");
        assert_eq!(found.name.as_deref(), Some(name));
    }
    for id in told.made.difference(&told.doomed) {
        assert!(stores.iter().any(|store| store.id == *id), "{id} is gone");
    }
    for store in &stores {
        assert!(
            !told.gone.contains(&store.id),
            "{} is there again",
            store.id
        );
        let records = bucket.store(store);
        records
            .list_page(&ListQuery::default(), soon())
            .expect("a page");
        for ((id, record), value) in &told.records {
            if *id != store.id || told.doomed.contains(id) {
                continue;
            }
            let got = records.get(&key(record), &GetRequest::default(), soon());
            let Ok(GetOutcome::Found(mut fetched)) = got else {
                panic!("{id}/{record} is gone");
            };
            let mut bytes = Vec::new();
            fetched.body.read_to_end(&mut bytes).expect("a body");
            assert_eq!(bytes, *value, "{id}/{record}");
        }
    }
}
