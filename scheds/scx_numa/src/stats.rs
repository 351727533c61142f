//! What scx_numa serves as statistics.

use control_plane::stats::Reading;
use scx_stats_derive::Stats;
use serde::{Deserialize, Serialize};

use crate::bpf_intf as event;

/// All are totals since the daemon was started, except for `queued_*`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Stats)]
#[stat(
    top,
    desc = "scx_numa: totals since start; enq_* = disp_* + dequeued + queued_*; wake_*, transit and kept pass no queue"
)]
pub struct Stats {
    #[stat(desc = "tasks queued at home", _unit = "tasks")]
    pub enq_home: u64,
    #[stat(
        desc = "tasks queued on the only CPU that may run them",
        _unit = "tasks"
    )]
    pub enq_pinned: u64,
    #[stat(
        desc = "tasks that a CPU took from its own cache's queue",
        _unit = "tasks"
    )]
    pub disp_own: u64,
    #[stat(
        desc = "tasks that a CPU took from its queue of pinned tasks",
        _unit = "tasks"
    )]
    pub disp_pinned: u64,
    #[stat(desc = "tasks taken from another cache of the node", _unit = "tasks")]
    pub disp_node: u64,
    #[stat(
        desc = "tasks taken to another node, as they had waited for too long",
        _unit = "tasks"
    )]
    pub disp_remote: u64,
    #[stat(
        desc = "tasks that left a queue and did not run then: new affinity or policy, another class took the CPU, or end of the scheduler",
        _unit = "tasks"
    )]
    pub dequeued: u64,
    #[stat(
        desc = "wakeups onto the previous CPU, which was idle and at home",
        _unit = "tasks"
    )]
    pub wake_prev: u64,
    #[stat(
        desc = "wakeups onto the waker's CPU, at home, as the waker was about to sleep",
        _unit = "tasks"
    )]
    pub wake_sync: u64,
    #[stat(desc = "wakeups onto an idle CPU of the home cache", _unit = "tasks")]
    pub wake_llc: u64,
    #[stat(
        desc = "wakeups onto an idle CPU of another cache of the home node",
        _unit = "tasks"
    )]
    pub wake_node: u64,
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
        desc = "of disp_node and disp_remote: taken at the end of a slice, because the other queue was heavier or longer",
        _unit = "tasks"
    )]
    pub balanced: u64,
    #[stat(
        desc = "queues of other nodes left alone as nobody there had waited for long enough",
        _unit = "queues"
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
    #[stat(desc = "of kicks: on another node", _unit = "cpus")]
    pub kicks_remote: u64,
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
    #[stat(
        desc = "homes given where the task was born, or first had to wait",
        _unit = "tasks"
    )]
    pub home_first: u64,
    #[stat(
        desc = "homes given to threads: that of their process",
        _unit = "tasks"
    )]
    pub home_inherited: u64,
    #[stat(
        desc = "homes given or changed to where the task's memory must be",
        _unit = "tasks"
    )]
    pub home_memory: u64,
    #[stat(
        desc = "homes changed to where the kernel saw the task's memory",
        _unit = "tasks"
    )]
    pub home_kernel: u64,
    #[stat(
        desc = "homes of new tasks elsewhere than their parent's, where little was idle",
        _unit = "tasks"
    )]
    pub home_wide: u64,
    #[stat(
        desc = "homes changed as the task may not run at the old one",
        _unit = "tasks"
    )]
    pub home_affinity: u64,
    #[stat(
        desc = "homes changed as the task, or others of its node, ran elsewhere too much",
        _unit = "tasks"
    )]
    pub home_away: u64,
    #[stat(
        desc = "homes changed as the old one had more to do for each CPU",
        _unit = "tasks"
    )]
    pub home_balanced: u64,
    #[stat(
        desc = "homes changed by the daemon, to even out nodes",
        _unit = "tasks"
    )]
    pub home_ordered: u64,
    #[stat(desc = "time that tasks ran on their home node", _unit = "nanoseconds")]
    pub at_home_ns: u64,
    #[stat(desc = "time that tasks ran elsewhere", _unit = "nanoseconds")]
    pub away_ns: u64,
    #[stat(desc = "tasks waiting at their homes now", _unit = "tasks", _gauge)]
    pub queued_home: u64,
    #[stat(
        desc = "tasks waiting in the queues of pinned tasks now",
        _unit = "tasks",
        _gauge
    )]
    pub queued_pinned: u64,
    #[stat(
        desc = "cgroups that have a class by the policy now",
        _unit = "cgroups",
        _gauge
    )]
    pub classed_cgroups: u64,
}

