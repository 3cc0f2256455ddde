//! Sizes: of decoded contents, of stored bytes, and a very large one.

use std::fs;

use super::{SAMPLES, Twins};
use crate::support::mounted::MountedSession;

#[test]
fn with_exact_sizes_stat_is_right_before_anything_was_opened() {
    let twins = Twins::new();
    let mount = MountedSession::with(twins.store.clone(), |config| config.exact_sizes = true);
    twins.agree_in(&mount, "ls -l | awk '{print $5, $9}'");
    twins.agree_in(&mount, "find . -type f -size +4096c | sort");
    let folder = twins.folder.path().display();
    assert_eq!(mount.works(&format!("git diff --no-index {folder} .")), "");
    let other = MountedSession::with(twins.store.clone(), |config| config.exact_sizes = true);
    twins.agree_in(&other, "stat -c '%n %s' *");
}

#[test]
fn exact_sizes_are_known_again_after_a_remount() {
    let twins = Twins::new();
    let cache = tempfile::tempdir().expect("a folder");
    let open = || {
        MountedSession::with(twins.store.clone(), |config| {
            if let Some(disk) = &mut config.disk_cache {
                disk.dir = cache.path().to_owned();
            }
        })
    };
    let first = open();
    first.works("cat * >/dev/null");
    first.unmount();
    let second = open();
    twins.agree_in(&second, "ls -l | awk '{print $5, $9}'");
    assert_eq!(second.counters().requests_total, 0);
}

#[test]
fn raw_mounts_show_stored_bytes_and_their_sizes() {
    let twins = Twins::new();
    let raw = Twins {
        store: twins.store.clone(),
        folder: tempfile::tempdir().expect("a folder"),
    };
    for sample in &*SAMPLES {
        fs::write(raw.folder.path().join(&sample.name), &sample.stored).expect("a file");
    }
    let mount = MountedSession::with(raw.store.clone(), |config| config.raw = true);
    raw.agree_in(&mount, "ls -l | awk '{print $5, $9}'");
    raw.agree_in(&mount, "md5sum *");
    raw.agree_in(&mount, "gunzip -c <grows-4096.gzip | md5sum");
    raw.agree_in(
        &mount,
        "tar cf - . | tar xf - -C $OUT && cd $OUT && md5sum *",
    );
}

#[test]
fn a_record_of_two_gibibytes_can_be_read_anywhere() {
    const SIZE: u64 = (2 << 30) + 4097;
    let folder = tempfile::tempdir().expect("a folder");
    let file = fs::File::create(folder.path().join("huge.bin")).expect("a record");
    file.set_len(SIZE).expect("a sparse file");
    use std::os::unix::fs::FileExt;
    let marks = [0, 1 << 20, (1 << 30) - 3, 1 << 31, SIZE - 5];
    for at in marks {
        file.write_all_at(&at.to_le_bytes()[..5], at)
            .expect("a mark");
    }
    let reference = kvfs::store::reference::StoreRef::Directory(folder.path().to_owned());
    let mount = MountedSession::opened(crate::support::mounted::open_config(reference), |config| {
        if let Some(disk) = &mut config.disk_cache {
            disk.size = kvfs::base::units::ByteSize(64 << 20);
        }
    });
    assert_eq!(mount.works("stat -c %s huge"), SIZE.to_string());
    let huge = fs::File::open(mount.file("huge")).expect("a file");
    for at in marks.into_iter().rev() {
        let mut bytes = [0; 5];
        huge.read_exact_at(&mut bytes, at).expect("bytes");
        assert_eq!(bytes, at.to_le_bytes()[..5]);
    }
    drop(huge);
    assert_eq!(mount.works("wc -c <huge"), SIZE.to_string());
    assert_eq!(
        mount.works("tail -c 5000 huge | md5sum"),
        mount.works(&format!(
            "tail -c 5000 {} | md5sum",
            folder.path().join("huge.bin").display()
        ))
    );
    // All that lies past the second gibibyte, and a good deal before it.
    let from = SIZE - (300 << 20);
    mount.works(&format!(
        "cmp -i {from} huge {}",
        folder.path().join("huge.bin").display()
    ));
}
