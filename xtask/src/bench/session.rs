//! On the host: boots one guest, has it carry out a plan, and keeps what it reports.

use super::event::{Done, Event, Machine};
use super::plan::{Plan, Purpose, Run, Turn};
use super::programs::XTASK;
use super::progress::Progress;
use super::workload::{self, Histogram, Left};
use crate::cache::Cache;
use crate::vm;
use crate::vm::run::{End, Outcome, Spec, script_prelude};
use anyhow::{Context, Result};
use indicatif::MultiProgress;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The hidden subcommand of this very tool that runs in the guest.
pub const GUEST_COMMAND: &str = "in-guest";

/// What became of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub scheduler: String,
    pub workload: String,
    pub seed: u64,
    pub purpose: Purpose,
    pub command: Vec<String>,
    /// By the guest's clock, from the command's start to its end.
    pub seconds: f64,
    /// One for each metric of the workload; empty if the run failed.
    pub values: Vec<f64>,
    /// How often each latency occurred, `[us, count]`, of a workload that tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub histogram: Histogram,
    /// Why there are no values.
    pub failure: Option<String>,
    /// What `manycore observe` reported, of an observed run.
    pub observed: Option<serde_json::Value>,
}

/// All that a guest reported.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub machine: Machine,
    /// What the kernel called each scheduler that was loaded.
    pub ops: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
    /// The schedulers that failed to load or were thrown out, and why.
    pub failed: BTreeMap<String, String>,
    /// The guest got to the end of the plan.
    pub complete: bool,
    /// What a virtual clock says of itself.
    pub clock: Option<serde_json::Value>,
    /// What was going on when the guest last said something.
    #[serde(skip)]
    pub last: String,
}

impl Record {
    fn take(&mut self, plan: &Plan, event: Event) {
        match event {
            Event::Machine(machine) => self.machine = machine,
            Event::Loaded { scheduler, ops } => {
                self.last = format!("after loading {scheduler}");
                self.ops.insert(scheduler, ops);
            }
            Event::NotLoaded { scheduler, why } => {
                self.failed
                    .insert(scheduler, format!("failed to load: {why}"));
            }
            Event::Ejected { scheduler, why } => {
                self.failed.insert(scheduler, why);
            }
            Event::Started { run } => {
                if let Some((turn, run)) = plan.run(run) {
                    self.last = format!("during {} under {}", run.workload, turn.scheduler);
                }
            }
            Event::Done(done) => {
                if let Some((turn, run)) = plan.run(done.run) {
                    self.last = format!("after {} under {}", run.workload, turn.scheduler);
                    self.samples.push(sample(turn, run, done));
                }
            }
            Event::Unloaded { scheduler } => self.last = format!("after unloading {scheduler}"),
            Event::End => self.complete = true,
        }
    }
}

fn sample(turn: &Turn, run: &Run, done: Done) -> Sample {
    let values = read_values(run, &done);
    let histogram = match (&values, workload::find(&run.workload)) {
        (Ok(_), Ok(workload)) => workload.histogram(&done.output),
        _ => Vec::new(),
    };
    Sample {
        histogram,
        scheduler: turn.scheduler.clone(),
        workload: run.workload.clone(),
        seed: run.seed,
        purpose: run.purpose,
        command: run.command.clone(),
        seconds: done.seconds,
        values: values.clone().unwrap_or_default(),
        failure: values.err(),
        observed: done.observed,
    }
}

fn read_values(run: &Run, done: &Done) -> Result<Vec<f64>, String> {
    if let Some(lapse) = &done.lapse {
        return Err(lapse.clone());
    }
    if done.code != Some(0) {
        let how = done.code.map_or("was ended by a signal".into(), |code| {
            format!("exit code {code}")
        });
        let last = done
            .output
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty());
        return Err(format!("{how}: {}", last.unwrap_or("it printed nothing")));
    }
    workload::find(&run.workload)
        .map_err(|error| error.to_string())?
        .read(&Left {
            output: &done.output,
            observed: done.observed.as_ref(),
            seconds: done.seconds,
        })
}

/// Figures that only the clock can tell, which it did when the guest had ended.
fn resolve_marks(record: &mut Record) {
    let clock = record.clock.as_ref();
    for sample in record.samples.iter_mut().filter(|s| s.failure.is_none()) {
        let Ok(workload) = workload::find(&sample.workload) else {
            continue;
        };
        if workload.needs_marks() {
            match workload.resolve(&sample.values, clock) {
                Ok(values) => sample.values = values,
                Err(why) => {
                    sample.values.clear();
                    sample.failure = Some(why);
                }
            }
        }
    }
}

