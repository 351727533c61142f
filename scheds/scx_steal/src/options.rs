//! The options of scx_steal.

use clap::Parser;
use control_plane::CommonOpts;
use control_plane::fair::FairOpts;

/// Work-stealing scheduler: a queue for each CPU, and CPUs that run dry steal from the nearest
///
/// It schedules all tasks from when it is started until it is ended (Ctrl-C, SIGTERM); then the
/// kernel's own scheduler takes over again. Needs root and Linux 6.12 or later with
/// CONFIG_SCHED_CLASS_EXT.
///
/// Examples:
///   scx_steal                                                until Ctrl-C
///   scx_steal --slice-us 1000 --stats 1                      shorter turns, and figures every second
///   scx_steal --policy policy.toml --metrics 127.0.0.1:9464
///   scx_steal --monitor 1                                    figures of the one that runs
#[derive(Clone, Debug, Parser)]
#[command(verbatim_doc_comment, name = "scx_steal", disable_version_flag = true)]
pub(crate) struct Opts {
    #[command(flatten)]
    pub(crate) fair: FairOpts,

    /// How long a task must have waited before a CPU that runs dry on another node may take it, in microseconds for
    /// each 10 of the firmware's distance beyond the local one, 0 to 100000
    #[arg(long, value_name = "US", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub(crate) remote_wait_us: u64,

    #[command(flatten)]
    pub(crate) common: CommonOpts,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn options_are_consistent() {
        Opts::command().debug_assert();
    }

    #[test]
    fn values_out_of_range_are_wrong_use() {
        for wrong in [
            ["-s", "0"],
            ["-s", "3600000000"],
            ["--preempt-us", "-1"],
            ["--credit-us", "2000000"],
            ["--remote-wait-us", "1s"],
        ] {
            let error = Opts::try_parse_from([["scx_steal"].as_slice(), &wrong].concat());
            assert_eq!(error.unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }
}
