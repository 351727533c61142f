//! `cargo xtask reliability`: the page about faults, from the results of test runs.

use crate::results::{self, Record};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// What the page says whatever the results are.
const PAGE: &str = include_str!("reliability.md");
/// The case about the verifier.
const VERIFIED: &str = "verified";

/// Write docs/reliability.md: what was tried, how often, and what was found
///
/// The results are those that tests write while $MANYCORE_RESULTS names a folder. They are kept
/// in docs/reliability.jsonl, since all of them take hours: what is new of a case in a guest
/// takes the place of what was kept of it. Without new ones, the page is written anew from what
/// is kept.
///
/// Example:
///   export MANYCORE_RESULTS=/tmp/results
///   cargo xtask test --full --fresh -- 6.12/t8/scx_rr/fault
///   cargo xtask reliability /tmp/results
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Folders of new results
    results: Vec<PathBuf>,
    /// Where the page's results are kept
    #[arg(long, default_value_os_t = results::kept())]
    records: PathBuf,
    /// Where to write the page
    #[arg(long, short, default_value_os_t = workspace::root().join("docs/reliability.md"))]
    output: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let kept = if args.records.exists() {
        results::read_file(&args.records)?
    } else {
        Vec::new()
    };
    let mut new = Vec::new();
    for dir in &args.results {
        new.extend(results::read(dir)?);
    }
    let records = merged(kept, new);
    let (faults, others): (Vec<_>, Vec<_>) =
        records.iter().cloned().partition(|record| record.fault);
    ensure!(!faults.is_empty(), "there are no results about faults");
    fs::write(&args.records, results::lines(&records)?)
        .with_context(|| format!("writing {}", args.records.display()))?;
    fs::write(&args.output, page(&faults, &others))
        .with_context(|| format!("writing {}", args.output.display()))
}

/// Of both, where there are new results of a case in a guest, those.
fn merged(mut kept: Vec<Record>, mut new: Vec<Record>) -> Vec<Record> {
    new.retain(|record| !record.was_not_run());
    let renewed: BTreeSet<_> = new.iter().map(Record::trial).collect();
    kept.retain(|record| !renewed.contains(&record.trial()));
    kept.extend(new);
    // Runs of the same stay in their order.
    kept.sort_by_key(Record::trial);
    kept
}

fn page(records: &[Record], others: &[Record]) -> String {
    PAGE.replace("{versions}", &versions(records))
        .replace("{runs}", &records.len().to_string())
        .replace("{bounds}", &bounds(records))
        .replace("{checker}", &table(records, false))
        .replace("{faults}", &table(records, true))
        .replace("{failures}", &failures(records))
        .replace("{verified}", &verified(others))
        .replace("{matrix}", &matrix(records, others))
}

/// Each version, with what was tried at it.
fn versions(records: &[Record]) -> String {
    let mut tried: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for record in records {
        let of = record.scheduler.as_deref().unwrap_or("the checker");
        tried.entry(&record.version).or_default().insert(of);
    }
    let told: Vec<_> = tried
        .into_iter()
        .map(|(version, of)| {
            let of: Vec<_> = of.into_iter().collect();
            format!("{version} ({})", of.join(", "))
        })
        .collect();
    told.join(" and ")
}

/// What the last run of the case `verified` said of each scheduler in each guest.
fn verified(records: &[Record]) -> String {
    let mut rows = BTreeMap::new();
    for record in records.iter().filter(|r| r.case == VERIFIED && r.ok) {
        // What it was last time follows.
        let now = record.message.split(';').next().unwrap_or_default();
        let scheduler = record.scheduler.as_deref().unwrap_or_default();
        rows.insert((scheduler, record.guest.as_str()), now);
    }
    let mut text =
        String::from("| scheduler | guest | what the verifier looked at |\n|---|---|---|\n");
    for ((scheduler, guest), now) in rows {
        let _ = writeln!(text, "| {scheduler} | {guest} | {now} |");
    }
    text
}

fn bounds(records: &[Record]) -> String {
    let mut rows = BTreeMap::new();
    for record in records {
        if let (Some(scheduler), Some(bounds)) = (&record.scheduler, record.bounds) {
            rows.entry(scheduler.as_str()).or_insert((bounds, None));
        }
    }
    for record in records {
        let waited = longest_wait(&record.message);
        if let Some((_, most)) = record
            .scheduler
            .as_deref()
            .and_then(|name| rows.get_mut(name))
        {
            *most = (*most).max(waited);
        }
    }
    let mut text = String::from(
        "| scheduler | no task waits for longer than | no CPU idles beside work for longer than | longest wait seen |\n\
         |---|---|---|---|\n",
    );
    for (scheduler, (bounds, most)) in rows {
        let most = most.map_or_else(|| "-".into(), |ms: u64| format!("{ms} ms"));
        let _ = writeln!(
            text,
            "| {scheduler} | {} ms | {} ms | {most} |",
            bounds.wait_ms, bounds.idle_ms
        );
    }
    text
}

/// From a message of the checker's.
fn longest_wait(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("longest wait ")?;
    rest.split_once(" ms")?.0.parse().ok()
}

/// A scheduler, if it is about one, and a guest.
type Column<'a> = (&'a str, &'a str);