/// Where guests that run at the same time show how far they are.
#[derive(Debug, Clone, Default)]
pub struct Display {
    pub all: MultiProgress,
    /// Of this guest among them.
    pub label: String,
}

/// Boots the guest and carries the plan out. An error if the guest did not get to the end of it, with what it was at.
pub fn conduct(cache: &Cache, spec: &Spec, plan: &Plan, display: &Display) -> Result<Record> {
    let spec = Spec {
        script: Some(script(&spec.programs, plan)?),
        ..spec.clone()
    };
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let progress = Progress::new(plan, &display.label, &display.all);
    let (record, outcome) = std::thread::scope(|scope| {
        let listener = scope.spawn(|| listen(reader, plan, &progress));
        let outcome = vm::run::run(cache, &spec, Box::new(writer), Box::new(std::io::stderr()));
        (listener.join(), outcome)
    });
    progress.finish();
    let mut record =
        record.map_err(|_| anyhow::anyhow!("the reader of the guest's reports failed"))?;
    let outcome: Outcome = outcome?;
    if !record.complete || outcome.end != End::Exited(0) {
        let ended = vm::conclude(cache, &outcome);
        return Err(match ended {
            Err(error) => error.context(format!("the guest's run ended {}", record.last)),
            Ok(()) => anyhow::anyhow!("the guest ended {} without a word", record.last),
        });
    }
    record.clock = outcome.clock_stats;
    resolve_marks(&mut record);
    Ok(record)
}

fn script(programs: &Path, plan: &Plan) -> Result<String> {
    let plan = serde_json::to_string(plan).context("writing the plan")?;
    Ok(format!(
        "{}exec {XTASK} {GUEST_COMMAND} run <<'END-OF-PLAN'\n{plan}\nEND-OF-PLAN\n",
        script_prelude(programs)?,
    ))
}

fn listen(from: impl Read, plan: &Plan, progress: &Progress) -> Record {
    let mut record = Record {
        last: "while it booted".into(),
        ..Record::default()
    };
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        match serde_json::from_str::<Event>(&line) {
            Ok(event) => {
                progress.note(plan, &event);
                record.take(plan, event);
            }
            // Not ours: what a guest's shell has to say.
            Err(_) => eprintln!("{line}"),
        }
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(workload: &str) -> Run {
        Run {
            id: 7,
            workload: workload.into(),
            seed: 1,
            purpose: Purpose::Timed,
            offset_us: 0,
            command: vec!["true".into()],
        }
    }

    fn done(code: Option<i32>, output: &str) -> Done {
        Done {
            run: 7,
            code,
            output: output.into(),
            observed: None,
            seconds: 1.0,
            lapse: None,
        }
    }

    #[test]
    fn a_figure_needs_success_and_the_scheduler_in_force() {
        let run = run("hackbench-1");
        let good = done(Some(0), "Time: 0.5\n");
        assert_eq!(read_values(&run, &good), Ok(vec![0.5]));
        let lapsed = Done {
            lapse: Some("before the run scx_rr is not in force".into()),
            ..good
        };
        assert!(
            read_values(&run, &lapsed)
                .unwrap_err()
                .contains("not in force")
        );
        let failed = done(Some(1), "Time: 0.5\nfork: no memory\n\n");
        assert_eq!(
            read_values(&run, &failed),
            Err("exit code 1: fork: no memory".into())
        );
        assert!(
            read_values(&run, &done(None, ""))
                .unwrap_err()
                .contains("signal")
        );
    }

    #[test]
    fn reports_become_a_record() {
        let plan = Plan {
            schedulers: vec![],
            turns: vec![Turn {
                scheduler: "rr".into(),
                runs: vec![run("hackbench-1")],
            }],
        };
        let mut record = Record::default();
        let events = [
            Event::Loaded {
                scheduler: "rr".into(),
                ops: "rr_1".into(),
            },
            Event::Started { run: 7 },
            Event::Done(done(Some(0), "Time: 0.25\n")),
            Event::Ejected {
                scheduler: "rr".into(),
                why: "stalled".into(),
            },
            Event::End,
        ];
        for event in events {
            // As it travels.
            let line = serde_json::to_string(&event).unwrap();
            record.take(&plan, serde_json::from_str(&line).unwrap());
        }
        assert_eq!(record.ops["rr"], "rr_1");
        assert_eq!(record.samples[0].values, [0.25]);
        assert_eq!(record.failed["rr"], "stalled");
        assert!(record.complete);
        assert_eq!(record.last, "after hackbench-1 under rr");
    }
}
