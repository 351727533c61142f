//! What test runs have written of each case (`tests/src/results.rs`), read and put into tables.

use crate::cmd;
use crate::workspace;
use anyhow::{Context, Result};
use comfy_table::Table;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One run of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub version: String,
    /// `6.12/t8`
    pub guest: String,
    #[serde(default)]
    pub kernel: String,
    pub scheduler: Option<String>,
    pub case: String,
    pub what: String,
    pub fault: bool,
    pub bounds: Option<Bounds>,
    pub ok: bool,
    pub message: String,
    #[serde(default)]
    pub seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    pub wait_ms: u64,
    pub idle_ms: u64,
}

impl Record {
    /// Not of what was tested, but of a guest that had gone before its turn.
    pub fn was_not_run(&self) -> bool {
        self.message.starts_with("not run: ")
    }

    /// What it is called as a test: `6.12/t8/scx_rr/fair` or `6.12/t8/topology`.
    pub fn trial(&self) -> String {
        match &self.scheduler {
            Some(scheduler) => format!("{}/{scheduler}/{}", self.guest, self.case),
            None => format!("{}/{}", self.guest, self.case),
        }
    }
}

/// All of a folder, in the order in which they were written to each file.
///
/// # Errors
/// If the folder or a file can't be read.
pub fn read(dir: &Path) -> Result<Vec<Record>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        paths.push(
            entry
                .with_context(|| format!("reading {}", dir.display()))?
                .path(),
        );
    }
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "jsonl"));
    paths.sort();
    let mut records = Vec::new();
    for path in paths {
        records.extend(read_file(&path)?);
    }
    Ok(records)
}

/// All of a file; nothing, if there is none.
///
/// # Errors
/// If it can't be read.
pub fn read_file(path: &Path) -> Result<Vec<Record>> {
    let text = workspace::read_if_there(path)?;
    // A line that was cut off says nothing.
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// What the checkout keeps of runs of the full set.
pub fn kept() -> PathBuf {
    workspace::root().join("docs/reliability.jsonl")
}

/// Has a folder begin with what `kept` has of this version, but for what it has itself: the rest may have been run on another
/// machine.
///
/// # Errors
/// If `kept` or the folder can't be read, or the folder can't be written to.
pub fn take_over(dir: &Path, kept: &Path, version: &str) -> Result<()> {
    // By its name, it comes before those of the guests.
    let path = dir.join("0-kept.jsonl");
    let write = |records: &[Record]| {
        fs::write(&path, lines(records)?).with_context(|| format!("writing {}", path.display()))
    };
    write(&[])?;
    let own = read(dir)?;
    let mut records = read_file(kept)?;
    records.retain(|record| record.version == version && !own.contains(record));
    write(&records)
}

/// As they are kept: a line of JSON for each.
///
/// # Errors
/// Not that we know.
pub fn lines(records: &[Record]) -> Result<String> {
    let mut lines = String::new();
    for record in records {
        lines += &serde_json::to_string(record).context("putting a result into JSON")?;
        lines.push('\n');
    }
    Ok(lines)
}

/// All but what no test in a guest looks at, as git pathspecs.
const TESTED: [&str; 4] = [".", ":(exclude)docs", ":(exclude)*.md", ":(exclude).ci"];

/// What is tested: the last commit that changed more than pages, and whether there is more than that. None if git does
/// not say.
pub fn version() -> Option<String> {
    version_of(workspace::root(), &TESTED)
}

/// The checkout's commit, pages included, and whether there is more than that. None if git does not say.
pub fn commit() -> Option<String> {
    version_of(workspace::root(), &[])
}

fn version_of(dir: &Path, paths: &[&str]) -> Option<String> {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args(args).arg("--").args(paths);
        cmd::output(git.current_dir(dir)).ok()
    };
    let commit = git(&["log", "-1", "--format=%h", "--abbrev=12"])?;
    let commit = commit.trim();
    let changes = git(&["status", "--porcelain"])?;
    let dirty = if changes.trim().is_empty() {
        ""
    } else {
        "-dirty"
    };
    Some(format!("{commit}{dirty}")).filter(|_| !commit.is_empty())
}

/// The last run of each trial.
pub fn last_runs(records: &[Record]) -> impl Iterator<Item = &Record> {
    let last: BTreeMap<_, _> = records
        .iter()
        .map(|record| (record.trial(), record))
        .collect();
    last.into_values()
}

/// Those that failed when they ran last.
pub fn failed(records: &[Record]) -> Vec<&Record> {
    last_runs(records).filter(|record| !record.ok).collect()
}

