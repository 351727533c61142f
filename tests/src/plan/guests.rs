//! Which machines are booted, and which cases run there.

use super::{About, CASES, FEW_CPUS, OF_DAEMONS, SCHEDULERS};
use crate::machine::Machine;

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
    pub(super) cases: Pick,
}

/// Set in guests with a virtual clock.
pub const VIRTUAL_CLOCK: &str = "MANYCORE_TEST_VIRTUAL_CLOCK";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// Of those that are neither about faults nor in guests of their own.
    AllBut(&'static [&'static str]),
    Only(&'static [&'static str]),
    /// Those about faults that are not in guests of their own.
    Faults,
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

    /// How many CPUs it has, 0 if its topology can't be read.
    pub fn cpus(&self) -> usize {
        Machine::read(self.topology).map_or(0, |machine| machine.cpus())
    }

    /// Its CPUs, emulated, are far more than the host's.
    pub fn is_large(&self) -> bool {
        self.cpus() > FEW_CPUS
    }

    /// Whether it may run beside another guest. One with few CPUs is emulated by a thread for each of them, beside which one
    /// with many, which has a single thread, would get too little of the host. And where something breaks, what is looked at
    /// is how long things take at worst; as it is where 16 threads emulate CPUs, or a load keeps all of them busy. A guest with
    /// a virtual clock has a single thread, too, and doesn't mind that it gets little.
    pub fn may_run_beside(&self, other: &Self) -> bool {
        let both = [self, other];
        let either = |is: fn(&Self) -> bool| both.into_iter().any(is);
        if either(|guest| guest.virtual_clock) {
            true
        } else if either(Self::is_large) {
            both.into_iter().all(Self::is_large)
        } else {
            !either(Self::needs_all)
        }
    }

    fn needs_all(&self) -> bool {
        matches!(self.cases, Pick::Faults) || self.cases == TEN_MINUTES || self.cpus() > 12
    }

    /// The names of its cases, `topology` or `scx_rr/loads`.
    pub fn cases(&self) -> Vec<String> {
        let picked = CASES.iter().filter(|case| match self.cases {
            Pick::AllBut(left_out) => {
                !case.about.is_fault()
                    && !OWN_GUESTS.contains(&case.name)
                    && !left_out.contains(&case.name)
            }
            Pick::Only(names) => names.contains(&case.name),
            Pick::Faults => case.about.is_fault() && !OWN_GUESTS.contains(&case.name),
        });
        let (machine, per_scheduler): (Vec<_>, Vec<_>) =
            picked.partition(|case| matches!(case.about, About::Machine | About::Checker));
        let mut names: Vec<_> = machine.iter().map(|case| case.name.to_owned()).collect();
        // One that decides in its daemon depends little on the machine's shape, and takes long.
        let everywhere = self.full || (self.topology == "t8" && self.kernel == "6.12");
        for scheduler in SCHEDULERS.iter().filter(|s| everywhere || !s.by_daemon) {
            names.extend(
                per_scheduler
                    .iter()
                    .filter(|case| !scheduler.left_out.contains(&case.name))
                    .filter(|case| scheduler.by_daemon || !OF_DAEMONS.contains(&case.name))
                    .filter(|case| {
                        let slow = !self.full || self.is_large();
                        let counts = case.about.is_fault() || DAEMONS.contains(&case.name);
                        !slow || !scheduler.by_daemon || counts
                    })
                    .filter(|case| {
                        let first = scheduler.name == SCHEDULERS[0].name;
                        self.full || first || !ONCE.contains(&case.name)
                    })
                    .map(|case| format!("{}/{}", scheduler.name, case.name)),
            );
        }
        names
    }
}

/// Of a scheduler that decides in its daemon, what runs in the quick set and in large guests: in an emulated guest on a busy
/// host, or with as many CPUs to share it with, its daemon gets so little of the CPU that the others measure the host.
const DAEMONS: &[&str] = &["help", "refuses_bad_use", "loads", "ten_minutes"];

