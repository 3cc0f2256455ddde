//! Disks under the cache and under staging that are full, read-only, or taken away.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvfs::base::units::ByteSize;
use kvfs::local::fault::{Call, FaultStore};
use kvfs::local::memory::MemoryStore;
use kvfs::mount::build::DiskCacheConfig;
use kvfs::store::{Encoding, ErrorKind, Store};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use tempfile::TempDir;

use crate::support::mounted::{MountedSession, eventually, make_writable, pattern};
use crate::support::served::{key, soon};

/// A small disk in memory. Only root can make one, as these tests' mounts can only be made by root.
struct Disk(TempDir);

impl Disk {
    fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = std::ffi::CString::new(format!("size={size},mode=700")).expect("no NUL");
        mount(
            "none",
            folder.path(),
            "tmpfs",
            MountFlags::empty(),
            &*options,
        )
        .expect("a tmpfs");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills what is left, to the last block.
    fn fill(&self) {
        let rubbish = self.path().join("rubbish");
        let mut rubbish = fs::File::options()
            .create(true)
            .append(true)
            .open(rubbish)
            .expect("a file");
        while rubbish.write_all(&[7; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path().join("rubbish")).expect("a file");
    }

    fn make_read_only(&self) {
        // Not while something is being written to it.
        eventually("it is read-only", || {
            mount_remount(self.path(), MountFlags::RDONLY, "").is_ok()
        });
    }

    /// Makes it read-only although files on it are open for writing, as errors of a disk do: by a
    /// view of it that lies on top.
    fn cover_read_only(&self) {
        mount_bind(self.path(), self.path()).expect("a second view");
        mount_remount(self.path(), MountFlags::BIND | MountFlags::RDONLY, "").expect("a remount");
    }

    fn uncover(&self) {
        unmount(self.path(), UnmountFlags::DETACH).expect("an unmount");
    }

    fn make_writable(&self) {
        mount_remount(self.path(), MountFlags::empty(), "").expect("a remount");
    }

    /// Takes it away, to another place; nothing is lost from it.
    fn take_away(&self) -> Self {
        let away = Self(tempfile::tempdir().expect("a folder"));
        mount_bind(self.path(), away.path()).expect("a second view");
        unmount(self.path(), UnmountFlags::DETACH).expect("an unmount");
        away
    }

    fn bring_back(&self, away: Self) {
        mount_bind(away.path(), self.path()).expect("a second view");
        drop(away);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        while unmount(self.path(), UnmountFlags::DETACH).is_ok() {}
    }
}

/// Records of all kinds of sizes: kept in memory, spooled, downloaded.
fn records() -> Vec<(String, Vec<u8>)> {
    [10, 5_000, 300_000, 1_500_000, 3_000_000]
        .into_iter()
        .map(|size| (format!("r{size}"), pattern(size)))
        .collect()
}

fn cached_on(disk: &Disk) -> (Arc<MemoryStore>, MountedSession) {
    let store = Arc::new(MemoryStore::new());
    for (key, bytes) in records() {
        store.insert(&key, "application/octet-stream", Encoding::Identity, bytes);
    }
    let dir = disk.path().join("cache");
    let mounted = MountedSession::with(Arc::<MemoryStore>::clone(&store), |config| {
        config.memory_cache = ByteSize(64 << 10);
        config.disk_cache = Some(DiskCacheConfig {
            dir,
            size: ByteSize(1 << 30),
        });
    });
    (store, mounted)
}

#[track_caller]
fn all_is_read(mounted: &MountedSession) {
    for (key, bytes) in records() {
        let read = fs::read(mounted.file(&key)).unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(read == bytes, "{key}");
    }
}

#[test]
fn a_cache_disk_that_is_full_costs_no_answer() {
    let disk = Disk::new("2m");
    let (_, mounted) = cached_on(&disk);
    all_is_read(&mounted);
    disk.fill();
    all_is_read(&mounted);
    disk.free();
    all_is_read(&mounted);
    mounted.unmount();
}

#[test]
fn a_cache_disk_that_becomes_read_only_costs_no_answer() {
    let disk = Disk::new("16m");
    let (store, mounted) = cached_on(&disk);
    fs::read(mounted.file("r300000")).expect("a record");
    disk.make_read_only();
    all_is_read(&mounted);
    disk.make_writable();
    all_is_read(&mounted);
    drop(store);
    mounted.unmount();
}

/// As people remove a cache to free space, and as disks are taken away.
#[test]
fn a_cache_that_is_removed_costs_no_answer_and_is_made_anew() {
    let disk = Disk::new("16m");
    let (store, mounted) = cached_on(&disk);
    all_is_read(&mounted);
    let cache = disk.path().join("cache");
    // Downloads whose readers are done may still be making entries in it.
    eventually("the cache is removed", || {
        fs::remove_dir_all(&cache).is_ok()
    });
    all_is_read(&mounted);
    let fresh = pattern(2_000_000);
    store.insert("fresh", "x/y", Encoding::Identity, fresh.clone());
    assert!(fs::read(mounted.file("fresh")).expect("a new record") == fresh);
    eventually("new contents are cached", || {
        !files_below(&cache.join("kvfs-1")).is_empty()
    });
    unmount(disk.path(), UnmountFlags::DETACH).expect("an unmount");
    all_is_read(&mounted);
    mounted.unmount();
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_below(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

/// Returns what waits to be uploaded in a staging folder.
fn pending_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = files_below(folder);
    found.retain(|path| path.extension().is_some_and(|end| end == "data"));
    found
}

fn head(store: &dyn Store, name: &str) -> Option<u64> {
    let meta = store.head(&key(name), soon()).ok()?;
    meta.stored_size
}

fn staged_on(disk: &Disk, write_back: bool) -> (Arc<MemoryStore>, MountedSession) {
    let store = Arc::new(MemoryStore::new());
    let dir = disk.path().join("staging");
    let mounted = MountedSession::with(Arc::<MemoryStore>::clone(&store), |config| {
        make_writable(config);
        if let Some(write) = &mut config.write {
            write.staging_dir = dir;
            write.write_back = write_back;
        }
    });
    (store, mounted)
}

/// The same over a store whose uploads can be held up.
fn faulty_on(disk: &Disk, write_back: bool) -> (FaultStore, MountedSession) {
    faulty_at(disk.path().join("staging"), write_back)
}

fn faulty_at(dir: PathBuf, write_back: bool) -> (FaultStore, MountedSession) {
    let store = FaultStore::new(Arc::new(MemoryStore::new()));
    let mounted = MountedSession::with(Arc::new(store.clone()), |config| {
        make_writable(config);
        if let Some(write) = &mut config.write {
            write.staging_dir = dir;
            write.write_back = write_back;
        }
    });
    (store, mounted)
}

#[test]
fn a_staging_disk_without_room_is_told_to_who_writes() {
    for write_back in [false, true] {
        let disk = Disk::new("4m");
        let (store, mounted) = staged_on(&disk, write_back);
        fs::write(mounted.file("before"), "fits").expect("room");
        let too_large = fs::write(mounted.file("large"), pattern(6 << 20));
        let error = too_large.expect_err("there is no room");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        // What did not fit is given back once its last descriptor is closed.
        eventually("there is room again", || {
            fs::write(mounted.file("after"), pattern(2 << 20)).is_ok()
        });
        eventually("it is stored", || head(&*store, "after") == Some(2 << 20));
        let read = fs::read(mounted.file("after")).expect("it");
        assert!(read == pattern(2 << 20));
        mounted.unmount();
    }
}

fn written(mounted: &MountedSession, name: &str) -> Result<(), i32> {
    fs::write(mounted.file(name), format!("content of {name}"))
        .map_err(|error| error.raw_os_error().expect("an errno"))
}

#[track_caller]
fn told(mounted: &MountedSession, errno: i32) {
    let errors = mounted.counters().last_errors;
    let said = errors.iter().find(|error| {
        error.message.contains("staging folder")
            && error
                .hint
                .as_ref()
                .is_some_and(|hint| hint.contains("--staging-dir"))
    });
    assert!(said.is_some(), "{errno}: {errors:?}");
}

/// Somebody's closed file whose upload is under way when the disk fails (`--write-back`).
struct Waiting<'a>(&'a FaultStore);

impl<'a> Waiting<'a> {
    fn in_front_of(store: &'a FaultStore, mounted: &MountedSession) -> Self {
        store.block(Call::Put);
        written(mounted, "waiting").expect("a good disk");
        assert!(store.wait_blocked(Call::Put, 1, soon()), "no upload");
        Self(store)
    }

