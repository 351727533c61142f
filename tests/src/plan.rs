//! What is tested where.

mod guests;

use serde::{Deserialize, Serialize};
use std::time::Duration;

pub use guests::{GUESTS, Guest, VIRTUAL_CLOCK};

/// A guest with more CPUs than this is large: emulated, they take turns on the host's few.
pub const FEW_CPUS: usize = 16;

/// A scheduler under test.
#[derive(Debug)]
pub struct Scheduler {
    /// Its binary.
    pub name: &'static str,
    /// What `root/ops` starts with while it is loaded; the build's id follows.
    pub ops: &'static str,
    /// Options that change its policy. Each must load, and leave nobody behind.
    pub variants: &'static [&'static [&'static str]],
    /// Whether its daemon decides: when that is stopped, the kernel's watchdog has to step in.
    pub by_daemon: bool,
    /// Cases that are not for it.
    pub left_out: &'static [&'static str],
    /// What holds under faults.
    pub bounds: Bounds,
}

/// How long a task may wait whatever happens to the machine, and how long beside an idle CPU that could run it. In an
/// emulated guest on a busy host, which alone keeps a CPU from running for one or two seconds now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub wait_ms: u64,
    pub idle_ms: u64,
}

const BOUNDS: Bounds = Bounds {
    wait_ms: 10_000,
    idle_ms: 3000,
};

/// Cases about what only a scheduler that decides in its daemon sees or has to endure.
const OF_DAEMONS: &[&str] = &["pressure", "latency_first", "outside_load", "ten_minutes"];

pub const SCHEDULERS: &[Scheduler] = &[
    Scheduler {
        name: "scx_rr",
        ops: "rr",
        variants: &[
            &["--queues", "llc", "--verbose"],
            &["--queues", "node", "--slice-us", "100"],
            &["--queues", "global", "--slice-us", "100000"],
        ],
        by_daemon: false,
        // It knows no weights, no classes and no homes.
        left_out: &[
            "pinned_shares",
            "node_shares",
            "cgroup_shares",
            "woken_together",
            "beside_batch",
            "memory_home",
            "cpuless_home",
            "stays_home",
        ],
        bounds: BOUNDS,
    },
    Scheduler {
        name: "scx_steal",
        ops: "steal",
        variants: &[
            &["--slice-us", "100", "--preempt-us", "0", "--verbose"],
            &["--slice-us", "100000", "--credit-us", "0"],
            &["--remote-wait-us", "0", "--credit-us", "1000000"],
        ],
        by_daemon: false,
        // Its homes are where tasks start.
        left_out: &["memory_home", "cpuless_home", "stays_home"],
        bounds: BOUNDS,
    },
    Scheduler {
        name: "scx_numa",
        ops: "numa",
        variants: &[
            &["--slice-us", "100", "--preempt-us", "0", "--verbose"],
            &["--slice-us", "100000", "--credit-us", "0", "--strict"],
            &["--remote-wait-us", "0", "--rehome-ms", "1"],
        ],
        by_daemon: false,
        // Where pinned tasks are more crowded than the rest of a cache, they share equally.
        left_out: &["pinned_shares"],
        bounds: BOUNDS,
    },
    Scheduler {
        name: "scx_pilot",
        ops: "pilot",
        variants: &[
            &["--policy-kind", "fifo", "--slice-us", "100"],
            &["--policy-kind", "fair", "--every-wakeup", "--verbose"],
            &["--policy-kind", "deadline", "--slice-us", "20000"],
        ],
        by_daemon: true,
        left_out: &[
            // Its default policy doesn't tell classes apart.
            "beside_batch",
            "memory_home",
            "cpuless_home",
            // Not claimed of it.
            "beside_messages",
            "stays_home",
            "pinned_shares",
            "node_shares",
            "cgroup_shares",
            "woken_together",
            // Its BPF side is upstream's.
            "verified",
        ],
        // While its one thread doesn't decide, nobody does: until the watchdog ends it, 7.5 s with what it asks the kernel for.
        bounds: Bounds {
            wait_ms: 20_000,
            idle_ms: 10_000,
        },
    },
];

