//! All workloads. Amounts for the lab's clock are chosen so that a run takes a few seconds of the host's time at 8 CPUs.

use super::super::parse;
use super::{Command, Metric, Setting, Size, Source, Workload};
use fastrand::Rng;

const PER_OP: &[Metric] = &[Metric::lower("", "us/op")];
const PER_SWITCH: &[Metric] = &[Metric::lower("", "ns/switch")];
const SECONDS: &[Metric] = &[Metric::lower("", "s")];
const MAKESPAN: &[Metric] = &[Metric::lower("", "ms")];
const INSTRUCTIONS: &[Metric] = &[Metric::lower("", "instructions/op")];
const OFF: &[Metric] = &[Metric::lower("", "% off")];
const SPEEDS: &[Metric] = &[
    Metric::lower("alone", ""),
    Metric::lower("slowest", ""),
    Metric::lower("fastest", ""),
];
const LATENCY: &[Metric] = &[
    Metric::lower("p50", "us"),
    Metric::lower("p99", "us"),
    Metric::lower("p99.9", "us"),
];
const RT_APP: &[Metric] = &[
    Metric::lower("p50", "us"),
    Metric::lower("p99", "us"),
    Metric::lower("p99.9", "us"),
    Metric::lower("late periods", "%"),
];
const SERVICE: &[Metric] = &[
    Metric::lower("p50 delay", "us"),
    Metric::lower("p99 delay", "us"),
    Metric::lower("p99.9 delay", "us"),
    Metric::higher("batch's share of the CPUs", "%"),
];
const WASTE: &[Metric] = &[
    Metric::lower("wasted CPU time", "% of capacity"),
    Metric::lower("longest violation", "ms"),
];
const HOME: &[Metric] = &[
    Metric::higher("time at home node", "%"),
    Metric::lower("moves to another node", ""),
];
const FAIR: &[Metric] = &[
    Metric::higher("Jain's index", ""),
    Metric::lower("longest wait", "ms"),
];

const fn workload(
    name: &'static str,
    title: &'static str,
    metrics: &'static [Metric],
    command: Command,
    source: Source,
) -> Workload {
    Workload {
        name,
        title,
        default: true,
        metrics,
        command,
        source,
    }
}

/// Not part of a bench unless named.
const fn extra(workload: Workload) -> Workload {
    Workload {
        default: false,
        ..workload
    }
}

/// Run before all others where figures are wanted.
pub static SELF_CHECK: Workload = workload(
    "self-check",
    "speed of one pinned thread beside n others",
    SPEEDS,
    |s, _| format!("xtask in-guest speed --cpus {}", s.cpus),
    Source::Output(parse::speeds),
);

const HACKBENCH: Source = Source::Output(parse::hackbench);
const OURS_MS: Source = Source::Output(parse::makespan);
const SYSBENCH: Source = Source::Output(parse::sysbench);