/// What all daemons have from the library that they are built on, or what another case looks at in each of them: in the
/// quick set, that one of them does it is enough.
const ONCE: &[&str] = &[
    // As `fair`.
    "stress_ng",
    "unloads_on_sigterm",
    "refuses_a_second",
    "metrics",
    "stats_are_private",
    "topology_file",
    // The kernel sees to it.
    "partial",
    "unloads_on_sigkill",
];

/// What needs a machine, a clock or a guest of its own; below it says why.
pub(super) const OWN_GUESTS: &[&str] = &[
    "policy",
    "policy_trade",
    "policy_daemon",
    "classes",
    "beside_batch",
    "stays_home",
    "beside_messages",
    "cgroup_shares",
    "cpuless_home",
    "woken_together",
    "pressure",
    "latency_first",
    "outside_load",
    "ten_minutes",
    "unknown_cpu",
    "odd",
    "observe_waste",
    "reload",
];
const EVERYTHING: Pick = Pick::AllBut(&[]);
/// The variants, `partial` and `topology_file` are each a load or two more of what is loaded all the time here, `page_cache` is about
/// the emulator, and while the kernel marks memory for `numa_balancing`, a daemon takes long to start there.
const NOT_QUICK: &[&str] = &[
    "partial",
    "variants",
    "topology_file",
    "page_cache",
    "numa_balancing",
    "cpu_kept",
];
const TWO_CPUS: Pick = Pick::Only(&["topology", "topo", "loads"]);
/// On two CPUs it is much as on eight.
const TWO_CPUS_NOT_QUICK: Pick = Pick::Only(&["unloads_on_sigkill", "fair", "stats"]);
const SEVERAL_CACHES: Pick = Pick::Only(&["topology", "topo", "no_idle_cpu"]);
/// In guests of its own: it changes cpusets and NUMA balancing while tasks run, and what is wrong afterwards is its own.
const POLICY: Pick = Pick::Only(&["policy"]);
/// In a guest of its own, as the cgroups are the same, and not in the quick set.
const POLICY_TRADE: Pick = Pick::Only(&["policy_trade"]);
const POLICY_DAEMON: Pick = Pick::Only(&["policy_daemon"]);
/// On a virtual clock: how soon is about the daemon, not about the host.
const CLASSES: Pick = Pick::Only(&["classes"]);
/// On a virtual clock, or it would measure the host.
const BESIDE_BATCH: Pick = Pick::Only(&["beside_batch"]);
/// The same, and with nodes near and far, which take tasks after different waits.
const SEVERAL_NODES: Pick = Pick::Only(&["beside_batch", "stays_home", "woken_together"]);
/// On a virtual clock, as they are about how soon and how much.
const SERVED: Pick = Pick::Only(&["pressure", "latency_first"]);
/// The same, with several caches.
const OUTSIDE_LOAD: Pick = Pick::Only(&["outside_load"]);
/// Each kernel once, and few CPUs and many.
const TEN_MINUTES: Pick = Pick::Only(&["ten_minutes"]);
/// Only where a node has several caches can a CPU's place be unknown. A restart in an emulated guest of 16 CPUs takes from
/// seconds to minutes, by the host's load.
const UNKNOWN_CPU: Pick = Pick::Only(&["unknown_cpu"]);
const MANY_CPUS: Pick = Pick::Only(&["topology", "topo", "loads", "no_idle_cpu"]);
/// What doesn't depend on the kernel, or is much like another case, is left out.
const SECOND_KERNEL: Pick = Pick::AllBut(&[
    "cpu_kept",
    "page_cache",
    "numa_balancing",
    "help",
    "refuses_bad_use",
    "refuses_a_second",
    "variants",
    "unloads_on_sigterm",
    "metrics",
    "stats_are_private",
    "topology_file",
    "stress_ng",
    "mixed",
    "fair",
    "pinned_shares",
    "node_shares",
    "light_among_heavy",
    "memory_home",
    "stopped_daemon",
]);
/// Of the faults, the one that has no bounds to keep, and takes long: another guest may run beside.
const RELOAD: Pick = Pick::Only(&["reload"]);
/// Machines as nobody builds them.
const ODD: Pick = Pick::Only(&["topology", "topo", "odd"]);
/// With a node of memory only.
const CPULESS: Pick = Pick::Only(&["topology", "topo", "cpuless_home", "odd"]);
/// On a virtual clock, as they are about figures.
const MEASURED: Pick = Pick::Only(&["observe_waste", "beside_messages", "cgroup_shares"]);

