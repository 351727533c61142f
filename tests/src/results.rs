//! How cases went, kept in files: a line of JSON for each run of a case, in a file for each guest, in the folder that
//! `$MANYCORE_RESULTS` names. `cargo xtask test --full` goes on where it stopped with their help, and
//! `cargo xtask reliability` writes its page from them.

use crate::plan::{self, Bounds, Guest};
use crate::report::Outcome;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

/// Names the folder.
pub const RESULTS: &str = "MANYCORE_RESULTS";
/// What is tested: the checkout's commit.
pub const VERSION: &str = "MANYCORE_VERSION";
/// Set if cases that this version has passed already are to be left out.
pub const RESUME: &str = "MANYCORE_RESUME";

/// What the message of a case begins with that was not run, since its guest had gone or never come.
pub const NOT_RUN: &str = "not run: ";

/// One run of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub version: String,
    /// `6.12/t8`
    pub guest: String,
    pub kernel: String,
    pub scheduler: Option<String>,
    pub case: String,
    /// What the case is about, in a few words.
    pub what: String,
    /// Whether it is about faults, or about what finds them.
    pub fault: bool,
    pub bounds: Option<Bounds>,
    pub ok: bool,
    pub message: String,
    pub seconds: f64,
}

impl Record {
    /// `name`: `scx_rr/fair` or `topology`.
    pub fn new(guest: &Guest, name: &str, outcome: &Result<Outcome, String>) -> Self {
        let (scheduler, case) = match name.split_once('/') {
            Some((scheduler, case)) => (Some(scheduler), case),
            None => (None, name),
        };
        let known = plan::case(case);
        let fault = known.is_some_and(|case| case.about.is_fault());
        let bounds = scheduler
            .and_then(plan::scheduler_named)
            .map(|scheduler| scheduler.bounds);
        let (ok, message, seconds) = match outcome {
            Ok(outcome) => (outcome.ok, outcome.message.clone(), outcome.seconds),
            Err(why) => (false, why.clone(), 0.0),
        };
        Self {
            version: version(),
            guest: guest.name(),
            kernel: guest.kernel.to_owned(),
            scheduler: scheduler.map(str::to_owned),
            case: case.to_owned(),
            what: known.map_or("", |case| case.what).to_owned(),
            fault,
            bounds: bounds.filter(|_| fault),
            ok,
            message,
            seconds,
        }
    }

    fn trial(&self) -> String {
        match &self.scheduler {
            Some(scheduler) => format!("{}/{scheduler}/{}", self.guest, self.case),
            None => format!("{}/{}", self.guest, self.case),
        }
    }

    /// Adds it to the guest's file, if there is a folder for results.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn keep(&self) -> Result<()> {
        let Some(dir) = folder() else {
            return Ok(());
        };
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join(format!("{}.jsonl", self.guest.replace('/', "_")));
        let line = serde_json::to_string(self).context("putting a result into JSON")?;
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .with_context(|| format!("writing {}", path.display()))
    }
}

fn folder() -> Option<PathBuf> {
    std::env::var_os(RESULTS)
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
}

fn version() -> String {
    std::env::var(VERSION).unwrap_or_else(|_| "unknown".into())
}

/// The trials that need no other run, by their names. None unless that was asked for.
pub fn passed_already() -> BTreeSet<String> {
    let mut passed = BTreeSet::new();
    let (Some(dir), Some(_)) = (folder(), std::env::var_os(RESUME)) else {
        return passed;
    };
    let version = version();
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = files.map(|entry| entry.path()).collect();
    // What was kept of an earlier run comes first.
    paths.sort();
    for path in paths {
        let text = fs::read_to_string(path).unwrap_or_default();
        // A line that was cut off is of a run to be repeated.
        let records = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Record>(line).ok());
        for record in records.filter(|record| record.version == version) {
            if record.ok {
                passed.insert(record.trial());
            } else {
                passed.remove(&record.trial());
            }
        }
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::guest;

    #[test]
    fn a_record_says_what_it_is_about() {
        let outcome = Ok(Outcome {
            case: "scx_rr/fault_hotplug".into(),
            ok: true,
            message: "fine".into(),
            output: String::new(),
            seconds: 1.0,
        });
        let record = Record::new(guest("6.12/t8"), "scx_rr/fault_hotplug", &outcome);
        assert_eq!(record.trial(), "6.12/t8/scx_rr/fault_hotplug");
        assert!(record.fault && record.bounds.is_some() && !record.what.is_empty());
        let line = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    }
}
