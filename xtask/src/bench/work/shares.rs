//! Threads of different weight that never sleep: does each class get the share that its weight entitles it to? A class
//! is a process of its own, told apart by its nice value or by its cgroup.

use super::spin::{Spinner, cpu_time};
use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use rustix::process::{WaitOptions, wait};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, fs};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What the classes differ by
    #[arg(long, value_enum)]
    by: By,
    /// Of each class
    #[arg(long)]
    threads: usize,
    /// For how long they run, milliseconds
    #[arg(long)]
    ms: u64,
    #[arg(long)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// Nice 6, 3 and 0: weights of about 1, 2 and 4
    Nice,
    /// cpu.weight 1:2, and in the second 1:2 again
    Cgroup,
}

/// The kernel's weights of nice 6, 3 and 0 (`sched_prio_to_weight`).
const NICE: [(i32, f64); 3] = [(6, 272.0), (3, 526.0), (0, 1024.0)];
/// The leaves of the tree that [`make_cgroups`] makes, and what of the whole each is entitled to.
const LEAVES: [(&str, f64); 3] = [("one", 3.0), ("two/one", 2.0), ("two/two", 4.0)];
const CGROUPS: &str = "/sys/fs/cgroup";
/// For all processes and threads to be there.
const LEAD: Duration = Duration::from_millis(60);

pub fn run(args: &Args) -> Result<()> {
    let classes: Vec<(Class, f64)> = match args.by {
        By::Nice => NICE
            .map(|(nice, weight)| (Class::Nice(nice), weight))
            .into(),
        By::Cgroup => {
            let top = make_cgroups()?;
            LEAVES
                .map(|(leaf, weight)| (Class::Cgroup(top.join(leaf)), weight))
                .into()
        }
    };
    let spinner = Spinner::calibrated();
    let mut rng = Rng::with_seed(args.seed);
    let from = Instant::now() + LEAD;
    let (mut reader, writer) = std::io::pipe().context("making a pipe")?;
    for (at, (class, _)) in classes.iter().enumerate() {
        let window = Window {
            from: from + Duration::from_micros(rng.u64(0..1000)),
            to: from + Duration::from_millis(args.ms),
        };
        // SAFETY: this process has one thread, so the child's copy of it is whole.
        match unsafe { libc::fork() } {
            -1 => return Err(std::io::Error::last_os_error()).context("starting a process"),
            0 => child(at, class, args.threads, window, spinner, writer),
            _ => {}
        }
    }
    drop(writer);
    for _ in &classes {
        match wait(WaitOptions::empty()).context("waiting for a process")? {
            Some((_, status)) if status.exit_status() == Some(0) => {}
            other => bail!("a process ended with {other:?}"),
        }
    }
    let mut text = String::new();
    reader
        .read_to_string(&mut text)
        .context("reading the results")?;
    let got = collect(&text, classes.len())?;
    let weights: Vec<f64> = classes.iter().map(|(_, weight)| *weight).collect();
    for (class, part) in classes.iter().zip(parts(&got, &weights)) {
        println!("{}: {:+.1} %", class.0, (part - 1.0) * 100.0);
    }
    println!("off_percent {:.3}", off_percent(&got, &weights));
    Ok(())
}

