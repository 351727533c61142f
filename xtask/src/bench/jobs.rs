//! Guests, several at a time.

use super::kept::Kept;
use super::plan::Plan;
use super::results::Guest;
use super::session::{Display, conduct};
use super::trust;
use crate::cache::Cache;
use crate::vm::run::Spec;
use anyhow::Result;
use indicatif::MultiProgress;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A guest to boot and what it is to do.
#[derive(Debug)]
pub struct Job {
    pub spec: Spec,
    pub plan: Plan,
    /// Where its record is kept until all are done.
    pub kept: Option<Kept>,
}

/// Runs all of them, that many at the same time, and returns them in order. The first error counts; what runs already is
/// let run to its end.
pub fn run(cache: &Cache, jobs: &[Job], at_once: usize) -> Result<Vec<Guest>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<Guest>)>> = Mutex::default();
    let all = MultiProgress::new();
    std::thread::scope(|scope| {
        for _ in 0..at_once.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at) else { break };
                    let label = match jobs.len() {
                        1 => String::new(),
                        _ => format!("guest {}", at + 1),
                    };
                    let display = Display {
                        all: all.clone(),
                        label,
                    };
                    let guest = one(cache, job, &display);
                    if guest.is_err() {
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                    if let Ok(mut done) = done.lock() {
                        done.push((at, guest));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(at, _)| *at);
    if done.iter().any(|(_, guest)| guest.is_err()) {
        for path in jobs.iter().filter_map(|job| job.kept.as_ref()?.there()) {
            eprintln!(
                "{} is kept: the same command with that folder as --out runs the rest",
                path.display()
            );
        }
    }
    done.into_iter().map(|(_, guest)| guest).collect()
}

fn one(cache: &Cache, job: &Job, display: &Display) -> Result<Guest> {
    let Job { spec, plan, kept } = job;
    let label = match display.label.as_str() {
        "" => "one guest",
        label => label,
    };
    eprintln!(
        "{label}: {} on {}",
        spec.kernel.describe(),
        spec.topology.describe()
    );
    if let Some(record) = kept.as_ref().and_then(Kept::read) {
        eprintln!("{label}: its record is there from last time");
        return Ok(Guest {
            kernel: spec.kernel.describe(),
            record,
        });
    }
    // Far more than is needed: it only ends a guest that hangs.
    let allowed = 600 + 30 * (plan.runs() + plan.turns.len()) as u64;
    let larger = spec.topology.cpus().div_ceil(8) as u64;
    let spec = Spec {
        timeout: Some(Duration::from_secs(allowed * larger)),
        ..spec.clone()
    };
    let record = conduct(cache, &spec, plan, display)?;
    trust(&record)?;
    // Not a reason to throw away what it was to keep.
    if let Some(Err(error)) = kept.as_ref().map(|kept| kept.write(&record)) {
        eprintln!("{label}: its record is not kept: {error:#}");
    }
    Ok(Guest {
        kernel: spec.kernel.describe(),
        record,
    })
}
