//! A latency service beside a batch job that saturates the machine.

use crate::Setting;
use crate::cases::policy::FILE;
use crate::cases::policy_daemon::classed;
use crate::cgroup::Cgroup;
use crate::cpus::{idle_shares, online};
use crate::daemon::Daemon;
use crate::procs::{Running, beside, last_cpu};
use anyhow::{Context, Result, ensure};
use manycore_tests::machine::Machine;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

/// How much slower than alone the service may be woken, at the 99th percentile.
const SLOWER: f64 = 1.3;
const THREADS: usize = 8;
/// Wakeups of each thread, one in a millisecond.
const WAKEUPS: u32 = 400;
/// Where the histogram ends, us.
const LONGEST_US: u32 = 20_000;

/// Woken once a millisecond by a timer, on its node: how long does it take until it runs, alone and beside batch? A second
/// service computes a little all the time. By the clock of the guest's own instructions.
pub(crate) fn beside_batch(setting: &Setting) -> Result<String> {
    let machine = Machine::read(&setting.topology)?;
    let cpus = online()?.len();
    let home = machine.cpus_of_node(1);
    let text = format!(
        "[[service]]\ncgroup = \"/quick\"\nclass = \"latency\"\ncpus = \"{}-{}\"\nmemory = \"local\"\n\
         [[service]]\ncgroup = \"/steady\"\nclass = \"normal\"\n\
         [[service]]\ncgroup = \"/slow\"\nclass = \"batch\"\nwidth = \"wide\"\n",
        home.start,
        home.end - 1
    );
    fs::write(FILE, text).context("writing a policy")?;
    let [quick, steady, slow] = ["quick", "steady", "slow"].map(Cgroup::new);
    let (quick, steady, slow) = (quick?, steady?, slow?);
    let mut daemon = Daemon::start(setting, &["--policy", FILE])?;
    classed(3)?;
    let _steady = Running::start(steady.entering("stress-ng").args([
        "--cpu",
        "2",
        "--cpu-load",
        "20",
        "--timeout",
        "1000",
    ]))?;
    // Its first run reads it from the host.
    measure(&quick, THREADS)?;
    let alone = measure(&quick, THREADS)?;
    eprintln!("p99 alone: {} us", alone.p99_us);
    let spin = beside("spin")?;
    let threads = (2 * cpus).to_string();
    let batch = Running::start(slow.entering(&spin.to_string_lossy()).args([
        "--threads",
        &threads,
        "--seconds",
        "1000",
    ]))?;
    busy(cpus, 0.1)?;
    eprintln!("saturated");
    let beside = measure(&quick, THREADS)?;
    drop(batch);
    daemon.check_alive()?;
    daemon.stop()?;
    for found in [&alone, &beside] {
        ensure!(
            found.seen_on.iter().all(|cpu| home.contains(cpu)),
            "the service was seen on CPUs {:?}, not only on {home:?}",
            found.seen_on
        );
    }
    let ratio = f64::from(beside.p99_us) / f64::from(alone.p99_us.max(1));
    let told = format!(
        "p99 {} us alone, {} us beside {threads} threads of batch: {ratio:.2} times",
        alone.p99_us, beside.p99_us
    );
    ensure!(ratio <= SLOWER, "{told} (allowed: {SLOWER})");
    Ok(told)
}

/// How much sooner than with first in, first out, at the 99th percentile.
const SOONER: f64 = 0.5;
/// By how much batch loads the machine, in percent, and with how many threads for each CPU.
const LOADED: usize = 90;
const BATCH_THREADS: usize = 2;

/// A latency service of a thread on every other CPU, beside batch that loads the machine to 90 %: it must be woken in half
/// the time that it takes with first in, first out.
pub(crate) fn latency_first(setting: &Setting) -> Result<String> {
    let waits = |kind| beside_load(setting, kind).with_context(|| format!("with {kind}"));
    let (fifo, deadline) = (waits("fifo")?, waits("deadline")?);
    let ratio = f64::from(deadline) / f64::from(fifo.max(1));
    let told = format!("p99 {deadline} us, first in, first out {fifo} us: {ratio:.2} times");
    ensure!(ratio <= SOONER, "{told} (allowed: {SOONER})");
    Ok(told)
}

