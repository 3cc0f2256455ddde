//! The counters as OpenMetrics text. Names and units are those of docs/METRICS.md.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::metrics::latency::BOUNDS_US;
use crate::metrics::{Kind, Metrics, NUMBERS, Snapshot};

/// What the text is, as the OpenMetrics specification names it; Prometheus takes it, too.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which mount the numbers are of.
#[derive(Clone, Debug)]
pub struct About {
    /// Where it is mounted.
    pub mount_point: String,
    /// The store reference, without secrets.
    pub store: String,
}

/// Writes the counters of one mount.
#[derive(Debug)]
pub struct Exposition(Registry);

#[derive(Debug)]
struct Source {
    about: About,
    metrics: Arc<Metrics>,
}

impl Exposition {
    /// Makes the writer of these counters.
    pub fn new(about: About, metrics: Arc<Metrics>) -> Self {
        let mut registry = Registry::with_prefix("kvfs");
        registry.register_collector(Box::new(Source { about, metrics }));
        Self(registry)
    }

    /// Returns the counters as they are now.
    ///
    /// # Errors
    /// None but those of formatting.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.metrics.snapshot();
        let mut info = encoder.encode_descriptor(
            "mount",
            "The mount of these metrics",
            None,
            MetricType::Info,
        )?;
        info.encode_info(&[
            ("mount_point", self.about.mount_point.as_str()),
            ("store", self.about.store.as_str()),
            ("version", env!("CARGO_PKG_VERSION")),
        ])?;
        for number in NUMBERS {
            let value = (number.get)(&snapshot);
            let help = number.help.trim().trim_end_matches('.');
            match number.kind {
                Kind::Counter => {
                    // The text format adds the ending.
                    let name = number.name.trim_end_matches("_total");
                    let descriptor =
                        encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
                    ConstCounter::new(value).encode(descriptor)?;
                }
                Kind::Gauge => {
                    let descriptor =
                        encoder.encode_descriptor(number.name, help, None, MetricType::Gauge)?;
                    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(descriptor)?;
                }
            }
        }
        transfers(&mut encoder, &self.metrics)?;
        operations(&mut encoder, &snapshot)
    }
}

fn transfers(encoder: &mut DescriptorEncoder<'_>, metrics: &Metrics) -> fmt::Result {
    let running = i64::try_from(metrics.transfers.count()).unwrap_or(i64::MAX);
    let descriptor =
        encoder.encode_descriptor("transfers", "Transfers under way", None, MetricType::Gauge)?;
    ConstGauge::new(running).encode(descriptor)
}

fn operations(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let mut histograms = encoder.encode_descriptor(
        "operation_duration_seconds",
        "How long filesystem operations took, from the kernel's request to the answer",
        None,
        MetricType::Histogram,
    )?;
    for (operation, latency) in &snapshot.operations {
        let bounds = BOUNDS_US
            .iter()
            .map(|bound| *bound as f64 / 1e6)
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(latency.buckets.iter().copied()).collect();
        let labels = [("operation", operation.as_str())];
        histograms
            .encode_family(&labels)?
            .encode_histogram::<NoLabelSet>(
                latency.sum_us as f64 / 1e6,
                latency.count,
                &buckets,
                None,
            )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn exposition() -> String {
        let metrics = Arc::new(Metrics::default());
        metrics.operation("open", Duration::from_millis(3));
        metrics.received_bytes.add(7);
        let about = About {
            mount_point: "/m\"n".into(),
            store: "~mine".into(),
        };
        Exposition::new(about, metrics).text().expect("a text")
    }

    #[test]
    fn numbers_histograms_and_the_mount_are_told() {
        let text = exposition();
        for line in [
            r#"kvfs_mount_info{mount_point="/m\"n",store="~mine",version="0.1.0"} 1"#,
            "kvfs_received_bytes_total 7",
            "kvfs_open_files 0",
            r#"kvfs_operation_duration_seconds_count{operation="open"} 1"#,
            r#"kvfs_operation_duration_seconds_bucket{le="0.002",operation="open"} 0"#,
            r#"kvfs_operation_duration_seconds_bucket{le="0.005",operation="open"} 1"#,
            r#"kvfs_operation_duration_seconds_bucket{le="+Inf",operation="open"} 1"#,
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line}: {text}");
        }
    }

    #[test]
    fn the_document_has_exactly_these_names_with_their_kinds() {
        let document = include_str!("../../../docs/METRICS.md");
        let documented: BTreeMap<&str, &str> = document
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split(" | ");
                let name = cells.next()?.trim_end_matches('`');
                Some((name, cells.next()?))
            })
            .collect();
        let text = exposition();
        let told: BTreeMap<String, &str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, kind)| match kind {
                "counter" => (format!("{name}_total"), kind),
                "info" => (format!("{name}_info"), kind),
                _ => (name.to_owned(), kind),
            })
            .collect();
        let told: BTreeMap<&str, &str> = told
            .iter()
            .map(|(name, kind)| (name.as_str(), *kind))
            .collect();
        let wanted: Vec<String> = told
            .iter()
            .filter(|(name, kind)| documented.get(*name) != Some(kind))
            .map(|(name, kind)| format!("| `{name}` | {kind} | what it counts |"))
            .collect();
        let wanted = wanted.join("\n");
        assert!(wanted.is_empty(), "docs/METRICS.md lacks\n{wanted}");
        for name in documented.keys() {
            assert!(
                told.contains_key(name),
                "docs/METRICS.md: there is no {name}"
            );
        }
    }
}