/// Cases that end with a scheduler thrown out by the watchdog, if its daemon decides.
pub const STALLING: &[&str] = &["stopped_daemon", "fault_stop"];

/// Cases that end with a broken scheduler thrown out.
pub const THROWN_OUT: &[&str] = &["check_mask", "fault_watchdog"];

/// Whether a case is about the machine or about a scheduler on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Machine,
    Scheduler,
    /// The machine, with something broken; in guests that ask for it.
    Checker,
    /// A scheduler while something goes wrong; in guests that ask for it.
    Fault,
}

impl About {
    pub fn is_fault(self) -> bool {
        matches!(self, Self::Checker | Self::Fault)
    }
}

/// Whose daemon a case of a scheduler looks at. Loading one in an emulated guest takes as long as most cases do, so those
/// that need no more than a loaded scheduler share one, which has then seen much by the time the last of them comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// It starts its own; nothing is loaded before and after.
    Own,
    /// It finds one and leaves it loaded.
    Shared,
    /// It finds one and ends it.
    Ended,
}

#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub about: About,
    pub daemon: Daemon,
    /// What happens in it, for the page about reliability. Empty for those that are not on it.
    pub what: &'static str,
    /// How long it may take in a guest of up to [`FEW_CPUS`], in seconds. It is there for cases that hang, so it is what none
    /// needs even on a machine with much else to do: most take 5 to 20 on 2 idle cores.
    pub limit_s: u64,
}

const fn machine(name: &'static str, limit_s: u64) -> Case {
    Case {
        name,
        about: About::Machine,
        daemon: Daemon::Own,
        what: "",
        limit_s,
    }
}

const fn scheduler(name: &'static str, limit_s: u64) -> Case {
    Case {
        name,
        about: About::Scheduler,
        daemon: Daemon::Own,
        what: "",
        limit_s,
    }
}

const fn sharing(name: &'static str, limit_s: u64) -> Case {
    Case {
        daemon: Daemon::Shared,
        ..scheduler(name, limit_s)
    }
}

const fn checker(name: &'static str, limit_s: u64, what: &'static str) -> Case {
    Case {
        name,
        about: About::Checker,
        daemon: Daemon::Own,
        what,
        limit_s,
    }
}

const fn fault(name: &'static str, limit_s: u64, what: &'static str) -> Case {
    Case {
        name,
        about: About::Fault,
        daemon: Daemon::Own,
        what,
        limit_s,
    }
}

