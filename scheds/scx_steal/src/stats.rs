//! What scx_steal serves as statistics.

use control_plane::stats::Reading;
use scx_stats_derive::Stats;
use serde::{Deserialize, Serialize};

use crate::bpf_intf as event;

/// All are totals since the daemon was started, except for `queued_now`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Stats)]
#[stat(
    top,
    desc = "scx_steal: totals since start; enq_* = disp_* + dequeued + queued_now; wake_*, transit and kept pass no queue"
)]
pub struct Stats {
    #[stat(desc = "tasks queued on a CPU, for any CPU to take", _unit = "tasks")]
    pub enq_free: u64,
    #[stat(
        desc = "tasks queued on the only CPU that may run them",
        _unit = "tasks"
    )]
    pub enq_pinned: u64,
    #[stat(desc = "tasks that a CPU took from its own queue", _unit = "tasks")]
    pub disp_own: u64,
    #[stat(
        desc = "tasks stolen from the other thread of the core",
        _unit = "tasks"
    )]
    pub disp_smt: u64,
    #[stat(
        desc = "tasks stolen from another CPU of the same last-level cache",
        _unit = "tasks"
    )]
    pub disp_llc: u64,
    #[stat(
        desc = "tasks stolen from another cache of the same node",
        _unit = "tasks"
    )]
    pub disp_node: u64,
    #[stat(desc = "tasks stolen from another node", _unit = "tasks")]
    pub disp_remote: u64,
    #[stat(
        desc = "tasks that left a queue and did not run then: new affinity or policy, another class took the CPU, or end of the scheduler",
        _unit = "tasks"
    )]
    pub dequeued: u64,
    #[stat(
        desc = "wakeups onto the previous CPU, which was idle",
        _unit = "tasks"
    )]
    pub wake_prev: u64,
    #[stat(
        desc = "wakeups onto the waker's CPU, as the waker was about to sleep",
        _unit = "tasks"
    )]
    pub wake_sync: u64,
    #[stat(
        desc = "idle CPUs of the same last-level cache found for a task",
        _unit = "cpus"
    )]
    pub wake_llc: u64,
    #[stat(
        desc = "idle CPUs of another cache of the same node found for a task",
        _unit = "cpus"
    )]
    pub wake_node: u64,
    #[stat(desc = "idle CPUs of another node found for a task", _unit = "cpus")]
    pub wake_remote: u64,
    #[stat(
        desc = "of wake_prev, wake_llc and wake_node: in the node from which the task had been taken",
        _unit = "tasks"
    )]
    pub went_home: u64,
    #[stat(
        desc = "woken tasks that were queued in another cache or node, because fewer waited there",
        _unit = "tasks"
    )]
    pub waits_elsewhere: u64,
    #[stat(
        desc = "tasks that the kernel was just moving to another CPU, past all queues",
        _unit = "tasks"
    )]
    pub transit: u64,
    #[stat(
        desc = "slices renewed, because nobody with a better claim was waiting",
        _unit = "slices"
    )]
    pub kept: u64,
    #[stat(
        desc = "of disp_*: taken at the end of a slice, because the other queue was heavier",
        _unit = "tasks"
    )]
    pub balanced: u64,
    #[stat(desc = "queues that CPUs looked at to steal from", _unit = "queues")]
    pub probes: u64,
    #[stat(desc = "of probes: nothing that could be taken", _unit = "queues")]
    pub probes_empty: u64,
    #[stat(
        desc = "tasks left on another node as they had not waited for long enough",
        _unit = "tasks"
    )]
    pub too_fresh: u64,
    #[stat(
        desc = "times that a CPU found nothing anywhere and went idle",
        _unit = "searches"
    )]
    pub went_idle: u64,
    #[stat(
        desc = "of went_idle: found work after all, queued in that moment",
        _unit = "searches"
    )]
    pub rechecks: u64,
    #[stat(desc = "idle CPUs woken for a queued task", _unit = "cpus")]
    pub kicks: u64,
    #[stat(
        desc = "running tasks interrupted for one that woke up",
        _unit = "tasks"
    )]
    pub preemptions: u64,
    #[stat(
        desc = "of preemptions: batch tasks, for one of the latency class",
        _unit = "tasks"
    )]
    pub preempt_batch: u64,
    #[stat(
        desc = "running tasks interrupted by a timer for one that had waited long enough",
        _unit = "tasks"
    )]
    pub alarms: u64,
    #[stat(
        desc = "tasks that got a CPU which another class then kept, and that were queued anew",
        _unit = "tasks"
    )]
    pub stuck: u64,
    #[stat(desc = "tasks waiting in all queues now", _unit = "tasks", _gauge)]
    pub queued_now: u64,
    #[stat(
        desc = "cgroups that have a class by the policy now",
        _unit = "cgroups",
        _gauge
    )]
    pub classed_cgroups: u64,
}

