//! The options of scx_numa.

use clap::Parser;
use control_plane::CommonOpts;
use control_plane::fair::FairOpts;

/// NUMA-local scheduler: every task has a home node and runs there, unless waiting there costs
/// more than a move
///
/// It schedules all tasks from when it is started until it is ended (Ctrl-C, SIGTERM); then the
/// kernel's own scheduler takes over again. Needs root and Linux 6.12 or later with
/// CONFIG_SCHED_CLASS_EXT.
///
/// Examples:
///   scx_numa                                                until Ctrl-C
///   scx_numa --strict --stats 1
///   scx_numa --policy policy.toml --metrics 127.0.0.1:9464
///   scx_numa --monitor 1                                    figures of the one that runs
#[derive(Clone, Debug, Parser)]
#[command(verbatim_doc_comment, name = "scx_numa", disable_version_flag = true)]
pub(crate) struct Opts {
    #[command(flatten)]
    pub(crate) fair: FairOpts,

    /// How long a task must have waited at home before another node's idle CPU may take it, in microseconds for a node
    /// at the firmware's distance of 20, in proportion for others, 0 to 1000000
    #[arg(long, value_name = "US", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub(crate) remote_wait_us: u64,

    /// How long a task must have run on other nodes, more than at home, to get a new home there, in milliseconds, 1 to
    /// 100000
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) rehome_ms: u64,

    /// Never run a task outside of its home node, even if CPUs idle elsewhere
    #[arg(long)]
    pub(crate) strict: bool,

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
            ["--rehome-ms", "0"],
            ["--credit-us", "2000000"],
            ["--remote-wait-us", "1s"],
        ] {
            let error = Opts::try_parse_from([["scx_numa"].as_slice(), &wrong].concat());
            assert_eq!(error.unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }
}
