//! Requests that the server refuses for a while, and repeats of them: what another client has stored
//! meanwhile is found out before each.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::thread;

use super::Writable;
use crate::support::mounted::{close, eventually};

/// A mount of a server that refuses two such requests for `K`, before it has done anything.
fn refusing(etags: bool, write_back: bool, method: &str, fault: &str) -> Writable {
    Writable::with(
        |server| {
            server.knobs.etags = etags;
            let rule = format!("{fault},method={method},key=K,count=2");
            server.knobs.faults = vec![rule.parse().expect("a rule")];
        },
        |mount| super::writing(mount).write_back = write_back,
    )
}

/// Does `work`, and stores `K` as another client once the first request of it was refused.
fn meanwhile<T: Send>(
    with: &Writable,
    method: &str,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let working = scope.spawn(work);
        eventually("the request is refused", || {
            with.seen().contains(&format!("{method} K"))
        });
        with.put("K", "text/plain", b"theirs");
        working.join().expect("no panic")
    })
}

fn is_stale<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::ESTALE))
}

#[test]
fn an_upload_that_was_refused_is_compared_again_before_it_is_repeated() {
    for fault in ["status=503", "status=429"] {
        for creates in [false, true] {
            let with = refusing(false, false, "PUT", fault);
            if !creates {
                with.put("K", "text/plain", b"before\n");
            }
            let closed = meanwhile(&with, "PUT", || {
                let mut options = OpenOptions::new();
                let options = match creates {
                    true => options.write(true).create_new(true),
                    false => options.append(true),
                };
                let mut file = options.open(with.file("K"))?;
                file.write_all(b"mine\n")?;
                close(file)
            });
            assert!(is_stale(closed), "{fault}, {creates}");
            with.holds("K", b"theirs");
            assert_eq!(
                with.mount.status()["uploads"]["kept"],
                1,
                "{fault}, {creates}"
            );
        }
    }
}

#[test]
fn the_deletion_of_a_rename_is_repeated_only_if_nobody_has_stored_the_old_name() {
    for etags in [true, false] {
        for write_back in [true, false] {
            let with = refusing(etags, write_back, "DELETE", "status=503");
            with.put("K", "text/plain", b"before");
            let renamed = meanwhile(&with, "DELETE", || {
                fs::rename(with.file("K"), with.file("moved"))
            });
            // The kernel tries once more, and then takes along what there is.
            let name = if renamed.is_ok() { "moved" } else { "K" };
            with.holds(name, b"theirs");
        }
    }
}
