//! The figures that are told, made from two snapshots of the meter.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fairness::Fairness;
use super::hist::{Histogram, Percentiles};
use super::locks::HotLock;
use super::meter::ProgramCost;
use super::waste::Totals;
use super::wire::CpuCounters;

/// So many events that are lost or not understood, as a share of all context switches, make the waste untrue.
const LOSS_LIMIT: f64 = 1e-4;

/// All that was counted up to one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    pub at_ns: u64,
    pub counters: BTreeMap<u32, CpuCounters>,
    pub wake: Histogram,
    pub wait: Histogram,
    /// By the group's name.
    pub groups: BTreeMap<String, (Histogram, Histogram)>,
    /// Waste with every transient, and without.
    pub exact: Totals,
    pub settled: Totals,
    pub vmstat: BTreeMap<String, u64>,
    pub programs: BTreeMap<String, ProgramCost>,
    pub own_cpu_ns: u64,
    pub records: u64,
}

/// What doesn't change while the meter runs.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub kernel: String,
    pub cpus: usize,
    pub nodes: usize,
    pub transient_ns: u64,
    pub min_span_ns: u64,
    pub balancer: Option<&'static str>,
    pub cost: bool,
}

/// A whole report. Shares are 0 to 1; times are in the unit that ends their name.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub scheduler: String,
    /// Set if another scheduler was in force at the end.
    pub scheduler_at_end: Option<String>,
    pub kernel: String,
    pub cpus: usize,
    pub nodes: usize,
    pub seconds: f64,
    pub wakeup_to_run: Percentiles,
    pub runqueue_wait: Percentiles,
    pub groups: Vec<GroupLatency>,
    pub wasted: Waste,
    pub switches: Switches,
    pub migrations: Migrations,
    /// None if no user thread ran.
    pub home_share: Option<f64>,
    pub fairness: Fairness,
    pub load_balancer: Option<Balancer>,
    /// None if locks weren't watched.
    pub locks: Option<Vec<HotLock>>,
    /// None if this kernel doesn't count them.
    pub numa: Option<Numa>,
    pub cost: Cost,
    pub loss: Loss,
    /// What the reader must know about the figures above.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct GroupLatency {
    pub name: String,
    pub wakeup_to_run: Percentiles,
    pub runqueue_wait: Percentiles,
}

