//! The options of scx_pilot.

use std::path::PathBuf;

use clap::Parser;
use control_plane::CommonOpts;
use scx_pilot::inputs::services::{self, Service};
use scx_pilot::policy::Kind;

/// Shorter ones cost more in switches than they give.
const MIN_SLICE_US: u64 = 100;
/// The BPF side gives the kernel 5 s until it throws the scheduler out: with this, 250 tasks a CPU may wait.
const MAX_SLICE_US: u64 = 20_000;

/// Scheduler whose policy is plain Rust in userspace
///
/// It schedules all tasks from when it is started until it is ended (Ctrl-C, SIGTERM); then the
/// kernel's own scheduler takes over again. If it stalls, the kernel takes the machine back
/// within 5 s. Needs root and Linux 6.12 or later with CONFIG_SCHED_CLASS_EXT.
///
/// Examples:
///   scx_pilot                                     until Ctrl-C
///   scx_pilot --policy-kind deadline --service web=/system.slice/web.service:latency
///   scx_pilot --stats 1 --metrics 127.0.0.1:9464  figures every second, and for Prometheus
///   scx_pilot --monitor 1                         figures of the one that runs
#[derive(Clone, Debug, Parser)]
#[command(verbatim_doc_comment, name = "scx_pilot", disable_version_flag = true)]
pub(crate) struct Opts {
    /// Who runs next
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub(crate) policy_kind: Kind,

    /// How long a task may run before others get their turn, in microseconds, 100 to 20000. Slices end on the timer
    /// tick, so the kernel rounds up to that
    #[arg(short, long, value_name = "US", default_value_t = 4000, value_parser = slice)]
    pub(crate) slice_us: u64,

    /// A service: the tasks in and below a cgroup, their class (latency, normal or batch) and by what their weights are
    /// multiplied, in percent. Under CPU pressure it is given up to four times that. May be repeated; the services of
    /// a policy file (--policy) are treated alike
    #[arg(long, value_name = "NAME=/CGROUP:CLASS[:WEIGHT]", value_parser = services::parse)]
    pub(crate) service: Vec<Service>,

    /// Follow a stream of lines such as {"service":"web","load":0.4} from a file or UNIX socket: which part of the
    /// machine a service needs, and so how far it is spread. Implies --every-wakeup
    #[arg(long, value_name = "FILE|SOCKET")]
    pub(crate) load: Option<PathBuf>,

    /// Pack work into fewer caches while all packages together take more than this many watts, 1 to 100000. Implies
    /// --every-wakeup
    #[arg(long, value_name = "WATTS", value_parser = watts)]
    pub(crate) power_budget: Option<f64>,

    /// Let the policy place every task that wakes up, also where the kernel finds an idle CPU by itself, which is faster
    #[arg(long)]
    pub(crate) every_wakeup: bool,

    /// Where cgroup v2 is mounted
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/sys/fs/cgroup",
        hide = true
    )]
    pub(crate) cgroup_root: PathBuf,

    /// Where to find the packages' energy counters
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/sys/class/powercap",
        hide = true
    )]
    pub(crate) powercap_root: PathBuf,

    #[command(flatten)]
    pub(crate) common: CommonOpts,
}

impl Opts {
    /// Whether the kernel may place tasks on idle CPUs by itself.
    pub(crate) fn kernel_places_idle(&self) -> bool {
        !self.every_wakeup && self.load.is_none() && self.power_budget.is_none()
    }
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
            "the most is {MAX_SLICE_US} us: with more, the last in a long queue could wait for the 5 s after which the \
             kernel throws this scheduler out"
        ))
    } else {
        Ok(us)
    }
}

fn watts(word: &str) -> Result<f64, String> {
    let watts: f64 = word.parse().map_err(|_| "not a number".to_string())?;
    if (1.0..=100_000.0).contains(&watts) {
        Ok(watts)
    } else {
        Err("must be between 1 and 100000 watts".to_string())
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
    fn what_is_out_of_range_is_refused_with_the_reason() {
        assert_eq!((slice("100"), slice("20000")), (Ok(100), Ok(20_000)));
        assert!(slice("0").unwrap_err().contains("100 us"));
        assert!(slice("20001").unwrap_err().contains("5 s"));
        assert!(slice("-1").is_err() && slice("4ms").is_err());
        assert_eq!(watts("95.5"), Ok(95.5));
        for wrong in ["0", "-1", "NaN", "inf", "x"] {
            assert!(watts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn inputs_that_place_tasks_see_every_wakeup() {
        let parse =
            |args: &[&str]| Opts::parse_from([&["scx_pilot"], args].concat()).kernel_places_idle();
        assert!(parse(&[]));
        assert!(!parse(&["--every-wakeup"]));
        assert!(!parse(&["--load", "x"]));
        assert!(!parse(&["--power-budget", "50"]));
    }
}
