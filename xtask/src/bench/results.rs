//! What a bench found: everything that is needed to compute its figures again and to run it again.

use super::plan::{Purpose, Scheduler};
use super::schedulers::BASELINE;
use super::session::{Record, Sample};
use super::stats::{self, Interval, Verdict};
use super::workload::{Metric, Workload};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Grows when older readers would misunderstand the file.
pub const FORMAT: u32 = 1;

/// The contents of `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub format: u32,
    /// This command as it was typed.
    pub command: Vec<String>,
    /// Of the checkout, "-dirty" if it had changes.
    pub commit: String,
    /// Seconds since 1970.
    pub made_at: u64,
    pub host: String,
    pub qemu: String,
    pub clock: String,
    pub topology: String,
    pub seeds: u64,
    /// Why the figures say nothing about the schedulers, if they don't.
    pub functional_only: Option<String>,
    pub schedulers: Vec<Scheduler>,
    pub workloads: Vec<Kind>,
    pub guests: Vec<Guest>,
}

/// A workload as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    pub name: String,
    pub title: String,
    pub metrics: Vec<Metric>,
}

impl From<&Workload> for Kind {
    fn from(workload: &Workload) -> Self {
        Self {
            name: workload.name.into(),
            title: workload.title.into(),
            metrics: workload.metrics.to_vec(),
        }
    }
}

/// One guest, from its boot to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    pub kernel: String,
    pub record: Record,
}

/// One line of a report: a scheduler's figure of a workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<'a> {
    pub workload: &'a Kind,
    pub metric: &'a Metric,
    pub scheduler: &'a Scheduler,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Measured {
        runs: usize,
        median: Interval,
        /// Of the median to the baseline's, and what it says; none for the baseline itself, or if that has no figure.
        against: Option<(Interval, Verdict)>,
    },
    /// Why there is no figure.
    Failed(String),
}

impl Results {
    pub fn read(path: &Path) -> Result<Self> {
        // The folder that a bench wrote to will do.
        let path = if path.is_dir() {
            path.join("results.json")
        } else {
            path.to_owned()
        };
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        if value["format"] != FORMAT {
            bail!(
                "{} is not a results.json of this version of xtask",
                path.display()
            );
        }
        serde_json::from_value(value).with_context(|| format!("understanding {}", path.display()))
    }

    fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.guests.iter().flat_map(|guest| &guest.record.samples)
    }

    /// The samples of one scheduler and workload that were timed.
    fn timed(&self, scheduler: &str, workload: &str) -> Vec<&Sample> {
        self.samples()
            .filter(|s| s.purpose == Purpose::Timed)
            .filter(|s| s.scheduler == scheduler && s.workload == workload)
            .collect()
    }

    /// The figures of one metric of all runs that gave one.
    pub fn values(&self, scheduler: &str, workload: &Kind, metric: &Metric) -> Vec<f64> {
        let index = workload.metrics.iter().position(|m| m == metric);
        self.timed(scheduler, &workload.name)
            .iter()
            .filter_map(|sample| sample.values.get(index?).copied())
            .collect()
    }

    /// How often each latency occurred in all runs together, in rising order; nothing if the workload doesn't tell.
    pub fn histogram(&self, scheduler: &str, workload: &str) -> Vec<(u64, u64)> {
        let mut all = BTreeMap::new();
        for sample in self.timed(scheduler, workload) {
            for (us, count) in &sample.histogram {
                *all.entry(*us).or_insert(0) += count;
            }
        }
        all.into_iter().collect()
    }

    /// As [`crate::vm::clock::Clock::describe`] tells.
    pub fn by_virtual_clock(&self) -> bool {
        self.clock.starts_with("virtual")
    }

    /// How many CPUs the guests had.
    pub fn cpus(&self) -> usize {
        self.guests
            .first()
            .map_or(0, |guest| guest.record.machine.cpus)
    }

    /// The run under `manycore observe`.
    pub fn observed(&self, scheduler: &str, workload: &str) -> Option<&Sample> {
        self.samples()
            .filter(|s| s.purpose == Purpose::Observed)
            .find(|s| s.scheduler == scheduler && s.workload == workload)
    }

    /// Each once.
    pub fn kernels(&self) -> Vec<&str> {
        let mut all: Vec<_> = self.guests.iter().map(|g| g.kernel.as_str()).collect();
        all.dedup();
        all
    }

    pub fn failure(&self, scheduler: &str) -> Option<&String> {
        self.guests
            .iter()
            .find_map(|guest| guest.record.failed.get(scheduler))
    }

    /// All lines, workload by workload, the schedulers in the order in which they were asked for.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let mut rows = Vec::new();
        for workload in &self.workloads {
            for metric in &workload.metrics {
                rows.extend(self.schedulers.iter().map(|scheduler| Row {
                    workload,
                    metric,
                    scheduler,
                    outcome: self.outcome(scheduler, workload, metric),
                }));
            }
        }
        rows
    }

    fn outcome(&self, scheduler: &Scheduler, workload: &Kind, metric: &Metric) -> Outcome {
        // Runs before a scheduler was thrown out are no figures of a scheduler that works.
        if let Some(why) = self.failure(&scheduler.name) {
            return Outcome::Failed(why.clone());
        }
        let samples = self.timed(&scheduler.name, &workload.name);
        let failures: Vec<_> = samples.iter().filter_map(|s| s.failure.as_ref()).collect();
        if let Some(first) = failures.first() {
            return Outcome::Failed(format!(
                "{} of {} runs failed: {first}",
                failures.len(),
                samples.len()
            ));
        }
        let values = self.values(&scheduler.name, workload, metric);
        let Some(median) = stats::median_interval(&values) else {
            return Outcome::Failed("was not run".into());
        };
        let against = (scheduler.name != BASELINE)
            .then(|| {
                let baseline = self.values(BASELINE, workload, metric);
                let ratio = stats::ratio_interval(&values, &baseline)?;
                let runs = values.len().min(baseline.len());
                Some((ratio, stats::verdict(&ratio, runs, metric.better)))
            })
            .flatten();
        Outcome::Measured {
            runs: values.len(),
            median,
            against,
        }
    }
}

