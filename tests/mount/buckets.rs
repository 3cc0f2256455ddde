//! `kvfs mount s3://…`: a store of a bucket, without a server between.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use kvfs::bucket::{Bucket, Description};
use kvfs::store::{Encoding, PutRequest, Store, Upload};

use super::daemon::User;
use crate::support::mounted::MountedSession;
use crate::support::served::{encode, key, soon};
use crate::support::storage;

fn put(store: &dyn Store, name: &str, encoding: Encoding, content: &[u8]) {
    let stored = encode(&encoding, content);
    let request = PutRequest {
        content_type: Some("text/plain".into()),
        encoding,
        ..PutRequest::default()
    };
    store
        .put(&key(name), &request, Upload::Bytes(&stored), soon())
        .expect("a put");
}

fn store_of(bucket: &Bucket) -> (Description, Arc<dyn Store>) {
    let new = Description {
        id: "AbcdefghijklmnopQ".into(),
        name: Some("results".into()),
        ..Description::default()
    };
    let (made, _) = bucket.create(&new, soon()).expect("a store");
    let store = bucket.store(&made);
    (made, Arc::new(store))
}

fn text(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).expect("a record")
}

#[test]
fn a_store_of_a_bucket_is_mounted_by_name_and_by_id() {
    let storage = storage::s3();
    let address = storage.address();
    let bucket = Bucket::open(&address, &storage.options()).expect("a bucket");
    let (made, store) = store_of(&bucket);
    put(&*store, "plain", Encoding::Identity, b"hello");
    put(
        &*store,
        "encoded",
        Encoding::Gzip,
        &b"again and ".repeat(1000),
    );
    let user = User::new();
    for name in ["results", &made.id] {
        let mut mount = user.command(&["mount", &format!("{address}/{name}"), "mnt"]);
        let output = mount.envs(storage.variables()).output().expect("kvfs runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let folder = user.path("mnt");
        assert_eq!(text(&folder, "plain"), "hello");
        assert_eq!(text(&folder, "encoded"), "again and ".repeat(1000));
        let listed = fs::read_dir(&folder).expect("a listing").count();
        assert_eq!(listed, 2);
        let shown = &user.status()[0];
        assert_eq!(shown["store_id"], made.id.as_str(), "{shown}");
        user.works(&["unmount", "mnt"]);
    }
    let mut wrong = user.command(&["mount", &format!("{address}/other"), "mnt"]);
    let output = wrong.envs(storage.variables()).output().expect("kvfs runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("has no store other"), "{said}");
    assert!(said.contains("hint: "), "{said}");
}

/// S3 tells equal bytes of another encoding not apart; kvfs does.
#[test]
fn equal_stored_bytes_of_another_encoding_are_another_version() {
    let bucket = storage::s3().bucket();
    let (_, store) = store_of(&bucket);
    let mounted = MountedSession::with(Arc::clone(&store), |config| {
        config.ttl = Some(std::time::Duration::ZERO);
    });
    let bytes = encode(&Encoding::Gzip, b"content");
    put(&*store, "k", Encoding::Gzip, b"content");
    let path = mounted.file("k");
    assert_eq!(fs::read(&path).expect("a record"), b"content");
    put(&*store, "k", Encoding::Identity, &bytes);
    assert_eq!(fs::read(&path).expect("a record"), bytes);
    // A record of more than one part of an upload, in pieces.
    let large: Vec<u8> = (0..20u32 << 20).map(|n| (n >> 8) as u8).collect();
    put(&*store, "large", Encoding::Identity, &large);
    assert_eq!(fs::read(mounted.file("large")).expect("a record"), large);
}
