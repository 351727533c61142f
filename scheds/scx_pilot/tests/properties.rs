//! What must hold of every policy, for any tasks that come in any order, on a simulated machine.

mod sim;

use proptest::prelude::*;
use scx_pilot::layout::Layout;
use scx_pilot::policy::{Kind, MAX_ALLOWANCE_NS, Policy};
use sim::{Job, SLICE_NS, Sim};

const MS: u64 = 1_000_000;
/// Half of the CPUs on each of two nodes.
fn layout(cpus: u32) -> Layout {
    let half = cpus.div_ceil(2);
    let mut llcs = vec![(0, (0..half).collect::<Vec<_>>())];
    if half < cpus {
        llcs.push((1, (half..cpus).collect()));
    }
    Layout::from_llcs(&llcs)
}

/// A policy for a machine of this size.
fn policy(kind: Kind, cpus: u32) -> Box<dyn Policy> {
    kind.build(&layout(cpus), SLICE_NS)
}

const KINDS: [Kind; 3] = [Kind::Fifo, Kind::Fair, Kind::Deadline];

fn jobs(cpus: u32, weights: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Vec<Job>> {
    let all = (1u64 << cpus) - 1;
    let mask = prop_oneof![
        4 => Just(all),
        1 => 1..=all,
        1 => (0..cpus).prop_map(|cpu| 1u64 << cpu),
    ];
    let job = (
        0..50 * MS,
        prop_oneof![10_000..MS, MS..20 * MS],
        prop_oneof![Just(0), 10_000..30 * MS],
        weights,
        mask,
    )
        .prop_map(|(start_ns, run_ns, sleep_ns, weight, mask)| Job {
            start_ns,
            run_ns,
            sleep_ns,
            weight,
            mask,
        });
    prop::collection::vec(job, 1..24)
}

fn machine() -> impl Strategy<Value = (u32, Vec<Job>)> {
    (1u32..9).prop_flat_map(|cpus| (Just(cpus), jobs(cpus, 1..=10_000)))
}

/// Tasks of equal weight.
fn equal_machine() -> impl Strategy<Value = (u32, Vec<Job>)> {
    (1u32..9).prop_flat_map(|cpus| (Just(cpus), jobs(cpus, 100..=100)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// The simulation itself fails if a task is lost, decided on twice, sent where it must not run, or left to wait beside
    /// an idle CPU. Here tasks also come again while they wait, and decisions find little room.
    #[test]
    fn nobody_is_lost_or_served_twice(
        (cpus, jobs) in machine(),
        every in prop::option::of(1u64..5),
        room in prop_oneof![Just(usize::MAX), 1usize..4],
    ) {
        for kind in KINDS {
            let mut sim = Sim::new(cpus, &jobs);
            sim.disturb_every = every;
            sim.room = room;
            let sim = sim.run(policy(kind, cpus), 300 * MS);
            for task in &sim.tasks {
                prop_assert!(task.decided <= task.wanted);
                if every.is_none() {
                    prop_assert_eq!(task.decided, task.wanted);
                }
            }
        }
    }

    /// First in, first out: nobody waits longer than one slice of everybody else.
    #[test]
    fn fifo_waits_are_bounded((cpus, jobs) in machine()) {
        let sim = Sim::new(cpus, &jobs).run(policy(Kind::Fifo, cpus), 500 * MS);
        for task in &sim.tasks {
            let others = sim.most as u64 - 1;
            let own_cpus = u64::from(task.job.mask.count_ones());
            let bound = others * SLICE_NS / own_cpus + SLICE_NS;
            prop_assert!(task.longest_wait_ns <= bound, "{} > {bound}: {task:?}", task.longest_wait_ns);
        }
    }

    /// The bound of the policy's documentation, and the slice for a CPU that was idle a moment ago and no longer is.
    #[test]
    fn deadline_waits_are_bounded((cpus, jobs) in machine()) {
        let sim = Sim::new(cpus, &jobs).run(policy(Kind::Deadline, cpus), 1000 * MS);
        for task in &sim.tasks {
            let others = sim.most as u64 - 1;
            let own_cpus = u64::from(task.job.mask.count_ones());
            let bound = MAX_ALLOWANCE_NS + others * SLICE_NS / own_cpus + SLICE_NS;
            prop_assert!(task.longest_wait_ns <= bound, "{} > {bound}: {task:?}", task.longest_wait_ns);
        }
    }

    /// With equal weights nobody waits much longer than a turn of all, whoever else comes and goes.
    #[test]
    fn fair_waits_are_bounded((cpus, jobs) in equal_machine()) {
        let sim = Sim::new(cpus, &jobs).run(policy(Kind::Fair, cpus), 1000 * MS);
        for task in &sim.tasks {
            let others = sim.most as u64 - 1;
            // Each may be a slice behind when it wakes up, and one ahead when this one starts to wait.
            let bound = 3 * others * SLICE_NS + SLICE_NS;
            prop_assert!(task.longest_wait_ns <= bound, "{} > {bound}: {task:?}", task.longest_wait_ns);
        }
    }

    /// Tasks that always want to run get CPU time in proportion to weight.
    #[test]
    fn fair_shares_follow_weight(
        cpus in 1u32..5,
        weights in prop::collection::vec(50u64..400, 8..20),
        runs in prop::collection::vec(100_000..20 * MS, 20),
        starts in prop::collection::vec(0..20 * MS, 20),
    ) {
        let total: u64 = weights.iter().sum();
        // Nobody can use more than one CPU.
        prop_assume!(weights.iter().all(|&w| w * u64::from(cpus) <= total));
        let jobs: Vec<Job> = weights.iter().zip(runs.iter().zip(&starts)).map(|(&weight, (&run_ns, &start_ns))| Job {
            start_ns, run_ns, sleep_ns: 0, weight, mask: (1 << cpus) - 1,
        }).collect();
        let sim = Sim::new(cpus, &jobs).run(policy(Kind::Fair, cpus), 10_000 * MS);
        let time = 10_000 * MS * u64::from(cpus);
        for task in &sim.tasks {
            let due = time as f64 * task.job.weight as f64 / total as f64;
            let part = task.total_ns as f64 / due;
            prop_assert!((0.9..1.1).contains(&part), "{part} of its share: {task:?}");
        }
    }

    /// Latency-sensitive work isn't held up by a crowd of batch work, unlike with `fifo`.
    #[test]
    fn deadline_serves_short_tasks_before_long_ones(crowd in 8usize..24, sleep_ns in 5 * MS..20 * MS) {
        let mut jobs: Vec<Job> = (0..crowd).map(|_| Job {
            start_ns: 0, run_ns: 20 * MS, sleep_ns: 0, weight: 100, mask: 3,
        }).collect();
        jobs.push(Job { start_ns: 500 * MS, run_ns: 100_000, sleep_ns, weight: 100, mask: 3 });
        let wait = |kind| Sim::new(2, &jobs).run(policy(kind, 2), 2000 * MS).tasks[crowd].longest_wait_ns;
        prop_assert!(wait(Kind::Fifo) > 3 * SLICE_NS);
        // Its first deadline is a guess; from then on only who runs already is in its way.
        prop_assert!(wait(Kind::Deadline) <= 2 * SLICE_NS, "{}", wait(Kind::Deadline));
    }
}