impl Stats {
    /// Names what the BPF side counted, in the order of `enum numa_event`, and then the times at home and away.
    pub fn new(reading: &Reading) -> Self {
        let at = |index: usize| reading.counters.get(index).copied().unwrap_or(0);
        let count = |event: event::numa_event| at(event as usize);
        let times = event::numa_event_NUMA_NR_EVENTS as usize;
        let (at_home_ns, away_ns) = (at(times), at(times + 1));
        Self {
            enq_home: count(event::numa_event_NUMA_ENQ_HOME),
            enq_pinned: count(event::numa_event_NUMA_ENQ_PINNED),
            disp_own: count(event::numa_event_NUMA_DISP_OWN),
            disp_pinned: count(event::numa_event_NUMA_DISP_PINNED),
            disp_node: count(event::numa_event_NUMA_DISP_NODE),
            disp_remote: count(event::numa_event_NUMA_DISP_REMOTE),
            dequeued: count(event::numa_event_NUMA_DEQUEUED),
            wake_prev: count(event::numa_event_NUMA_WAKE_PREV),
            wake_sync: count(event::numa_event_NUMA_WAKE_SYNC),
            wake_llc: count(event::numa_event_NUMA_WAKE_LLC),
            wake_node: count(event::numa_event_NUMA_WAKE_NODE),
            transit: count(event::numa_event_NUMA_TRANSIT),
            kept: count(event::numa_event_NUMA_KEPT),
            balanced: count(event::numa_event_NUMA_BALANCED),
            too_fresh: count(event::numa_event_NUMA_TOO_FRESH),
            went_idle: count(event::numa_event_NUMA_WENT_IDLE),
            rechecks: count(event::numa_event_NUMA_RECHECKS),
            kicks: count(event::numa_event_NUMA_KICKS),
            kicks_remote: count(event::numa_event_NUMA_KICKS_REMOTE),
            preemptions: count(event::numa_event_NUMA_PREEMPTIONS),
            preempt_batch: count(event::numa_event_NUMA_PREEMPT_BATCH),
            alarms: count(event::numa_event_NUMA_ALARMS),
            stuck: count(event::numa_event_NUMA_STUCK),
            home_first: count(event::numa_event_NUMA_HOME_FIRST),
            home_inherited: count(event::numa_event_NUMA_HOME_INHERITED),
            home_memory: count(event::numa_event_NUMA_HOME_MEMORY),
            home_kernel: count(event::numa_event_NUMA_HOME_KERNEL),
            home_wide: count(event::numa_event_NUMA_HOME_WIDE),
            home_affinity: count(event::numa_event_NUMA_HOME_AFFINITY),
            home_away: count(event::numa_event_NUMA_HOME_AWAY),
            home_balanced: count(event::numa_event_NUMA_HOME_BALANCED),
            home_ordered: count(event::numa_event_NUMA_HOME_ORDERED),
            at_home_ns,
            away_ns,
            queued_home: reading.gauges.first().copied().unwrap_or(0),
            queued_pinned: reading.gauges.get(1).copied().unwrap_or(0),
            classed_cgroups: reading.classed_cgroups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_named_once() {
        let counters: Vec<u64> = (1..=u64::from(event::numa_event_NUMA_NR_EVENTS) + 2).collect();
        let stats = Stats::new(&Reading {
            counters: counters.clone(),
            gauges: vec![100, 200],
            classed_cgroups: 300,
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
        assert_eq!(named, [counters, vec![100, 200, 300]].concat());
    }
}
