//! CPUs, their lists as sysfs writes them, and what they did.

use anyhow::{Context, Result};
use rustix::thread::CpuSet;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

pub(crate) type Cpus = BTreeSet<usize>;

/// Reads a file below `/sys` or `/proc` and trims it.
pub(crate) fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    Ok(text.trim().to_owned())
}

/// Reads a list like `0-3,8`.
pub(crate) fn read_list(path: &str) -> Result<Cpus> {
    parse_list(&read(path)?).with_context(|| format!("reading {path}"))
}

fn parse_list(text: &str) -> Result<Cpus> {
    let mut cpus = Cpus::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |word: &str| {
            word.parse::<usize>()
                .with_context(|| format!("not a list of CPUs: {text}"))
        };
        cpus.extend(number(first)?..=number(last)?);
    }
    Ok(cpus)
}

pub(crate) fn online() -> Result<Cpus> {
    read_list("/sys/devices/system/cpu/online")
}

pub(crate) fn set_online(cpu: usize, online: bool) -> Result<()> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    fs::write(&path, if online { "1" } else { "0" }).with_context(|| format!("writing {path}"))
}

pub(crate) fn mask(cpus: impl IntoIterator<Item = usize>) -> CpuSet {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu);
    }
    set
}

/// How long each online CPU idled within a time, as a share of it, by CPU.
pub(crate) fn idle_shares(time: Duration) -> Result<BTreeMap<usize, f64>> {
    let before = idle_times()?;
    let started = Instant::now();
    std::thread::sleep(time);
    let after = idle_times()?;
    // The sleep may have been longer than asked for.
    let elapsed = started.elapsed().as_secs_f64();
    Ok(after
        .into_iter()
        .filter_map(|(cpu, idle)| Some((cpu, (idle - before.get(&cpu)?) / elapsed)))
        .collect())
}

/// Seconds since boot that each online CPU idled, from `/proc/stat`, which counts in hundredths.
fn idle_times() -> Result<BTreeMap<usize, f64>> {
    let stat = read("/proc/stat")?;
    stat.lines()
        .filter_map(|line| line.strip_prefix("cpu"))
        .filter(|line| !line.starts_with(' '))
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            // user nice system idle iowait ...
            let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok());
            let (Some(cpu), Some(idle), Some(iowait)) = (number(0), number(4), number(5)) else {
                anyhow::bail!("a line of /proc/stat that can't be read: cpu{line}");
            };
            Ok((cpu as usize, (idle + iowait) as f64 / 100.0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(parse_list("0-3,8").unwrap(), Cpus::from([0, 1, 2, 3, 8]));
        assert_eq!(parse_list("5").unwrap(), Cpus::from([5]));
        assert_eq!(parse_list("").unwrap(), Cpus::new());
        assert!(parse_list("0-x").is_err());
    }
}
