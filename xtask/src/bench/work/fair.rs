//! Equal threads, several for each CPU, that never sleep: does each get the same, and how long must one wait?

use super::spin::{Gate, Spinner, cpu_time};
use anyhow::Result;
use fastrand::Rng;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    threads: usize,
    /// For how long they run, milliseconds
    #[arg(long)]
    ms: u64,
    #[arg(long)]
    seed: u64,
}

/// What one thread saw.
#[derive(Debug, Clone, Copy)]
struct Fate {
    cpu: Duration,
    longest_wait: Duration,
}

pub fn run(args: &Args) -> Result<()> {
    let spinner = Spinner::calibrated();
    let length = Duration::from_millis(args.ms);
    let mut rng = Rng::with_seed(args.seed);
    let gate = Gate::default();
    let fates = std::thread::scope(|scope| -> Result<Vec<Fate>> {
        let gate = &gate;
        let threads: Vec<_> = (0..args.threads)
            .map(|_| {
                // They must not all be in step.
                let lead = Duration::from_micros(rng.u64(0..2000));
                scope.spawn(move || {
                    gate.pass();
                    let end = Instant::now() + length;
                    spinner.burn(lead);
                    endure(spinner, end)
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
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))
            })
            .collect()
    })?;
    let shares: Vec<f64> = fates.iter().map(|fate| fate.cpu.as_secs_f64()).collect();
    let longest = fates.iter().map(|fate| fate.longest_wait).max();
    println!("jain {:.5}", jain(&shares));
    println!(
        "longest_wait_ms {:.3}",
        longest.unwrap_or_default().as_secs_f64() * 1000.0
    );
    Ok(())
}

/// Computes until that moment, and notices each time that it didn't run.
fn endure(spinner: Spinner, end: Instant) -> Fate {
    let (mut last, mut last_cpu) = (Instant::now(), cpu_time());
    let from = last_cpu;
    let mut longest_wait = Duration::ZERO;
    while last < end {
        spinner.compute(1);
        let (now, cpu) = (Instant::now(), cpu_time());
        longest_wait = longest_wait.max((now - last).saturating_sub(cpu - last_cpu));
        (last, last_cpu) = (now, cpu);
    }
    Fate {
        cpu: last_cpu - from,
        longest_wait,
    }
}

/// Jain's index: 1 if all got the same, 1/n if one got all.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    if squares > 0.0 {
        sum * sum / (shares.len() as f64 * squares)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_one_for_equals_and_one_nth_for_a_tyrant() {
        assert!((jain(&[2.0; 7]) - 1.0).abs() < 1e-12);
        assert!((jain(&[5.0, 0.0, 0.0, 0.0]) - 0.25).abs() < 1e-12);
        assert_eq!(jain(&[0.0, 0.0]), 0.0);
    }

    #[test]
    fn a_thread_that_always_runs_has_hardly_waited() {
        let fate = endure(
            Spinner::calibrated(),
            Instant::now() + Duration::from_millis(5),
        );
        assert!(fate.cpu > Duration::ZERO);
    }
}
