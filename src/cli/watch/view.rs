//! The layout of the live view. Everything is readable without colour.

use std::time::Duration;

use ratatui::Frame;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span as Words};
use ratatui::widgets::{Paragraph, Wrap};

use super::sample::Span;
use crate::base::text;
use crate::base::units::ByteSize;
use crate::cli::status::{micros, unix_now};
use crate::metrics::ErrorEntry;
use crate::metrics::transfers::{Direction, TransferEntry};

/// Transfers shown; the status has more.
const TRANSFERS: usize = 5;
/// Errors shown, the latest first.
const ERRORS: usize = 3;
/// Columns of a bar.
const BAR: usize = 20;

/// Draws the state of a mount.
pub fn draw(frame: &mut Frame<'_>, span: &Span<'_>) {
    let text = Paragraph::new(lines(span)).wrap(Wrap { trim: false });
    frame.render_widget(text, frame.area());
}

fn lines(span: &Span<'_>) -> Vec<Line<'static>> {
    let now = span.last;
    let up = humantime::format_duration(Duration::from_secs(now.uptime_s)).to_string();
    let up = up.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let mut lines = vec![
        head(
            &text::line(&format!("{} on {}", now.store, now.mount_point)),
            &format!("  {}, up {up}; q quits", now.mode),
        ),
        Line::default(),
    ];
    lines.extend(requests(span));
    lines.extend(caches(span));
    lines.push(Line::default());
    lines.extend(operations(span));
    let running = &now.stats.transfers;
    if !running.is_empty() {
        lines.push(Line::default());
        lines.push(head(&format!("transfers  {}", running.len()), ""));
        lines.extend(running.iter().take(TRANSFERS).map(transfer));
    }
    if now.stats.errors_total > 0 {
        lines.push(Line::default());
        let all = now.stats.errors_total;
        lines.push(head(&format!("errors     {all}"), ", the latest:"));
        let latest = now.stats.last_errors.iter().rev().take(ERRORS);
        lines.extend(latest.flat_map(error));
    }
    lines
}

fn head(title: &str, rest: &str) -> Line<'static> {
    Line::from(vec![
        Words::styled(
            title.to_owned(),
            Style::default().add_modifier(Modifier::BOLD),
        ),
        Words::raw(rest.to_owned()),
    ])
}