pub const ALL: &[Workload] = &[
    workload(
        "pipe",
        "perf bench sched pipe",
        PER_OP,
        |s, _| format!("perf bench sched pipe -l {}", s.pick(500, 3000, 200_000)),
        Source::Output(parse::perf_pipe),
    ),
    extra(workload(
        "pipe-instructions",
        "perf bench sched pipe, instructions of all CPUs",
        INSTRUCTIONS,
        |s, _| {
            let many = s.pick(500, 3000, 200_000);
            format!(
                "xtask in-guest cost --ops {} {many} -- perf bench sched pipe -l",
                many / 10
            )
        },
        Source::Marks,
    )),
    extra(workload(
        "messaging",
        "perf bench sched messaging, n/8 groups",
        SECONDS,
        |s, _| {
            let loops = s.pick(50, s.lab_scaled(300, 100), 3000);
            format!(
                "perf bench sched messaging -g {} -l {loops}",
                s.per_cpu(1, 8)
            )
        },
        Source::Output(parse::perf_messaging),
    )),
    workload(
        "hackbench-1",
        "hackbench, 1 group",
        SECONDS,
        |s, rng| hackbench(1, s.pick(50, 2000, 10_000), "", rng),
        HACKBENCH,
    ),
    extra(workload(
        "hackbench-n8",
        "hackbench, n/8 groups",
        SECONDS,
        |s, rng| {
            hackbench(
                s.per_cpu(1, 8),
                s.pick(50, s.lab_scaled(1000, 400), 10_000),
                "",
                rng,
            )
        },
        HACKBENCH,
    )),
    workload(
        "hackbench-n2",
        "hackbench, n/2 groups",
        SECONDS,
        |s, rng| half(s, "", rng),
        HACKBENCH,
    ),
    extra(workload(
        "hackbench-n2-pipe",
        "hackbench, n/2 groups, pipes",
        SECONDS,
        |s, rng| half(s, "-p", rng),
        HACKBENCH,
    )),
    extra(workload(
        "hackbench-n2-thread",
        "hackbench, n/2 groups, threads",
        SECONDS,
        |s, rng| half(s, "-T", rng),
        HACKBENCH,
    )),
    extra(workload(
        "hackbench-n2-thread-pipe",
        "hackbench, n/2 groups, threads and pipes",
        SECONDS,
        |s, rng| half(s, "-T -p", rng),
        HACKBENCH,
    )),
    extra(workload(
        "hackbench-3n",
        "hackbench, 3n groups",
        SECONDS,
        |s, rng| hackbench(3 * s.cpus, s.pick(5, s.lab_scaled(50, 10), 500), "", rng),
        HACKBENCH,
    )),
    workload(
        "switch",
        "stress-ng --switch",
        PER_SWITCH,
        |s, _| {
            let switches = s.pick(1000, 4000, 500_000);
            format!(
                "stress-ng --switch {} --switch-ops {switches} --metrics --temp-path .",
                s.per_cpu(1, 4)
            )
        },
        Source::Output(parse::stress_switch),
    ),
    workload(
        "burst-2",
        "burst of 2n tasks of 20 ms",
        MAKESPAN,
        |s, rng| burst(2 * s.cpus, s, rng),
        OURS_MS,
    ),
    workload(
        "burst-1.5",
        "burst of 1.5n tasks of 20 ms",
        MAKESPAN,
        |s, rng| burst(s.per_cpu(3, 2), s, rng),
        OURS_MS,
    ),
    extra(workload(
        "imbalance",
        "n tasks of 20 ms that start on one node",
        MAKESPAN,
        |s, rng| imbalance(s.cpus, 20, rng),
        OURS_MS,
    )),
    workload(
        "waste",
        "1.5n tasks of 40 ms that start on one node",
        WASTE,
        |s, rng| imbalance(s.per_cpu(3, 2), 40, rng),
        Source::Meter(&[
            ("/wasted/share_of_capacity", 100.0),
            ("/wasted/longest_violation_ms", 1.0),
        ]),
    ),
    extra(workload(
        "home-70",
        "n threads at 70% load",
        HOME,
        |s, rng| {
            format!(
                "xtask in-guest loaded --percent 70 --threads {} --seed {} -- sleep {}",
                s.cpus,
                rng.u32(..),
                s.pick(0.1, 0.3, 10.0)
            )
        },
        Source::Meter(&[("/home_share", 100.0), ("/migrations/remote", 1.0)]),
    )),
    workload(
        "jobs",
        "build of 3n jobs, n + 1 at once",
        MAKESPAN,
        |s, rng| {
            format!(
                "xtask in-guest jobs --jobs {} --at-once {} --seed {}",
                3 * s.cpus,
                s.cpus + 1,
                rng.u32(..)
            )
        },
        OURS_MS,
    ),
    extra(workload(
        "service",
        "requests of 200 us beside n batch threads",
        SERVICE,
        |s, rng| {
            format!(
                "xtask in-guest service --servers {} --batch {} --requests {} --seed {}",
                s.per_cpu(1, 2),
                s.cpus,
                s.pick(50, 250, 5000),
                rng.u32(..)
            )
        },
        Source::Output(parse::service),
    )),
    extra(workload(
        "fair",
        "4n equal threads that never sleep",
        FAIR,
        |s, rng| {
            format!(
                "xtask in-guest fair --threads {} --ms {} --seed {}",
                4 * s.cpus,
                s.pick(200, 400, 5000),
                rng.u32(..)
            )
        },
        Source::Output(parse::fair),
    )),
    extra(workload(
        "shares-nice",
        "shares of nice 6, 3 and 0, n threads each",
        OFF,
        |s, rng| shares("nice", s, rng),
        Source::Output(parse::shares),
    )),
    extra(workload(
        "shares-cgroup",
        "shares of nested cgroups 1:2, n threads each",
        OFF,
        |s, rng| shares("cgroup", s, rng),
        Source::Output(parse::shares),
    )),
    extra(workload(
        "latency-40",
        "cyclictest at 40% load",
        LATENCY,
        |s, rng| latency(40, s, rng),
        Source::Histogram(parse::cyclictest),
    )),
    workload(
        "latency-70",
        "cyclictest at 70% load",
        LATENCY,
        |s, rng| latency(70, s, rng),
        Source::Histogram(parse::cyclictest),
    ),
    extra(workload(
        "latency-90",
        "cyclictest at 90% load",
        LATENCY,
        |s, rng| latency(90, s, rng),
        Source::Histogram(parse::cyclictest),
    )),
    extra(workload(
        "rt-app-40",
        "rt-app, n threads at 40% load",
        RT_APP,
        |s, rng| rt_app(40, s, rng),
        Source::Output(parse::rt_app),
    )),
    extra(workload(
        "rt-app-70",
        "rt-app, n threads at 70% load",
        RT_APP,
        |s, rng| rt_app(70, s, rng),
        Source::Output(parse::rt_app),
    )),
    extra(workload(
        "rt-app-90",
        "rt-app, n threads at 90% load",
        RT_APP,
        |s, rng| rt_app(90, s, rng),
        Source::Output(parse::rt_app),
    )),
    extra(workload(
        "sysbench-cpu",
        "sysbench cpu, 1.5n threads",
        SECONDS,
        |s, rng| {
            format!(
                "sysbench cpu --threads={} --cpu-max-prime={} --events={} --time=0 run",
                s.per_cpu(3, 2),
                rng.u32(1000..1010),
                s.cpus as u32 * s.pick(100, 1500, 100_000)
            )
        },
        SYSBENCH,
    )),
    extra(workload(
        "sysbench-threads",
        "sysbench threads, 2n threads, n/2 locks",
        SECONDS,
        |s, rng| {
            format!(
                "sysbench threads --threads={} --thread-yields={} --thread-locks={} --events={} --time=0 run",
                2 * s.cpus,
                rng.u32(50..53),
                s.per_cpu(1, 2),
                s.cpus as u32 * s.pick(10, 50, 5000)
            )
        },
        SYSBENCH,
    )),
    extra(workload(
        "cpu-1.5",
        "stress-ng --cpu 1.5n, from start to end",
        SECONDS,
        |s, _| stress_cpu(s.per_cpu(3, 2), s),
        Source::Elapsed,
    )),
    extra(workload(
        "cpu-4",
        "stress-ng --cpu 4n, from start to end",
        SECONDS,
        |s, _| stress_cpu(4 * s.cpus, s),
        Source::Elapsed,
    )),
];

