//! `kvfs trace`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::args::TraceArgs;
use super::error::CliError;
use super::mounted::Daemon;
use super::settings::Environment;
use super::status::micros;
use super::ui::{Ui, table};
use crate::base::text;
use crate::daemon::control::Request;
use crate::daemon::registry::mount_point::quoted;
use crate::metrics::trace::Event;

/// Files that the summary names.
const NAMED: usize = 20;

/// Shows what a mount is asked, live, until Ctrl-C.
///
/// # Errors
/// That the mount cannot be asked.
pub fn run(ui: Ui, args: &TraceArgs, environment: &Environment) -> Result<(), CliError> {
    let daemon = Daemon::find(&args.mountpoint, environment)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| CliError::failed("cannot catch signals").caused_by(&error))?;
    }
    let until = args.span.map(|span| Instant::now() + span);
    let mut tally = Tally::default();
    let mut started = false;
    let mut broken: Option<std::io::Error> = None;
    let told = daemon.ask(&Request::Trace, &mut |news| {
        if !started {
            started = true;
            ui.say(format_args!(
                "following {}; end with Ctrl-C",
                quoted(&daemon.mount_point)
            ));
        }
        let events: Vec<Event> = serde_json::from_value(news["events"].clone()).unwrap_or_default();
        let dropped = news["dropped"].as_u64().unwrap_or(0);
        tally.dropped += dropped;
        let lines: Vec<String> = events
            .iter()
            .map(|event| {
                if args.json {
                    text::json(&json!(event).to_string()).into_owned()
                } else {
                    line(event, &TimeZone::system())
                }
            })
            .collect();
        for event in events {
            tally.count(event);
        }
        if dropped > 0 {
            ui.warn(format_args!("{dropped} operations were too fast to show"));
        }
        if !lines.is_empty()
            && let Err(error) = ui.data(lines.join("\n"))
        {
            broken = Some(error);
            return false;
        }
        !stop.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until)
    });
    if let Some(error) = broken {
        return Err(error.into());
    }
    match told {
        // The mount is gone: that ends the trace, too.
        Err(error) if !started => return Err(error),
        Err(error) => ui.say(error.message),
        Ok(_) => {}
    }
    if args.summary {
        let summary = tally.summary();
        if args.json {
            ui.json_line(&json!({ "summary": tally.json() }))?;
        } else {
            ui.data(summary)?;
        }
    }
    Ok(())
}

/// Returns an operation as a line that fits into 80 columns if the key does.
fn line(event: &Event, zone: &TimeZone) -> String {
    let time = i64::try_from(event.at_unix_us)
        .ok()
        .and_then(|at| Timestamp::from_microsecond(at).ok())
        .map(|at| {
            at.to_zoned(zone.clone())
                .strftime("%H:%M:%S%.3f")
                .to_string()
        })
        .unwrap_or_default();
    format!(
        "{time} {:9} {:>9} {:9} {:8} {}",
        event.operation,
        micros(event.duration_us),
        event.result,
        event.origin.name(),
        text::line(event.key.as_deref().unwrap_or(".")),
    )
}

#[derive(Debug, Default)]
struct Sum {
    times: u64,
    failed: u64,
    total_us: u64,
    worst_us: u64,
    /// By [`crate::metrics::origin::Origin::name`].
    origins: HashMap<&'static str, u64>,
}

impl Sum {
    fn add(&mut self, event: &Event) {
        self.times += 1;
        self.failed += u64::from(event.result != "ok");
        self.total_us += event.duration_us;
        self.worst_us = self.worst_us.max(event.duration_us);
        *self.origins.entry(event.origin.name()).or_default() += 1;
    }

    fn row(&self, name: &str) -> Vec<String> {
        let origin = |name: &str| self.origins.get(name).copied().unwrap_or(0).to_string();
        vec![
            self.times.to_string(),
            self.failed.to_string(),
            micros(self.total_us),
            micros(self.worst_us),
            origin("memory"),
            origin("kernel"),
            origin("prefetch"),
            origin("disk"),
            origin("network"),
            name.to_owned(),
        ]
    }

