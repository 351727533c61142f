//! What the tools print, turned into figures. None means that the output is not what is expected.

/// `perf bench sched pipe`: microseconds for an operation, which is a message there and one back.
pub fn perf_pipe(output: &str) -> Option<Vec<f64>> {
    let (before, _) = output.split_once("usecs/op")?;
    one(before.split_whitespace().last()?)
}

/// hackbench: seconds for all messages.
pub fn hackbench(output: &str) -> Option<Vec<f64>> {
    let time = output.lines().find_map(|line| line.strip_prefix("Time:"))?;
    one(time.trim())
}

/// `stress-ng --switch --metrics`: nanoseconds for a context switch, the mean of all instances.
pub fn stress_switch(output: &str) -> Option<Vec<f64>> {
    let (before, _) = output.split_once("nanosecs per context switch")?;
    one(before.split_whitespace().last()?)
}

/// The workloads of `work`: milliseconds.
pub fn makespan(output: &str) -> Option<Vec<f64>> {
    one(output
        .lines()
        .find_map(|line| line.strip_prefix("makespan_ms "))?)
}

/// The self-check: the speeds alone, of the slowest and of the fastest beside others, relative to the first.
pub fn speeds(output: &str) -> Option<Vec<f64>> {
    ["speed_alone ", "speed_slowest ", "speed_fastest "]
        .iter()
        .map(|name| {
            let word = output.lines().find_map(|line| line.strip_prefix(name))?;
            word.parse().ok()
        })
        .collect()
}

/// `perf bench sched messaging`: seconds for all messages.
pub fn perf_messaging(output: &str) -> Option<Vec<f64>> {
    let (_, after) = output.split_once("Total time:")?;
    one(after.split_whitespace().next()?)
}

/// sysbench with a fixed number of events: seconds for all of them.
pub fn sysbench(output: &str) -> Option<Vec<f64>> {
    let (_, after) = output.split_once("total time:")?;
    one(after.split_whitespace().next()?.strip_suffix('s')?)
}

/// Lines of `NAME VALUE`, those of these names.
fn named(output: &str, names: &[&str]) -> Option<Vec<f64>> {
    names
        .iter()
        .map(|name| {
            let rest = output
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            rest.parse().ok().filter(|value: &f64| value.is_finite())
        })
        .collect()
}

/// Requests beside batch work: delays, microseconds, and the batch's share of the CPUs, percent.
pub fn service(output: &str) -> Option<Vec<f64>> {
    let names = [
        "delay_p50_us",
        "delay_p99_us",
        "delay_p999_us",
        "batch_percent",
    ];
    named(output, &names)
}

/// Equal threads: Jain's index and the longest wait, milliseconds.
pub fn fair(output: &str) -> Option<Vec<f64>> {
    named(output, &["jain", "longest_wait_ms"])
}

/// Threads of different weight: by how many percent of its due the class is off that is off most.
pub fn shares(output: &str) -> Option<Vec<f64>> {
    named(output, &["off_percent"])
}

/// rt-app: wakeup latencies, microseconds, and the periods whose work was done too late, percent.
pub fn rt_app(output: &str) -> Option<Vec<f64>> {
    let names = [
        "wakeup_p50_us",
        "wakeup_p99_us",
        "wakeup_p999_us",
        "late_percent",
    ];
    named(output, &names)
}

/// The number of the first mark, and the operations between.
pub fn marks(output: &str) -> Option<Vec<f64>> {
    named(output, &["first_mark", "operations"])
}

/// Where cyclictest's histograms end. A latency above counts as this.
pub const CYCLICTEST_MAX_US: usize = 5_000;

/// `cyclictest -h`: how many wakeups of all threads had each latency, microseconds, in rising order.
pub fn cyclictest(output: &str) -> Option<Vec<(u64, u64)>> {
    let mut counts = Vec::new();
    for line in output.lines() {
        if let Some(text) = line.strip_prefix("# Histogram Overflows:") {
            counts.push((CYCLICTEST_MAX_US as u64, sum(text.split_whitespace())?));
        } else if !line.starts_with('#')
            && let Some((latency, threads)) = line.split_once(char::is_whitespace)
            && let Ok(latency) = latency.parse::<u64>()
        {
            counts.push((latency, sum(threads.split_whitespace())?));
        }
    }
    counts.retain(|(_, count)| *count > 0);
    (!counts.is_empty()).then_some(counts)
}

