//! All tasks start on the CPUs of one node, and after a few milliseconds may run anywhere: how soon does the rest of
//! the machine take its share?

use super::burst::last_end;
use super::spin::{Gate, Spinner, demands, parse_cpulist};
use anyhow::{Context, Result};
use fastrand::Rng;
use rustix::thread::{CpuSet, Pid, gettid, sched_setaffinity};
use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    tasks: usize,
    /// The mean CPU time of each, milliseconds
    #[arg(long)]
    cpu_ms: u64,
    /// How long they are confined after their start, milliseconds
    #[arg(long)]
    confined_ms: u64,
    #[arg(long)]
    seed: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let all = online()?;
    let few = first_node(&all)?;
    let spinner = Spinner::calibrated();
    let mean = Duration::from_millis(args.cpu_ms);
    let demands = demands(args.tasks, mean, &mut Rng::with_seed(args.seed));
    let gate = Gate::default();
    let ids = Mutex::new(Vec::new());
    let makespan = std::thread::scope(|scope| -> Result<Duration> {
        let (gate, ids, few) = (&gate, &ids, set(&few));
        let tasks: Vec<_> = demands
            .into_iter()
            .map(|demand| {
                scope.spawn(move || {
                    // A failure shows in the count below: the gate would not fill.
                    if sched_setaffinity(None, &few).is_ok()
                        && let Ok(mut ids) = ids.lock()
                    {
                        ids.push(gettid());
                    }
                    gate.pass();
                    spinner.burn(demand);
                    Instant::now()
                })
            })
            .collect();
        gate.gather(tasks.len());
        let ids: Vec<Pid> = ids.lock().map(|ids| ids.clone()).unwrap_or_default();
        anyhow::ensure!(ids.len() == tasks.len(), "not all tasks could be confined");
        let start = Instant::now();
        gate.release()?;
        std::thread::sleep(Duration::from_millis(args.confined_ms));
        let everywhere = set(&all);
        for id in ids {
            // One that is done already needs it no more.
            let _ = sched_setaffinity(Some(id), &everywhere);
        }
        Ok(last_end(tasks)?.saturating_duration_since(start))
    })?;
    println!("makespan_ms {:.3}", makespan.as_secs_f64() * 1000.0);
    Ok(())
}

fn set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    set
}

fn online() -> Result<Vec<usize>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").context("reading the CPUs")?;
    parse_cpulist(&text)
}

/// The CPUs of the first node; on a machine with one node, half of all.
fn first_node(all: &[usize]) -> Result<Vec<usize>> {
    let text = fs::read_to_string("/sys/devices/system/node/node0/cpulist").unwrap_or_default();
    let node = parse_cpulist(&text)?;
    Ok(if node.is_empty() || node.len() == all.len() {
        all[..all.len().div_ceil(2)].to_vec()
    } else {
        node
    })
}
