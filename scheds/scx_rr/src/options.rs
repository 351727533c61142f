//! The options of scx_rr.

use clap::Parser;
use control_plane::CommonOpts;
use control_plane::domains::Level;

/// Shorter ones cost more in switches than they give; the tick ends slices, so few kernels can tell them apart.
const MIN_SLICE_US: u64 = 100;
/// The kernel throws a scheduler out when a task has waited for 30 s: with this, 300 tasks a CPU may wait.
const MAX_SLICE_US: u64 = 100_000;

/// Round-robin scheduler: first in, first out, and the same slice for everybody
///
/// It schedules all tasks from when it is started until it is ended (Ctrl-C, SIGTERM); then the
/// kernel's own scheduler takes over again. Needs root and Linux 6.12 or later with
/// CONFIG_SCHED_CLASS_EXT.
///
/// Examples:
///   scx_rr                                                until Ctrl-C
///   scx_rr --queues node --slice-us 2000 --stats 1
///   scx_rr --policy policy.toml --metrics 127.0.0.1:9464
///   scx_rr --monitor 1                                    figures of the one that runs
#[derive(Clone, Debug, Parser)]
#[command(verbatim_doc_comment, name = "scx_rr", disable_version_flag = true)]
pub(crate) struct Opts {
    /// How long a task may run before it goes to the end of its queue, in microseconds, 100 to 100000: less is spent
    /// on switching, and with more the last in a long queue could wait for the 30 s after which the kernel gives up on
    /// a scheduler. Slices end on the timer tick, so the kernel rounds up to that
    #[arg(short, long, value_name = "US", default_value_t = 4000, value_parser = slice)]
    pub(crate) slice_us: u64,

    /// Which CPUs share a queue
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t)]
    pub(crate) queues: Level,

    #[command(flatten)]
    pub(crate) common: CommonOpts,
}

fn slice(word: &str) -> Result<u64, String> {
    let us: u64 = word
        .parse()
        .map_err(|_| "not a whole number of microseconds".to_string())?;
    if us < MIN_SLICE_US {
        Err(format!(
            "the least is {MIN_SLICE_US} us: less would be spent on switching between tasks"
        ))
    } else if us > MAX_SLICE_US {
        Err(format!(
            "the most is {MAX_SLICE_US} us: with more, the last in a long queue could wait for the 30 s after which the \
             kernel throws a scheduler out"
        ))
    } else {
        Ok(us)
    }
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
    fn slices_out_of_range_are_refused_with_the_reason() {
        assert_eq!(slice("100"), Ok(100));
        assert_eq!(slice("100000"), Ok(100_000));
        assert!(slice("0").unwrap_err().contains("100 us"));
        assert!(slice("3600000000").unwrap_err().contains("30 s"));
        assert!(slice("-1").is_err() && slice("4ms").is_err());
        let wrong = Opts::try_parse_from(["scx_rr", "-s", "0"]).unwrap_err();
        assert_eq!(wrong.exit_code(), 2);
    }
}
