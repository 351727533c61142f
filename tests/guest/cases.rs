//! The cases, by what they are about. Each returns what it measured, or an error that says what is wrong.

mod balancing;
mod cgroup_shares;
mod checker;
mod coming_and_going;
mod daemons;
mod faults;
mod homes;
mod latency;
mod machine;
mod messages;
mod metrics;
mod observe;
mod odd;
mod policy;
mod policy_daemon;
mod services;
mod serving;
pub(crate) mod stats;
mod stuck;
mod topo;
mod use_and_misuse;
mod verified;

use crate::Setting;
use anyhow::Result;

pub(crate) type Function = fn(&Setting) -> Result<String>;

/// The function of a case of `manycore_tests::plan::CASES`.
pub(crate) fn function(name: &str) -> Option<Function> {
    let function: Function = match name {
        "topology" => machine::topology,
        "programs" => machine::programs,
        "page_cache" => machine::page_cache,
        "observe_waste" => observe::waste,
        "stuck" => stuck::stuck,
        "unwoken" => stuck::unwoken,
        "cpu_kept" => stuck::cpu_kept,
        "topo" => topo::topo,
        "probe" => topo::probe,
        "policy" => policy::policy,
        "policy_trade" => policy::policy_trade,
        "policy_daemon" => policy_daemon::policy_daemon,
        "classes" => policy_daemon::classes,
        "help" => use_and_misuse::help,
        "refuses_bad_use" => use_and_misuse::refuses_bad_use,
        "refuses_a_second" => use_and_misuse::refuses_a_second,
        "variants" => use_and_misuse::variants,
        "partial" => use_and_misuse::partial,
        "loads" => coming_and_going::loads,
        "verified" => verified::verified,
        "unloads_on_sigterm" => coming_and_going::unloads_on_sigterm,
        "unloads_on_sigkill" => coming_and_going::unloads_on_sigkill,
        "stopped_daemon" => coming_and_going::stopped_daemon,
        "hotplug" => coming_and_going::hotplug,
        "unknown_cpu" => coming_and_going::unknown_cpu,
        "fair" => serving::fair,
        "woken_together" => serving::woken_together,
        "node_shares" => serving::node_shares,
        "pinned_shares" => serving::pinned_shares,
        "light_among_heavy" => serving::light_among_heavy,
        "stress_ng" => serving::stress_ng,
        "mixed" => serving::mixed,
        "no_idle_cpu" => serving::no_idle_cpu,
        "cpuless_home" => homes::cpuless_home,
        "memory_home" => homes::memory_home,
        "stays_home" => homes::stays_home,
        "affinity" => serving::affinity,
        "beside_messages" => messages::beside_messages,
        "cgroup_shares" => cgroup_shares::cgroup_shares,
        "stats" => stats::stats,
        "numa_balancing" => balancing::numa_balancing,
        "metrics" => metrics::metrics,
        "stats_are_private" => metrics::stats_are_private,
        "topology_file" => topo::topology_file,
        "beside_batch" => latency::beside_batch,
        "latency_first" => latency::latency_first,
        "pressure" => services::pressure,
        "outside_load" => services::outside_load,
        "ten_minutes" => services::ten_minutes,
        "odd" => odd::odd,
        "check_wait" => checker::wait,
        "check_idle" => checker::idle,
        "check_lost" => checker::lost,
        "check_mask" => checker::mask,
        "fault_watchdog" => checker::watchdog,
        "fault_hotplug" => faults::hotplug,
        "fault_one_cpu" => faults::one_cpu,
        "fault_cpuset" => faults::cpuset,
        "fault_cgroups" => faults::cgroups,
        "fault_affinity" => faults::affinity,
        "fault_forks" => faults::forks,
        "fault_threads" => faults::threads,
        "fault_exec" => faults::exec,
        "fault_rt" => faults::rt,
        "fault_memory" => faults::memory,
        "fault_stop" => daemons::stop,
        "fault_oom" => daemons::oom,
        "fault_sysrq" => daemons::sysrq,
        "reload" => daemons::reload,
        "faults" => faults::several,
        _ => return None,
    };
    Some(function)
}

#[cfg(test)]
mod tests {
    use super::*;
    use manycore_tests::plan::CASES;

    #[test]
    fn every_planned_case_has_a_function() {
        for case in CASES {
            assert!(function(case.name).is_some(), "{}", case.name);
        }
    }
}
