//! The process's limits: address space, open files, and no core file.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most arenas of the allocator. Each beyond the first sets addresses aside.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// From this size on memory goes back to the system when it is freed, in bytes: windows of decoders
/// above all.
#[cfg(target_env = "gnu")]
const GIVEN_BACK: libc::c_int = 512 << 10;

/// How much free memory the allocator keeps at the end of an arena: as much as it would by itself.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 2 * GIVEN_BACK;

/// Keeps the C library from setting aside 64 MiB of addresses for each of the first threads, eight
/// a core: dozens of threads wait for the network here, and none of them allocates much. Under
/// `ulimit -v`, or on a large machine, the daemon could else not even start. Where addresses are
/// limited there is one arena only.
///
/// Keeps it, too, from learning from the first large piece that is freed to keep all others.
///
/// To be called before the first thread is started.
pub fn bound_arenas() {
    #[cfg(target_env = "gnu")]
    let arenas = getrlimit(Resource::As).current.map_or(ARENAS, |_| 1);
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "there is no safe call for it")]
    // SAFETY: mallopt(3) takes two numbers and changes parameters of the allocator only; no other
    // thread is there yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Lets this process open as many files as it may: every changed file and every download has one.
pub fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    // What the kernel does not allow is left as it is.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}

/// Prevents core files of this process: one would hold the token, for everyone who finds the file
/// later. To look for a bug, raise the limit again (`prlimit --core`).
pub fn forbid_core_files() {
    let limit = Rlimit {
        current: Some(0),
        ..getrlimit(Resource::Core)
    };
    // Lowering one's own limit is always allowed.
    let _ = setrlimit(Resource::Core, limit);
}
