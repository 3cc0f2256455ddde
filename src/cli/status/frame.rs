//! `kvfs status MOUNTPOINT`: the state of one mount, the most important first.

use serde_json::Value;

use super::{counter, latencies, micros, text as field, unix_now, upload, uptime};
use crate::base::text::Line;
use crate::base::units::ByteSize;

/// Uploads that are named.
const UPLOADS: usize = 10;
/// How many errors are shown, the latest first.
const ERRORS: usize = 5;

/// Returns the state of a mount as lines for people.
pub fn text(mount: &Value) -> String {
    let mut lines = vec![format!(
        "{} on {}",
        Line(or(field(mount, "store"), "a store")),
        Line(field(mount, "mount_point"))
    )];
    lines.push(row("state", &state(mount)));
    if let Some(held) = held_current(mount) {
        lines.push(row("current", &held));
    }
    if let Some(id) = mount["store_id"].as_str() {
        let name = mount["store_name"].as_str().map(|name| format!("{name}, "));
        lines.push(row(
            "store",
            &format!("{}id {id}", name.unwrap_or_default()),
        ));
    }
    if let Some(expiry) = expiry(mount) {
        lines.push(row("link", &expiry));
    }
    if let Some(part) = part(mount) {
        lines.push(row("shows", &part));
    }
    if let Some(pid) = mount["pid"].as_u64() {
        let version = or(field(mount, "version"), "?").to_owned();
        lines.push(row("daemon", &format!("process {pid}, kvfs {version}")));
    }
    if let Some(log) = mount["log_file"].as_str() {
        lines.push(row("log", log));
    }
    if let Some(metrics) = mount["metrics_url"].as_str() {
        lines.push(row("metrics", metrics));
    }
    if mount["stats"].is_object() {
        lines.extend(numbers(mount));
    }
    lines.extend(uploads(mount));
    if mount["stats"]["operations"]
        .as_object()
        .is_some_and(|operations| !operations.is_empty())
    {
        lines.push(String::new());
        lines.push(latencies(&mount["stats"]["operations"]));
    }
    lines.extend(errors(mount));
    lines.join("\n")
}

fn row(name: &str, value: &str) -> String {
    format!("  {name:10}{}", Line(value))
}

fn state(mount: &Value) -> String {
    let mut words = vec![field(mount, "state").replace('_', " ")];
    for name in ["mode", "access"] {
        words.extend(mount[name].as_str().map(str::to_owned));
    }
    if counter(mount, "requests_waiting_for_limit").unwrap_or(0) > 0 {
        words.push("waits for the request limit".to_owned());
    }
    if let Some(seconds) = mount["uptime_s"].as_u64() {
        words.push(format!("up {}", uptime(seconds)));
    }
    words.join(", ")
}

/// Returns by what contents are held to be current.
fn held_current(mount: &Value) -> Option<String> {
    let held = &mount["held_current"];
    let by = held["by"].as_str()?;
    let why = held["why"].as_str().map(|why| format!(": {why}"));
    Some(format!("by asking for {by}{}", why.unwrap_or_default()))
}

fn expiry(mount: &Value) -> Option<String> {
    let at = mount["signature_expires_unix_s"].as_u64()?;
    let at = jiff::Timestamp::from_second(i64::try_from(at).ok()?).ok()?;
    Some(match mount["signature_expired"] == true {
        true => format!("expired at {at}: mount a fresh one"),
        false => format!("expires at {at}"),
    })
}

fn part(mount: &Value) -> Option<String> {
    let prefix = mount["prefix"]
        .as_str()
        .map(|prefix| format!("keys that begin with '{prefix}'"));
    let collection = mount["collection"]
        .as_str()
        .map(|name| format!("the collection {name}"));
    match (prefix, collection) {
        (None, None) => None,
        (prefix, collection) => {
            let parts: Vec<String> = prefix.into_iter().chain(collection).collect();
            Some(parts.join(", "))
        }
    }
}

