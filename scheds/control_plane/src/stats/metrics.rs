//! OpenMetrics: the figures of a sample as text for Prometheus and its like.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use serde_json::Value;

use super::hist::Hist;
use super::schema::{Field, Kind, Schema};

/// What all names begin with. All schedulers have the same, so that one dashboard serves for all; the label
/// `scheduler` tells them apart.
pub const PREFIX: &str = "manycore";

/// The name under which a figure appears: `manycore_enq_shared_tasks_total`.
pub(super) fn name_of(field: &Field) -> String {
    if field.kind == Kind::Histogram {
        return format!("{PREFIX}_{}_seconds", base_name(field));
    }
    let mut name = format!("{PREFIX}_{}", base_name(field));
    if let Some(unit) = &field.unit {
        name += "_";
        name += unit;
    }
    if field.kind == Kind::Counter {
        name += "_total";
    }
    name
}

/// The name without its unit. That of a histogram is another, as OpenMetrics wants seconds.
fn base_name(field: &Field) -> &str {
    let unit = match &field.unit {
        _ if field.kind == Kind::Histogram => "ns",
        Some(unit) => unit,
        None => return &field.name,
    };
    let bare = field.name.strip_suffix(unit);
    bare.and_then(|name| name.strip_suffix('_'))
        .unwrap_or(&field.name)
}

/// Encodes a sample, an object with the fields of the schema.
///
/// # Errors
/// If it can't be formatted, which is never.
pub fn openmetrics(
    schema: &Schema,
    sample: &Value,
    scheduler: &str,
    version: &str,
) -> Result<String, fmt::Error> {
    let label = |name: &'static str, value: &str| (name.into(), value.to_string().into());
    let mut registry =
        Registry::with_prefix_and_labels(PREFIX, [label("scheduler", scheduler)].into_iter());
    let info = Info::new(vec![("version", version.to_string())]);
    registry.register("scheduler", "The scheduler that is loaded", info);
    let figures = schema
        .fields
        .iter()
        .filter(|field| schema.histogram_of(field).is_none())
        .filter_map(|field| Some((field.clone(), Figure::of(field, sample)?)));
    registry.register_collector(Box::new(Figures(figures.collect())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Clone, Debug)]
enum Figure {
    Counter(u64),
    Gauge(f64),
    /// Counts, and the sum in nanoseconds.
    Histogram(Vec<u64>, u64),
}

impl Figure {
    /// `None` for what is no number.
    fn of(field: &Field, sample: &Value) -> Option<Self> {
        let value = sample.get(&field.name)?;
        match field.kind {
            Kind::Counter => value.as_u64().map(Self::Counter),
            Kind::Gauge => value.as_f64().map(Self::Gauge),
            Kind::Histogram => {
                let sum_ns = sample.get(format!("{}_sum", field.name))?.as_u64()?;
                Some(Self::Histogram(Hist::counts_of(value)?, sum_ns))
            }
        }
    }
}

#[derive(Debug)]
struct Figures(Vec<(Field, Figure)>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (field, figure) in &self.0 {
            let unit = field.unit.clone().map(Unit::Other);
            let (name, help) = (base_name(field), field.help.as_str());
            match figure {
                Figure::Counter(value) => {
                    let metric = ConstCounter::new(*value);
                    let kind = metric.metric_type();
                    metric.encode(encoder.encode_descriptor(name, help, unit.as_ref(), kind)?)?;
                }
                Figure::Gauge(value) => {
                    let metric = ConstGauge::new(*value);
                    let kind = metric.metric_type();
                    metric.encode(encoder.encode_descriptor(name, help, unit.as_ref(), kind)?)?;
                }
                Figure::Histogram(counts, sum_ns) => {
                    let buckets: Vec<(f64, u64)> = Hist::buckets(counts)
                        .map(|(bound_ns, count)| (bound_ns / 1e9, count))
                        .collect();
                    let (name, kind) = (base_name(field), MetricType::Histogram);
                    encoder
                        .encode_descriptor(name, help, Some(&Unit::Seconds), kind)?
                        .encode_histogram::<NoLabelSet>(
                            *sum_ns as f64 / 1e9,
                            counts.iter().sum(),
                            &buckets,
                            None,
                        )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use scx_stats::*;
    use scx_stats_derive::Stats;
    use serde::Serialize;

    #[derive(Clone, Debug, Default, Serialize, Stats)]
    #[stat(top, desc = "a test")]
    pub(crate) struct Sample {
        #[stat(desc = "tasks put into a queue", _unit = "tasks")]
        pub enqueues: u64,
        #[stat(desc = "tasks waiting now", _unit = "tasks", _gauge)]
        pub queued: u64,
        #[stat(desc = "how busy it is", _gauge)]
        pub load: f64,
        #[stat(desc = "how long tasks wait", _unit = "nanoseconds", _hist)]
        pub wait_ns: Vec<u64>,
        #[stat(desc = "sum of wait_ns", _unit = "nanoseconds")]
        pub wait_ns_sum: u64,
        #[stat(desc = "not a figure")]
        pub name: String,
    }

    #[test]
    fn figures_have_types_units_and_help() {
        let sample = Sample {
            enqueues: u64::MAX,
            queued: 3,
            load: 0.5,
            wait_ns: vec![0, 3, 1],
            wait_ns_sum: 12,
            name: "x".into(),
        };
        let sample = serde_json::to_value(sample).unwrap();
        let text = openmetrics(&Schema::of::<Sample>(), &sample, "scx_x", "1.2").unwrap();
        let expected = "\
# HELP manycore_scheduler The scheduler that is loaded.
# TYPE manycore_scheduler info
manycore_scheduler_info{scheduler=\"scx_x\",version=\"1.2\"} 1
# HELP manycore_enqueues_tasks tasks put into a queue
# TYPE manycore_enqueues_tasks counter
# UNIT manycore_enqueues_tasks tasks
manycore_enqueues_tasks_total{scheduler=\"scx_x\"} 18446744073709551615
# HELP manycore_load how busy it is
# TYPE manycore_load gauge
manycore_load{scheduler=\"scx_x\"} 0.5
# HELP manycore_queued_tasks tasks waiting now
# TYPE manycore_queued_tasks gauge
# UNIT manycore_queued_tasks tasks
manycore_queued_tasks{scheduler=\"scx_x\"} 3.0
# HELP manycore_wait_seconds how long tasks wait
# TYPE manycore_wait_seconds histogram
# UNIT manycore_wait_seconds seconds
manycore_wait_seconds_sum{scheduler=\"scx_x\"} 1.2e-8
manycore_wait_seconds_count{scheduler=\"scx_x\"} 4
manycore_wait_seconds_bucket{scheduler=\"scx_x\",le=\"1e-9\"} 0
manycore_wait_seconds_bucket{scheduler=\"scx_x\",le=\"2e-9\"} 3
manycore_wait_seconds_bucket{scheduler=\"scx_x\",le=\"+Inf\"} 4
# EOF
";
        assert_eq!(text, expected);
    }
}
