//! What `manycore policy` prints: tables for people, JSON for machines.

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets};
use control_plane::policy::{
    Assignment, Change, Entry, LeftAlone, Machine, Mistake, Policy, Report, Resolved, Service,
    Share,
};
use serde_json::{Value, json};

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Table,
    Json,
}

impl Format {
    pub(super) fn of(json: bool) -> Self {
        if json { Self::Json } else { Self::Table }
    }
}

/// Prints to standard output; whoever closes it has read enough.
pub(super) fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(err) if err.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("printing"),
    }
}

fn print_json(value: &Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(head);
    table
}

fn print_table(table: &Table) -> Result<()> {
    let lines = table.lines().map(|line| format!("{}\n", line.trim_end()));
    print(&lines.collect::<String>())
}

/// An empty value is easily overlooked.
fn or_none(value: &str) -> &str {
    if value.is_empty() { "(none)" } else { value }
}

pub(super) fn mistakes(mistakes: &[Mistake], format: Format) -> Result<()> {
    if format == Format::Json {
        let list: Vec<_> = mistakes
            .iter()
            .map(|m| json!({"file": m.file, "line": m.line, "reason": m.reason}))
            .collect();
        print_json(&json!({"ok": false, "mistakes": list}))?;
    }
    for mistake in mistakes {
        eprintln!("{mistake}");
    }
    Ok(())
}

pub(super) fn check(policy: &Policy, format: Format) -> Result<()> {
    let services = policy.services.len();
    match format {
        Format::Json => print_json(&json!({"ok": true, "services": services, "mistakes": []})),
        Format::Table => print(&format!(
            "{}: {services} {}, no mistake\n",
            policy.file.display(),
            if services == 1 { "service" } else { "services" }
        )),
    }
}

pub(super) fn services(
    policy: &Policy,
    resolved: &Resolved,
    machine: &Machine,
    format: Format,
) -> Result<()> {
    // A policy can be looked at where there are no cgroups.
    let cgroups = machine.cgroups().unwrap_or_default();
    let rows: Vec<(&Service, &Assignment, Vec<&String>)> = policy
        .services
        .iter()
        .zip(&resolved.services)
        .enumerate()
        .map(|(index, (service, assignment))| {
            let own = cgroups
                .keys()
                .filter(|path| policy.service_of(path) == Some(index));
            (service, assignment, own.collect())
        })
        .collect();
    if format == Format::Json {
        let service = |(service, a, cgroups): &(&Service, &Assignment, Vec<&String>)| {
            json!({
                "name": service.name, "match": service.matcher.as_str(), "line": service.line,
                "class": service.class, "slice_us": service.slice_us, "weight": a.weight,
                "cpus": ids(a.cpus.as_ref()), "mems": ids(a.mems.as_ref()), "exclusive": a.exclusive,
                "cgroups": cgroups,
            })
        };
        let list: Vec<_> = rows.iter().map(service).collect();
        return print_json(&json!({
            "numa_balancing": policy.numa_balancing.as_ref().map(|switch| switch.value),
            "services": list,
        }));
    }
    let mut table = table(&[
        "SERVICE",
        "CLASS",
        "CPUS",
        "MEMORY",
        "WEIGHT",
        "SLICE",
        "EXCLUSIVE",
        "CGROUPS",
    ]);
    for (service, a, cgroups) in rows {
        let slice = service
            .slice_us
            .map_or("-".to_owned(), |us| format!("{us} us"));
        let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
        let cgroups = match cgroups.as_slice() {
            [] => "none yet".to_owned(),
            [one] => (*one).clone(),
            several => format!("{} cgroups", several.len()),
        };
        table.add_row([
            service.name.clone(),
            service.class.to_string(),
            share(a.cpus.as_ref()),
            share(a.mems.as_ref()),
            number(a.weight),
            slice,
            if a.exclusive { "yes" } else { "-" }.to_owned(),
            cgroups,
        ]);
    }
    print_table(&table)
}

fn ids(share: Option<&Share>) -> Option<String> {
    share.map(|share| share.ids.to_string())
}

fn share(share: Option<&Share>) -> String {
    match share {
        None => "-".to_owned(),
        Some(share) if share.whole => format!("{} (all)", share.ids),
        Some(share) => share.ids.to_string(),
    }
}

pub(super) fn in_force(entries: &[Entry], machine: &Machine, format: Format) -> Result<()> {
    let now = |entry: &Entry| machine.read(&entry.target).ok();
    if format == Format::Json {
        let entry = |entry: &Entry| {
            json!({
                "target": entry.target.to_string(), "before": entry.before, "wrote": entry.wrote, "now": now(entry),
            })
        };
        return print_json(&json!({"changed": entries.iter().map(entry).collect::<Vec<_>>()}));
    }
    if entries.is_empty() {
        return print("no policy is in force\n");
    }
    let mut table = table(&["WHAT", "BEFORE", "WROTE", "NOW"]);
    for entry in entries {
        let now = now(entry);
        let now = now.as_deref().map_or("(gone)", or_none);
        let target = entry.target.to_string();
        table.add_row([
            target.as_str(),
            or_none(&entry.before),
            or_none(&entry.wrote),
            now,
        ]);
    }
    print_table(&table)
}

pub(super) fn diff(report: &Report, format: Format) -> Result<()> {
    if format == Format::Json {
        return print_report(report);
    }
    if report.changes.is_empty() {
        return print("no difference\n");
    }
    changes(&report.changes, "POLICY")
}

fn changes(changes: &[Change], to: &str) -> Result<()> {
    let mut table = table(&["WHAT", "NOW", to]);
    for change in changes {
        let target = change.target.to_string();
        table.add_row([target.as_str(), or_none(&change.from), or_none(&change.to)]);
    }
    print_table(&table)
}

fn print_report(report: &Report) -> Result<()> {
    let change = |change: &Change| {
        json!({
            "target": change.target.to_string(), "from": change.from, "to": change.to, "back": change.back,
        })
    };
    let left = |left: &LeftAlone| {
        json!({
            "target": left.target.to_string(), "wrote": left.wrote, "now": left.now, "reason": left.reason,
        })
    };
    print_json(&json!({
        "changes": report.changes.iter().map(change).collect::<Vec<_>>(),
        "left_alone": report.left_alone.iter().map(left).collect::<Vec<_>>(),
    }))
}

pub(super) fn applied(report: &Report, dry_run: bool, format: Format) -> Result<()> {
    tell_left_alone(&report.left_alone);
    if format == Format::Json {
        return print_report(report);
    }
    match (report.changes.len(), dry_run) {
        (0, true) => print("nothing would be written\n"),
        (0, false) => print("nothing had to be written\n"),
        (_, true) => changes(&report.changes, "WOULD BE"),
        (n, false) => print(&format!(
            "{n} {} written; `manycore policy restore` undoes it\n",
            values(n)
        )),
    }
}

pub(super) fn restored(report: &Report, format: Format) -> Result<()> {
    tell_left_alone(&report.left_alone);
    if format == Format::Json {
        return print_report(report);
    }
    match report.changes.len() {
        0 => print("nothing had to be put back\n"),
        n => print(&format!("{n} {} put back\n", values(n))),
    }
}

fn values(n: usize) -> &'static str {
    if n == 1 { "value" } else { "values" }
}

fn tell_left_alone(left_alone: &[LeftAlone]) {
    for left in left_alone {
        eprintln!(
            "manycore: left alone: {} is {:?}, not {:?} as written: {}",
            left.target, left.now, left.wrote, left.reason
        );
    }
}
