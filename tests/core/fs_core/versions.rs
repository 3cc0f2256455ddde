//! Records that change: inodes, pages and open handles keep to one version.

use kvfs::base::clock::Wait;
use kvfs::fs::FsError;
use kvfs::local::fault::Call;
use kvfs::store::Encoding;

use super::{plain, requests};
use crate::support::core::{Setup, TTL, Told, patient};

#[test]
fn a_small_record_costs_one_request_then_none_then_one_conditional_one() {
    let core = Setup::new(plain(&[("INPUT", b"{}")])).core(None);
    assert_eq!(core.cat("INPUT").expect("its bytes"), b"{}");
    assert_eq!((requests(&core), core.faults.calls(Call::Head)), (1, 0));
    assert_eq!(core.cat("INPUT").expect("its bytes"), b"{}");
    assert_eq!(requests(&core), 0);
    core.clock.advance(TTL);
    assert_eq!(core.cat("INPUT").expect("its bytes"), b"{}");
    assert_eq!(core.faults.conditional_gets(), 1);
    assert_eq!(requests(&core), 1);
}

/// Tells whether the kernel was last told to drop all pages before it got any new ones.
fn drops_pages(core: &crate::support::core::Core, ino: kvfs::fs::types::Ino) -> bool {
    let told = core.kernel.0.lock();
    let dropped = told
        .iter()
        .rposition(|told| *told == Told::ForgetPages(ino));
    dropped.is_some_and(|at| {
        told[at + 1..]
            .iter()
            .all(|told| matches!(told, Told::Store(_, 0, _)))
    })
}

#[test]
fn without_validators_a_record_is_fetched_again_after_the_ttl_and_keeps_its_pages_if_it_is_the_same()
 {
    let setup = Setup::new(
        plain(&[("A", b"same")])
            .with_etags(false)
            .with_last_modified(false),
    );
    let core = setup.core(None);
    assert_eq!(core.cat("A").expect("its bytes"), b"same");
    let ino = core
        .lookup("A")
        .expect("an answer")
        .expect("present")
        .attr
        .ino;
    core.clock.advance(TTL);
    requests(&core);
    let opened = core.fs.open(ino, false, patient()).expect("open");
    assert!(
        opened.keep_cache,
        "the bytes are the same, so the pages are good"
    );
    assert_eq!((core.faults.conditional_gets(), requests(&core)), (0, 1));
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"else"[..]);
    core.fs.release(opened.fh);
    core.clock.advance(TTL);
    let opened = core.fs.open(ino, false, patient()).expect("open");
    assert!(drops_pages(&core, ino), "the bytes changed");
    assert_eq!(core.read_all(opened.fh).expect("its bytes"), b"else");
}

#[test]
fn an_open_handle_stays_on_its_version_and_a_new_open_gets_a_new_inode() {
    let setup = Setup::new(plain(&[("A", b"old old old")]));
    let core = setup.core(None);
    let (old_ino, old) = core.open("A").expect("open");
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"new"[..]);
    core.clock.advance(TTL);
    let stale = core.fs.open(old_ino, false, patient());
    assert!(
        matches!(stale, Err(FsError::Stale)),
        "the kernel must look the name up again"
    );
    let (new_ino, new) = core.open("A").expect("open");
    assert_ne!(old_ino, new_ino);
    assert_eq!(core.read_all(old).expect("the old bytes"), b"old old old");
    assert_eq!(core.read_all(new).expect("the new bytes"), b"new");
    assert_eq!(
        core.fs
            .getattr(old_ino, Wait::Never)
            .expect("open")
            .attr
            .size,
        11
    );
    assert_eq!(
        core.fs
            .getattr(new_ino, Wait::Never)
            .expect("open")
            .attr
            .size,
        3
    );
    core.fs.check_invariants();
    core.fs.release(old);
    core.fs.release(new);
    core.clock.advance(TTL);
    assert_eq!(core.cat("A").expect("its bytes"), b"new");
    core.fs.check_invariants();
}

#[test]
fn a_changed_record_that_nobody_has_open_keeps_its_inode_and_loses_its_pages() {
    let setup = Setup::new(plain(&[("A", b"old")]));
    let core = setup.core(None);
    let (ino, fh) = core.open("A").expect("open");
    core.fs.release(fh);
    assert!(
        core.fs
            .open(ino, false, patient())
            .map(|opened| core.fs.release(opened.fh))
            .is_ok()
    );
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"newer"[..]);
    core.clock.advance(TTL);
    let opened = core.fs.open(ino, false, patient()).expect("open");
    assert!(drops_pages(&core, ino));
    assert_eq!(core.read_all(opened.fh).expect("its bytes"), b"newer");
}

#[test]
fn no_open_is_answered_while_another_drops_the_pages_of_the_version_before() {
    let setup = Setup::new(plain(&[("A", b"old")]));
    let core = setup.core(None);
    let (ino, fh) = core.open("A").expect("open");
    core.fs.release(fh);
    setup
        .store
        .insert("A", "text/plain", Encoding::Identity, &b"newer"[..]);
    core.clock.advance(TTL);
    std::thread::scope(|scope| {
        let slow = core.kernel.1.lock();
        let first = scope.spawn(|| core.fs.open(ino, false, patient()).map(|opened| opened.fh));
        let start = std::time::Instant::now();
        while !core.kernel.0.lock().contains(&Told::ForgetPages(ino)) {
            assert!(start.elapsed().as_secs() < 10, "no pages are dropped");
            std::thread::yield_now();
        }
        assert!(matches!(
            core.fs.open(ino, false, Wait::Never),
            Err(FsError::WouldBlock)
        ));
        let second = scope.spawn(|| core.fs.open(ino, false, patient()).map(|opened| opened.fh));
        // What is open shows its size already.
        let size = core.fs.getattr(ino, Wait::Never).expect("known").attr.size;
        assert_eq!(size, 5);
        assert!(!second.is_finished());
        drop(slow);
        for opened in [first, second] {
            let fh = opened.join().expect("no panic").expect("open");
            assert_eq!(core.read_all(fh).expect("its bytes"), b"newer");
            core.fs.release(fh);
        }
    });
    core.fs.check_invariants();
}
