//! The clock's own test: a thread that is alone on its CPU must be as fast beside as many others as there are CPUs as
//! it is without them. It isn't where the guest's CPUs share fewer of the host's, and then no figure means anything.

use super::spin::{Gate, Spinner};
use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    cpus: usize,
}

/// Of the thread that is alone.
const TOLERANCE: f64 = 0.02;
/// How long one computes.
const STRETCH: Duration = Duration::from_millis(10);
/// A daemon may get in the way of one try.
const TRIES: usize = 3;

pub fn run(args: &Args) -> Result<()> {
    let chunks = u32::try_from(STRETCH.as_micros() / 50)?;
    let spinner = Spinner::calibrated();
    let alone = best(chunks, spinner, &[0])?[0];
    let cpus: Vec<_> = (0..args.cpus).collect();
    let together = best(chunks, spinner, &cpus)?;
    let slowest = together.iter().copied().fold(f64::INFINITY, f64::min);
    let fastest = together.iter().copied().fold(0.0, f64::max);
    println!("speed_alone {:.4}", 1.0);
    println!("speed_slowest {:.4}", slowest / alone);
    println!("speed_fastest {:.4}", fastest / alone);
    for speed in [slowest, fastest] {
        ensure!(
            (speed / alone - 1.0).abs() <= TOLERANCE,
            "one of {} pinned threads runs at {:.3} of the speed of one alone",
            args.cpus,
            speed / alone
        );
    }
    Ok(())
}

/// The best speed of each of the CPUs, chunks a second.
fn best(chunks: u32, spinner: Spinner, cpus: &[usize]) -> Result<Vec<f64>> {
    let mut best = vec![0.0_f64; cpus.len()];
    for _ in 0..TRIES {
        for (best, now) in best.iter_mut().zip(once(chunks, spinner, cpus)?) {
            *best = best.max(now);
        }
    }
    Ok(best)
}

fn once(chunks: u32, spinner: Spinner, cpus: &[usize]) -> Result<Vec<f64>> {
    let gate = Gate::default();
    std::thread::scope(|scope| {
        let gate = &gate;
        let threads: Vec<_> = cpus
            .iter()
            .map(|cpu| {
                scope.spawn(move || -> Result<f64> {
                    let mut set = CpuSet::new();
                    set.set(*cpu);
                    let pinned = sched_setaffinity(None, &set);
                    gate.pass();
                    pinned.with_context(|| format!("going to CPU {cpu}"))?;
                    let start = Instant::now();
                    spinner.compute(chunks);
                    Ok(f64::from(chunks) / start.elapsed().as_secs_f64())
                })
            })
            .collect();
        gate.gather(threads.len());
        gate.release()?;
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))?
            })
            .collect()
    })
}
