//! `cargo xtask reliability`: the page about faults, from the results of test runs.

use crate::markdown;
use crate::results::{self, Bounds, Record};
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
    #[arg(long, short, default_value_os_t = results::kept().with_extension("md"))]
    output: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    let kept = results::read_file(&args.records)?;
    let mut new = Vec::new();
    for dir in &args.results {
        new.extend(results::read(dir)?);
    }
    let records = merged(kept, new);
    ensure!(
        records.iter().any(|record| record.fault),
        "there are no results about faults"
    );
    fs::write(&args.records, results::lines(&records)?)
        .with_context(|| format!("writing {}", args.records.display()))?;
    fs::write(&args.output, page(&records))
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

fn page(records: &[Record]) -> String {
    let faults: Vec<_> = records.iter().filter(|record| record.fault).collect();
    PAGE.replace("{versions}", &versions(&faults))
        .replace("{all}", &records.len().to_string())
        .replace("{runs}", &faults.len().to_string())
        .replace("{bounds}", &bounds(&faults))
        .replace("{checker}", &table(&faults, false))
        .replace("{faults}", &table(&faults, true))
        .replace("{failures}", &failures(&faults))
        .replace("{verified}", &verified(records))
        .replace("{matrix}", &matrix(records))
}

/// Each version, with what was tried at it.
fn versions(records: &[&Record]) -> String {
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
    markdown::table(
        ["scheduler", "guest", "what the verifier looked at"],
        rows.into_iter()
            .map(|((scheduler, guest), now)| [scheduler, guest, now].map(str::to_owned).to_vec()),
    )
}

fn bounds(records: &[&Record]) -> String {
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
    let row = |(scheduler, (bounds, most)): (&str, (Bounds, Option<u64>))| {
        vec![
            scheduler.to_owned(),
            format!("{} ms", bounds.wait_ms),
            format!("{} ms", bounds.idle_ms),
            most.map_or_else(|| "-".into(), |ms| format!("{ms} ms")),
        ]
    };
    markdown::table(
        [
            "scheduler",
            "no task waits for longer than",
            "no CPU idles beside work for longer than",
            "longest wait seen",
        ],
        rows.into_iter().map(row),
    )
}

/// From a message of the checker's.
fn longest_wait(message: &str) -> Option<u64> {
    let (_, rest) = message.split_once("longest wait ")?;
    rest.split_once(" ms")?.0.parse().ok()
}

/// A scheduler, if it is about one, and a guest.
type Column<'a> = (Option<&'a str>, &'a str);

/// A row for each guest, a column for each scheduler: how many cases passed when they ran last, of how many, and the time and
/// the versions of these runs.
fn matrix(records: &[Record]) -> String {
    let mut columns = BTreeSet::new();
    let mut passed: BTreeMap<(&str, Option<&str>), (usize, usize)> = BTreeMap::new();
    let mut rows: BTreeMap<&str, (f64, BTreeSet<&str>)> = BTreeMap::new();
    for record in results::last_runs(records) {
        let column = record.scheduler.as_deref();
        columns.insert(column);
        let (ok, of) = passed.entry((&record.guest, column)).or_default();
        *ok += usize::from(record.ok);
        *of += 1;
        let (seconds, versions) = rows.entry(&record.guest).or_default();
        *seconds += record.seconds;
        versions.insert(&record.version);
    }
    let mut header = vec!["guest"];
    header.extend(columns.iter().map(|column| column.unwrap_or("none")));
    header.extend(["minutes", "version"]);
    let row = |(guest, (seconds, versions)): (&str, (f64, BTreeSet<&str>))| {
        let mut row = vec![guest.to_owned()];
        row.extend(columns.iter().map(|column| {
            let cell = passed.get(&(guest, *column));
            cell.map_or_else(String::new, |(ok, of)| format!("{ok} of {of}"))
        }));
        row.push(format!("{:.1}", seconds / 60.0));
        row.push(versions.into_iter().collect::<Vec<_>>().join(", "));
        row
    };
    markdown::table(header, rows.into_iter().map(row))
}

/// A row for each case, a column for each scheduler and guest.
fn table(records: &[&Record], of_schedulers: bool) -> String {
    let records = records
        .iter()
        .filter(|record| record.scheduler.is_some() == of_schedulers);
    let mut columns = BTreeSet::new();
    let mut rows: BTreeMap<(&str, &str), BTreeMap<Column<'_>, Vec<&Record>>> = BTreeMap::new();
    for &record in records {
        let column = (record.scheduler.as_deref(), record.guest.as_str());
        columns.insert(column);
        let row = rows.entry((&record.case, &record.what)).or_default();
        row.entry(column).or_default().push(record);
    }
    let mut header = ["case", "what happens"].map(str::to_owned).to_vec();
    header.extend(columns.iter().map(|(scheduler, guest)| match scheduler {
        Some(scheduler) => format!("{scheduler} {guest}"),
        None => (*guest).to_owned(),
    }));
    let row = |((case, what), of_columns): ((&str, &str), BTreeMap<_, Vec<_>>)| {
        let mut row = vec![format!("`{case}`"), what.to_owned()];
        row.extend(columns.iter().map(|column| {
            let runs = of_columns.get(column);
            runs.map_or_else(String::new, |runs| cell(runs))
        }));
        row
    };
    markdown::table(header, rows.into_iter().map(row))
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

fn failures(records: &[&Record]) -> String {
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
        let of_others = |guest: &str, case: &str, message: &str| Record {
            fault: false,
            ..record(guest, case, true, message)
        };
        let page = page(&[
            record("6.12/t8", "fault_rt", true, &waits(12)),
            record("6.12/t8", "fault_rt", true, &waits(345)),
            record("6.12/t8", "fault_rt", false, "1 violations: at 3 s\nmore"),
            of_others("6.12/t8", "verified", "12 programs; last time 13"),
            of_others("6.12/t8", "verified", "14 programs; last time 12"),
            of_others("debian/t1", "loads", "fine"),
        ]);
        // The fault failed when it ran last.
        assert!(
            page.contains(
                "| guest | scx_rr | minutes | version |\n|---|---|---|---|\n| 6.12/t8 | 1 of 2 | 0.1 | 1 |\n| debian/t1 | 1 of 1 | 0.0 | 1 |"
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
