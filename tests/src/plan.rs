//! What is tested where.

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
}

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
        left_out: &[],
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
        left_out: &[],
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
        left_out: &[],
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
        // For the sake of its BPF side, which is upstream's. Where a task of another policy takes a CPU, those that were
        // given that CPU wait until it is done, on 6.12 for ever (7.3 passes). A CPU that is coming up counts as idle
        // before it takes work; if the task that waits for it to come up is sent there, both wait for the watchdog (seen
        // on 6.12; 7.3 passed beside a light load).
        left_out: &[
            "partial",
            "hotplug",
            "unknown_cpu",
            "policy_daemon",
            "classes",
        ],
    },
];

/// Cases that end with a scheduler thrown out by the watchdog, if its daemon decides.
pub const STALLING: &[&str] = &["stopped_daemon"];

/// Whether a case is about the machine or about a scheduler on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Machine,
    Scheduler,
}

#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub about: About,
    /// How long it may take in a guest, in seconds. It is there for cases that hang, so it is what none needs even on a
    /// machine with much else to do: most take 5 to 20 on 2 idle cores.
    pub limit_s: u64,
}

const fn machine(name: &'static str, limit_s: u64) -> Case {
    Case {
        name,
        about: About::Machine,
        limit_s,
    }
}

const fn scheduler(name: &'static str, limit_s: u64) -> Case {
    Case {
        name,
        about: About::Scheduler,
        limit_s,
    }
}

/// All cases, in the order in which they run in a guest.
pub const CASES: &[Case] = &[
    // The guest is what vm/topologies.toml promises.
    machine("topology", 180),
    // Programs that choose their code by the CPU find one that they can run on.
    machine("programs", 180),
    // `manycore observe` tells the waste of workloads whose waste is known.
    machine("observe_waste", 400),
    // `manycore topo` shows what `lscpu -e` and `numactl -H` show.
    machine("topo", 300),
    // `manycore topo --probe` doesn't trust what it measures on emulated CPUs.
    machine("probe", 180),
    // A policy is applied and undone, by whatever way, on real cgroups.
    machine("policy", 500),
    // `-V`, `--help` and `--help-stats` without root.
    scheduler("help", 120),
    // No root, a slice of 0 or of an hour: refused, nothing loaded.
    scheduler("refuses_bad_use", 120),
    // `state` and `root/ops` are right, and SIGINT brings EEVDF back while tasks go on.
    scheduler("loads", 400),
    scheduler("unloads_on_sigterm", 300),
    scheduler("unloads_on_sigkill", 300),
    // SIGSTOP: tasks go on, with the scheduler or without it, and its daemon says what happened.
    scheduler("stopped_daemon", 500),
    // Each of its variants loads and serves everybody.
    scheduler("variants", 600),
    // A second scheduler is refused and told the name of the first.
    scheduler("refuses_a_second", 300),
    // Only tasks of the SCHED_EXT policy are its own, and they get by without the CPUs that others keep.
    scheduler("partial", 300),
    // Four spinning threads a CPU: equal shares, nobody waits for long.
    scheduler("fair", 400),
    // The same with processes that nobody here wrote.
    scheduler("stress_ng", 400),
    // Short sleeps, forks and yields: all make progress.
    scheduler("mixed", 400),
    // No CPU idles while work waits.
    scheduler("no_idle_cpu", 400),
    // Masks hold while they change under load.
    scheduler("affinity", 400),
    // Totals grow, add up and are the same whoever asks.
    scheduler("stats", 400),
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
    // CPUs come and go under load.
    scheduler("hotplug", 400),
    // A CPU comes whose place could not be known at load.
    scheduler("unknown_cpu", 400),
];

/// The case of that name.
pub fn case(name: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.name == name)
}

/// The scheduler of that name.
pub fn scheduler_named(name: &str) -> Option<&'static Scheduler> {
    SCHEDULERS.iter().find(|scheduler| scheduler.name == name)
}

/// A machine to boot, and what to look at in it.
#[derive(Debug)]
pub struct Guest {
    pub kernel: &'static str,
    pub topology: &'static str,
    /// Part of the full set only: `--ignored` or `--include-ignored` runs it.
    pub full: bool,
    /// Its CPUs advance by their own instructions: what is measured there is exact, however busy this machine is. But a
    /// second says nothing about what the host takes to serve a file, so nothing may give up after some time.
    pub virtual_clock: bool,
    cases: Pick,
}

/// Set in guests with a virtual clock.
pub const VIRTUAL_CLOCK: &str = "MANYCORE_TEST_VIRTUAL_CLOCK";

#[derive(Debug)]
enum Pick {
    AllBut(&'static [&'static str]),
    Only(&'static [&'static str]),
}

impl Guest {
    const fn new(kernel: &'static str, topology: &'static str, cases: Pick) -> Self {
        Self {
            kernel,
            topology,
            full: false,
            virtual_clock: false,
            cases,
        }
    }

    const fn virtual_clock(self) -> Self {
        Self {
            virtual_clock: true,
            ..self
        }
    }

    const fn full(self) -> Self {
        Self { full: true, ..self }
    }

    /// `6.12/t8`, `6.12/t8-virtual`
    pub fn name(&self) -> String {
        let clock = if self.virtual_clock { "-virtual" } else { "" };
        format!("{}/{}{clock}", self.kernel, self.topology)
    }