/// The 99th percentile of the service's waits under a policy of scx_pilot's, us.
fn beside_load(setting: &Setting, kind: &str) -> Result<u32> {
    let cpus = online()?.len();
    let [quick, slow] = ["quick", "slow"].map(Cgroup::new);
    let (quick, slow) = (quick?, slow?);
    let services = ["quick=/quick:latency", "slow=/slow:batch"];
    let [one, other] = services.map(|service| ["--service", service]);
    let args = [&["--policy-kind", kind][..], &one, &other].concat();
    let mut daemon = Daemon::start(setting, &args)?;
    let threads = (BATCH_THREADS * cpus).to_string();
    let each = (LOADED / BATCH_THREADS).to_string();
    let _batch = Running::start(slow.entering("stress-ng").args([
        "--cpu",
        &threads,
        "--cpu-load",
        &each,
        // Computes for 3 ms at a time.
        "--cpu-load-slice",
        "3",
        "--timeout",
        "1000",
        "--temp-path",
        "/tmp",
    ]))?;
    busy(cpus, 0.5)?;
    // Its first run reads it from the host, and is known as a service then.
    measure(&quick, cpus / 2)?;
    let found = measure(&quick, cpus / 2)?;
    daemon.check_alive()?;
    daemon.stop()?;
    Ok(found.p99_us)
}

/// Waits until no CPU idles for that share of its time or more.
///
/// # Errors
/// If one still does after a hundred looks.
fn busy(cpus: usize, idle_max: f64) -> Result<()> {
    let mut shares = BTreeMap::new();
    for _ in 0..100 {
        shares = idle_shares(Duration::from_millis(200))?;
        if shares.len() == cpus && shares.values().all(|share| *share < idle_max) {
            return Ok(());
        }
    }
    anyhow::bail!("the batch job leaves CPUs idle for {shares:.2?} of their time")
}

struct Found {
    p99_us: u32,
    seen_on: BTreeSet<usize>,
}

fn measure(cgroup: &Cgroup, threads: usize) -> Result<Found> {
    // Its histogram is longer than a pipe.
    let path = "/tmp/cyclictest";
    let mut child = cgroup
        .entering("cyclictest")
        .args(["--policy=other", "-q", "-i", "1000", "-d", "125"])
        .args(["-t", &threads.to_string(), "-l", &WAKEUPS.to_string()])
        .args(["-h", &LONGEST_US.to_string()])
        .stdin(Stdio::null())
        .stdout(fs::File::create(path).context("creating a file for cyclictest")?)
        .spawn()
        .context("starting cyclictest")?;
    let mut seen_on = BTreeSet::new();
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for cyclictest")? {
            break status;
        }
        seen_on.extend(last_cpus(child.id()));
        std::thread::sleep(Duration::from_millis(10));
    };
    let text = fs::read_to_string(path).context("reading what cyclictest printed")?;
    ensure!(status.success(), "cyclictest ended with {status}: {text}");
    let p99_us = p99(&text).with_context(|| format!("cyclictest printed {text:?}"))?;
    Ok(Found { p99_us, seen_on })
}

/// Where the threads of a process that measure are, or were last. The first one only waits for them.
fn last_cpus(pid: u32) -> Vec<usize> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let own = pid.to_string();
    entries
        .flatten()
        .filter(|entry| entry.file_name() != own.as_str())
        .filter_map(|entry| last_cpu(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The 99th percentile of a histogram of cyclictest's, us: lines of a latency and how many wakeups of each thread had it.
fn p99(text: &str) -> Option<u32> {
    let mut counts: Vec<(u32, u64)> = Vec::new();
    for line in text.lines() {
        let (key, threads) = match line.strip_prefix("# Histogram Overflows:") {
            Some(threads) => (LONGEST_US, threads),
            None if line.starts_with('#') => continue,
            None => match line.split_once(char::is_whitespace) {
                Some((key, threads)) => match key.parse() {
                    Ok(key) => (key, threads),
                    Err(_) => continue,
                },
                None => continue,
            },
        };
        let sum = threads.split_whitespace().map(str::parse::<u64>).sum();
        counts.push((key, Result::ok(sum)?));
    }
    counts.sort_unstable();
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let rank = (total * 99).div_ceil(100).max(1);
    let mut seen = 0;
    counts.iter().find_map(|(latency, count)| {
        seen += count;
        (seen >= rank).then_some(*latency)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_of_a_histogram_is_found() {
        let text = "# /dev/cpu_dma_latency set to 0us\n000000 000000\t000000\n000005 000099\t000090\n\
                    000009 000001\t000008\n# Total: 100 98\n# Histogram Overflows: 00000 00002\n";
        // Of 200, two are longer than all that is shown, and the third longest is 9.
        assert_eq!(p99(text), Some(9));
        assert_eq!(p99("000007 000100\n000008 000001\n"), Some(7));
        assert_eq!(p99("WARN: stat /dev/cpu_dma_latency failed\n"), None);
    }
}
