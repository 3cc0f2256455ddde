//! Reads from `/proc` about the programs that use the mount.
//!
//! Nothing here touches a file of the mount: that would ask the mount itself.

use std::fs;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::session::SUBTYPE;
use crate::fs::types::{Ino, Process, Programs, Thread};

/// The programs of this machine, as far as this process may look at them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Processes;

impl Programs for Processes {
    fn process_of(&self, thread: Thread) -> Option<Process> {
        if thread.0 == 0 || !proc_shows_own_numbers() {
            // It is in a process namespace that this one, or its /proc, does not see.
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", thread.0)).ok()?;
        let group = status
            .lines()
            .find_map(|line| line.strip_prefix("Tgid:"))?
            .trim();
        group.parse().ok().map(Process)
    }

    fn holds(&self, process: Process, ino: Ino) -> Option<bool> {
        let folder = format!("/proc/{}", process.0);
        let mounts = match fs::read_to_string(format!("{folder}/mountinfo")) {
            Ok(mounts) if proc_shows_own_numbers() => mounts,
            // What cannot be looked at may hold it; what has ended does not.
            _ => return (!exists(process.0)).then_some(false),
        };
        let mounts: Vec<&str> = mounts.lines().filter_map(mount_of_kvfs).collect();
        let descriptors = fs::read_dir(format!("{folder}/fdinfo")).ok()?;
        for descriptor in descriptors.flatten() {
            // One that is closed meanwhile is none.
            if let Ok(info) = fs::read_to_string(descriptor.path())
                && is_open_for_writing(&info, ino, &mounts)
            {
                return Some(true);
            }
        }
        Some(false)
    }
}

/// Returns whether a process or thread of that number exists, as far as this process's own
/// namespace tells, which is the one that FUSE numbers callers by. `/proc` may hide those of other
/// users (`hidepid`); signals tell them from those that are gone.
pub(super) fn exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// Returns whether `/proc` numbers processes as this one's namespace does. In a namespace that was
/// entered without mounting its own `/proc`, another process has the number there.
pub(super) fn proc_shows_own_numbers() -> bool {
    static SHOWS: OnceLock<bool> = OnceLock::new();
    *SHOWS.get_or_init(|| {
        let own = fs::read_link("/proc/self").ok();
        let number = own.and_then(|own| own.to_str()?.parse().ok());
        number == Some(std::process::id())
    })
}

/// Returns the number of a mount, if it is one of kvfs.
fn mount_of_kvfs(line: &str) -> Option<&str> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let kind = filesystem.split(' ').next()?;
    let is_ours = kind.strip_prefix("fuse.") == Some(SUBTYPE);
    is_ours.then(|| mount.split(' ').next())?
}

/// Returns whether what the kernel says of a descriptor (proc_pid_fdinfo(5)) means this file of one
/// of these mounts, open for writing.
fn is_open_for_writing(info: &str, ino: Ino, mounts: &[&str]) -> bool {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let number = field("ino:").and_then(|number| number.parse().ok());
    let flags = field("flags:").and_then(|flags| i32::from_str_radix(flags, 8).ok());
    number == Some(ino.0)
        && flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
        && field("mnt_id:").is_some_and(|mount| mounts.contains(&mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_belong_to_their_process() {
        let own = Some(Process(std::process::id()));
        assert_eq!(Processes.process_of(Thread(std::process::id())), own);
        // `PROCESS/task/THREAD`; tests run on threads of their own.
        let here = fs::read_link("/proc/thread-self").expect("a link");
        let here = here
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        let here = here.expect("a number");
        assert_ne!(here, std::process::id());
        assert_eq!(Processes.process_of(Thread(here)), own);
        assert_eq!(Processes.process_of(Thread(0)), None);
        assert_eq!(Processes.process_of(Thread(u32::MAX)), None);
    }

    #[test]
    fn a_process_that_is_gone_holds_nothing() {
        let mut child = std::process::Command::new("true").spawn().expect("a child");
        child.wait().expect("its end");
        assert_eq!(Processes.holds(Process(child.id()), Ino(2)), Some(false));
        let own = Process(std::process::id());
        assert_eq!(Processes.holds(own, Ino(u64::MAX)), Some(false));
    }

    #[test]
    fn descriptors_are_told_apart_by_mount_file_and_mode() {
        let mounts = "24 1 8:1 / / rw - ext4 /dev/a rw\n\
                      77 24 0:50 / /mnt rw,nosuid shared:3 - fuse.kvfs kvfs rw,user_id=0\n";
        let mounts: Vec<&str> = mounts.lines().filter_map(mount_of_kvfs).collect();
        assert_eq!(mounts, ["77"]);
        let holds = |info: &str| is_open_for_writing(info, Ino(5), &mounts);
        assert!(holds("pos:\t0\nflags:\t0100001\nmnt_id:\t77\nino:\t5\n"));
        assert!(holds("pos:\t9\nflags:\t02102002\nmnt_id:\t77\nino:\t5\n"));
        assert!(!holds("pos:\t0\nflags:\t0100000\nmnt_id:\t77\nino:\t5\n"));
        assert!(!holds("pos:\t0\nflags:\t0100001\nmnt_id:\t24\nino:\t5\n"));
        assert!(!holds("pos:\t0\nflags:\t0100001\nmnt_id:\t77\nino:\t55\n"));
        assert!(!holds(""));
    }
}
