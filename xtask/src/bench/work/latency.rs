//! A measuring command on a machine of which a given share is used: each of as many threads as there are CPUs computes
//! and sleeps by turns.

use super::spin::Spinner;
use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The share of all CPUs' time that the threads demand
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=99))]
    percent: u64,
    #[arg(long)]
    threads: usize,
    #[arg(long)]
    seed: u64,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Of one stretch of computing.
const BUSY_US: std::ops::Range<u64> = 500..3_000;
/// The load is steady when the command starts.
const LEAD: Duration = Duration::from_millis(20);

pub fn run(args: &Args) -> Result<()> {
    no_timer_slack()?;
    let spinner = Spinner::calibrated();
    let stop = AtomicBool::new(false);
    let mut rng = Rng::with_seed(args.seed);
    let status = std::thread::scope(|scope| {
        for _ in 0..args.threads {
            let mut rng = rng.fork();
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let busy = rng.u64(BUSY_US);
                    spinner.burn(Duration::from_micros(busy));
                    std::thread::sleep(Duration::from_micros(rest(busy, args.percent)));
                }
            });
        }
        std::thread::sleep(LEAD);
        let status = Command::new(&args.command[0])
            .args(&args.command[1..])
            .status();
        stop.store(true, Ordering::Relaxed);
        status
    })
    .with_context(|| format!("running {}", args.command[0]))?;
    ensure!(status.success(), "{} ended with {status}", args.command[0]);
    Ok(())
}

/// Has timers of this thread, of its later threads and of commands that it starts expire when they are due: by default
/// the kernel may be 50 us late for a thread of SCHED_OTHER, which is more than what is measured here.
pub fn no_timer_slack() -> Result<()> {
    // SAFETY: sets a number of this thread's.
    let result = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64) };
    ensure!(result == 0, "the timers' slack can't be set");
    Ok(())
}

/// How long to sleep after computing for that long, so that the share is as wanted.
fn rest(busy_us: u64, percent: u64) -> u64 {
    busy_us * (100 - percent) / percent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_met() {
        assert_eq!(rest(1000, 50), 1000);
        assert_eq!(rest(900, 90), 100);
        assert_eq!(rest(400, 40), 600);
    }
}