/// A row for each guest, a column for each scheduler: how many cases passed when they ran last, of how many.
fn matrix(faults: &[Record], others: &[Record]) -> String {
    let mut last = BTreeMap::new();
    for record in faults.iter().chain(others) {
        last.insert(record.trial(), record);
    }
    let mut columns = BTreeSet::new();
    let mut rows: BTreeMap<&str, BTreeMap<Option<&str>, (usize, usize)>> = BTreeMap::new();
    for record in last.into_values() {
        let column = record.scheduler.as_deref();
        columns.insert(column);
        let row = rows.entry(&record.guest).or_default();
        let (passed, of) = row.entry(column).or_default();
        *passed += usize::from(record.ok);
        *of += 1;
    }
    let mut text = String::from("| guest |");
    for column in &columns {
        let _ = write!(text, " {} |", column.unwrap_or("none"));
    }
    let _ = write!(text, "\n|---|{}\n", "---|".repeat(columns.len()));
    for (guest, row) in rows {
        let _ = write!(text, "| {guest} |");
        for column in &columns {
            let cell = row
                .get(column)
                .map(|(passed, of)| format!("{passed} of {of}"));
            let _ = write!(text, " {} |", cell.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

/// A row for each case, a column for each scheduler and kernel.
fn table(records: &[Record], of_schedulers: bool) -> String {
    let records = records
        .iter()
        .filter(|r| r.scheduler.is_some() == of_schedulers);
    let mut columns = BTreeSet::new();
    let mut rows: BTreeMap<(&str, &str), BTreeMap<Column<'_>, Vec<&Record>>> = BTreeMap::new();
    for record in records {
        let column = (
            record.scheduler.as_deref().unwrap_or_default(),
            record.guest.as_str(),
        );
        columns.insert(column);
        let row = rows.entry((&record.case, &record.what)).or_default();
        row.entry(column).or_default().push(record);
    }
    let mut text = String::from("| case | what happens |");
    for (scheduler, guest) in &columns {
        let space = if scheduler.is_empty() { "" } else { " " };
        let _ = write!(text, " {scheduler}{space}{guest} |");
    }
    let _ = write!(text, "\n|---|---|{}\n", "---|".repeat(columns.len()));
    for ((case, what), row) in rows {
        let _ = write!(text, "| `{case}` | {what} |");
        for column in &columns {
            let _ = write!(
                text,
                " {} |",
                row.get(column).map(|runs| cell(runs)).unwrap_or_default()
            );
        }
        text.push('\n');
    }
    text
}

/// `3 of 3, 215 ms`: runs that passed, and the longest wait of any of them.
fn cell(runs: &[&Record]) -> String {
    let passed = runs.iter().filter(|record| record.ok).count();
    let waited = runs
        .iter()
        .filter_map(|record| longest_wait(&record.message))
        .max();
    let waited = waited.map(|ms| format!(", {ms} ms")).unwrap_or_default();
    format!("{passed} of {}{waited}", runs.len())
}

fn failures(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records.iter().filter(|record| !record.ok) {
        let scheduler = record.scheduler.as_deref().unwrap_or("machine");
        let first = record.message.lines().next().unwrap_or_default();
        // A list of violations can be long.
        let first: String = first.chars().take(300).collect();
        let _ = writeln!(
            text,
            "- `{}`, {scheduler} on {} at {}: {first}",
            record.case, record.guest, record.version
        );
    }
    if text.is_empty() {
        text.push_str("None.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::record;

    #[test]
    fn new_results_take_the_place_of_those_of_the_same_case_and_guest() {
        let kept = vec![
            record("6.12/t8", "fault_rt", false, "old"),
            record("debian/t8", "fault_rt", true, "kept"),
        ];
        let new = vec![
            record("6.12/t8", "fault_rt", true, "first"),
            record("6.12/t8", "fault_rt", true, "second"),
            record("6.12/t8", "faults", false, "not run: the guest had gone"),
        ];
        let merged = merged(kept, new);
        let messages: Vec<_> = merged.iter().map(|it| it.message.as_str()).collect();
        assert_eq!(messages, ["first", "second", "kept"]);
    }

    #[test]
    fn the_page_tells_runs_waits_and_failures() {
        let waits = |ms: u64| {
            format!("9 times; no violation, longest wait {ms} ms of 5000 (spin 7, CPU 1)")
        };
        let records = [
            record("6.12/t8", "fault_rt", true, &waits(12)),
            record("6.12/t8", "fault_rt", true, &waits(345)),
            record("6.12/t8", "fault_rt", false, "1 violations: at 3 s\nmore"),
        ];
        let mut others = ["12 programs; last time 13", "14 programs; last time 12"]
            .map(|message| record("6.12/t8", "verified", true, message))
            .to_vec();
        others.push(record("debian/t1", "loads", true, "fine"));
        let page = page(&records, &others);
        // The fault failed when it ran last.
        assert!(
            page.contains(
                "| guest | scx_rr |\n|---|---|\n| 6.12/t8 | 1 of 2 |\n| debian/t1 | 1 of 1 |"
            ),
            "{page}"
        );
        assert!(
            page.contains("| scx_rr | 6.12/t8 | 14 programs |\n"),
            "{page}"
        );
        assert!(!page.contains("| 12 programs"), "{page}");
        assert!(page.contains("| 2 of 3, 345 ms |"), "{page}");
        assert!(
            page.contains("| scx_rr | 5000 ms | 2000 ms | 345 ms |"),
            "{page}"
        );
        assert!(page.contains("1 violations: at 3 s\n"), "{page}");
        assert!(!page.contains('{'), "something was not filled in: {page}");
    }
}