/// All cases, in the order in which they run in a guest.
pub const CASES: &[Case] = &[
    // The guest is what vm/topologies.toml promises.
    machine("topology", 180),
    // Programs that choose their code by the CPU find one that they can run on.
    machine("programs", 180),
    // What was in memory before doesn't get into programs that are read into it.
    machine("page_cache", 240),
    // `manycore observe` tells the waste of workloads whose waste is known.
    machine("observe_waste", 400),
    // Who was sent to a CPU that another class keeps is freed.
    machine("stuck", 300),
    // A CPU that sleeps on though it was picked is woken.
    machine("unwoken", 300),
    // `manycore topo` shows what `lscpu -e` and `numactl -H` show.
    machine("topo", 300),
    // `manycore topo --probe` doesn't trust what it measures on emulated CPUs.
    machine("probe", 180),
    // A policy is applied and undone, by whatever way, on real cgroups.
    machine("policy", 500),
    // Exclusive services get each other's CPUs.
    machine("policy_trade", 400),
    // `-V`, `--help` and `--help-stats` without root.
    scheduler("help", 120),
    // No root, a slice of 0 or of an hour: refused, nothing loaded.
    scheduler("refuses_bad_use", 120),
    // `state` and `root/ops` are right, and SIGINT brings EEVDF back while tasks go on.
    scheduler("loads", 400),
    // To admit its programs, the verifier looked at about as much as last time.
    scheduler("verified", 400),
    scheduler("unloads_on_sigterm", 300),
    // Each of its variants loads and serves everybody.
    scheduler("variants", 600),
    // Only tasks of the SCHED_EXT policy are its own, and they get by without the CPUs that others keep.
    scheduler("partial", 300),
    // Who is moved by the kernel's NUMA balancing is neither lost nor forgotten in the statistics.
    scheduler("numa_balancing", 400),
    // OpenMetrics: well formed, counters only grow, and the same as the statistics.
    scheduler("metrics", 400),
    // The sockets are for root and a group only.
    scheduler("stats_are_private", 200),
    // Caches and nodes of a topology file; one that doesn't fit is refused with its line.
    scheduler("topology_file", 300),
    // A policy is kept in force by the daemon, and undone whatever ends it.
    scheduler("policy_daemon", 900),
    // A thousand cgroups that come and go have a class within a second, and leave none behind.
    scheduler("classes", 600),
    // A latency service beside a batch job is woken as fast as alone, and stays on its node.
    scheduler("beside_batch", 1800),
    // Where a few more tasks than CPUs use most of the machine, none moves to another node for a moment's crowding.
    scheduler("stays_home", 900),
    // Tasks whose memory is on a node without CPUs are at home on the nearest one with some.
    scheduler("cpuless_home", 400),
    // Who computes gets its share beside others who run for a few microseconds at a time.
    scheduler("beside_messages", 400),
    // Cgroups get shares by their weights from their first moment on.
    scheduler("cgroup_shares", 400),
    // Tasks that were born on one CPU and are woken together are soon on all.
    scheduler("woken_together", 900),
    // A service under CPU pressure is served better within a second.
    scheduler("pressure", 900),
    scheduler("latency_first", 900),
    // What the outside says of a service's load changes where it runs.
    scheduler("outside_load", 900),
    // Four tasks a CPU of many kinds, for ten minutes.
    scheduler("ten_minutes", 1500),
    // SIGSTOP: tasks go on, with the scheduler or without it, and its daemon says what happened.
    sharing("stopped_daemon", 500),
    // A second scheduler is refused and told the name of the first.
    sharing("refuses_a_second", 300),
    // Four spinning threads a CPU: equal shares, nobody waits for long.
    sharing("fair", 400),
    // Nice levels among tasks that are pinned to one CPU.
    sharing("pinned_shares", 400),
    // The same among tasks that started on different nodes.
    sharing("node_shares", 400),
    // Nobody is starved, however little weight it has.
    sharing("light_among_heavy", 400),
    // The same as fair with processes that nobody here wrote.
    sharing("stress_ng", 400),
    // Short sleeps, forks and yields: all make progress.
    sharing("mixed", 400),
    // No CPU idles while work waits.
    sharing("no_idle_cpu", 400),
    // Tasks whose memory is on one node stay at home there, however long CPUs of others run them.
    sharing("memory_home", 400),
    // A real-time task that keeps a CPU keeps nobody who was sent there.
    sharing("cpu_kept", 400),
    // Masks hold while they change under load.
    sharing("affinity", 400),
    // Totals grow, add up and are the same whoever asks.
    sharing("stats", 400),
    // CPUs come and go under load.
    sharing("hotplug", 400),
    Case {
        daemon: Daemon::Ended,
        ..scheduler("unloads_on_sigkill", 300)
    },
    // A CPU comes whose place could not be known at load.
    scheduler("unknown_cpu", 400),
    // Loads, serves with every CPU, counts and ends, also with every second CPU offline.
    scheduler("odd", 600),
    // Does the checker see what it is there for? Then each fault under load, with the checker on.
    checker(
        "check_wait",
        300,
        "a task runs every 3 s only, on busy CPUs: the checker sees it wait",
    ),
    checker(
        "check_idle",
        300,
        "tasks are held on one CPU beside idle ones: the checker sees CPUs idle",
    ),
    checker(
        "check_lost",
        300,
        "a task is never run again: the checker sees that it still waits",
    ),
    checker(
        "check_mask",
        300,
        "a task is sent to a CPU outside its mask: the kernel refuses and throws the scheduler out; the checker sees it where it is pretended",
    ),
    checker(
        "fault_watchdog",
        300,
        "a task is never run again: the watchdog throws the scheduler out, with a dump that names the task",
    ),
    fault(
        "fault_hotplug",
        400,
        "one to three CPUs go and come back, over and over",
    ),
    fault("fault_one_cpu", 600, "all CPUs but one go and come back"),
    fault(
        "fault_cpuset",
        400,
        "a cpuset shrinks to one CPU and widens again, over and over",
    ),
    fault(
        "fault_cgroups",
        400,
        "processes move between cgroups of weight 1, 100 and 10000",
    ),
    fault(
        "fault_affinity",
        400,
        "`stress-ng --affinity`: processes change their masks",
    ),
    fault(
        "fault_forks",
        400,
        "a fork bomb within a limit of 150 tasks",
    ),
    fault(
        "fault_threads",
        1200,
        "10,000 threads that wake up now and then are there when it comes and when it goes",
    ),
    fault(
        "fault_exec",
        400,
        "`stress-ng --exec` and `--vfork`: processes start programs and end",
    ),
    fault(
        "fault_rt",
        400,
        "real-time tasks take 98 % of half of the CPUs, by turns",
    ),
    fault(
        "fault_memory",
        400,
        "processes want twice the memory of their cgroup, are killed and begin again",
    ),
    fault("fault_stop", 400, "the daemon is stopped for 10 s"),
    fault(
        "fault_oom",
        400,
        "the kernel kills the daemon for want of memory",
    ),
    fault(
        "fault_sysrq",
        400,
        "SysRq-S ends the scheduler, and the daemon says that this was why",
    ),
    fault(
        "reload",
        750,
        "loaded and unloaded 25 times (10 on more than 16 CPUs), and by two daemons at once",
    ),
    fault(
        "faults",
        400,
        "hotplug, cpusets, affinity, forks, exec and real-time tasks, 1.5 s of each",
    ),
];

