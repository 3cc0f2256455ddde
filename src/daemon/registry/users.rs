//! Finds the processes that use a mount from `/proc`, without touching the mount.

use std::fs;
use std::path::{Path, PathBuf};

/// The most processes that are named.
const MOST: usize = 8;

/// A process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub pid: u32,
    /// Its program's name.
    pub program: String,
}

/// Returns processes that have a file open below `mount_point`, mapped, or their working directory
/// there; the first few of them, and only those that this user may look at.
pub fn users_of(mount_point: &Path) -> Vec<User> {
    let own = std::process::id();
    let mut users: Vec<User> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own && uses(*pid, mount_point))
        .take(MOST)
        .map(|pid| User {
            pid,
            program: fs::read_to_string(format!("/proc/{pid}/comm"))
                .map(|name| name.trim().escape_debug().to_string())
                .unwrap_or_default(),
        })
        .collect();
    users.sort_by_key(|user| user.pid);
    users
}

/// Returns the users as people read them: `sleep (8350), bash (8231)`.
pub fn listed(users: &[User]) -> String {
    let shown: Vec<String> = users
        .iter()
        .map(|user| format!("{} ({})", user.program, user.pid))
        .collect();
    shown.join(", ")
}

fn uses(pid: u32, mount_point: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let leads_there =
        |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(mount_point));
    if leads_there(process.join("cwd")) || leads_there(process.join("root")) {
        return true;
    }
    let open = fs::read_dir(process.join("fd")).into_iter().flatten();
    if open
        .filter_map(|entry| Some(entry.ok()?.path()))
        .any(leads_there)
    {
        return true;
    }
    let mapped = fs::read_to_string(process.join("maps")).unwrap_or_default();
    mapped
        .lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
        .any(|path| path.starts_with(mount_point))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_that_stands_in_a_folder_or_holds_a_file_uses_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let here = fs::canonicalize(dir.path()).expect("a path");
        assert_eq!(users_of(&here), []);
        let mut stands = Command::new("sleep")
            .arg("60")
            .current_dir(&here)
            .spawn()
            .expect("sleep");
        fs::write(here.join("file"), "x").expect("a file");
        let mut holds = Command::new("sleep")
            .arg("60")
            .stdin(Stdio::from(fs::File::open(here.join("file")).expect("it")))
            .spawn()
            .expect("sleep");
        let users = users_of(&here);
        for child in [&mut stands, &mut holds] {
            let found = users.iter().find(|user| user.pid == child.id());
            child.kill().and_then(|()| child.wait()).expect("its end");
            assert!(found.is_some(), "{users:?}");
        }
        assert!(listed(&users).contains(&format!("({})", stands.id())));
    }
}