/// A seed changes the messages' size, by too little to matter for the time that copying takes.
fn hackbench(groups: usize, loops: u32, options: &str, rng: &mut Rng) -> String {
    let bytes = rng.u32(100..132);
    format!("hackbench -g {groups} -f 10 -l {loops} -s {bytes} {options}")
}

fn half(s: &Setting, options: &str, rng: &mut Rng) -> String {
    hackbench(
        s.per_cpu(1, 2),
        s.pick(20, s.lab_scaled(400, 100), 5000),
        options,
        rng,
    )
}

fn burst(tasks: usize, s: &Setting, rng: &mut Rng) -> String {
    let (bursts, seed) = (s.pick(1, 4, 10), rng.u32(..));
    format!("xtask in-guest burst --tasks {tasks} --cpu-ms 20 --bursts {bursts} --seed {seed}")
}

fn imbalance(tasks: usize, cpu_ms: u32, rng: &mut Rng) -> String {
    let seed = rng.u32(..);
    format!(
        "xtask in-guest imbalance --tasks {tasks} --cpu-ms {cpu_ms} --confined-ms 2 --seed {seed}"
    )
}

fn shares(by: &str, s: &Setting, rng: &mut Rng) -> String {
    format!(
        "xtask in-guest shares --by {by} --threads {} --ms {} --seed {}",
        s.cpus,
        s.pick(200, 400, 5000),
        rng.u32(..)
    )
}

fn latency(percent: u32, s: &Setting, rng: &mut Rng) -> String {
    let loops = s.pick(50, 400, 10_000);
    // Histograms are of whole microseconds; a latency above the last one is counted as such.
    format!(
        "xtask in-guest loaded --percent {percent} --threads {} --seed {} -- \
         cyclictest --policy=other -q -t {} -i 500 -d 130 -l {loops} -h {}",
        s.cpus,
        rng.u32(..),
        s.per_cpu(1, 2),
        parse::CYCLICTEST_MAX_US,
    )
}

fn rt_app(percent: u32, s: &Setting, rng: &mut Rng) -> String {
    // By the virtual clock every CPU is as fast as any, always: nothing to calibrate.
    let loop_ns = if s.size == Size::Lab {
        RT_APP_LOOP_NS
    } else {
        0
    };
    format!(
        "xtask in-guest rt-app --percent {percent} --threads {} --periods {} --loop-ns {loop_ns} --seed {}",
        s.cpus,
        s.pick(20, 80, 1000),
        rng.u32(..)
    )
}

/// Instructions of one of rt-app 1.0's loops, measured: its own calibration takes seconds.
const RT_APP_LOOP_NS: u32 = 191;

fn stress_cpu(instances: usize, s: &Setting) -> String {
    let ops = s.pick(20, 200, 20_000);
    format!("stress-ng --cpu {instances} --cpu-method int64 --cpu-ops {ops} --temp-path .")
}