/// A row for each case, a column for each guest; the last run of each counts.
pub fn cells(records: &[Record]) -> Table {
    let guests: BTreeSet<&str> = records.iter().map(|record| record.guest.as_str()).collect();
    let mut rows: BTreeMap<(Option<&str>, &str), BTreeMap<&str, &Record>> = BTreeMap::new();
    for record in last_runs(records) {
        let row = (record.scheduler.as_deref(), record.case.as_str());
        rows.entry(row).or_default().insert(&record.guest, record);
    }
    let mut table = crate::ui::table(["case"]);
    let mut header = vec!["case"];
    header.extend(&guests);
    table.set_header(header);
    for ((scheduler, case), row) in rows {
        let name = match scheduler {
            Some(scheduler) => format!("{scheduler}/{case}"),
            None => case.to_owned(),
        };
        let mut cells = vec![name];
        cells.extend(guests.iter().map(|guest| {
            let cell = match row.get(guest) {
                Some(record) if record.ok => "passed",
                Some(record) if record.was_not_run() => "not run",
                Some(_) => "FAILED",
                None => "",
            };
            cell.to_owned()
        }));
        table.add_row(cells);
    }
    table
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn record(guest: &str, case: &str, ok: bool, message: &str) -> Record {
        Record {
            version: "1".into(),
            guest: guest.into(),
            scheduler: Some("scx_rr".into()),
            case: case.into(),
            what: "something happens".into(),
            fault: true,
            bounds: Some(Bounds {
                wait_ms: 5000,
                idle_ms: 2000,
            }),
            ok,
            message: message.into(),
            kernel: "6.12".into(),
            seconds: 1.5,
        }
    }

    #[test]
    fn what_is_kept_of_this_version_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        let mut old = record("6.12/t8", "loads", true, "another version's");
        old.version = "0".into();
        let before = record("6.12/t8", "fair", false, "before");
        fs::write(&kept, lines(&[old, before]).unwrap()).unwrap();
        let now = record("6.12/t8", "fair", true, "now");
        let of_guest = dir.path().join("6.12_t8.jsonl");
        fs::write(of_guest, lines(&[now]).unwrap()).unwrap();
        for _again in 0..2 {
            take_over(dir.path(), &kept, "1").unwrap();
            let records = read(dir.path()).unwrap();
            let messages: Vec<_> = records.iter().map(|it| it.message.as_str()).collect();
            assert_eq!(messages, ["before", "now"]);
            // As if the folder's were kept meanwhile: none of them is there twice.
            fs::write(&kept, lines(&records).unwrap()).unwrap();
        }
        fs::remove_file(&kept).unwrap();
        take_over(dir.path(), &kept, "1").unwrap();
        let records = read(dir.path()).unwrap();
        assert_eq!(records.len(), 1, "nothing is kept");
    }

    #[test]
    fn pages_are_not_what_is_tested() {
        let dir = tempfile::tempdir().unwrap();
        let git = |args: &[&str]| {
            let mut git = Command::new("git");
            for setting in ["user.name=a", "user.email=a@b", "commit.gpgsign=false"] {
                git.args(["-c", setting]);
            }
            cmd::output(git.args(args).current_dir(dir.path())).unwrap();
        };
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let before = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, before + "more").unwrap();
        };
        let commit = || {
            git(&["add", "."]);
            git(&["commit", "--quiet", "--message", "change"]);
            version_of(dir.path(), &TESTED)
        };
        assert_eq!(version_of(dir.path(), &TESTED), None, "no repository");
        git(&["init", "--quiet"]);
        write("bpf/rr.bpf.c");
        let first = commit();
        assert_eq!(first.as_deref().map(str::len), Some(12), "{first:?}");
        for page in [
            "docs/method.md",
            "docs/shown/out.txt",
            "README.md",
            ".ci/run",
        ] {
            write(page);
            assert_eq!(version_of(dir.path(), &TESTED), first, "{page}");
            assert_eq!(commit(), first, "{page}");
        }
        write("bpf/rr.bpf.c");
        assert_eq!(
            version_of(dir.path(), &TESTED),
            first.clone().map(|it| it + "-dirty")
        );
        let second = commit();
        assert_ne!(second, first);
        write("bpf/new.bpf.c");
        assert_eq!(
            version_of(dir.path(), &TESTED),
            second.map(|it| it + "-dirty")
        );
    }

    #[test]
    fn the_last_run_counts() {
        let records = [
            record("6.12/t8", "loads", false, "wrong"),
            record("6.12/t8", "loads", true, "fine"),
            record("debian/t8", "loads", false, "wrong"),
        ];
        let table = cells(&records).to_string();
        assert!(table.contains("scx_rr/loads"), "{table}");
        assert_eq!(table.matches("passed").count(), 1, "{table}");
        assert_eq!(table.matches("FAILED").count(), 1, "{table}");
        let failed: Vec<_> = failed(&records)
            .iter()
            .map(|record| record.trial())
            .collect();
        assert_eq!(failed, ["debian/t8/scx_rr/loads"]);
    }
}