fn requests(span: &Span<'_>) -> Vec<Line<'static>> {
    let stats = &span.last.stats;
    let records =
        span.rate(|stats| stats.requests_get + stats.requests_put + stats.requests_delete);
    let rest = span.rate(|stats| stats.requests_list + stats.requests_head + stats.requests_other);
    let against = |rate: f64, allowed: u64| match allowed {
        0 => format!("{rate:.0}/s"),
        allowed => format!("{rate:.0}/s of {allowed} {}", bar(rate / allowed as f64)),
    };
    let others = stats.budget_lists_per_second;
    let bytes = |rate: f64| format!("{}/s", ByteSize(rate as u64));
    vec![
        head(
            "requests   ",
            &format!(
                "records {}",
                against(records, stats.budget_records_per_second)
            ),
        ),
        Line::raw(format!(
            "           lists and others {}",
            against(rest, others)
        )),
        Line::raw(format!(
            "           {} in all, {} repeated, {} refused (429), {} throttled",
            stats.requests_total,
            stats.requests_retried,
            stats.responses_rate_limited,
            micros(stats.budget_waited_us),
        )),
        head(
            "bytes      ",
            &format!(
                "in {} ({}), out {} ({}), read {}",
                bytes(span.rate(|stats| stats.received_bytes)),
                ByteSize(stats.received_bytes),
                bytes(span.rate(|stats| stats.sent_bytes)),
                ByteSize(stats.sent_bytes),
                bytes(span.rate(|stats| stats.read_bytes)),
            ),
        ),
    ]
}

fn caches(span: &Span<'_>) -> Vec<Line<'static>> {
    let stats = &span.last.stats;
    let shares = match span.shares() {
        Some([memory, disk, network]) => {
            format!("memory {memory} %, disk {disk} %, network {network} %")
        }
        None => "none yet".to_owned(),
    };
    vec![
        head(
            "opens      ",
            &format!(
                "{shares}; kernel kept the pages of {}",
                stats.cache_kernel_hits
            ),
        ),
        head(
            "prefetch   ",
            &format!(
                "{} fetched ahead ({}), {} used, {} wasted",
                stats.prefetched,
                ByteSize(stats.prefetched_bytes),
                stats.prefetch_used,
                stats.prefetch_wasted,
            ),
        ),
        head(
            "held       ",
            &format!(
                "memory {}, disk {}, {} open files, {} uploads pending",
                ByteSize(stats.cache_memory_bytes),
                ByteSize(stats.cache_disk_bytes),
                stats.open_files,
                stats.uploads_pending,
            ),
        ),
    ]
}

fn operations(span: &Span<'_>) -> Vec<Line<'static>> {
    let row = |cells: [&str; 5]| {
        let [name, rate, half, most, all] = cells;
        format!("{name:10} {rate:>8} {half:>10} {most:>10} {all:>10}")
    };
    let title = row(["operation", "a second", "p50", "p90", "p99"]);
    let mut lines = vec![head(&title, "")];
    let operations = span.operations();
    lines.extend(operations.iter().map(|(name, latency, rate)| {
        Line::raw(row([
            name,
            &format!("{rate:.0}"),
            &micros(latency.p50_us),
            &micros(latency.p90_us),
            &micros(latency.p99_us),
        ]))
    }));
    lines
}

fn transfer(transfer: &TransferEntry) -> Line<'static> {
    let key: String = text::line(&transfer.key).chars().take(24).collect();
    let way = match transfer.direction {
        Direction::Down => "in ",
        Direction::Up => "out",
    };
    let seconds = (transfer.age_ms as f64 / 1e3).max(0.001);
    let rate = ByteSize((transfer.bytes as f64 / seconds) as u64);
    let progress = match transfer.total_bytes {
        Some(total) if total > 0 => {
            let part = transfer.bytes as f64 / total as f64;
            format!("{} {:3.0} %", bar(part), (part * 100.0).min(100.0))
        }
        _ => format!("{:>w$}", ByteSize(transfer.bytes).to_string(), w = BAR + 8),
    };
    Line::raw(format!(
        "{way} {key:24} {progress} {:>12}",
        format!("{rate}/s")
    ))
}

fn error(entry: &ErrorEntry) -> Vec<Line<'static>> {
    let about = match &entry.key {
        Some(key) => format!(" '{}'", text::line(key)),
        None => String::new(),
    };
    let ago = unix_now().saturating_sub(entry.at_unix_s);
    let mut lines = vec![Line::raw(format!(
        "{}{about} {} {} ago: {}",
        entry.operation,
        entry.errno,
        crate::cli::status::uptime(ago),
        text::line(&entry.message)
    ))];
    lines.extend(
        entry
            .hint
            .iter()
            .map(|hint| Line::raw(format!("  hint: {}", text::line(hint)))),
    );
    lines
}

/// Returns a part of a whole as a bar of characters.
fn bar(part: f64) -> String {
    let full = ((part.clamp(0.0, 1.0) * BAR as f64).round() as usize).min(BAR);
    format!("[{}{}]", "=".repeat(full), " ".repeat(BAR - full))
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::watch::sample::Sample;

    fn state(requests: u64, received: u64, opens: u64) -> Value {
        let mut buckets = vec![0; 23];
        buckets[3] = opens * 9;
        buckets[11] = opens;
        json!({
            "store": "~shop", "mount_point": "/mnt/kv", "mode": "decoded", "access": "read-only",
            "uptime_s": 7384,
            "stats": {
                "requests_total": requests, "requests_get": requests,
                "budget_records_per_second": 200, "budget_lists_per_second": 60,
                "budget_waited_us": 1_500_000, "received_bytes": received,
                "cache_memory_hits": opens * 8, "cache_disk_hits": opens, "cache_misses": opens,
                "cache_kernel_hits": 45, "prefetched": 120, "prefetch_used": 118,
                "prefetch_wasted": 2, "prefetched_bytes": 1_048_576,
                "errors_total": 1, "uploads_pending": 0,
                "operations": {"open": {"count": opens * 10, "sum_us": opens, "buckets": buckets}},
                "transfers": [
                    {"key": "video.mp4", "direction": "down", "bytes": 5_242_880,
                     "total_bytes": 10_485_760, "age_ms": 1000},
                    {"key": "stream", "direction": "up", "bytes": 1_048_576, "age_ms": 1000}],
                "last_errors": [{
                    "at_unix_s": 0, "errno": "EACCES", "operation": "open", "key": "secret",
                    "message": "the token has no access", "hint": "use another token", "count": 1}]
            }
        })
    }

    /// A moment.
    pub(in super::super) fn earlier() -> Sample {
        Sample::new(&state(100, 1 << 20, 10), Instant::now())
    }

    /// The moment ten seconds after it.
    pub(in super::super) fn later() -> Sample {
        let mut sample = Sample::new(&state(220, 31 << 20, 20), Instant::now());
        sample.at = Instant::now() + Duration::from_secs(10);
        sample
    }

    fn drawn(width: u16, height: u16) -> Vec<String> {
        let (mut first, mut last) = (earlier(), later());
        let start = Instant::now();
        first.at = start;
        last.at = start + Duration::from_secs(10);
        let span = Span {
            first: &first,
            last: &last,
        };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, &span)).expect("a view");
        let buffer = terminal.backend().buffer();
        buffer
            .content()
            .chunks(usize::from(width))
            .map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    #[test]
    fn the_view_shows_requests_caches_latencies_transfers_and_errors() {
        let lines = drawn(80, 24);
        let expected = [
            "~shop on /mnt/kv  decoded, read-only, up 2h 3m; q quits",
            "",
            "requests   records 12/s of 200 [=                   ]",
            "           lists and others 0/s of 60 [                    ]",
            "           220 in all, 0 repeated, 0 refused (429), 1.5 s throttled",
            "bytes      in 3.0 MiB/s (31.0 MiB), out 0 B/s (0 B), read 0 B/s",
            "opens      memory 80 %, disk 10 %, network 10 %; kernel kept the pages of 45",
            "prefetch   120 fetched ahead (1.0 MiB), 118 used, 2 wasted",
            "held       memory 0 B, disk 0 B, 0 open files, 0 uploads pending",
            "",
            "operation  a second        p50        p90        p99",
            "open             10      78 µs     100 µs    47.0 ms",
            "",
            "transfers  2",
            "in  video.mp4                [==========          ]  50 %    5.0 MiB/s",
            "out stream                                        1.0 MiB    1.0 MiB/s",
            "",
            "errors     1, the latest:",
        ];
        for (line, expected) in lines.iter().zip(expected) {
            assert_eq!(line, expected, "{}", lines.join("\n"));
        }
        assert!(lines[18].starts_with("open 'secret' EACCES"), "{lines:?}");
        assert!(lines.iter().any(|line| line == "  hint: use another token"));
    }

    #[test]
    fn a_small_window_shows_the_beginning_and_breaks_nothing() {
        assert!(drawn(40, 5)[0].starts_with("~shop on /mnt/kv"));
        drawn(1, 1);
    }
}