/// What sets a process apart.
#[derive(Debug)]
enum Class {
    Nice(i32),
    Cgroup(PathBuf),
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Nice(nice) => write!(f, "nice {nice}"),
            Class::Cgroup(dir) => write!(f, "{}", dir.display()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Window {
    from: Instant,
    to: Instant,
}

/// The child's whole life: it never returns to the parent's code.
fn child(
    at: usize,
    class: &Class,
    threads: usize,
    window: Window,
    spinner: Spinner,
    mut writer: std::io::PipeWriter,
) -> ! {
    let done = join(class).and_then(|()| {
        let us = spin(threads, window, spinner)?.as_micros();
        // At once: others write to the same pipe.
        let line = format!("{at} {us}\n");
        writer
            .write_all(line.as_bytes())
            .context("telling the result")
    });
    if let Err(error) = &done {
        eprintln!("{error:#}");
    }
    // SAFETY: no preconditions; nothing of the parent's is flushed or run a second time.
    unsafe { libc::_exit(i32::from(done.is_err())) }
}

fn join(class: &Class) -> Result<()> {
    match class {
        Class::Nice(nice) => rustix::process::nice(*nice)
            .map(drop)
            .context("setting the nice value"),
        Class::Cgroup(dir) => write(&dir.join("cgroup.procs"), "0"),
    }
}

/// The CPU time that all threads together had in that window.
fn spin(threads: usize, window: Window, spinner: Spinner) -> Result<Duration> {
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || {
                    std::thread::sleep(window.from.saturating_duration_since(Instant::now()));
                    let from = cpu_time();
                    while Instant::now() < window.to {
                        spinner.compute(1);
                    }
                    cpu_time() - from
                })
            })
            .collect();
        all.into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))
            })
            .sum()
    })
}

/// A tree of cgroups, left there for the next run.
fn make_cgroups() -> Result<PathBuf> {
    let root = Path::new(CGROUPS);
    let top = root.join("manycore-bench");
    for dir in [&top, &top.join("two")] {
        let parent = dir.parent().unwrap_or(root);
        write(&parent.join("cgroup.subtree_control"), "+cpu")?;
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        write(&dir.join("cgroup.subtree_control"), "+cpu")?;
    }
    for (name, weight) in [
        ("one", 100),
        ("two", 200),
        ("two/one", 100),
        ("two/two", 200),
    ] {
        let dir = top.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        write(&dir.join("cpu.weight"), &weight.to_string())?;
    }
    Ok(top)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {text:?} to {}", path.display()))
}

fn collect(text: &str, classes: usize) -> Result<Vec<f64>> {
    let mut got = vec![None; classes];
    for line in text.lines() {
        let (at, us) = line.split_once(' ').context("a result is cut off")?;
        let slot = got
            .get_mut(at.parse::<usize>()?)
            .context("a result of nobody")?;
        *slot = Some(us.parse::<f64>()?);
    }
    let got: Vec<f64> = got.into_iter().flatten().collect();
    ensure!(got.len() == classes, "a result is missing");
    Ok(got)
}

/// What each class got, as a part of its due.
fn parts(got: &[f64], weights: &[f64]) -> impl Iterator<Item = f64> {
    let (all, sum): (f64, f64) = (got.iter().sum(), weights.iter().sum());
    got.iter()
        .zip(weights)
        .map(move |(got, weight)| (got / all) / (weight / sum))
}

/// By how many percent of its due the class is off that is off most.
fn off_percent(got: &[f64], weights: &[f64]) -> f64 {
    parts(got, weights)
        .map(|part| (part - 1.0).abs() * 100.0)
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_class_counts() {
        assert!(off_percent(&[1.0, 2.0, 4.0], &[10.0, 20.0, 40.0]) < 1e-9);
        let off = off_percent(&[1.0, 1.0], &[1.0, 3.0]);
        assert!((off - 100.0).abs() < 1e-9, "{off}");
    }

    #[test]
    fn a_missing_result_is_an_error() {
        assert_eq!(collect("1 20\n0 10\n", 2).unwrap(), [10.0, 20.0]);
        assert!(collect("0 10\n", 2).is_err());
        assert!(collect("7 10\n", 2).is_err());
    }

    #[test]
    fn the_leaves_are_entitled_to_what_the_weights_say() {
        // 100 of 300; of the other two thirds 100 and 200 of 300.
        let sum: f64 = LEAVES.iter().map(|(_, due)| due).sum();
        assert!((LEAVES[0].1 / sum - 1.0 / 3.0).abs() < 1e-12);
        assert!((LEAVES[1].1 / sum - 2.0 / 9.0).abs() < 1e-12);
    }
}
