//! `kvfs status`.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::args::{GlobalArgs, StatusArgs};
use super::error::{CliError, Kind};
use super::left_behind;
use super::places::{mount_points, not_mounted};
use super::settings::Environment;
use super::ui::{Ui, table};
use super::watch;
use crate::base::text::{self, Line};
use crate::base::units::ByteSize;
use crate::daemon::control::{self, Answer, Request};
use crate::daemon::registry::mount_point::{ANSWER_TIMEOUT, Health, health, is_kvfs, quoted};
use crate::daemon::registry::{Entry, Registry, mounts};
use crate::daemon::serve::describe;

pub mod frame;

const LIVE: &str = "live";
pub(super) const DEAD: &str = "dead";
pub(super) const NOT_ANSWERING: &str = "not_answering";

/// Shows this user's mounts.
///
/// # Errors
/// [`Kind::Trouble`] if a mount is dead or does not answer, or the one asked about is not there.
pub fn run(
    ui: Ui,
    args: &StatusArgs,
    global: GlobalArgs,
    environment: &Environment,
) -> Result<(), CliError> {
    let registry = environment.registry()?;
    let named = mount_points(&args.mountpoints, environment)?;
    if args.watch {
        let path = match named.as_slice() {
            [path] => path.clone(),
            [] => only(&all(&registry))?,
            _ => return Err(CliError::usage("--watch shows one mount: name one")),
        };
        return watch::run(ui, &path, args.json, environment);
    }
    let mut mounts = match named.as_slice() {
        [] => all(&registry),
        named => named
            .iter()
            .map(|path| one(&registry, path))
            .collect::<Result<_, _>>()?,
    };
    for mount in &mut mounts {
        let left = left_behind::of(environment, mount);
        if !left.is_empty() {
            mount["left_behind"] = json!(left);
        }
        for left in left.iter().filter(|_| !args.json) {
            ui.warn(left.message());
            ui.hint(left.hint());
        }
    }
    if args.json {
        ui.json(&mounts)?;
    } else if mounts.is_empty() {
        ui.say("nothing is mounted");
    } else if !named.is_empty() {
        let frames: Vec<String> = mounts
            .iter()
            .map(|mount| match global.verbose {
                0 => frame::text(mount),
                _ => details(mount),
            })
            .collect();
        ui.data(frames.join("\n\n"))?;
    } else {
        ui.data(overview(&mounts))?;
    }
    let mut trouble = CliError::silent(Kind::Trouble);
    for mount in &mounts {
        let path = text(mount, "mount_point");
        let fix = match text(mount, "state") {
            DEAD => "the daemon is gone; clear the mount away with: kvfs unmount",
            NOT_ANSWERING => "end it at once with: kvfs unmount --force",
            _ => continue,
        };
        trouble
            .hints
            .push(format!("{fix} {}", quoted(Path::new(path))));
    }
    match trouble.hints.len() {
        0 => Ok(()),
        1 => Err(CliError {
            message: "a mount does not work".into(),
            ..trouble
        }),
        n => Err(CliError {
            message: format!("{n} mounts do not work"),
            ..trouble
        }),
    }
}

/// Returns the one mount that there is to watch.
fn only(mounts: &[Value]) -> Result<PathBuf, CliError> {
    match mounts {
        [mount] => Ok(PathBuf::from(text(mount, "mount_point"))),
        [] => Err(CliError::of(Kind::Trouble, "nothing is mounted")),
        mounts => {
            let paths: Vec<_> = mounts
                .iter()
                .map(|mount| text(mount, "mount_point"))
                .collect();
            Err(CliError::usage("several stores are mounted; name one")
                .hinted(format!("they are on {}", paths.join(", "))))
        }
    }
}

/// Returns every mount of this user, with what its daemon registered.
fn known(registry: &Registry) -> Vec<(PathBuf, Option<Entry>)> {
    let me = rustix::process::geteuid().as_raw();
    let mut known: Vec<(PathBuf, Option<Entry>)> = Vec::new();
    for entry in registry.entries() {
        if entry.is_alive() || is_kvfs(&entry.mount_point) {
            known.push((entry.mount_point.clone(), Some(entry)));
        } else {
            registry.clean(&entry.mount_point);
        }
    }
    for mount in mounts::list().unwrap_or_default() {
        let registered = known.iter().any(|(path, _)| *path == mount.mount_point);
        if mount.is_kvfs() && mount.user_id == Some(me) && !registered {
            known.push((mount.mount_point, None));
        }
    }
    known
}

