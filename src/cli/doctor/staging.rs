//! Checks the staging folder, which holds written files until their store has them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Finding;
use super::folders::{free, usable};
use crate::base::units::ByteSize;
use crate::cli::config_file::{ConfigFile, Value};
use crate::cli::settings::Environment;
use crate::daemon::registry::mount_point::quoted;
use crate::staging::FOLDER;
use crate::staging::report::{self, Item, Scope, State};

const CHECK: &str = "staging";

/// Less than this is too little to write files of any size, in bytes.
const LITTLE: ByteSize = ByteSize::mib(256);

/// Checks the folder: that only this user can use it, what waits there, and the space.
pub fn staging(environment: &Environment, file: Option<&ConfigFile>) -> Vec<Finding> {
    let dir = match environment.staging_dir(configured(environment, file)) {
        Ok(dir) => dir,
        Err(error) => return vec![Finding::error(CHECK, &error)],
    };
    let mut findings: Vec<Finding> = folder(&dir).into_iter().collect();
    match report::scan(&dir) {
        Ok(scopes) => findings.extend(waiting(&scopes)),
        Err(error) if findings.is_empty() => findings.push(Finding::failure(
            CHECK,
            format!("{} cannot be read: {error}", dir.display()),
            "give the folder back: chown it to yourself, chmod 700",
        )),
        // The folder itself has been complained of.
        Err(_) => {}
    }
    if findings.is_empty() {
        let space = free(&dir).map_or(String::new(), |free| format!("; {free} are free"));
        let message = format!("nothing waits in {}{space}", dir.display());
        findings.push(Finding::ok(CHECK, message));
    }
    findings
}

/// Returns the folder that the settings file names, where no variable names another.
fn configured<'a>(environment: &Environment, file: Option<&'a ConfigFile>) -> Option<&'a Path> {
    const NAME: &str = "staging-dir";
    if environment.variable(NAME).is_some() {
        return None;
    }
    let setting = file?.defaults.iter().find(|setting| setting.name == NAME)?;
    match &setting.value {
        Value::Text(path) => Some(Path::new(path)),
        Value::Switch(_) | Value::Secret(_) => None,
    }
}

/// Returns what is wrong with the folder itself.
fn folder(dir: &Path) -> Option<Finding> {
    let shown = dir.display();
    let elsewhere = "name another folder with --staging-dir or KVFS_STAGING_DIR";
    if let Err(error) = usable(dir) {
        return Some(Finding::warning(
            CHECK,
            format!("{shown} cannot be used, so nothing can be written with --rw: {error}"),
            elsewhere,
        ));
    }
    let me = rustix::process::geteuid().as_raw();
    for folder in [dir.to_owned(), dir.join(FOLDER)] {
        let shown = folder.display();
        let Ok(found) = folder.symlink_metadata() else {
            continue;
        };
        if !found.is_dir() || found.uid() != me {
            return Some(Finding::failure(
                CHECK,
                format!("{shown} belongs to another user, so nothing can be written with --rw"),
                format!("chown it to yourself, or {elsewhere}"),
            ));
        }
        if found.mode() & 0o077 != 0 {
            return Some(Finding::warning(
                CHECK,
                format!("{shown} is open to other users"),
                format!("chmod 700 {}", quoted(&folder)),
            ));
        }
    }
    let free = free(dir)?;
    (free.0 < LITTLE.0).then(|| {
        Finding::warning(
            CHECK,
            format!("{shown} has {free} free: larger files cannot be written"),
            format!("make room, or {elsewhere}"),
        )
    })
}

