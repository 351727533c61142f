//! The options that all daemons share, with the meaning that they have in upstream's schedulers.

use std::path::PathBuf;
use std::time::Duration;

use libbpf_rs::libbpf_sys::bpf_object_open_opts;
use scx_utils::compat;
use scx_utils::libbpf_clap_opts::LibbpfOpts;

use crate::policy::PolicyOpts;
use crate::stats::Address;

/// The default of `--exit-dump-len`. The kernel's own, 32 KiB, cuts the dump of a big machine short.
const EXIT_DUMP_LEN: u32 = 256 * 1024;
/// The kernel allocates the dump in one piece.
const MAX_EXIT_DUMP_LEN: i64 = 64 * 1024 * 1024;

/// Options common to all daemons; flatten it into the daemon's own.
#[derive(clap::Args, Clone, Debug)]
pub struct CommonOpts {
    /// Schedule only tasks of the SCHED_EXT policy, and leave all others to the kernel
    #[arg(short, long)]
    pub partial: bool,

    /// Print statistics to stdout every SECS seconds while scheduling
    #[arg(long, value_name = "SECS", value_parser = interval)]
    pub stats: Option<Duration>,

    /// Load nothing; print the statistics of the running scheduler every SECS seconds
    #[arg(long, value_name = "SECS", value_parser = interval,
          conflicts_with_all = ["stats", "policy"])]
    pub monitor: Option<Duration>,

    /// Describe all statistics and exit
    #[arg(long)]
    pub help_stats: bool,

    /// Print statistics as JSON, one object a line; with --help-stats, their description
    #[arg(long)]
    pub json: bool,

    /// Serve statistics as OpenMetrics here: an address and port (127.0.0.1:9464) or the path of a socket
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<Address>,

    /// Allow an address that other machines can reach in --metrics; anybody who can may read the statistics
    #[arg(long, requires = "metrics")]
    pub metrics_any: bool,

    /// Take caches and nodes from this file instead of the kernel, as `manycore topo --probe` writes one
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,

    #[command(flatten)]
    pub policy: PolicyOpts,

    /// Size of the kernel's debug dump after an error, in bytes; 0: the kernel's default, 32 KiB
    #[arg(long, value_name = "BYTES", default_value_t = EXIT_DUMP_LEN,
          value_parser = clap::value_parser!(u32).range(0..=MAX_EXIT_DUMP_LEN))]
    pub exit_dump_len: u32,

    /// Log more; twice: everything, also what it took the kernel's verifier to admit each BPF program
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Print the version and exit
    #[arg(short = 'V', long)]
    pub version: bool,

    #[command(flatten, next_help_heading = "Libbpf options")]
    pub libbpf: LibbpfOpts,
}

/// A combination of options that makes no sense: exit code 2, as for any wrong use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(String);

/// The verifier's log level for its statistics alone, in the kernel's include/linux/bpf_verifier.h.
const BPF_LOG_STATS: u32 = 4;

impl CommonOpts {
    /// Whether there is something to print, and nothing else to do.
    pub fn only_prints(&self) -> bool {
        self.version || self.help_stats
    }

    /// How libbpf is to open a scheduler's object; None: as ever.
    pub fn open_opts(&self) -> Option<bpf_object_open_opts> {
        let given = self.libbpf.clone().into_bpf_open_opts();
        if self.verbose < 2 {
            return given;
        }
        let mut opts = given.unwrap_or(bpf_object_open_opts {
            sz: size_of::<bpf_object_open_opts>() as u64,
            ..Default::default()
        });
        opts.kernel_log_level = BPF_LOG_STATS;
        Some(opts)
    }

    /// What every scheduler here tells sched_ext of itself; a flag that the running kernel doesn't know is 0.
    ///
    /// Queued wakeups (Linux 6.15): a task that was sent to an idle CPU is enqueued by that CPU, and the waker need not
    /// take the lock of its run queue. `select_cpu` is left out now and then; `enqueue` has to do without.
    pub fn ops_flags(&self) -> u64 {
        let flags = *compat::SCX_OPS_ENQ_EXITING
            | *compat::SCX_OPS_ENQ_MIGRATION_DISABLED
            | *compat::SCX_OPS_ALLOW_QUEUED_WAKEUP;
        if self.partial {
            flags | *compat::SCX_OPS_SWITCH_PARTIAL
        } else {
            flags
        }
    }

    /// Checks what clap can't.
    pub(crate) fn check(&self) -> Result<(), Misuse> {
        match &self.metrics {
            Some(address) if !address.is_local() && !self.metrics_any => Err(Misuse(format!(
                "--metrics {address}: other machines can reach this address; \
                 take 127.0.0.1 or the path of a socket, or add --metrics-any"
            ))),
            _ => Ok(()),
        }
    }
}

/// Parses an interval in seconds, 0.1 to 86400.
fn interval(word: &str) -> Result<Duration, String> {
    let secs: f64 = word
        .parse()
        .map_err(|_| "not a number of seconds".to_string())?;
    if (0.1..=86400.0).contains(&secs) {
        Ok(Duration::from_secs_f64(secs))
    } else {
        Err("must be between 0.1 and 86400 seconds".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Opts {
        #[command(flatten)]
        common: CommonOpts,
    }

    #[test]
    fn metrics_are_local_unless_told() {
        let check = |args: &[&str]| {
            let args = [&["x"], args].concat();
            <Opts as clap::Parser>::try_parse_from(args).map(|opts| opts.common.check().is_ok())
        };
        assert!(check(&["--metrics", "127.0.0.1:9464"]).unwrap());
        assert!(!check(&["--metrics", "0.0.0.0:9464"]).unwrap());
        assert!(check(&["--metrics", "0.0.0.0:9464", "--metrics-any"]).unwrap());
        assert!(check(&["--metrics-any"]).is_err() && check(&["--metrics", "x"]).is_err());
    }

    #[test]
    fn intervals() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("1"), Ok(Duration::from_secs(1)));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", "x", ""] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
