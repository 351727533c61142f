//! `manycore observe`: one meter for any scheduler.
//!
//! The BPF side (`bpf/observe.bpf.c`) keeps counters and histograms per CPU and sends spans of idle and waiting time;
//! [`waste`] computes wasted CPU time from them. [`session`] ties them together, [`report`] makes the figures.

mod fairness;
mod hist;
mod host;
mod locks;
mod meter;
mod report;
mod run;
mod session;
mod table;
mod topology;
mod waste;
mod wire;

use std::path::PathBuf;

use clap::Args;

pub(crate) use run::run;

/// Measure what the scheduler in force does: latencies, wasted CPU time, migrations, fairness.
///
/// Works the same for EEVDF, CFS and every sched_ext scheduler, so its figures can be compared. Without COMMAND and
/// --duration it shows the last interval again and again until Ctrl-C.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(crate) struct ObserveArgs {
    /// Stop after this many seconds and print one report
    #[arg(short, long, value_name = "SECONDS", value_parser = positive, conflicts_with = "command")]
    duration: Option<f64>,

    /// Seconds between two views, where neither --duration nor COMMAND is given
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = positive)]
    interval: f64,

    /// Tell latencies apart by cgroup or by command name as well
    #[arg(long, value_enum)]
    by: Option<meter::By>,

    /// Also watch contended kernel locks, by call site (walks the stack at each contention)
    #[arg(long)]
    locks: bool,

    /// Also measure what the meter itself costs (has the kernel time each BPF program, which costs too)
    #[arg(long)]
    cost: bool,

    /// Print JSON; one line for each interval in a live view
    #[arg(long)]
    json: bool,

    /// Write the report to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// A wait or idle time counts for violations only from this many microseconds after its begin
    #[arg(long, value_name = "US", default_value_t = 100)]
    transient_us: u64,

    /// Don't record waits and idle times shorter than this many microseconds: cheaper, but waste is then a lower bound
    #[arg(long, value_name = "US", default_value_t = 0)]
    min_span_us: u64,

    /// Memory for records that wait to be read, for all CPUs together, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=65536))]
    ring_mib: u64,

    /// Measure while this command runs, and exit with its exit code
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

const HELP: &str = "\
What the figures mean (docs/observe.md has the definitions and their limits):
  wakeup to run     from the waker's call until the task runs
  runqueue wait     each time on a queue, after a wakeup or a preemption, until the task runs
  wasted CPU time   CPUs were idle while tasks waited that may run there: the integral of
                    min(idle CPUs, such tasks). A good scheduler wastes little more than the
                    microseconds in which a woken CPU comes to life
  longest violation the longest time in which, without a break, some CPU time was wasted
  migrations        a task ran on another CPU than before, by how far that is
  time at home node share of user threads' time on the node where they were first seen to run
  Jain              1: equal always-runnable threads got equal CPU time; 1/n: one of n got it all

Examples:
  sudo manycore observe                              look at the machine, once a second
  sudo manycore observe -d 10 --by cgroup            which service waits?
  sudo manycore observe --json -o eevdf.json -- hackbench -g 4
  sudo manycore observe --cost --locks -- make -j64  and what does the meter cost?

Exit codes: 0 done, 1 failed, 2 wrong use; with COMMAND, its own (128 + n if signal n ended it).";

/// A number of seconds that is above 0.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n > 0.0 && n <= 1e6 => Ok(n),
        _ => Err("give a number of seconds above 0".to_owned()),
    }
}