/// The median and the 99th and 99.9th percentiles of a histogram.
pub fn percentiles(counts: &[(u64, u64)]) -> Option<Vec<f64>> {
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let at = |share: f64| {
        let rank = (share * total as f64).ceil() as u64;
        let mut seen = 0;
        let (latency, _) = counts.iter().find(|(_, count)| {
            seen += count;
            seen >= rank.max(1)
        })?;
        Some(*latency as f64)
    };
    [0.5, 0.99, 0.999].map(at).into_iter().collect()
}

fn sum<'a>(words: impl Iterator<Item = &'a str>) -> Option<u64> {
    words.map(|word| word.parse::<u64>().ok()).sum()
}

fn one(word: &str) -> Option<Vec<f64>> {
    word.parse()
        .ok()
        .filter(|value: &f64| value.is_finite() && *value > 0.0)
        .map(|value| vec![value])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_perf() {
        let output = "# Running 'sched/pipe' benchmark:\n# Executed 2000 pipe operations between two processes\n\n     \
                      Total time: 5.501 [sec]\n\n    2750.808000 usecs/op\n            363 ops/sec\n";
        assert_eq!(perf_pipe(output), Some(vec![2750.808]));
        assert_eq!(perf_pipe("perf: not found\n"), None);
    }

    #[test]
    fn reads_hackbench() {
        let output = "Running in process mode with 1 groups using 20 file descriptors each (== 20 tasks)\n\
                      Each sender will pass 50 messages of 100 bytes\nTime: 0.208\n";
        assert_eq!(hackbench(output), Some(vec![0.208]));
        assert_eq!(hackbench("Time: \n"), None);
        assert_eq!(
            hackbench("fork(): Resource temporarily unavailable\n"),
            None
        );
    }

    #[test]
    fn reads_stress_ng() {
        let output = "stress-ng: metrc: [245] switch             2000      1.06      0.03      3.61      1881.15\n\
                      stress-ng: metrc: [245] miscellaneous metrics:\nstress-ng: metrc: [245] switch            \
                      664156.70 nanosecs per context switch (pipe method) (geometic mean of 2 instances)\n";
        assert_eq!(stress_switch(output), Some(vec![664_156.7]));
        assert_eq!(stress_switch("stress-ng: info: no metrics\n"), None);
    }

    #[test]
    fn reads_our_own() {
        assert_eq!(makespan("makespan_ms 41.234\n"), Some(vec![41.234]));
        assert_eq!(makespan("error: a task panicked\n"), None);
    }

    #[test]
    fn reads_messaging_and_sysbench() {
        let output =
            "# 20 sender and receiver processes per group\n\n     Total time: 0.018 [sec]\n";
        assert_eq!(perf_messaging(output), Some(vec![0.018]));
        let output = "General statistics:\n    total time:                          0.0302s\n    \
                      total number of events:              2000\n";
        assert_eq!(sysbench(output), Some(vec![0.0302]));
        assert_eq!(sysbench("FATAL: no\n"), None);
    }

    #[test]
    fn reads_named_lines() {
        assert_eq!(
            fair("jain 0.99\nlongest_wait_ms 12.5\n"),
            Some(vec![0.99, 12.5])
        );
        assert_eq!(fair("jain 0.99\n"), None);
        assert_eq!(shares("off_percent 0.000\n"), Some(vec![0.0]));
        assert_eq!(shares("off_percent NaN\n"), None);
    }

    #[test]
    fn reads_the_self_check() {
        let output = "speed_alone 1.0000\nspeed_slowest 0.9990\nspeed_fastest 1.0010\n";
        assert_eq!(speeds(output), Some(vec![1.0, 0.999, 1.001]));
        assert_eq!(speeds("speed_alone 1.0000\n"), None);
    }

    #[test]
    fn reads_cyclictest() {
        let output = "# /dev/cpu_dma_latency set to 0us\n# Histogram\n000000 000000\t000000\n000005 000060\t000020\n\
                      000009 000010\t000008\n000040 000000\t000001\n# Total: 000000070 000000029\n\
                      # Min Latencies: 00005 00005\n# Avg Latencies: 00005 00007\n# Max Latencies: 00009 30000\n\
                      # Histogram Overflows: 00000 00001\n# Histogram Overflow at cycle number:\n# Thread 0:\n\
                      # Thread 1: 00003\n";
        let counts = cyclictest(output).unwrap();
        assert_eq!(counts, [(5, 80), (9, 18), (40, 1), (5000, 1)]);
        assert_eq!(percentiles(&counts), Some(vec![5.0, 40.0, 5000.0]));
        assert_eq!(cyclictest("FATAL: could not access memlock\n"), None);
    }

    #[test]
    fn a_time_of_nothing_is_no_figure() {
        assert_eq!(hackbench("Time: 0.000\n"), None);
        assert_eq!(hackbench("Time: nan\n"), None);
    }
}
