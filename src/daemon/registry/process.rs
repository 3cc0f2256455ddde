//! Identifies processes for good: a pid alone may have been given to another process.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A process of this or an earlier boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// The boot that it belongs to; empty where the kernel does not say.
    pub boot_id: String,
}

impl ProcessId {
    /// Returns this process's id.
    pub fn current() -> Self {
        let pid = std::process::id();
        Self {
            pid,
            start_ticks: start_ticks(pid).unwrap_or(0),
            boot_id: boot_id(),
        }
    }

    /// Returns whether the process still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        self.boot_id == boot_id() && start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Waits until the process has ended; returns whether it has.
    pub fn wait_ended(&self, until: Instant) -> bool {
        while self.is_alive() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

/// Returns the name of a user, if `/etc/passwd` knows it.
pub fn user_name(uid: u32) -> Option<String> {
    let known = fs::read_to_string("/etc/passwd").ok()?;
    known.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Returns the number of a user or, in `/etc/group`, of a group.
///
/// # Errors
/// That nothing there has this name; says what can be written.
pub fn id_of(name: &str, database: &str, what: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let known = fs::read_to_string(database).unwrap_or_default();
    known
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
        })
        .ok_or_else(|| format!("'{name}' is no {what}: write a number, or a name of {database}"))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Returns the start time of a process that has not ended.
///
/// The first thread of one that is being killed may have ended before the others, and with them
/// its files are still open and its locks held: then it has not ended either.
fn start_ticks(pid: u32) -> Option<u64> {
    let (state, ticks) = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    match state {
        'Z' | 'X' | 'x' => {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.count();
            (threads > 1).then_some(ticks)
        }
        _ => Some(ticks),
    }
}

/// Returns the state and the start time in a line of `/proc/PID/stat`.
fn parse_stat(line: &str) -> Option<(char, u64)> {
    // Field 2 is the program's name in parentheses and may itself hold blanks and parentheses.
    let mut fields = line.get(line.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state was field 3; 22 is the 19th after it.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(parse_stat(&format!("7 (kvfs) S {rest}")), Some(('S', 4711)));
        assert_eq!(
            parse_stat(&format!("7 (a) b (c)) S {rest}")),
            Some(('S', 4711))
        );
        assert_eq!(parse_stat(&format!("7 (kvfs) Z {rest}")), Some(('Z', 4711)));
        assert_eq!(parse_stat("7 (kvfs"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_pid_of_another_process_is_not_alive() {
        let me = ProcessId::current();
        assert!(me.is_alive());
        let reused = ProcessId {
            start_ticks: me.start_ticks + 1,
            ..me.clone()
        };
        assert!(!reused.is_alive());
        let rebooted = ProcessId {
            boot_id: "another".into(),
            ..me
        };
        assert!(!rebooted.is_alive());
    }
}
