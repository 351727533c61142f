//! `manycore topo --probe`: what the kernel doesn't know of the machine, found by measuring.

mod pingpong;
mod report;
mod trust;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use control_plane::Topology;
use control_plane::topology::cluster::Matrix;
use control_plane::topology::structure::Structure;
use control_plane::topology::{CpuId, format_list};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::thread::sched_getaffinity;

use trust::{Distrust, Ticks};

/// How many pairs are measured before it is known how long all will take.
const FIRST: usize = 8;
/// How many pairs are measured twice.
const AGAIN: usize = 200;

/// What was measured.
struct Measured {
    cpus: Vec<CpuId>,
    matrix: Matrix,
    time: Duration,
}

/// Measures, and writes the topology file to `out`, or to standard output if there is none.
///
/// # Errors
/// If a thread can't be pinned or the file can't be written.
pub(super) fn run(out: Option<&Path>, json: bool) -> Result<ExitCode> {
    let topology = Topology::read()?;
    let cpus = cpus(&topology)?;
    if cpus.len() < 2 {
        eprintln!("One CPU: there is nothing to measure.");
        return Ok(ExitCode::SUCCESS);
    }
    let measured = match measure(cpus)? {
        Ok(measured) => measured,
        Err(why) => {
            eprintln!(
                "manycore: the measurement can't be trusted here: {why}. Nothing was written."
            );
            return Ok(ExitCode::FAILURE);
        }
    };
    let structure = Structure::of(&measured.matrix);
    eprint!("{}", report::words(&measured, &structure, &topology));
    if json {
        let mut stdout = std::io::stdout().lock();
        serde_json::to_writer(&mut stdout, &report::json(&measured, &structure))?;
        writeln!(stdout)?;
    }
    if structure.is_flat() {
        return Ok(ExitCode::SUCCESS);
    }
    let text = report::file(&measured, &structure);
    match out {
        Some(path) => {
            write(path, &text).with_context(|| format!("writing {}", path.display()))?;
            eprintln!(
                "Written to {0}; look at it with: manycore topo --topology {0}",
                path.display()
            );
        }
        None if json => {}
        None => std::io::stdout().lock().write_all(text.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The whole file or nothing of it.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

/// All online CPUs.
fn cpus(topology: &Topology) -> Result<Vec<CpuId>> {
    let cpus: Vec<CpuId> = topology
        .cpus()
        .filter(|cpu| cpu.online)
        .map(|cpu| cpu.id)
        .collect();
    let allowed = sched_getaffinity(None).context("asking which CPUs may be used")?;
    let forbidden = cpus.iter().map(|cpu| cpu.0).filter(|&cpu| {
        cpu as usize >= rustix::thread::CpuSet::MAX_CPU || !allowed.is_set(cpu as usize)
    });
    let forbidden = format_list(forbidden);
    ensure!(
        forbidden.is_empty(),
        "this process may not run on CPU {forbidden}: start it outside of cpusets and containers"
    );
    Ok(cpus)
}

fn measure(cpus: Vec<CpuId>) -> Result<Result<Measured, Distrust>> {
    if let Err(why) = trust::check_real() {
        return Ok(Err(why));
    }
    if let Err(why) = trust::check_quiet()? {
        return Ok(Err(why));
    }
    if let Err(why) = trust::check_together(&cpus)? {
        return Ok(Err(why));
    }
    let before = Ticks::read()?;
    let begin = Instant::now();
    let all = pairs(cpus.len());
    let mut matrix = Matrix::new(cpus.len());
    let mut failed = 0;
    let again = {
        let progress = Progress::new(all.len());
        for (done, &(a, b)) in all.iter().enumerate() {
            match pingpong::latency(cpus[a], cpus[b])? {
                Some(ns) => matrix.set(a, b, ns),
                None => failed += 1,
            }
            progress.tell(done + 1, begin.elapsed());
            // Each failure takes long, and so many are no hiccup.
            if failed * 50 > all.len() && failed >= 3 {
                let pairs = all.len();
                return Ok(Err(Distrust::Unmeasured { failed, pairs }));
            }
        }
        measure_again(&cpus, &all, &matrix)?
    };
    let mut sorted: Vec<f64> = matrix.pairs().map(|(_, _, ns)| ns).collect();
    sorted.sort_by(f64::total_cmp);
    let typical = sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN);
    let checked = trust::check_latencies(typical, all.len(), failed, &again)
        .and_then(|()| Ticks::read().map_or(Ok(()), |now| now.check_not_stolen(&before)));
    let measured = Measured {
        cpus,
        matrix,
        time: begin.elapsed(),
    };
    Ok(checked.map(|()| measured))
}

/// All pairs, those of neighbours not all at once, so that the first ones are typical of all.
fn pairs(len: usize) -> Vec<(usize, usize)> {
    (1..len)
        .flat_map(|apart| (0..len - apart).map(move |a| (a, a + apart)))
        .collect()
}

/// Some of the pairs once more, evenly spread: first and second latency.
fn measure_again(
    cpus: &[CpuId],
    all: &[(usize, usize)],
    matrix: &Matrix,
) -> Result<Vec<(f64, f64)>> {
    let mut again = Vec::new();
    for &(a, b) in all.iter().step_by(all.len().div_ceil(AGAIN)) {
        if let (Some(first), Some(second)) =
            (matrix.get(a, b), pingpong::latency(cpus[a], cpus[b])?)
        {
            again.push((first, second));
        }
    }
    Ok(again)
}

/// Says how long it takes, and shows how far it is if somebody looks.
struct Progress {
    bar: ProgressBar,
    all: usize,
}

impl Progress {
    fn new(all: usize) -> Self {
        let bar = ProgressBar::new(all as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} pairs, {eta} left") {
            bar.set_style(style);
        }
        Self { bar, all }
    }

    fn tell(&self, done: usize, elapsed: Duration) {
        if done == FIRST.min(self.all) {
            let whole = elapsed.as_secs_f64() / done as f64 * self.all as f64;
            self.bar.suspend(|| {
                eprintln!(
                    "{} pairs of CPUs to measure, about {:.0} s.",
                    self.all,
                    whole.ceil()
                );
            });
        }
        self.bar.set_position(done as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pair_is_measured_once() {
        let mut all = pairs(5);
        assert_eq!(all.len(), 10);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10);
        assert!(all.iter().all(|(a, b)| a < b && *b < 5));
        assert_eq!(pairs(1), []);
    }
}