/// How long a case, `NAME` or `SCHEDULER/NAME`, may take in a guest of so many CPUs. Emulated ones take turns on the host's.
pub fn limit_of(case_name: &str, cpus: usize) -> Duration {
    let name = case_name.rsplit('/').next().unwrap_or(case_name);
    let own = case(name).map_or(60, |case| case.limit_s);
    Duration::from_secs(own * cpus.div_ceil(FEW_CPUS).max(1) as u64)
}

/// Whether a case, `NAME` or `SCHEDULER/NAME`, loads one, or runs where one is loaded.
pub fn loads_a_scheduler(case_name: &str) -> bool {
    case(case_name).is_none_or(|case| case.about != About::Machine)
}

/// The case of that name.
pub fn case(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

/// Whose daemon a case, `NAME` or `SCHEDULER/NAME`, looks at. A scheduler that decides in its daemon goes with it, so
/// each case has its own there.
pub fn daemon_of(case_name: &str) -> Daemon {
    let found = case_name.split_once('/').and_then(|(scheduler, name)| {
        let scheduler = scheduler_named(scheduler)?;
        let case = case(name)?;
        (!scheduler.by_daemon).then_some(case.daemon)
    });
    found.unwrap_or(Daemon::Own)
}

/// The scheduler of that name.
pub fn scheduler_named(name: &str) -> Option<&'static Scheduler> {
    SCHEDULERS.iter().find(|scheduler| scheduler.name == name)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::guests::{OWN_GUESTS, Pick};
    use super::*;

    #[test]
    fn every_name_is_known_and_every_case_runs_somewhere() {
        for guest in GUESTS {
            let (Pick::AllBut(names) | Pick::Only(names)) = guest.cases else {
                continue;
            };
            for name in names {
                assert!(case(name).is_some(), "{}: {name}", guest.name());
            }
        }
        for name in OWN_GUESTS {
            assert!(case(name).is_some(), "{name}");
        }
        for scheduler in SCHEDULERS {
            for name in scheduler.left_out {
                assert!(case(name).is_some(), "{}: {name}", scheduler.name);
            }
        }
        for case in CASES {
            assert!(
                GUESTS
                    .iter()
                    .any(|guest| guest.cases().iter().any(|name| name.ends_with(case.name))),
                "{}",
                case.name
            );
        }
    }

    #[test]
    fn those_who_share_a_daemon_follow_each_other() {
        for guest in GUESTS {
            let cases = guest.cases();
            for pair in cases.windows(2) {
                let [before, after] = [&pair[0], &pair[1]].map(|name| daemon_of(name));
                let same = pair[0].split('/').next() == pair[1].split('/').next();
                // None that needs a machine without a scheduler is among them, so each scheduler is loaded for them once.
                assert!(
                    !(same && before == Daemon::Shared && after == Daemon::Own),
                    "{}: {pair:?}",
                    guest.name()
                );
            }
        }
        assert_eq!(daemon_of("scx_rr/fair"), Daemon::Shared);
        assert_eq!(daemon_of("scx_pilot/fair"), Daemon::Own);
        assert_eq!(daemon_of("topology"), Daemon::Own);
    }

    #[test]
    fn guests_run_beside_those_that_leave_them_a_core() {
        let find = |name: &str, cases: fn(&Pick) -> bool| {
            let mut all = GUESTS.iter();
            all.find(|guest| guest.name() == name && cases(&guest.cases))
                .unwrap()
        };
        let any = |_: &Pick| true;
        let faults = |cases: &Pick| matches!(cases, Pick::Faults);
        let small = find("6.12/t8", any);
        let small_faults = find("6.12/t8", faults);
        let sixteen = find("debian/t16-smt", any);
        let with_virtual_clock = find("6.12/t8-virtual", any);
        let many_with_virtual_clock = find("6.12/t32-virtual", any);
        let large = find("6.12/t64", any);
        let large_faults = find("debian/t32", faults);
        for (one, other, may) in [
            (small, small, true),
            (small, with_virtual_clock, true),
            (small, small_faults, false),
            (small, sixteen, false),
            (sixteen, with_virtual_clock, true),
            (small, large, false),
            (small_faults, with_virtual_clock, true),
            (small_faults, large, false),
            (small_faults, many_with_virtual_clock, true),
            (large, large_faults, true),
            (large, with_virtual_clock, true),
        ] {
            let names = (one.name(), other.name());
            assert_eq!(one.may_run_beside(other), may, "{names:?}");
            assert_eq!(other.may_run_beside(one), may, "{names:?}");
        }
    }

    #[test]
    fn a_case_about_the_machine_loads_no_scheduler() {
        let loads = ["topo", "check_wait", "scx_rr/loads", "no such case"].map(loads_a_scheduler);
        assert_eq!(loads, [false, true, true, true]);
    }

    #[test]
    fn many_cpus_take_longer() {
        let [eight, sixteen, many] = [8, 16, 33].map(|cpus| limit_of("scx_rr/fair", cpus));
        assert_eq!(eight, sixteen);
        assert_eq!(many, 3 * eight);
        assert_eq!(limit_of("no such case", 1), Duration::from_secs(60));
    }

    /// The first of that name.
    pub(crate) fn guest(name: &str) -> &'static Guest {
        GUESTS.iter().find(|guest| guest.name() == name).unwrap()
    }

    #[test]
    fn cases_are_named_with_their_scheduler() {
        let cases = guest("6.12/t8").cases();
        assert_eq!(cases[0], "topology");
        assert!(cases.contains(&"scx_rr/loads".to_owned()));
    }
}
