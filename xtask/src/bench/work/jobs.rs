//! A build: one job that all others wait for, then many of uneven length as processes of their own, a fixed number at
//! a time, then one that waits for all. A job is a fork of this process without an exec: under a virtual clock, reading
//! a program's file takes a time that depends on the host.

use super::spin::Spinner;
use anyhow::{Context, Result, bail};
use fastrand::Rng;
use rustix::process::{WaitOptions, wait};
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// In the middle part
    #[arg(long)]
    jobs: usize,
    /// Run at a time
    #[arg(long)]
    at_once: usize,
    #[arg(long)]
    seed: u64,
}

/// Of the first and of the last job.
const SERIAL_US: u64 = 3_000;
/// The shortest of the jobs in the middle.
const SHORTEST_US: u64 = 1_000;
/// The longest; short ones are more frequent, as in real builds.
const LONGEST_US: u64 = 20_000;

pub fn run(args: &Args) -> Result<()> {
    let spinner = Spinner::calibrated();
    let jobs = lengths(args.jobs, &mut Rng::with_seed(args.seed));
    let start = Instant::now();
    fork(spinner, SERIAL_US)?;
    reap()?;
    let mut running = 0;
    for us in jobs {
        if running == args.at_once {
            reap()?;
            running -= 1;
        }
        fork(spinner, us)?;
        running += 1;
    }
    for _ in 0..running {
        reap()?;
    }
    fork(spinner, SERIAL_US)?;
    reap()?;
    println!("makespan_ms {:.3}", start.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}

/// Starts a process that has that much CPU time and ends.
fn fork(spinner: Spinner, us: u64) -> Result<()> {
    // SAFETY: this process has one thread, so the child's copy of it is whole.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("starting a job"),
        0 => {
            spinner.burn(Duration::from_micros(us));
            // SAFETY: no preconditions; nothing of the parent's is flushed or run a second time.
            unsafe { libc::_exit(0) }
        }
        _ => Ok(()),
    }
}

/// Waits until a job is done.
fn reap() -> Result<()> {
    match wait(WaitOptions::empty()).context("waiting for a job")? {
        Some((_, status)) if status.exit_status() == Some(0) => Ok(()),
        other => bail!("a job ended with {other:?}"),
    }
}

/// Lengths whose logarithms are spread evenly, in random order. The lengths are the same for each seed, so that their
/// sum is; the order is what differs.
fn lengths(count: usize, rng: &mut Rng) -> Vec<u64> {
    let range = LONGEST_US as f64 / SHORTEST_US as f64;
    let mut all: Vec<_> = (0..count)
        .map(|i| {
            let share = (i as f64 + 0.5) / count as f64;
            (SHORTEST_US as f64 * range.powf(share)) as u64
        })
        .collect();
    rng.shuffle(&mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_change_the_order_only() {
        let mut one = lengths(40, &mut Rng::with_seed(1));
        let mut two = lengths(40, &mut Rng::with_seed(2));
        assert_ne!(one, two);
        one.sort_unstable();
        two.sort_unstable();
        assert_eq!(one, two);
        assert!(one[0] >= SHORTEST_US && one[39] <= LONGEST_US);
    }
}