/// Returns the state of every mount of this user, those of dead daemons included.
pub(super) fn all(registry: &Registry) -> Vec<Value> {
    let known = known(registry);
    // Those that hang are waited for at the same time.
    thread::scope(|scope| {
        let asked: Vec<_> = known
            .iter()
            .map(|(path, entry)| scope.spawn(|| state(path, entry.as_ref())))
            .collect();
        asked
            .into_iter()
            .filter_map(|asked| asked.join().ok())
            .collect()
    })
}

/// Returns the mount points registered here, those of dead daemons included; not those that the
/// same user has registered in another state folder.
pub(super) fn own_mount_points(registry: &Registry) -> Vec<PathBuf> {
    let known = known(registry).into_iter();
    known
        .filter(|(_, entry)| entry.is_some())
        .map(|(path, _)| path)
        .collect()
}

/// Returns the state of the mount at `path`.
///
/// # Errors
/// [`Kind::Trouble`] if no store is mounted there.
pub fn one(registry: &Registry, path: &Path) -> Result<Value, CliError> {
    let entry = registry.find(path);
    if !is_kvfs(path) && !entry.as_ref().is_some_and(Entry::is_alive) {
        registry.clean(path);
        return Err(not_mounted(path));
    }
    Ok(state(path, entry.as_ref()))
}

/// Asks the daemon, or finds out why it cannot be asked.
fn state(path: &Path, entry: Option<&Entry>) -> Value {
    let mut known = match entry {
        Some(entry) => describe(entry, SystemTime::now()),
        // Registered elsewhere, or by a daemon that is gone: the kernel still knows what it is.
        None => json!({ "mount_point": path.to_string_lossy(), "store": source(path) }),
    };
    let mut set = |state: &str| known["state"] = state.into();
    match entry.filter(|entry| entry.is_alive()) {
        Some(entry) => match control::ask(&entry.control, &Request::Status, ANSWER_TIMEOUT) {
            Ok(Answer::Done(state @ Value::Object(_))) => return state,
            // It says something else than its state, which is no sign of a broken mount.
            Ok(_) => set(LIVE),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => set(LIVE),
            _ if !entry.is_alive() => set(DEAD),
            _ => set(NOT_ANSWERING),
        },
        // Mounted by a daemon that is registered elsewhere, or by none any more.
        None => match health(path) {
            Health::Answers => set(LIVE),
            Health::Dead => set(DEAD),
            Health::Hangs => set(NOT_ANSWERING),
        },
    }
    known
}

/// Returns what the kernel says is mounted there.
fn source(path: &Path) -> Option<String> {
    let source = mounts::find(path).ok()??.source;
    Some(source.strip_prefix("kvfs:").unwrap_or(&source).to_owned())
}

fn overview(mounts: &[Value]) -> String {
    let header = [
        "STORE",
        "MOUNT POINT",
        "PID",
        "MODE",
        "STATE",
        "UPTIME",
        "REQUESTS",
        "CACHE",
        "ERRORS",
    ];
    let rows: Vec<Vec<String>> = mounts
        .iter()
        .map(|mount| {
            let count = |name| counter(mount, name).map_or("-".to_owned(), |n| n.to_string());
            vec![
                or_dash(text(mount, "store")),
                or_dash(text(mount, "mount_point")),
                mount["pid"]
                    .as_u64()
                    .map_or("-".to_owned(), |pid| pid.to_string()),
                or_dash(text(mount, "mode")),
                match counter(mount, "requests_waiting_for_limit") {
                    Some(1..) => "waits for the request limit".to_owned(),
                    _ => text(mount, "state").replace('_', " "),
                },
                mount["uptime_s"].as_u64().map_or("-".to_owned(), uptime),
                count("requests_total"),
                cache(mount).map_or("-".to_owned(), |size| size.to_string()),
                count("errors_total"),
            ]
        })
        .collect();
    table(&header, &rows)
}

/// Returns everything known of one mount, a line each, with the last errors at the end.
fn details(mount: &Value) -> String {
    let mut fields = Map::new();
    flatten(mount, "", &mut fields);
    let errors = mount["stats"]["last_errors"].as_array();
    let uploads = mount["uploads"]["items"].as_array();
    let width = fields.keys().map(String::len).max().unwrap_or(0) + 1;
    let operations = mount["stats"]["operations"].as_object();
    let mut lines: Vec<String> = fields
        .iter()
        .map(|(name, value)| {
            let shown = match value {
                Value::String(text) => text::line(text).into_owned(),
                Value::Null => "-".to_owned(),
                other => other.to_string(),
            };
            let name = format!("{name}:");
            format!("{name:width$} {shown}")
        })
        .collect();
    for item in uploads.into_iter().flatten() {
        lines.push(upload(item));
    }
    if operations.is_some_and(|operations| !operations.is_empty()) {
        lines.push(String::new());
        lines.push(latencies(&mount["stats"]["operations"]));
    }
    for error in errors.into_iter().flatten() {
        lines.push(String::new());
        lines.push(error_line(error, unix_now()));
        if let Some(hint) = error["hint"].as_str() {
            lines.push(format!("  hint: {}", Line(hint)));
        }
    }
    lines.join("\n")
}