/// Returns the finding about uploads that are not done.
fn waiting(scopes: &[Scope]) -> Vec<Finding> {
    let items = |is: &dyn Fn(&Item) -> bool| -> Vec<&Item> {
        let all = scopes.iter().flat_map(|scope| &scope.items);
        all.filter(|item| is(item)).collect()
    };
    let kept = items(&|item| !item.state.is_pending());
    let left = items(&|item| item.state.is_pending() && item.owner_pid.is_none());
    let running = items(&|item| item.state.is_pending() && item.owner_pid.is_some());
    let mut findings = Vec::new();
    if let Some(first) = kept.first() {
        let mut message = format!("{} not in the store for good", files(&kept));
        if let (Some(key), Some(reason)) = (&first.key, &first.reason) {
            message = format!("{message}; '{key}': {reason}");
        }
        findings.push(Finding::failure(
            CHECK,
            message,
            "see them: kvfs recover; then kvfs recover --upload or --discard",
        ));
    }
    if !left.is_empty() {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "{} written, but not uploaded: the mount has ended",
                files(&left)
            ),
            "mount the store again with --rw, or upload them: kvfs recover --upload",
        ));
    }
    if !running.is_empty() {
        let again = running.iter().filter(|item| item.state == State::Retrying);
        let message = match again.count() {
            0 => format!("{} being uploaded", files(&running)),
            n => format!(
                "{} being uploaded, {n} not for the first time",
                files(&running)
            ),
        };
        findings.push(Finding::ok(CHECK, message));
    }
    findings
}

/// Returns how many, how large, and the verb.
fn files(items: &[&Item]) -> String {
    let size = ByteSize(items.iter().map(|item| item.size).sum());
    match items.len() {
        1 => format!("1 file ({size}) is"),
        n => format!("{n} files ({size}) are"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::State as Judgement;
    use super::*;

    fn item(state: State, owner_pid: Option<u32>) -> Item {
        Item {
            id: "1".into(),
            key: Some("OUTPUT".into()),
            size: 1024,
            closed_at: None,
            state,
            reason: Some("the record is too large".into()),
            attempts: 1,
            conflict: false,
            owner_pid,
        }
    }

    fn scope(items: Vec<Item>) -> [Scope; 1] {
        [Scope {
            path: "/staging/a".into(),
            name: "a".into(),
            store: None,
            items,
        }]
    }

    #[test]
    fn what_waits_is_judged_by_who_will_upload_it() {
        assert!(waiting(&scope(Vec::new())).is_empty());
        for (state, owner, judgement, message, fix) in [
            (
                State::Kept,
                Some(1),
                Judgement::Failure,
                "'OUTPUT': the record is too",
                "--upload",
            ),
            (
                State::Damaged,
                None,
                Judgement::Failure,
                "1 file (1.0 KiB)",
                "kvfs recover",
            ),
            (
                State::Waiting,
                None,
                Judgement::Warning,
                "the mount has ended",
                "mount the store",
            ),
            (
                State::Uploading,
                Some(1),
                Judgement::Ok,
                "is being uploaded",
                "",
            ),
            (
                State::Retrying,
                Some(1),
                Judgement::Ok,
                "1 not for the first time",
                "",
            ),
        ] {
            let found = waiting(&scope(vec![item(state, owner)]));
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].state, judgement, "{found:?}");
            assert!(found[0].message.contains(message), "{found:?}");
            assert!(
                found[0].fix.clone().unwrap_or_default().contains(fix),
                "{found:?}"
            );
        }
        let two = [State::Waiting, State::Waiting].map(|state| item(state, None));
        let found = waiting(&scope(two.into()));
        assert!(
            found[0].message.starts_with("2 files (2.0 KiB) are"),
            "{found:?}"
        );
    }

    #[test]
    fn the_folder_must_be_private_and_usable() {
        let dir = tempfile::tempdir().expect("a folder");
        let mine = dir.path().join("mine");
        assert!(folder(&mine).is_none(), "it is made when it is needed");
        fs::create_dir(&mine).expect("a folder");
        fs::set_permissions(&mine, fs::Permissions::from_mode(0o755)).expect("a mode");
        let found = folder(&mine).expect("a fault");
        assert_eq!(found.state, Judgement::Warning, "{found:?}");
        assert!(found.message.contains("open to other users"), "{found:?}");
        fs::set_permissions(&mine, fs::Permissions::from_mode(0o700)).expect("a mode");
        assert!(folder(&mine).is_none());
        let taken = dir.path().join("file");
        fs::write(&taken, "").expect("a file");
        let found = folder(&taken).expect("a fault");
        assert!(found.message.contains("cannot be used"), "{found:?}");
    }
}