    /// Its bytes are there to be read, though nothing can be noted of it.
    fn goes_out(self) {
        self.0.release(Call::Put);
        eventually("it is stored", || head(self.0, "waiting").is_some());
    }
}

/// A file that was written to before the disk fails, and is closed or synced only then.
struct Open(fs::File);

impl Open {
    fn in_front_of(mounted: &MountedSession) -> Self {
        let mut file = fs::File::create(mounted.file("open")).expect("a good disk");
        file.write_all(b"content of open").expect("a good disk");
        Self(file)
    }

    /// Its bytes are there. What is to be stored by and by (`--write-back`) cannot be noted.
    #[track_caller]
    fn is_told(&self, write_back: bool, errno: i32) {
        let synced = self.0.sync_all().map_err(|error| error.raw_os_error());
        let expected = if write_back { Err(Some(errno)) } else { Ok(()) };
        assert_eq!(synced, expected);
    }

    #[track_caller]
    fn can_be_stored(self, store: &FaultStore) {
        self.0.sync_all().expect("a good disk");
        assert_eq!(head(store, "open"), Some(15));
    }
}

#[track_caller]
fn goes_on(mounted: &MountedSession, store: &FaultStore) {
    let read = fs::read_to_string(mounted.file("before"));
    assert_eq!(read.expect("reading goes on"), "content of before");
    // As on any disk, a file can still be made where none of its bytes has room.
    assert!(matches!(head(store, "during"), None | Some(0)));
}

#[track_caller]
fn is_back(mounted: &MountedSession, store: &FaultStore) {
    written(mounted, "after").expect("a good disk");
    eventually("it is stored", || head(store, "after").is_some());
    let read = fs::read_to_string(mounted.file("after"));
    assert_eq!(read.expect("it"), "content of after");
    // What failed before can be written again.
    written(mounted, "during").expect("a good disk");
    eventually("it is stored", || head(store, "during").is_some());
}

#[test]
fn a_staging_disk_that_becomes_read_only_is_told_to_who_writes_and_loses_nothing() {
    for write_back in [false, true] {
        let disk = Disk::new("16m");
        let (store, mounted) = faulty_on(&disk, write_back);
        written(&mounted, "before").expect("a writable disk");
        eventually("it is stored", || head(&store, "before").is_some());
        let open = Open::in_front_of(&mounted);
        let waits = write_back.then(|| Waiting::in_front_of(&store, &mounted));
        disk.cover_read_only();
        assert_eq!(written(&mounted, "during"), Err(libc::EROFS));
        told(&mounted, libc::EROFS);
        open.is_told(write_back, libc::EROFS);
        goes_on(&mounted, &store);
        waits.into_iter().for_each(|waiting| waiting.goes_out());
        disk.uncover();
        is_back(&mounted, &store);
        open.can_be_stored(&store);
        mounted.unmount();
    }
}

/// As other programs fill a disk, and people make room on it.
#[test]
fn a_staging_disk_that_others_fill_is_told_to_who_writes_and_is_used_again_once_there_is_room() {
    for write_back in [false, true] {
        let disk = Disk::new("4m");
        let (store, mounted) = faulty_on(&disk, write_back);
        written(&mounted, "before").expect("a disk with room");
        eventually("it is stored", || head(&store, "before").is_some());
        // And nothing of it is on its way.
        mounted.works("sync before");
        let open = Open::in_front_of(&mounted);
        let waits = write_back.then(|| Waiting::in_front_of(&store, &mounted));
        // What was staged before gives its room back when the kernel tells of the last close.
        eventually("the disk is full", || {
            disk.fill();
            written(&mounted, "filling") == Err(libc::ENOSPC)
        });
        assert_eq!(written(&mounted, "during"), Err(libc::ENOSPC));
        // Neither emptied nor half of it.
        let overwritten = fs::write(mounted.file("before"), "much more");
        let error = overwritten.expect_err("there is no room");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        told(&mounted, libc::ENOSPC);
        open.is_told(write_back, libc::ENOSPC);
        goes_on(&mounted, &store);
        waits.into_iter().for_each(|waiting| waiting.goes_out());
        disk.free();
        is_back(&mounted, &store);
        open.can_be_stored(&store);
        mounted.unmount();
    }
}

/// As one whose cable was loose.
#[test]
fn a_staging_disk_that_is_taken_away_is_told_to_who_writes_and_is_used_again_when_it_is_back() {
    for write_back in [false, true] {
        let disk = Disk::new("16m");
        let (store, mounted) = faulty_on(&disk, write_back);
        written(&mounted, "before").expect("a writable disk");
        eventually("it is stored", || head(&store, "before").is_some());
        let open = Open::in_front_of(&mounted);
        let waits = write_back.then(|| Waiting::in_front_of(&store, &mounted));
        if write_back {
            fs::write(mounted.file("waiting"), "behind that").expect("a good disk");
        }
        let away = disk.take_away();
        assert_eq!(written(&mounted, "during"), Err(libc::EIO));
        told(&mounted, libc::EIO);
        open.is_told(write_back, libc::EIO);
        goes_on(&mounted, &store);
        waits.into_iter().for_each(|waiting| waiting.goes_out());
        disk.bring_back(away);
        is_back(&mounted, &store);
        if write_back {
            // What could not be read meanwhile is tried again.
            eventually("it is stored", || head(&store, "waiting") == Some(11));
        }
        open.can_be_stored(&store);
        mounted.unmount();
    }
}

/// As people remove state folders, perhaps behind a link to another disk.
#[test]
fn a_staging_folder_that_is_removed_is_made_anew_and_what_waited_in_it_is_stored() {
    for (write_back, linked) in [(false, false), (true, false), (false, true), (true, true)] {
        let (disk, other) = (Disk::new("16m"), Disk::new("16m"));
        let dir = if linked {
            symlink(other.path(), disk.path().join("state")).expect("a link");
            disk.path().join("state/staging")
        } else {
            disk.path().join("staging")
        };
        let (store, mounted) = faulty_at(dir.clone(), write_back);
        written(&mounted, "before").expect("a writable disk");
        eventually("it is stored", || head(&store, "before").is_some());
        let waits = write_back.then(|| Waiting::in_front_of(&store, &mounted));
        if write_back {
            fs::write(mounted.file("waiting"), "behind that").expect("a good disk");
        }
        fs::remove_dir_all(&dir).expect("it was there");
        if write_back {
            // What fails afterwards is tried again.
            store.fail_next(Call::Put, 1, ErrorKind::Network);
        }
        written(&mounted, "after").expect("a good disk");
        waits.into_iter().for_each(|waiting| waiting.goes_out());
        eventually("it is stored", || head(&store, "after").is_some());
        if write_back {
            // The descriptors still have it.
            eventually("it is stored", || head(&store, "waiting") == Some(11));
        }
        fs::remove_dir_all(&dir).expect("it was made anew");
        written(&mounted, "again").expect("a good disk");
        eventually("it is stored", || head(&store, "again").is_some());
        assert!(mounted.counters().last_errors.is_empty());
        mounted.unmount();
        assert_eq!(pending_below(&dir), Vec::<PathBuf>::new());
    }
}

/// As with a bind mount that is taken away, or a disk that is mounted elsewhere.
#[test]
fn a_staging_folder_that_is_moved_is_not_made_anew_and_loses_nothing() {
    for write_back in [false, true] {
        let disk = Disk::new("16m");
        let (store, mounted) = faulty_on(&disk, write_back);
        written(&mounted, "before").expect("a writable disk");
        eventually("it is stored", || head(&store, "before").is_some());
        let waits = write_back.then(|| Waiting::in_front_of(&store, &mounted));
        if write_back {
            fs::write(mounted.file("waiting"), "behind that").expect("a good disk");
        }
        let (here, there) = (disk.path().join("staging"), disk.path().join("elsewhere"));
        fs::rename(&here, &there).expect("moved");
        assert_eq!(written(&mounted, "during"), Err(libc::EIO));
        told(&mounted, libc::EIO);
        goes_on(&mounted, &store);
        assert!(!here.exists());
        waits.into_iter().for_each(|waiting| waiting.goes_out());
        if write_back {
            eventually("it is stored", || head(&store, "waiting") == Some(11));
        }
        fs::rename(&there, &here).expect("moved back");
        is_back(&mounted, &store);
        mounted.unmount();
        // Nothing that was stored is uploaded once more by the next mount.
        assert_eq!(pending_below(&here), Vec::<PathBuf>::new());
    }
}