impl Stats {
    /// Names what the BPF side counted, in the order of `enum steal_event`.
    pub fn new(reading: &Reading) -> Self {
        let count =
            |event: event::steal_event| reading.counters.get(event as usize).copied().unwrap_or(0);
        Self {
            enq_free: count(event::steal_event_STEAL_ENQ_FREE),
            enq_pinned: count(event::steal_event_STEAL_ENQ_PINNED),
            disp_own: count(event::steal_event_STEAL_DISP_OWN),
            disp_smt: count(event::steal_event_STEAL_DISP_SMT),
            disp_llc: count(event::steal_event_STEAL_DISP_LLC),
            disp_node: count(event::steal_event_STEAL_DISP_NODE),
            disp_remote: count(event::steal_event_STEAL_DISP_REMOTE),
            dequeued: count(event::steal_event_STEAL_DEQUEUED),
            wake_prev: count(event::steal_event_STEAL_WAKE_PREV),
            wake_sync: count(event::steal_event_STEAL_WAKE_SYNC),
            wake_llc: count(event::steal_event_STEAL_WAKE_LLC),
            wake_node: count(event::steal_event_STEAL_WAKE_NODE),
            wake_remote: count(event::steal_event_STEAL_WAKE_REMOTE),
            went_home: count(event::steal_event_STEAL_WENT_HOME),
            waits_elsewhere: count(event::steal_event_STEAL_WAITS_ELSEWHERE),
            transit: count(event::steal_event_STEAL_TRANSIT),
            kept: count(event::steal_event_STEAL_KEPT),
            balanced: count(event::steal_event_STEAL_BALANCED),
            probes: count(event::steal_event_STEAL_PROBES),
            probes_empty: count(event::steal_event_STEAL_PROBES_EMPTY),
            too_fresh: count(event::steal_event_STEAL_TOO_FRESH),
            went_idle: count(event::steal_event_STEAL_WENT_IDLE),
            rechecks: count(event::steal_event_STEAL_RECHECKS),
            kicks: count(event::steal_event_STEAL_KICKS),
            preemptions: count(event::steal_event_STEAL_PREEMPTIONS),
            preempt_batch: count(event::steal_event_STEAL_PREEMPT_BATCH),
            alarms: count(event::steal_event_STEAL_ALARMS),
            stuck: count(event::steal_event_STEAL_STUCK),
            queued_now: reading.gauges.first().copied().unwrap_or(0),
            classed_cgroups: reading.classed_cgroups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_named_once() {
        let counters: Vec<u64> = (1..=u64::from(event::steal_event_STEAL_NR_EVENTS)).collect();
        let stats = Stats::new(&Reading {
            counters: counters.clone(),
            gauges: vec![100],
            classed_cgroups: 200,
            ..Reading::default()
        });
        let mut named: Vec<u64> = serde_json::to_value(stats)
            .unwrap()
            .as_object()
            .unwrap()
            .values()
            .map(|value| value.as_u64().unwrap())
            .collect();
        named.sort_unstable();
        assert_eq!(named, [counters, vec![100, 200]].concat());
    }
}