pub const GUESTS: &[Guest] = &[
    // The longest first, so that no lane is left with one at the end.
    Guest::new("6.12", "t8", Pick::AllBut(NOT_QUICK)),
    Guest::new("debian", "t8", SECOND_KERNEL),
    Guest::new("6.12", "t8", POLICY),
    Guest::new("6.12", "t2", TWO_CPUS),
    Guest::new("debian", "t2", TWO_CPUS),
    Guest::new("6.12", "t8", MEASURED).virtual_clock(),
    Guest::new("6.12", "t8", RELOAD).full(),
    Guest::new("debian", "t8", RELOAD).full(),
    Guest::new("debian", "t8", EVERYTHING).full(),
    Guest::new("6.12", "t16-smt", POLICY).full(),
    Guest::new("6.12", "t8", POLICY_TRADE).full(),
    Guest::new("debian", "t8", POLICY_TRADE).full(),
    Guest::new("6.12", "t8", Pick::Only(NOT_QUICK)).full(),
    Guest::new("6.12", "t2", TWO_CPUS_NOT_QUICK).full(),
    Guest::new("debian", "t2", TWO_CPUS_NOT_QUICK).full(),
    Guest::new("6.12", "t16-smt", POLICY_DAEMON).full(),
    Guest::new("6.12", "t8", TEN_MINUTES).full(),
    Guest::new("6.12", "t16-smt", UNKNOWN_CPU).full(),
    Guest::new("6.12", "t16-smt", SEVERAL_CACHES).full(),
    Guest::new("debian", "t16-smt", SEVERAL_CACHES).full(),
    Guest::new("6.12", "t1", ODD).full(),
    Guest::new("6.12", "t4-memory", CPULESS).full(),
    Guest::new("6.12", "t6-absent", ODD).full(),
    Guest::new("6.12", "t8-llcs", ODD).full(),
    Guest::new("6.12", "t12-unequal", ODD).full(),
    Guest::new("debian", "t12-unequal", ODD).full(),
    Guest::new("6.12", "t8", Pick::Faults).full(),
    Guest::new("debian", "t8", Pick::Faults).full(),
    // From here on, each is emulated by one thread, so that they run beside each other.
    Guest::new("6.12", "t32", Pick::Faults).full(),
    Guest::new("debian", "t32", Pick::Faults).full(),
    Guest::new("6.12", "t32", RELOAD).full(),
    Guest::new("debian", "t32", RELOAD).full(),
    Guest::new("debian", "t64", TEN_MINUTES).full(),
    Guest::new(
        "6.12-hz100",
        "t256",
        Pick::Only(&["topology", "topo", "loads"]),
    )
    .full(),
    Guest::new("6.12", "t128", MANY_CPUS).full(),
    Guest::new("debian", "t128", MANY_CPUS).full(),
    Guest::new("6.12", "t64", MANY_CPUS).full(),
    Guest::new("debian", "t64", MANY_CPUS).full(),
    Guest::new("6.12", "t32", MANY_CPUS).full(),
    Guest::new("debian", "t32", MANY_CPUS).full(),
    Guest::new("6.12", "t40-llc", ODD).full(),
    Guest::new("6.12", "t32", POLICY).full(),
    Guest::new("6.12", "t32", POLICY_DAEMON).full(),
    Guest::new("6.12", "t32", SEVERAL_NODES)
        .virtual_clock()
        .full(),
    Guest::new("6.12", "t16-smt", BESIDE_BATCH)
        .virtual_clock()
        .full(),
    Guest::new("6.12", "t16-smt", OUTSIDE_LOAD)
        .virtual_clock()
        .full(),
    Guest::new("6.12", "t8", SERVED).virtual_clock().full(),
    Guest::new("6.12", "t8", CLASSES).virtual_clock().full(),
    Guest::new("debian", "t8", MEASURED).virtual_clock().full(),
];
