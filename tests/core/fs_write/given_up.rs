//! What the kernel believes of a file whose writes were given up, or which has become shorter: it puts
//! what a program appends where it believes the end to be.

use kvfs::base::clock::Wait;
use kvfs::fs::FsError;
use kvfs::fs::types::Ino;
use kvfs::local::fault::Call;
use kvfs::local::memory::MemoryStore;
use kvfs::store::{Encoding, ErrorKind};

use super::{errno, stored, writable};
use crate::support::core::{Core, Setup, TTL, Told, patient, staging};
use crate::support::mounted::eventually;

/// Has a file written to and the store refuse that.
fn refused(core: &Core, name: &str, bytes: &[u8]) -> Ino {
    let (ino, fh) = core.open_to_write(name).expect("opened");
    core.fs.write(fh, 0, bytes, patient()).expect("written");
    core.faults.fail_next(Call::Put, 1, ErrorKind::Denied);
    assert_eq!(errno(core.close(fh)), libc::EACCES);
    ino
}

/// Opens a file to write to it, as the kernel does that knows its inode; returns whether it has to look
/// the name up again first.
#[track_caller]
fn is_looked_up_again(core: &Core, ino: Ino) -> bool {
    match core.fs.open_writing(ino, false, patient()) {
        Err(FsError::Stale) => {
            let again = core.fs.open_writing_again(ino, false, patient());
            core.fs.release(again.expect("only once").fh);
            true
        }
        opened => {
            core.fs.release(opened.expect("opened").fh);
            false
        }
    }
}

#[test]
fn the_kernel_asks_for_the_size_of_a_file_whose_writes_were_refused() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"base")]);
    let ino = refused(&core, "A", b"something longer");
    assert!(core.kernel.0.lock().contains(&Told::ForgetPages(ino)));
    assert!(is_looked_up_again(&core, ino));
    // Any answer with its size will do.
    for ask in [
        &(|| drop(core.lookup("A"))) as &dyn Fn(),
        &|| drop(core.fs.getattr(ino, patient())),
        &|| drop(core.list()),
    ] {
        assert_eq!(refused(&core, "A", b"something longer"), ino);
        ask();
        assert!(!is_looked_up_again(&core, ino));
    }
    assert_eq!(stored(&setup, "A"), Some(b"base".to_vec()));
}

#[test]
fn the_kernel_asks_for_the_size_of_a_version_that_is_shorter() {
    let (_dir, setup, core) = writable(&[("A", "text/plain", b"a long first version")]);
    let (ino, fh) = core.open("A").expect("opened");
    core.fs.release(fh);
    let replace = |bytes: &[u8]| {
        let text = "text/plain";
        setup
            .store
            .insert("A", text, Encoding::Identity, bytes.to_vec());
        core.clock.advance(TTL * 2);
    };
    replace(b"short");
    assert!(is_looked_up_again(&core, ino));
    core.lookup("A").expect("an answer");
    assert!(!is_looked_up_again(&core, ino));
    // Also if a program has opened it to read meanwhile, and has not asked for its size.
    replace(b"s");
    let reading = core.fs.open(ino, false, patient()).expect("opened");
    assert!(is_looked_up_again(&core, ino));
    core.fs.release(reading.fh);
    // A longer one is made known by the open itself.
    core.lookup("A").expect("an answer");
    replace(b"a long third version");
    assert!(!is_looked_up_again(&core, ino));
}

#[test]
fn what_is_appended_follows_the_end_wherever_the_kernel_believes_it_to_be() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let store = MemoryStore::new();
    store.insert("A", "text/plain", Encoding::Identity, &b"base"[..]);
    let mut setup = Setup::new(store).writable(dir.path());
    if let Some(write) = &mut setup.fs.write {
        write.max_record_size = Some(20);
    }
    let core = setup.core(None);
    let (ino, fh) = core.open_to_write("A").expect("opened");
    let append = |at, bytes: &[u8]| core.fs.append(fh, at, bytes, patient());
    assert_eq!(append(4, b"-at").expect("written"), None);
    // Pages of the kernel are wrong now, and it is told once the write is answered.
    assert_eq!(append(30, b"-behind").expect("written"), Some(ino));
    assert_eq!(append(40, b"-it").expect("written"), None, "it is about to");
    let open = || core.fs.open(ino, false, Wait::Never);
    assert!(matches!(open(), Err(FsError::WouldBlock)));
    core.kernel.0.lock().clear();
    core.fs.forget_misplaced(ino);
    assert_eq!(*core.kernel.0.lock(), [Told::ForgetPages(ino)]);
    core.fs.release(open().expect("opened").fh);
    assert!(is_looked_up_again(&core, ino));
    assert_eq!(append(0, b"BASE").expect("written"), None);
    let over = append(50, b"beyond the largest").map(drop);
    assert_eq!(errno(over), libc::EFBIG);
    core.close(fh).expect("stored");
    assert_eq!(stored(&setup, "A"), Some(b"BASE-at-behind-it".to_vec()));
}

#[test]
fn what_is_journalled_is_never_replaced_by_a_half() {
    for name in ["A", "new"] {
        for waits in [false, true] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let store = MemoryStore::new();
            store.insert("A", "text/plain", Encoding::Identity, &b"old"[..]);
            let mut setup = Setup::new(store).write_back(&dir.path().join("unlimited"));
            if let Some(write) = &mut setup.fs.write {
                write.staging = staging(&dir.path().join("limited"), Some(10));
            }
            let core = setup.core(None);
            let write = |fh, at, bytes: &[u8]| core.fs.write(fh, at, bytes, patient());
            core.faults.block(Call::Put);
            if waits {
                core.store(name, b"1").expect("journalled");
                assert!(core.faults.wait_blocked(Call::Put, 1, super::late()));
            }
            core.store(name, b"two").expect("journalled");
            let (ino, fh) = core.create(name).expect("emptied");
            write(fh, 0, b"half").expect("there is room");
            assert_eq!(errno(write(fh, 4, b"eleven long")), libc::ENOSPC);
            assert_eq!(errno(core.fs.fsync(fh, patient())), libc::ENOSPC);
            core.kernel.0.lock().clear();
            assert_eq!(errno(core.close(fh)), libc::ENOSPC, "{name}, {waits}");
            // The kernel has pages of the half.
            let told = [Told::Store(ino, 2, vec![0]), Told::ForgetPages(ino)];
            assert_eq!(*core.kernel.0.lock(), told);
            assert!(is_looked_up_again(&core, ino));
            assert_eq!(core.cat(name).expect("the file"), b"two");
            core.faults.release(Call::Put);
            eventually("it is stored", || {
                stored(&setup, name) == Some(b"two".to_vec())
            });
            assert_eq!(core.cat(name).expect("the file"), b"two");
        }
    }
}
