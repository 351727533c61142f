//! What scx_pilot serves as statistics.

use control_plane::stats::Reading;
use scx_pilot::cycle::{Event, NR_EVENTS};
use scx_stats_derive::Stats;
use serde::{Deserialize, Serialize};

/// What the BPF side counts, in the order in which it follows the policy's events.
pub(crate) const NR_KERNEL_EVENTS: usize = 5;
/// All counters.
pub(crate) const NR_COUNTERS: usize = NR_EVENTS + NR_KERNEL_EVENTS;

/// All are totals since the daemon was started, except for those that are marked as gauges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Stats)]
#[stat(
    top,
    desc = "scx_pilot: totals since start; enq_policy = disp_* + dequeued + queued_policy"
)]
pub struct Stats {
    #[stat(desc = "tasks that the kernel handed to the policy")]
    pub enq_policy: u64,
    #[stat(desc = "tasks that the policy sent to a CPU of its choice")]
    pub disp_cpu: u64,
    #[stat(desc = "tasks that the policy left to the first CPU that is free")]
    pub disp_any: u64,
    #[stat(desc = "tasks that came again, or were gone, before the policy had picked them")]
    pub dequeued: u64,
    #[stat(desc = "rounds of scheduling")]
    pub rounds: u64,
    #[stat(desc = "of enq_policy: tasks of a service")]
    pub of_service: u64,
    #[stat(
        desc = "tasks past the policy: woken onto an idle CPU, or per-CPU threads of the kernel"
    )]
    pub direct: u64,
    #[stat(desc = "of disp_cpu: sent elsewhere, because the task may not use that CPU")]
    pub bounced: u64,
    #[stat(desc = "of disp_cpu: came too late, as the task had left the queue meanwhile")]
    pub cancelled: u64,
    #[stat(desc = "tasks past the policy because its queue was full")]
    pub congested: u64,
    #[stat(desc = "decisions that the BPF side could not carry out")]
    pub failed: u64,
    #[stat(desc = "tasks that the policy holds now", _unit = "tasks", _gauge)]
    pub queued_policy: u64,
    #[stat(
        desc = "cgroups that have a class by the policy now",
        _unit = "cgroups",
        _gauge
    )]
    pub classed_cgroups: u64,
}

impl Stats {
    /// Names what was counted.
    pub fn new(reading: &Reading) -> Self {
        let counter = |index: usize| reading.counters.get(index).copied().unwrap_or(0);
        let event = |event: Event| counter(event as usize);
        let kernel = |index: usize| counter(NR_EVENTS + index);
        Self {
            enq_policy: event(Event::Entered),
            disp_cpu: event(Event::ToCpu),
            disp_any: event(Event::ToAny),
            dequeued: event(Event::Withdrawn),
            rounds: event(Event::Rounds),
            of_service: event(Event::OfService),
            direct: kernel(0),
            bounced: kernel(1),
            cancelled: kernel(2),
            congested: kernel(3),
            failed: kernel(4),
            queued_policy: reading.gauges.first().copied().unwrap_or(0),
            classed_cgroups: reading.classed_cgroups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_named_once() {
        let counters: Vec<u64> = (1..=NR_COUNTERS as u64).collect();
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
