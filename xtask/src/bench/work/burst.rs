//! More tasks than CPUs, each with the same demand, released at once. A scheduler that keeps all CPUs busy needs the
//! sum of the demands divided by the CPUs; one that leaves work on one side of the machine needs longer.

use super::spin::{Gate, Spinner, demands};
use anyhow::Result;
use fastrand::Rng;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    tasks: usize,
    /// The mean CPU time of each, milliseconds
    #[arg(long)]
    cpu_ms: u64,
    /// Bursts, of which the mean is told: who happens to be where when one starts matters a lot
    #[arg(long)]
    bursts: u32,
    #[arg(long)]
    seed: u64,
}

/// Between two bursts: the machine is idle again.
const PAUSE: Duration = Duration::from_millis(50);

pub fn run(args: &Args) -> Result<()> {
    let spinner = Spinner::calibrated();
    let mut rng = Rng::with_seed(args.seed);
    let mut sum = Duration::ZERO;
    for _ in 0..args.bursts {
        let mean = Duration::from_millis(args.cpu_ms);
        sum += burst(spinner, demands(args.tasks, mean, &mut rng))?;
        std::thread::sleep(PAUSE + Duration::from_micros(rng.u64(0..5_000)));
    }
    let mean = sum / args.bursts.max(1);
    println!("makespan_ms {:.3}", mean.as_secs_f64() * 1000.0);
    Ok(())
}

/// From the release of tasks with these demands to the end of the last.
fn burst(spinner: Spinner, demands: Vec<Duration>) -> Result<Duration> {
    let gate = Gate::default();
    std::thread::scope(|scope| {
        let gate = &gate;
        let tasks: Vec<_> = demands
            .into_iter()
            .map(|demand| {
                scope.spawn(move || {
                    gate.pass();
                    spinner.burn(demand);
                    Instant::now()
                })
            })
            .collect();
        gate.gather(tasks.len());
        let start = Instant::now();
        gate.release()?;
        Ok(last_end(tasks)?.saturating_duration_since(start))
    })
}

/// When the last of the tasks was done.
pub fn last_end(tasks: Vec<std::thread::ScopedJoinHandle<'_, Instant>>) -> Result<Instant> {
    let mut last = Instant::now();
    for (i, task) in tasks.into_iter().enumerate() {
        let end = task
            .join()
            .map_err(|_| anyhow::anyhow!("a task of the workload panicked"))?;
        if i == 0 || end > last {
            last = end;
        }
    }
    Ok(last)
}
