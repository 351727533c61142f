//! What scx_rr serves as statistics.

use control_plane::stats::Reading;
use scx_stats_derive::Stats;
use serde::{Deserialize, Serialize};

use crate::bpf_intf as event;

/// All are totals since the daemon was started, except for `queued_*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Stats)]
#[stat(
    top,
    desc = "scx_rr: totals since start; enq_* = disp_* + dequeued + queued_*, but for direct, transit and kept"
)]
pub struct Stats {
    #[stat(desc = "tasks put into the queue of a domain", _unit = "tasks")]
    pub enq_shared: u64,
    #[stat(desc = "tasks put into a CPU's queue of pinned tasks", _unit = "tasks")]
    pub enq_pinned: u64,
    #[stat(
        desc = "tasks that a CPU took from its own domain's queue",
        _unit = "tasks"
    )]
    pub disp_own: u64,
    #[stat(
        desc = "tasks that a CPU took from its queue of pinned tasks",
        _unit = "tasks"
    )]
    pub disp_pinned: u64,
    #[stat(
        desc = "tasks taken from another domain's queue on the same node",
        _unit = "tasks"
    )]
    pub disp_node: u64,
    #[stat(
        desc = "tasks taken from another domain's queue on another node",
        _unit = "tasks"
    )]
    pub disp_remote: u64,
    #[stat(
        desc = "tasks that left a queue otherwise: new affinity or policy, or end of the scheduler",
        _unit = "tasks"
    )]
    pub dequeued: u64,
    #[stat(
        desc = "tasks that woke up straight onto an idle CPU, past all queues",
        _unit = "tasks"
    )]
    pub direct: u64,
    #[stat(
        desc = "tasks that the kernel was just moving to another CPU, past all queues",
        _unit = "tasks"
    )]
    pub transit: u64,
    #[stat(desc = "slices renewed, because nobody was waiting", _unit = "slices")]
    pub kept: u64,
    #[stat(
        desc = "of disp_node and disp_remote: taken because the other queue was longer",
        _unit = "tasks"
    )]
    pub balanced: u64,
    #[stat(desc = "idle CPUs woken for a queued task", _unit = "cpus")]
    pub kicks: u64,
    #[stat(
        desc = "CPUs that found work queued while they were going idle",
        _unit = "cpus"
    )]
    pub rechecks: u64,
    #[stat(
        desc = "tasks that got a CPU which another class then kept, and that were queued anew",
        _unit = "tasks"
    )]
    pub stuck: u64,
    #[stat(
        desc = "tasks waiting in the queues of domains now",
        _unit = "tasks",
        _gauge
    )]
    pub queued_shared: u64,
    #[stat(
        desc = "tasks waiting in the queues of pinned tasks now",
        _unit = "tasks",
        _gauge
    )]
    pub queued_pinned: u64,
    #[stat(
        desc = "how long tasks waited in queues; count 0 is up to 1 ns, count i up to 2^i ns, the last one above",
        _unit = "nanoseconds",
        _hist
    )]
    pub wait_ns: Vec<u64>,
    #[stat(desc = "sum of wait_ns", _unit = "nanoseconds")]
    pub wait_ns_sum: u64,
    #[stat(
        desc = "cgroups that have a class by the policy now",
        _unit = "cgroups",
        _gauge
    )]
    pub classed_cgroups: u64,
}

impl Stats {
    /// Names what the BPF side counted, in the order of `enum rr_event`.
    pub fn new(reading: &Reading) -> Self {
        let count =
            |event: event::rr_event| reading.counters.get(event as usize).copied().unwrap_or(0);
        let gauge = |index: usize| reading.gauges.get(index).copied().unwrap_or(0);
        let wait = reading
            .hists
            .get(event::rr_hist_RR_WAIT as usize)
            .cloned()
            .unwrap_or_default();
        Self {
            enq_shared: count(event::rr_event_RR_ENQ_SHARED),
            enq_pinned: count(event::rr_event_RR_ENQ_PINNED),
            disp_own: count(event::rr_event_RR_DISP_OWN),
            disp_pinned: count(event::rr_event_RR_DISP_PINNED),
            disp_node: count(event::rr_event_RR_DISP_NODE),
            disp_remote: count(event::rr_event_RR_DISP_REMOTE),
            dequeued: count(event::rr_event_RR_DEQUEUED),
            direct: count(event::rr_event_RR_DIRECT),
            transit: count(event::rr_event_RR_TRANSIT),
            kept: count(event::rr_event_RR_KEPT),
            balanced: count(event::rr_event_RR_BALANCED),
            kicks: count(event::rr_event_RR_KICKS),
            rechecks: count(event::rr_event_RR_RECHECKS),
            stuck: count(event::rr_event_RR_STUCK),
            queued_shared: gauge(0),
            queued_pinned: gauge(1),
            classed_cgroups: reading.classed_cgroups,
            wait_ns: wait.counts,
            wait_ns_sum: wait.sum_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control_plane::stats::{Hist, Kind, Schema};

    #[test]
    fn every_counter_is_named_once() {
        let counters: Vec<u64> = (1..=u64::from(event::rr_event_RR_NR_EVENTS)).collect();
        let stats = Stats::new(&Reading {
            counters: counters.clone(),
            gauges: vec![100, 200],
            hists: vec![Hist {
                counts: vec![0, 1],
                sum_ns: 300,
            }],
            classed_cgroups: 400,
        });
        assert_eq!(stats.wait_ns, [0, 1]);
        let mut named: Vec<u64> = serde_json::to_value(stats)
            .unwrap()
            .as_object()
            .unwrap()
            .values()
            .filter_map(|value| value.as_u64())
            .collect();
        named.sort_unstable();
        assert_eq!(named, [counters, vec![100, 200, 300, 400]].concat());
    }

    #[test]
    fn gauges_are_declared() {
        let schema = Schema::of::<Stats>();
        let gauges = schema
            .fields
            .iter()
            .filter(|field| field.kind == Kind::Gauge);
        let names: Vec<&str> = gauges.map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["classed_cgroups", "queued_pinned", "queued_shared"]);
        assert!(schema.fields.iter().all(|field| field.unit.is_some()));
    }
}