    /// The names of its cases, `topology` or `scx_rr/loads`.
    pub fn cases(&self) -> Vec<String> {
        let picked = CASES.iter().filter(|case| match self.cases {
            Pick::AllBut(left_out) => !left_out.contains(&case.name),
            Pick::Only(names) => names.contains(&case.name),
        });
        let (machine, per_scheduler): (Vec<_>, Vec<_>) =
            picked.partition(|case| case.about == About::Machine);
        let mut names: Vec<_> = machine.iter().map(|case| case.name.to_owned()).collect();
        // One that decides in its daemon depends little on the machine's shape, and takes long.
        let everywhere = self.full || self.topology == "t8";
        for scheduler in SCHEDULERS.iter().filter(|s| everywhere || !s.by_daemon) {
            names.extend(
                per_scheduler
                    .iter()
                    .filter(|case| !scheduler.left_out.contains(&case.name))
                    .filter(|case| {
                        self.full || !scheduler.by_daemon || DAEMONS.contains(&case.name)
                    })
                    .map(|case| format!("{}/{}", scheduler.name, case.name)),
            );
        }
        names
    }
}

/// Of a scheduler that decides in its daemon, what runs in the quick set: in an emulated guest on a busy host its daemon
/// gets so little of the CPU that the others measure the host.
const DAEMONS: &[&str] = &[
    "help",
    "refuses_bad_use",
    "loads",
    "unloads_on_sigterm",
    "refuses_a_second",
];

/// Only where a node has several caches can a CPU's place be unknown.
const EVERYTHING: Pick = Pick::AllBut(&[
    "policy",
    "policy_daemon",
    "classes",
    "unknown_cpu",
    "observe_waste",
]);
const QUICK: Pick = Pick::Only(&[
    "topology",
    "topo",
    "loads",
    "unloads_on_sigkill",
    "fair",
    "stats",
]);
const SEVERAL_CACHES: Pick = Pick::Only(&["topology", "topo", "no_idle_cpu"]);
/// In guests of its own: it changes cpusets and NUMA balancing while tasks run, and what is wrong afterwards is its own.
const POLICY: Pick = Pick::Only(&["policy"]);
const POLICY_DAEMON: Pick = Pick::Only(&["policy_daemon"]);
/// On a virtual clock: how soon is about the daemon, not about the host.
const CLASSES: Pick = Pick::Only(&["classes"]);
/// A restart in an emulated guest of 16 CPUs takes from seconds to minutes, by the host's load.
const UNKNOWN_CPU: Pick = Pick::Only(&["unknown_cpu"]);
const MANY_CPUS: Pick = Pick::Only(&["topology", "topo", "loads", "no_idle_cpu"]);
/// What doesn't depend on the kernel is left out.
const SECOND_KERNEL: Pick = Pick::AllBut(&[
    "policy",
    "policy_daemon",
    "classes",
    "unknown_cpu",
    "observe_waste",
    "help",
    "refuses_bad_use",
    "refuses_a_second",
    "variants",
    "unloads_on_sigterm",
    "metrics",
    "stats_are_private",
    "topology_file",
]);
const MEASURED: Pick = Pick::Only(&["observe_waste"]);

pub const GUESTS: &[Guest] = &[
    Guest::new("6.12", "t8", EVERYTHING),
    Guest::new("debian", "t8", SECOND_KERNEL),
    Guest::new("6.12", "t8", MEASURED).virtual_clock(),
    Guest::new("debian", "t8", MEASURED).virtual_clock(),
    Guest::new("6.12", "t2", QUICK),
    Guest::new("debian", "t2", QUICK),
    Guest::new("6.12", "t16-smt", SEVERAL_CACHES),
    Guest::new("6.12", "t32", Pick::Only(&["topology", "topo"])),
    Guest::new("6.12", "t32", MANY_CPUS).full(),
    Guest::new("debian", "t8", EVERYTHING).full(),
    Guest::new("6.12", "t16-smt", POLICY),
    Guest::new("6.12", "t32", POLICY).full(),
    Guest::new("6.12", "t16-smt", POLICY_DAEMON).full(),
    Guest::new("6.12", "t8", CLASSES).virtual_clock().full(),
    Guest::new("6.12", "t16-smt", UNKNOWN_CPU).full(),
    Guest::new("debian", "t16-smt", SEVERAL_CACHES).full(),
    Guest::new("debian", "t32", MANY_CPUS).full(),
    Guest::new("6.12", "t64", MANY_CPUS).full(),
    Guest::new("6.12", "t128", MANY_CPUS).full(),
    Guest::new(
        "6.12-hz100",
        "t256",
        Pick::Only(&["topology", "topo", "loads"]),
    )
    .full(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_known_and_every_case_runs_somewhere() {
        for guest in GUESTS {
            let (Pick::AllBut(names) | Pick::Only(names)) = guest.cases;
            for name in names {
                assert!(case(name).is_some(), "{}: {name}", guest.name());
            }
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
    fn cases_are_named_with_their_scheduler() {
        let cases = GUESTS[0].cases();
        assert_eq!(cases[0], "topology");
        assert!(cases.contains(&"scx_rr/loads".to_owned()));
    }
}
