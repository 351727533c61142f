//! rt-app with periodic threads that use a given share of the machine: it is told by a file, and tells by files.

use super::latency::no_timer_slack;
use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The share of all CPUs' time that the threads demand
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=99))]
    percent: u64,
    #[arg(long)]
    threads: usize,
    /// Periods of each thread
    #[arg(long)]
    periods: usize,
    /// Nanoseconds of one of rt-app's loops; 0 to have it calibrated
    #[arg(long, default_value_t = 0)]
    loop_ns: u64,
    #[arg(long)]
    seed: u64,
}

/// Of the shortest and of the longest period.
const PERIOD_US: std::ops::Range<u64> = 2_000..5_000;
const DIR: &str = "/tmp/manycore-rt-app";

pub fn run(args: &Args) -> Result<()> {
    no_timer_slack()?;
    let dir = Path::new(DIR);
    // Logs of the run before must not be taken for this one's.
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir).with_context(|| format!("making {DIR}"))?;
    let file = dir.join("taskset.json");
    fs::write(&file, config(args).to_string()).context("writing rt-app's input")?;
    let output = Command::new("rt-app")
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .context("running rt-app")?;
    ensure!(
        output.status.success(),
        "rt-app ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    let (mut latencies, mut late, mut all) = (Vec::new(), 0, 0);
    for entry in fs::read_dir(dir).context("looking for rt-app's logs")? {
        let path = entry.context("looking for rt-app's logs")?.path();
        if path.extension().is_some_and(|end| end == "log") {
            let text = fs::read_to_string(&path).context("reading rt-app's log")?;
            for (latency_us, slack_us) in periods(&text) {
                latencies.push(latency_us);
                all += 1;
                late += usize::from(slack_us < 0);
            }
        }
    }
    latencies.sort_unstable();
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
        let rank = ((share * latencies.len() as f64).ceil() as usize).max(1);
        let us = latencies.get(rank - 1).context("rt-app logged nothing")?;
        println!("wakeup_{name}_us {us}");
    }
    println!(
        "late_percent {:.3}",
        late as f64 / all.max(1) as f64 * 100.0
    );
    Ok(())
}

fn config(args: &Args) -> Value {
    let mut rng = Rng::with_seed(args.seed);
    let mut tasks = Map::new();
    for i in 0..args.threads {
        let period = rng.u64(PERIOD_US);
        let phase = json!({
            "loop": args.periods,
            "run": period * args.percent / 100,
            "timer": {"ref": "unique", "period": period},
        });
        let delay = rng.u64(0..PERIOD_US.end);
        tasks.insert(
            format!("t{i}"),
            json!({"instance": 1, "loop": 1, "delay": delay, "phases": {"p": phase}}),
        );
    }
    let calibration = match args.loop_ns {
        0 => json!("CPU0"),
        ns => json!(ns),
    };
    json!({
        "tasks": tasks,
        "global": {
            "duration": -1,
            "calibration": calibration,
            "default_policy": "SCHED_OTHER",
            "pi_enabled": false,
            "lock_pages": false,
            "logdir": DIR,
            "log_basename": "log",
            // Kept in memory while it runs, MiB.
            "log_size": 1,
            "ftrace": false,
            "gnuplot": false,
        },
    })
}

/// Wakeup latency and slack of each period, microseconds. The first period has nothing to be woken from.
fn periods(log: &str) -> Vec<(u64, i64)> {
    log.lines()
        .filter(|line| !line.starts_with('#'))
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some((words.get(10)?.parse().ok()?, words.get(7)?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_log_is_read() {
        let log = "# Policy : SCHED_OTHER priority : 0\n\
                   #idx     perf      run   period           start             end          rel_st      slack c_duration   c_period     wu_lat\n   \
                   0    25000      430     4661      1875508191      1875512853           10087       1485        500       2000       2745\n   \
                   0    25000      434     2034      1875512853      1875513287           14748      -1179        500       2000         12\n";
        assert_eq!(periods(log), [(12, -1179)]);
    }

    #[test]
    fn a_seed_changes_the_periods_but_not_the_share() {
        let args = |seed| Args {
            percent: 70,
            threads: 4,
            periods: 10,
            loop_ns: 0,
            seed,
        };
        assert_ne!(config(&args(1)), config(&args(2)));
        let phase = &config(&args(1))["tasks"]["t0"]["phases"]["p"];
        let share = phase["run"].as_f64().unwrap() / phase["timer"]["period"].as_f64().unwrap();
        assert!((share - 0.7).abs() < 0.01);
    }
}
