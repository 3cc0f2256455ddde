//! The live view without a terminal: a line for each second.

use jiff::Zoned;

use super::sample::Span;
use crate::base::units::ByteSize;
use crate::cli::status::micros;
use crate::metrics::latency::Latency;

/// Returns what happened in the span as a line.
pub fn line(span: &Span<'_>) -> String {
    format!("{} {}", Zoned::now().strftime("%H:%M:%S"), facts(span))
}

fn facts(span: &Span<'_>) -> String {
    let bytes = |rate: f64| ByteSize(rate as u64);
    let slowest = span
        .operations()
        .into_iter()
        .filter(|(_, _, rate)| *rate > 0.0)
        .map(|(_, Latency { p99_us, .. }, _)| p99_us)
        .max();
    let hits = match span.shares() {
        Some([memory, disk, _]) => format!("{} %", memory + disk),
        None => "-".to_owned(),
    };
    format!(
        "req/s {:.0} in {}/s out {}/s hits {hits} p99 {} moving {} errors {}",
        span.rate(|stats| stats.requests_total),
        bytes(span.rate(|stats| stats.received_bytes)),
        bytes(span.rate(|stats| stats.sent_bytes)),
        slowest.map_or("-".to_owned(), micros),
        span.last.stats.transfers.len(),
        span.last.stats.errors_total,
    )
}

#[cfg(test)]
mod tests {
    use crate::cli::watch::view::tests::{earlier, later};

    use super::*;

    #[test]
    fn a_line_fits_80_columns() {
        let (first, last) = (earlier(), later());
        let shown = facts(&Span {
            first: &first,
            last: &last,
        });
        assert_eq!(
            shown,
            "req/s 12 in 3.0 MiB/s out 0 B/s hits 90 % p99 47.0 ms moving 2 errors 1"
        );
    }
}