/// What the tests of all reports are made with.
#[cfg(test)]
pub mod tests {
    use super::super::plan::Daemon;
    use super::super::schedulers::kernels_own;
    use super::super::workload;
    use super::*;

    pub fn daemon(name: &str) -> Scheduler {
        Scheduler {
            name: name.into(),
            title: format!("scx_{name}"),
            daemon: Some(Daemon {
                command: vec![format!("scx_{name}")],
                ops: name.into(),
            }),
        }
    }

    pub fn sample(scheduler: &str, seed: u64, value: f64) -> Sample {
        Sample {
            scheduler: scheduler.into(),
            workload: "pipe".into(),
            seed,
            purpose: Purpose::Timed,
            command: vec!["perf".into()],
            seconds: 1.0,
            values: vec![value],
            histogram: Vec::new(),
            failure: None,
            observed: None,
        }
    }

    /// EEVDF at 10, scx_fast at 5, scx_slow at 40, scx_same at EEVDF's, scx_bad fails to load.
    pub fn results() -> Results {
        let mut record = Record {
            complete: true,
            ..Record::default()
        };
        for seed in 1..=5 {
            let noise = seed as f64 / 100.0;
            for (name, value) in [
                ("eevdf", 10.0),
                ("fast", 5.0),
                ("slow", 40.0),
                ("same", 10.0),
            ] {
                record.samples.push(sample(name, seed, value + noise));
            }
        }
        record
            .failed
            .insert("bad".into(), "failed to load: <EACCES>".into());
        let mut schedulers = vec![kernels_own()];
        schedulers.extend(["fast", "slow", "same", "bad"].map(daemon));
        Results {
            format: FORMAT,
            command: vec!["cargo".into(), "xtask".into(), "bench".into()],
            commit: "0123456".into(),
            made_at: 1_790_000_000,
            host: "a machine".into(),
            qemu: "10.0.2".into(),
            clock: "virtual".into(),
            topology: "t8".into(),
            seeds: 5,
            functional_only: None,
            schedulers,
            workloads: vec![workload::find("pipe").unwrap().into()],
            guests: vec![Guest {
                kernel: "6.12".into(),
                record,
            }],
        }
    }

    #[test]
    fn wins_losses_and_failures_are_rows_alike() {
        let results = results();
        let verdicts: Vec<_> = results
            .rows()
            .into_iter()
            .map(|row| match row.outcome {
                Outcome::Measured { against, .. } => against.map(|(_, verdict)| verdict),
                Outcome::Failed(why) => {
                    assert!(why.contains("EACCES"));
                    Some(Verdict::TooFew)
                }
            })
            .collect();
        assert_eq!(
            verdicts,
            [
                None,
                Some(Verdict::Better),
                Some(Verdict::Worse),
                Some(Verdict::NoneShown),
                Some(Verdict::TooFew)
            ]
        );
    }

    #[test]
    fn a_failed_run_leaves_no_figure() {
        let mut results = results();
        let samples = &mut results.guests[0].record.samples;
        let one = samples.iter_mut().find(|s| s.scheduler == "fast").unwrap();
        one.values.clear();
        one.failure = Some("exit code 1: no memory".into());
        let rows = results.rows();
        assert!(
            matches!(&rows[1].outcome, Outcome::Failed(why) if why == "1 of 5 runs failed: exit code 1: no memory")
        );
    }

    #[test]
    fn runs_that_are_not_timed_do_not_count() {
        let mut results = results();
        let mut warm = sample("fast", 0, 9999.0);
        warm.purpose = Purpose::Warmup;
        results.guests[0].record.samples.push(warm);
        let kind = &results.workloads[0];
        assert_eq!(results.values("fast", kind, &kind.metrics[0]).len(), 5);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let results = results();
        let text = serde_json::to_string(&results).unwrap();
        fs::write(dir.path().join("results.json"), &text).unwrap();
        assert_eq!(Results::read(dir.path()).unwrap(), results);
        let newer = text.replacen("\"format\":1", "\"format\":2", 1);
        fs::write(dir.path().join("results.json"), newer).unwrap();
        let error = Results::read(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("not a results.json of this version"),
            "{error}"
        );
    }
}
