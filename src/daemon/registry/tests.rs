use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn entry(mount_point: &Path, process: process::ProcessId) -> Entry {
    Entry {
        mount_point: mount_point.to_path_buf(),
        store: "~mine".into(),
        process,
        started_unix_s: 1,
        log_file: None,
        control: "/run/x.sock".into(),
        version: "0".into(),
    }
}

fn dead() -> process::ProcessId {
    process::ProcessId {
        start_ticks: 1,
        ..process::ProcessId::current()
    }
}

#[test]
fn a_registered_mount_is_found_until_its_lock_is_dropped() {
    let dir = tempfile::tempdir().expect("a folder");
    let registry = Registry::new(dir.path().join("kvfs"), Vec::new());
    let point = Path::new("/mnt/a b");
    assert_eq!(registry.entries(), []);
    let lock = registry.lock(point).expect("a lock");
    let mine = entry(point, process::ProcessId::current());
    lock.register(&mine).expect("a state file");
    assert_eq!(registry.find(point), Some(mine.clone()));
    assert_eq!(registry.find(Path::new("/mnt/a b/")), Some(mine.clone()));
    assert_eq!(registry.entries(), [mine]);
    registry.clean(point);
    assert!(registry.find(point).is_some(), "it lives");
    assert_eq!(
        registry.lock(point).expect_err("held").kind(),
        io::ErrorKind::WouldBlock
    );
    drop(lock);
    assert_eq!(registry.find(point), None);
    assert_eq!(
        fs::read_dir(dir.path().join("kvfs")).expect("it").count(),
        0
    );
}

#[test]
fn what_a_killed_daemon_left_is_cleaned() {
    let dir = tempfile::tempdir().expect("a folder");
    let registry = Registry::new(dir.path().join("kvfs"), Vec::new());
    let point = Path::new("/mnt/a");
    let lock = registry.lock(point).expect("a lock");
    lock.register(&entry(point, dead())).expect("a state file");
    // A killed process loses its lock but not its files.
    flock(&lock._file, FlockOperation::Unlock).expect("unlocked");
    std::mem::forget(lock);
    assert!(registry.find(point).is_some_and(|entry| !entry.is_alive()));
    registry.clean(point);
    assert_eq!(registry.find(point), None);
}

#[test]
fn mounts_registered_elsewhere_are_found_and_the_live_one_wins() {
    let dir = tempfile::tempdir().expect("a folder");
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    let point = Path::new("/mnt/a");
    let elsewhere = Registry::new(there.clone(), Vec::new());
    let live = elsewhere.lock(point).expect("a lock");
    live.register(&entry(point, process::ProcessId::current()))
        .expect("a state file");
    let registry = Registry::new(here, vec![there]);
    let stale = registry.lock(point).expect("a lock");
    stale.register(&entry(point, dead())).expect("a state file");
    assert!(registry.find(point).is_some_and(|entry| entry.is_alive()));
    let all = registry.entries();
    assert_eq!(all.len(), 1);
    assert!(all[0].is_alive());
}

#[test]
fn a_state_folder_that_others_could_write_to_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = dir.path().join("open");
    fs::create_dir(&open).expect("a folder");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755)).expect("a mode");
    let link = dir.path().join("link");
    symlink(dir.path(), &link).expect("a link");
    for bad in [open, link] {
        let error = Registry::new(bad, Vec::new())
            .lock(Path::new("/mnt/a"))
            .expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}

#[test]
fn files_are_private() {
    let dir = tempfile::tempdir().expect("a folder");
    let state = dir.path().join("a/b/kvfs");
    let registry = Registry::new(state.clone(), Vec::new());
    let lock = registry.lock(Path::new("/mnt/a")).expect("a lock");
    lock.register(&entry(Path::new("/mnt/a"), dead()))
        .expect("a state file");
    let mode = |path: &Path| fs::metadata(path).expect("it").permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for item in fs::read_dir(&state).expect("it") {
        assert_eq!(mode(&item.expect("it").path()), 0o600);
    }
}