    fn json(&self, name: &str) -> serde_json::Value {
        json!({
            "name": name, "times": self.times, "failed": self.failed,
            "total_us": self.total_us, "worst_us": self.worst_us, "origins": self.origins,
        })
    }
}

/// What has been seen, by operation and by key.
#[derive(Debug, Default)]
struct Tally {
    operations: HashMap<String, Sum>,
    keys: HashMap<String, Sum>,
    dropped: u64,
}

/// How many keys are distinguished; a trace that runs for days must not grow for ever.
const KEYS: usize = 100_000;

impl Tally {
    fn count(&mut self, event: Event) {
        self.operations
            .entry(event.operation.clone())
            .or_default()
            .add(&event);
        let key = event.key.clone().unwrap_or_else(|| ".".to_owned());
        if self.keys.len() < KEYS || self.keys.contains_key(&key) {
            self.keys.entry(key).or_default().add(&event);
        }
    }

    /// Returns what took the most time in all first.
    fn sorted(sums: &HashMap<String, Sum>) -> Vec<(&str, &Sum)> {
        let mut sums: Vec<_> = sums
            .iter()
            .map(|(name, sum)| (name.as_str(), sum))
            .collect();
        sums.sort_by_key(|(name, sum)| (std::cmp::Reverse(sum.total_us), *name));
        sums
    }

    fn summary(&self) -> String {
        let part = |last: &str, sums: &HashMap<String, Sum>| {
            let header = [
                "TIMES", "FAIL", "IN ALL", "WORST", "MEM", "KERN", "PREF", "DISK", "NET", last,
            ];
            let rows: Vec<_> = Self::sorted(sums)
                .into_iter()
                .take(NAMED)
                .map(|(name, sum)| sum.row(name))
                .collect();
            table(&header, &rows)
        };
        let mut text = format!(
            "\n{}\n\n{}",
            part("OPERATION", &self.operations),
            part("FILE", &self.keys)
        );
        if self.keys.len() > NAMED {
            text.push_str(&format!("\nand {} files more", self.keys.len() - NAMED));
        }
        if self.dropped > 0 {
            text.push_str(&format!("\n{} operations were not seen", self.dropped));
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let part = |sums| -> Vec<_> {
            let sums: Vec<(&str, &Sum)> = Self::sorted(sums);
            sums.iter().map(|(name, sum)| sum.json(name)).collect()
        };
        json!({
            "operations": part(&self.operations),
            "files": part(&self.keys),
            "dropped": self.dropped,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::origin::Origin;

    fn event(operation: &str, key: Option<&str>, duration_us: u64) -> Event {
        Event {
            at_unix_us: 1_790_000_000_123_456,
            operation: operation.into(),
            key: key.map(Into::into),
            result: "ok".into(),
            duration_us,
            origin: Origin::Network,
            pid: 7,
        }
    }

    #[test]
    fn a_line_tells_time_operation_result_and_source() {
        let shown = line(&event("open", Some("OUTPUT"), 41_234), &TimeZone::UTC);
        assert_eq!(
            shown,
            "14:13:20.123 open        41.2 ms ok        network  OUTPUT"
        );
        assert!(line(&event("readdir", None, 1), &TimeZone::UTC).ends_with(" ."));
    }

    #[test]
    fn the_summary_begins_with_what_took_longest() {
        let mut tally = Tally::default();
        tally.count(event("open", Some("a"), 10));
        tally.count(event("read", Some("b"), 5000));
        tally.count(event("read", Some("a"), 20));
        let shown = tally.summary();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[2].ends_with("read"), "{shown}");
        assert!(lines[3].ends_with("open"), "{shown}");
        assert!(lines[6].ends_with(" b"), "{shown}");
        assert!(lines.iter().all(|line| line.len() <= 80), "{shown}");
    }
}