/// Returns an error as a line.
fn error_line(error: &Value, now: u64) -> String {
    let about = match error["key"].as_str() {
        Some(key) => format!(" of '{}'", Line(key)),
        None => String::new(),
    };
    let times = match error["count"].as_u64() {
        Some(count) if count > 1 => format!(", {count} times"),
        _ => String::new(),
    };
    let ago = now.saturating_sub(error["at_unix_s"].as_u64().unwrap_or(now));
    format!(
        "{} failed{about} with {} {} ago{times}: {}",
        text(error, "operation"),
        text(error, "errno"),
        uptime(ago),
        Line(text(error, "message")),
    )
}

/// Returns a table of how long operations took.
fn latencies(operations: &Value) -> String {
    let time = |latency: &Value, name: &str| micros(latency[name].as_u64().unwrap_or(0));
    let rows: Vec<Vec<String>> = operations
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, latency)| {
            vec![
                name.clone(),
                latency["count"].to_string(),
                time(latency, "p50_us"),
                time(latency, "p90_us"),
                time(latency, "p99_us"),
            ]
        })
        .collect();
    table(&["OPERATION", "COUNT", "P50", "P90", "P99"], &rows)
}

/// Returns microseconds in the unit that suits them.
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// Returns the line of a file that is not in the store.
fn upload(item: &Value) -> String {
    let reason = match item["reason"].as_str() {
        Some(reason) => format!(": {}", Line(reason)),
        None => String::new(),
    };
    let size = ByteSize(item["size"].as_u64().unwrap_or(0));
    let name = item["key"].as_str().unwrap_or(text(item, "id"));
    format!(
        "not in the store: '{}', {size}, {}{reason}",
        Line(name),
        text(item, "state")
    )
}

fn flatten(value: &Value, prefix: &str, out: &mut Map<String, Value>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            // A table of its own.
            Value::Object(_) if name == "operations" => {}
            Value::Object(_) => flatten(value, &format!("{prefix}{name}."), out),
            Value::Array(_) => {}
            _ => drop(out.insert(format!("{prefix}{name}"), value.clone())),
        }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

/// Returns one of the mount's counters.
fn counter(mount: &Value, name: &str) -> Option<u64> {
    mount["stats"][name].as_u64()
}

fn cache(mount: &Value) -> Option<ByteSize> {
    let memory = counter(mount, "cache_memory_bytes");
    let disk = counter(mount, "cache_disk_bytes");
    (memory.is_some() || disk.is_some())
        .then(|| ByteSize(memory.unwrap_or(0).saturating_add(disk.unwrap_or(0))))
}

/// Returns seconds as the two largest units of time.
pub fn uptime(seconds: u64) -> String {
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Returns the time in seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Value {
        json!({
            "mount_point": "/mnt/a", "store": "~mine", "pid": 7, "uptime_s": 90061,
            "state": "live", "mode": "decoded", "stats": {
                "requests_total": 12, "errors_total": 1,
                "cache_memory_bytes": 1024, "cache_disk_bytes": 0,
                "operations": {"open": {"count": 4, "p50_us": 80, "p90_us": 1500, "p99_us": 2000000}},
                "last_errors": [{
                    "at_unix_s": 0, "errno": "EACCES", "operation": "open", "key": "a",
                    "message": "no", "hint": "ask", "count": 3
                }]
            }
        })
    }

    #[test]
    fn the_table_has_a_line_for_each_mount() {
        let dead = json!({ "mount_point": "/mnt/b", "state": "not_answering" });
        let shown = overview(&[live(), dead]);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3);
        for expected in ["~mine", "/mnt/a", "1day 1h", "12", "1.0 KiB", "live"] {
            assert!(lines[1].contains(expected), "{expected}: {shown}");
        }
        assert!(lines[2].contains("not answering"), "{shown}");
    }

    #[test]
    fn details_end_with_the_errors_and_what_to_do() {
        let shown = details(&live());
        assert!(shown.contains("store:"), "{shown}");
        assert!(
            shown.contains("open       4      80 µs  1.5 ms  2.0 s"),
            "{shown}"
        );
        assert!(shown.contains("open failed of 'a' with EACCES"), "{shown}");
        assert!(shown.contains("3 times: no\n  hint: ask"), "{shown}");
    }
}