fn numbers(mount: &Value) -> Vec<String> {
    let count = |name: &str| counter(mount, name).unwrap_or(0);
    let size = |name: &str| ByteSize(count(name));
    let opens = ["cache_memory_hits", "cache_disk_hits", "cache_misses"].map(count);
    let all: u64 = opens.iter().sum();
    let share = |part: u64| match all {
        0 => 0,
        all => (part * 100 + all / 2) / all,
    };
    let throttled = match count("budget_waited_us") {
        0 => String::new(),
        us => format!("; throttled {} in all", micros(us)),
    };
    vec![
        row(
            "requests",
            &format!(
                "{} in all, {} repeated, {} refused (429){throttled}",
                count("requests_total"),
                count("requests_retried"),
                count("responses_rate_limited"),
            ),
        ),
        row(
            "bytes",
            &format!(
                "in {}, out {}, read by programs {}",
                size("received_bytes"),
                size("sent_bytes"),
                size("read_bytes")
            ),
        ),
        row(
            "opens",
            &match all {
                0 => "none yet".to_owned(),
                all => format!(
                    "{all}: memory {} %, disk {} %, network {} %",
                    share(opens[0]),
                    share(opens[1]),
                    share(opens[2])
                ),
            },
        ),
        row(
            "prefetch",
            &format!(
                "{} ({}), {} used, {} wasted",
                count("prefetched"),
                size("prefetched_bytes"),
                count("prefetch_used"),
                count("prefetch_wasted")
            ),
        ),
        row(
            "cache",
            &format!(
                "memory {}, disk {}; {} open files",
                size("cache_memory_bytes"),
                size("cache_disk_bytes"),
                count("open_files")
            ),
        ),
    ]
}

fn uploads(mount: &Value) -> Vec<String> {
    let uploads = &mount["uploads"];
    if !uploads.is_object() {
        return Vec::new();
    }
    let waiting = crate::daemon::serve::waiting_uploads(mount);
    let folder = or(field(uploads, "folder"), "the staging folder").to_owned();
    let mut lines = vec![row(
        "uploads",
        &match waiting {
            Some(files) => format!("{files} waiting, kept in {folder}"),
            None => "nothing waits".to_owned(),
        },
    )];
    let items = uploads["items"].as_array().into_iter().flatten();
    lines.extend(
        items
            .take(UPLOADS)
            .map(|item| format!("    {}", Line(&upload(item)))),
    );
    lines
}

fn errors(mount: &Value) -> Vec<String> {
    let all = counter(mount, "errors_total").unwrap_or(0);
    let Some(last) = mount["stats"]["last_errors"].as_array().filter(|_| all > 0) else {
        return Vec::new();
    };
    let mut lines = vec![String::new(), format!("errors    {all}, the latest:")];
    for error in last.iter().rev().take(ERRORS) {
        lines.push(super::error_line(error, unix_now()));
        if let Some(hint) = error["hint"].as_str() {
            lines.push(format!("  hint: {}", Line(hint)));
        }
    }
    lines
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_frame_tells_state_numbers_uploads_and_the_last_errors() {
        let shown = text(&json!({
            "store": "~shop", "mount_point": "/mnt/kv", "state": "live", "mode": "decoded",
            "access": "read-write", "uptime_s": 90061, "pid": 7, "version": "1.0", "prefix": "a",
            "log_file": "/var/log/x",
            "stats": {
                "requests_total": 220, "requests_waiting_for_limit": 1, "budget_waited_us": 1_500_000, "cache_memory_hits": 8,
                "cache_disk_hits": 1, "cache_misses": 1, "errors_total": 3,
                "operations": {"open": {"count": 4, "p50_us": 80, "p90_us": 1500, "p99_us": 2000000}},
                "last_errors": [{
                    "at_unix_s": 0, "errno": "EACCES", "operation": "open", "key": "a",
                    "message": "no", "hint": "ask", "count": 3
                }]
            },
            "held_current": {"by": "each record", "why": "the store's modifiedAt goes back"},
            "uploads": {
                "pending": 1, "pending_bytes": 2048, "folder": "/staging",
                "items": [{"id": "x", "key": "k", "size": 2048, "state": "waiting"}]
            },
        }));
        for expected in [
            "~shop on /mnt/kv\n  state     live, decoded, read-write, waits for the request limit, up 1day 1h\n",
            "  current   by asking for each record: the store's modifiedAt goes back\n",
            "  shows     keys that begin with 'a'",
            "  daemon    process 7, kvfs 1.0",
            "  requests  220 in all, 0 repeated, 0 refused (429); throttled 1.5 s in all",
            "  opens     10: memory 80 %, disk 10 %, network 10 %",
            "  uploads   1 file (2.0 KiB) waiting, kept in /staging",
            "not in the store: 'k', 2.0 KiB, waiting",
            "OPERATION  COUNT  P50",
            "errors    3, the latest:\nopen failed of 'a' with EACCES",
            "  hint: ask",
        ] {
            assert!(shown.contains(expected), "no {expected:?} in:\n{shown}");
        }
        assert!(text(&json!({"mount_point": "/m", "state": "dead"})).contains("dead"));
    }
}
