//! A service beside batch work: requests arrive at random times, whether or not the ones before are done, and each needs
//! a fixed CPU time, while a thread for each CPU computes without end.

use super::latency::no_timer_slack;
use super::spin::{Gate, Spinner, cpu_time};
use anyhow::{Context, Result};
use fastrand::Rng;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Threads that serve, each its own requests
    #[arg(long)]
    servers: usize,
    /// Threads that compute
    #[arg(long)]
    batch: usize,
    /// Of each server
    #[arg(long)]
    requests: usize,
    #[arg(long)]
    seed: u64,
}

/// CPU time that a request needs.
const DEMAND: Duration = Duration::from_micros(200);
/// Mean time between two requests of one server.
const GAP_US: f64 = 1_000.0;

pub fn run(args: &Args) -> Result<()> {
    no_timer_slack()?;
    let spinner = Spinner::calibrated();
    let stop = AtomicBool::new(false);
    let gate = Gate::default();
    let mut rng = Rng::with_seed(args.seed);
    let (mut delays, batch, wall) = std::thread::scope(|scope| -> Result<_> {
        let (gate, stop) = (&gate, &stop);
        let servers: Vec<_> = (0..args.servers)
            .map(|_| {
                let gaps: Vec<Duration> = (0..args.requests).map(|_| gap(&mut rng)).collect();
                scope.spawn(move || {
                    gate.pass();
                    serve(spinner, &gaps)
                })
            })
            .collect();
        let batch: Vec<_> = (0..args.batch)
            .map(|_| {
                scope.spawn(move || {
                    gate.pass();
                    let from = cpu_time();
                    while !stop.load(Ordering::Relaxed) {
                        spinner.compute(1);
                    }
                    cpu_time() - from
                })
            })
            .collect();
        gate.gather(args.servers + args.batch);
        let from = Instant::now();
        gate.release()?;
        let mut delays = Vec::new();
        for server in servers {
            delays.extend(
                server
                    .join()
                    .map_err(|_| anyhow::anyhow!("a server panicked"))?,
            );
        }
        let wall = from.elapsed();
        stop.store(true, Ordering::Relaxed);
        let mut total = Duration::ZERO;
        for thread in batch {
            total += thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        }
        Ok((delays, total, wall))
    })?;
    delays.sort_unstable();
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        let rank = ((share * delays.len() as f64).ceil() as usize).max(1);
        let delay = delays.get(rank - 1).context("no request was served")?;
        println!("delay_{name}_us {:.1}", delay.as_secs_f64() * 1e6);
    }
    let capacity = wall.as_secs_f64() * args.batch as f64;
    println!(
        "batch_percent {:.2}",
        batch.as_secs_f64() / capacity * 100.0
    );
    Ok(())
}

/// An exponential distribution's, which is that of arrivals that know nothing of each other.
fn gap(rng: &mut Rng) -> Duration {
    Duration::from_nanos((-(1.0 - rng.f64()).ln() * GAP_US * 1000.0) as u64)
}

/// By how much later than on a machine of its own each request was done.
fn serve(spinner: Spinner, gaps: &[Duration]) -> Vec<Duration> {
    let mut due = Instant::now();
    // What a machine of its own would be at.
    let mut free = due;
    gaps.iter()
        .map(|gap| {
            due += *gap;
            let now = Instant::now();
            if due > now {
                std::thread::sleep(due - now);
            }
            spinner.burn(DEMAND);
            free = free.max(due) + DEMAND;
            Instant::now().saturating_duration_since(free)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_the_mean_that_is_wanted() {
        let mut rng = Rng::with_seed(1);
        let sum: Duration = (0..20_000).map(|_| gap(&mut rng)).sum();
        let mean = sum.as_secs_f64() * 1e6 / 20_000.0;
        assert!((mean / GAP_US - 1.0).abs() < 0.03, "{mean}");
    }
}
