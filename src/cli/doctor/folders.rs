//! Checks of kvfs's own files on this machine: settings, state, cache, mounts.

use std::io;
use std::path::Path;

use rustix::fs::Access;
use serde_json::Value;

use super::{Finding, State};
use crate::base::units::ByteSize;
use crate::cli::args::DiskArgs;
use crate::cli::config_file::ConfigFile;
use crate::cli::error::CliError;
use crate::cli::settings::{Environment, disk_cache};
use crate::cli::status;
use crate::daemon::registry::mount_point::quoted;

/// Checks the settings file.
pub fn settings_file(file: &Result<ConfigFile, CliError>) -> Finding {
    let check = "settings";
    match file {
        Err(error) => Finding::error(check, error),
        Ok(file) if !file.found => Finding::ok(check, "there is no settings file; none is needed"),
        Ok(file) => {
            let stores = file.stores.len();
            let path = file.path.display();
            Finding::ok(
                check,
                format!("{path} is valid and defines {stores} stores"),
            )
        }
    }
}

/// Checks the folder in which mounts register.
pub fn state(environment: &Environment) -> Finding {
    let check = "state";
    let registry = match environment.registry() {
        Ok(registry) => registry,
        Err(error) => return Finding::error(check, &error),
    };
    match registry.prepare() {
        Ok(dir) => Finding::ok(check, format!("{} can be used", dir.display())),
        Err(error) => Finding::failure(
            check,
            format!(
                "mounts cannot be registered in {}: {error}",
                registry.dir().display()
            ),
            "give that folder back: chown it to yourself, chmod 700; or set XDG_RUNTIME_DIR to another",
        ),
    }
}

/// Checks the cache folder and the space there.
pub fn cache(args: &DiskArgs, environment: &Environment) -> Finding {
    let check = "cache";
    let config = match disk_cache(args, environment) {
        Ok(Some(config)) => config,
        Ok(None) => return Finding::ok(check, "the disk cache is disabled, as you asked"),
        Err(error) => return Finding::error(check, &error),
    };
    let dir = config.dir.display();
    if let Err(error) = usable(&config.dir) {
        return Finding::warning(
            check,
            format!("{dir} cannot be used, so there is no disk cache: {error}"),
            "name another folder with --cache-dir, or mount with --no-disk-cache",
        );
    }
    let Some(free) = free(&config.dir) else {
        return Finding::ok(check, format!("{dir} can be used"));
    };
    if free.0 < config.size.0 {
        return Finding::warning(
            check,
            format!("{dir} has {free} free; the cache may take {}", config.size),
            "make room, or limit it with --cache-size; a full disk only means no cache",
        );
    }
    Finding::ok(check, format!("{dir} can be used; {free} are free"))
}

/// Returns the nearest folder that is there: others are made in it when they are needed.
fn existing(dir: &Path) -> &Path {
    let found = dir.ancestors().find(|path| path.exists());
    found.unwrap_or(Path::new("/"))
}

/// Returns whether this user can use the folder `dir`, or make it.
pub fn usable(dir: &Path) -> io::Result<()> {
    let existing = existing(dir);
    if !existing.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(rustix::fs::access(
        existing,
        Access::WRITE_OK | Access::EXEC_OK,
    )?)
}

/// Returns how much is free where `dir` is, or would be.
pub fn free(dir: &Path) -> Option<ByteSize> {
    let space = rustix::fs::statvfs(existing(dir)).ok()?;
    Some(ByteSize(space.f_bavail.saturating_mul(space.f_frsize)))
}

/// Checks the mounts; returns their states, as `kvfs status --json` shows them.
pub fn mounts(environment: &Environment, findings: &mut Vec<Finding>) -> Vec<Value> {
    let Ok(registry) = environment.registry() else {
        return Vec::new();
    };
    let mounts = status::all(&registry);
    findings.extend(mounts.iter().map(mount));
    if mounts.is_empty() {
        findings.push(Finding::ok("mount", "nothing is mounted"));
    }
    mounts
}

fn mount(mount: &Value) -> Finding {
    let check = "mount";
    let text = |name: &str| mount[name].as_str().unwrap_or_default();
    let point = text("mount_point");
    let quoted = quoted(Path::new(point));
    match text("state") {
        status::DEAD => Finding::failure(
            check,
            format!("{point} is stale: its daemon is gone"),
            format!("kvfs unmount {quoted}, or mount there again"),
        ),
        status::NOT_ANSWERING => Finding::failure(
            check,
            format!("{point} does not answer"),
            format!("kvfs unmount --force {quoted}"),
        ),
        _ => {
            let version = text("version");
            let current = env!("CARGO_PKG_VERSION");
            if !version.is_empty() && version != current {
                return Finding::warning(
                    check,
                    format!("{point} is served by kvfs {version}, not {current}"),
                    format!("unmount and mount again: kvfs unmount {quoted}"),
                );
            }
            let errors = mount["stats"]["errors_total"].as_u64().unwrap_or(0);
            Finding {
                fix: (errors > 0).then(|| format!("see what failed: kvfs status {quoted}")),
                state: if errors > 0 {
                    State::Warning
                } else {
                    State::Ok
                },
                ..Finding::ok(
                    check,
                    format!("{point} answers, with {errors} errors so far"),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mounts_are_judged_by_their_state() {
        for (state, expected, fix) in [
            ("live", State::Ok, ""),
            ("dead", State::Failure, "kvfs unmount '/m n'"),
            ("not_answering", State::Failure, "--force"),
        ] {
            let finding = mount(&json!({ "mount_point": "/m n", "state": state }));
            assert_eq!(finding.state, expected, "{finding:?}");
            assert!(finding.fix.unwrap_or_default().contains(fix));
        }
        let old = json!({ "mount_point": "/m", "state": "live", "version": "0.0.1" });
        assert_eq!(mount(&old).state, State::Warning);
        let stats = json!({ "errors_total": 3 });
        let failing = json!({ "mount_point": "/m", "state": "live", "stats": stats });
        assert!(
            mount(&failing)
                .fix
                .is_some_and(|fix| fix.contains("kvfs status"))
        );
    }

    #[test]
    fn a_cache_needs_a_folder_and_space() {
        let dir = tempfile::tempdir().expect("a folder");
        let environment = Environment::default();
        let mut args = DiskArgs {
            cache_dir: Some(dir.path().join("not/made/yet")),
            cache_size: Some(ByteSize(1)),
            no_disk_cache: false,
        };
        assert_eq!(cache(&args, &environment).state, State::Ok);
        args.cache_size = Some(ByteSize(u64::MAX));
        let finding = cache(&args, &environment);
        assert!(finding.message.contains("free"), "{finding:?}");
        assert_eq!(finding.state, State::Warning);
        std::fs::write(dir.path().join("file"), "").expect("a file");
        args.cache_dir = Some(dir.path().join("file"));
        assert_eq!(cache(&args, &environment).state, State::Warning);
        args.no_disk_cache = true;
        assert_eq!(cache(&args, &environment).state, State::Ok);
    }
}