/// Wasted CPU time. All but the thresholds is None if events were lost.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Waste {
    pub seconds: Option<f64>,
    pub share_of_capacity: Option<f64>,
    /// The part that could only have been saved by moving a task to another node.
    pub across_nodes_seconds: Option<f64>,
    /// The part that is left when each wait and each idle time counts only from `transient_us` after its begin.
    pub settled_seconds: Option<f64>,
    pub violations: Option<u64>,
    pub longest_violation_ms: Option<f64>,
    pub idle_share: Option<f64>,
    pub transient_us: f64,
    /// Idle times and waits shorter than this weren't recorded: if not 0, `seconds` is a lower bound.
    pub min_span_us: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Switches {
    pub total: u64,
    pub per_second: f64,
    pub voluntary: u64,
    pub preempted: u64,
    pub wakeups: u64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Migrations {
    pub smt_sibling: u64,
    pub same_llc: u64,
    pub same_node: u64,
    pub remote: u64,
    pub per_second: f64,
    /// Times that a task was given another CPU, whether or not it then ran there.
    pub queue_moves: u64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Balancer {
    pub function: &'static str,
    pub calls: u64,
    pub calls_per_cpu_second: f64,
    pub busiest_cpu: u32,
    pub busiest_cpu_calls_per_second: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Numa {
    pub pages_migrated_per_second: f64,
    pub hint_faults_per_second: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Cost {
    /// CPU time of the reader.
    pub reader_cpu_seconds: f64,
    pub records: u64,
    /// Of the BPF programs; None without --cost.
    pub bpf_runs: Option<u64>,
    pub bpf_ns_per_run: Option<f64>,
    /// Reader and programs together, as a share of all CPU time.
    pub share_of_capacity: Option<f64>,
    pub programs: BTreeMap<String, f64>,
}

/// Counts of what the meter missed.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Loss {
    pub records_dropped: u64,
    pub tasks_without_state: u64,
    pub switches_without_origin: u64,
    pub events_missed: u64,
    pub affinities_unknown: u64,
    pub lock_waits_lost: u64,
}

/// What a report says beyond what the snapshots hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Context {
    pub scheduler: String,
    pub scheduler_at_end: String,
    pub fairness: Fairness,
    pub locks: Option<Vec<HotLock>>,
    pub warnings: Vec<String>,
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn sum(counters: &BTreeMap<u32, CpuCounters>) -> CpuCounters {
    let mut total = CpuCounters::default();
    for cpu in counters.values() {
        total.add(cpu);
    }
    total
}

impl Report {
    /// What happened between two snapshots.
    pub(super) fn between(
        from: &Snapshot,
        to: &Snapshot,
        setting: &Setting,
        context: Context,
    ) -> Self {
        let elapsed = seconds(to.at_ns.saturating_sub(from.at_ns)).max(1e-9);
        let counted = sum(&to.counters).since(&sum(&from.counters));
        let loss = loss(from, to, &counted);
        let refusal = refusal(&loss, counted.switches);
        let mut warnings = context.warnings;
        warnings.extend(refusal.iter().cloned());
        if counted.throttles > 0 {
            warnings.push(format!(
                "cpu.max stopped cgroups {} times: their tasks count as waiting though they may not run",
                counted.throttles
            ));
        }
        let changed = context.scheduler != context.scheduler_at_end;
        if changed {
            warnings.push(format!(
                "the scheduler changed to {} while this was measured",
                context.scheduler_at_end
            ));
        }
        let ran = counted.home_ns + counted.away_ns;
        Self {
            scheduler: context.scheduler,
            scheduler_at_end: changed.then_some(context.scheduler_at_end),
            kernel: setting.kernel.clone(),
            cpus: setting.cpus,
            nodes: setting.nodes,
            seconds: elapsed,
            wakeup_to_run: to.wake.since(&from.wake).percentiles(),
            runqueue_wait: to.wait.since(&from.wait).percentiles(),
            groups: groups(from, to),
            wasted: waste(from, to, setting, refusal.is_none()),
            switches: switches(&counted, elapsed),
            migrations: migrations(&counted, elapsed),
            home_share: (ran > 0).then(|| counted.home_ns as f64 / ran as f64),
            fairness: context.fairness,
            load_balancer: balancer(from, to, setting, elapsed),
            locks: context.locks,
            numa: numa(from, to, elapsed),
            cost: cost(from, to, setting),
            loss,
            warnings,
        }
    }
}

fn groups(from: &Snapshot, to: &Snapshot) -> Vec<GroupLatency> {
    let mut rows: Vec<GroupLatency> = to
        .groups
        .iter()
        .map(|(name, (wake, wait))| {
            let none = (Histogram::default(), Histogram::default());
            let (old_wake, old_wait) = from.groups.get(name).unwrap_or(&none);
            GroupLatency {
                name: name.clone(),
                wakeup_to_run: wake.since(old_wake).percentiles(),
                runqueue_wait: wait.since(old_wait).percentiles(),
            }
        })
        .filter(|row| row.runqueue_wait.count > 0)
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.runqueue_wait.count));
    rows
}

fn loss(from: &Snapshot, to: &Snapshot, counted: &CpuCounters) -> Loss {
    let missed = |s: &Snapshot| s.programs.values().map(|p| p.missed).sum::<u64>();
    Loss {
        records_dropped: counted.dropped,
        tasks_without_state: counted.no_storage,
        switches_without_origin: counted.no_origin,
        events_missed: missed(to).saturating_sub(missed(from)),
        affinities_unknown: counted.no_mask,
        lock_waits_lost: counted.no_lock,
    }
}

/// Why the waste can't be told, if so.
fn refusal(loss: &Loss, switches: u64) -> Option<String> {
    if loss.records_dropped > 0 {
        return Some(format!(
            "{} records were lost, so wasted time isn't told: give more memory (--ring-mib) or drop short spans (--min-span-us)",
            loss.records_dropped
        ));
    }
    if loss.affinities_unknown > 0 {
        return Some("tasks have more different affinities than can be told apart, so wasted time isn't told".to_owned());
    }
    let odd = loss.tasks_without_state + loss.switches_without_origin + loss.events_missed;
    if odd as f64 > LOSS_LIMIT * switches as f64 {
        return Some(format!(
            "{odd} of {switches} switches weren't understood, so wasted time isn't told: measure for longer, or report this"
        ));
    }
    None
}

fn waste(from: &Snapshot, to: &Snapshot, setting: &Setting, known: bool) -> Waste {
    let capacity = to.at_ns.saturating_sub(from.at_ns) * setting.cpus as u64;
    let exact = to.exact.wasted - from.exact.wasted;
    let in_node = to.exact.wasted_in_node - from.exact.wasted_in_node;
    let share = |ns: u64| known.then(|| ns as f64 / capacity.max(1) as f64);
    let told = |ns: u64| known.then(|| seconds(ns));
    // A violation shows in the settled sweep from the threshold after its beginning.
    let longest = match to.settled.longest {
        0 => 0,
        ns => ns + setting.transient_ns,
    };
    Waste {
        seconds: told(exact),
        share_of_capacity: share(exact),
        across_nodes_seconds: told(exact - in_node),
        settled_seconds: told(to.settled.wasted - from.settled.wasted),
        violations: known.then_some(to.settled.violations - from.settled.violations),
        longest_violation_ms: known.then_some(longest as f64 / 1e6),
        idle_share: share(to.exact.idle - from.exact.idle),
        transient_us: setting.transient_ns as f64 / 1e3,
        min_span_us: setting.min_span_ns as f64 / 1e3,
    }
}

fn switches(counted: &CpuCounters, elapsed: f64) -> Switches {
    Switches {
        total: counted.switches,
        per_second: counted.switches as f64 / elapsed,
        voluntary: counted.voluntary,
        preempted: counted.preempted,
        wakeups: counted.wakeups,
    }
}

fn migrations(counted: &CpuCounters, elapsed: f64) -> Migrations {
    let [smt_sibling, same_llc, same_node, remote] = counted.migrations;
    Migrations {
        smt_sibling,
        same_llc,
        same_node,
        remote,
        per_second: (smt_sibling + same_llc + same_node + remote) as f64 / elapsed,
        queue_moves: counted.moves,
    }
}

fn balancer(from: &Snapshot, to: &Snapshot, setting: &Setting, elapsed: f64) -> Option<Balancer> {
    let function = setting.balancer?;
    let calls = |s: &Snapshot, cpu| s.counters.get(&cpu).map_or(0, |c| c.balance_calls);
    let by_cpu = to
        .counters
        .keys()
        .map(|&cpu| (calls(to, cpu) - calls(from, cpu), cpu));
    let by_cpu: Vec<(u64, u32)> = by_cpu.collect();
    let total: u64 = by_cpu.iter().map(|(n, _)| n).sum();
    let (most, busiest_cpu) = by_cpu.into_iter().max().unwrap_or_default();
    Some(Balancer {
        function,
        calls: total,
        calls_per_cpu_second: total as f64 / elapsed / setting.cpus.max(1) as f64,
        busiest_cpu,
        busiest_cpu_calls_per_second: most as f64 / elapsed,
    })
}

fn numa(from: &Snapshot, to: &Snapshot, elapsed: f64) -> Option<Numa> {
    let rate = |name: &str| {
        let (old, new) = (from.vmstat.get(name)?, to.vmstat.get(name)?);
        Some(new.saturating_sub(*old) as f64 / elapsed)
    };
    Some(Numa {
        pages_migrated_per_second: rate("numa_pages_migrated")?,
        hint_faults_per_second: rate("numa_hint_faults")?,
    })
}

fn cost(from: &Snapshot, to: &Snapshot, setting: &Setting) -> Cost {
    let reader = to.own_cpu_ns.saturating_sub(from.own_cpu_ns);
    let mut cost = Cost {
        reader_cpu_seconds: seconds(reader),
        records: to.records - from.records,
        bpf_runs: None,
        bpf_ns_per_run: None,
        share_of_capacity: None,
        programs: BTreeMap::new(),
    };
    if !setting.cost {
        return cost;
    }
    let (mut ns, mut runs) = (0, 0);
    for (name, now) in &to.programs {
        let old = from.programs.get(name).cloned().unwrap_or_default();
        let (more_ns, more_runs) = (now.run_ns - old.run_ns, now.runs - old.runs);
        ns += more_ns;
        runs += more_runs;
        cost.programs
            .insert(name.clone(), more_ns as f64 / more_runs.max(1) as f64);
    }
    let capacity = to.at_ns.saturating_sub(from.at_ns) * setting.cpus as u64;
    cost.bpf_runs = Some(runs);
    cost.bpf_ns_per_run = Some(ns as f64 / runs.max(1) as f64);
    cost.share_of_capacity = Some((ns + reader) as f64 / capacity.max(1) as f64);
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting() -> Setting {
        Setting {
            kernel: "7.3".to_owned(),
            cpus: 4,
            nodes: 1,
            transient_ns: 100_000,
            min_span_ns: 0,
            balancer: None,
            cost: false,
        }
    }

    fn after_one_second(counters: CpuCounters) -> Snapshot {
        Snapshot {
            at_ns: 1_000_000_000,
            counters: BTreeMap::from([(0, counters)]),
            exact: Totals {
                wasted: 400_000_000,
                wasted_in_node: 300_000_000,
                ..Totals::default()
            },
            settled: Totals {
                longest: 2_000_000,
                ..Totals::default()
            },
            ..Snapshot::default()
        }
    }

    fn report(counters: CpuCounters) -> Report {
        let to = after_one_second(counters);
        Report::between(&Snapshot::default(), &to, &setting(), Context::default())
    }

    #[test]
    fn waste_is_told_as_a_share_of_all_cpus() {
        let wasted = report(CpuCounters::default()).wasted;
        assert_eq!(wasted.seconds, Some(0.4));
        assert_eq!(wasted.share_of_capacity, Some(0.1));
        assert_eq!(wasted.across_nodes_seconds, Some(0.1));
        assert_eq!(wasted.longest_violation_ms, Some(2.1));
    }

    #[test]
    fn a_dropped_record_refuses_the_waste() {
        let counters = CpuCounters {
            dropped: 1,
            switches: 1_000_000,
            ..CpuCounters::default()
        };
        let report = report(counters);
        assert_eq!(report.wasted.seconds, None);
        assert_eq!(report.wasted.longest_violation_ms, None);
        assert!(report.warnings[0].contains("--ring-mib"));
    }

    #[test]
    fn few_odd_switches_are_tolerated() {
        let counters = |no_origin| CpuCounters {
            no_origin,
            switches: 100_000,
            ..CpuCounters::default()
        };
        assert!(report(counters(10)).wasted.seconds.is_some());
        assert!(report(counters(11)).wasted.seconds.is_none());
    }

    #[test]
    fn a_change_of_scheduler_is_told() {
        let context = Context {
            scheduler: "EEVDF".to_owned(),
            scheduler_at_end: "rr".to_owned(),
            ..Context::default()
        };
        let to = after_one_second(CpuCounters::default());
        let report = Report::between(&Snapshot::default(), &to, &setting(), context);
        assert_eq!(report.scheduler_at_end.as_deref(), Some("rr"));
        assert_eq!(report.warnings.len(), 1);
    }
}
