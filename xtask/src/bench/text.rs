//! A bench on the terminal.

use super::plan::Purpose;
use super::results::{Guest, Outcome, Results, Row};
use super::stats::{Interval, Verdict};
use crate::ui;
use serde_json::Value;

/// What stands in place of figures that would say nothing.
pub const FUNCTIONAL_ONLY: &str = "functional only";

/// The whole report.
pub fn report(results: &Results) -> String {
    let table = if results.functional_only.is_some() {
        functional(results)
    } else {
        figures(results)
    };
    format!("\n{table}\n{}\n{}", reasons(results), setting(results))
}

/// What all figures depend on.
fn setting(results: &Results) -> String {
    let kernels = results.kernels();
    let mut text = format!(
        "kernel     {}\ntopology   {}\nclock      {}\nruns       {} of each, with different seeds; medians with 95% bootstrap intervals\n",
        kernels.join(" and "),
        results.topology,
        results.clock,
        results.seeds,
    );
    for line in checks(results) {
        text += &format!("check      {line}\n");
    }
    if let Some(why) = &results.functional_only {
        text += &format!("{FUNCTIONAL_ONLY}: {why}\n");
    }
    text
}

/// What each guest's clock says of itself, and the check that it passed.
pub fn checks(results: &Results) -> Vec<String> {
    let mut lines = Vec::new();
    for (at, Guest { kernel, record }) in results.guests.iter().enumerate() {
        let name = match results.guests.len() {
            1 => kernel.clone(),
            _ => format!("guest {}, {kernel}", at + 1),
        };
        let check = record.samples.iter().find(|s| s.purpose == Purpose::Check);
        if let Some([_, slowest, fastest]) = check.map(|s| s.values.as_slice()) {
            lines.push(format!(
                "{name}: pinned threads on all CPUs at once ran at {slowest:.3} to {fastest:.3} of the speed of one alone"
            ));
        }
        if record.clock.is_none() && results.by_virtual_clock() {
            lines.push(format!(
                "{name}: how far apart the clocks of busy CPUs were isn't known, as QEMU did not end in order"
            ));
        }
        if let Some(clock) = &record.clock {
            let us = |name: &str| {
                clock["skew_ns"][name]
                    .as_f64()
                    .map_or(f64::NAN, |ns| ns / 1000.0)
            };
            lines.push(format!(
                "{name}: clocks of busy CPUs were {} us apart at p99.9, {} us at most",
                us("p999"),
                us("max")
            ));
        }
    }
    lines
}

/// The table of all figures.
pub fn figures(results: &Results) -> String {
    let mut table = ui::table(["workload", "scheduler", "median", "ratio to EEVDF", ""]);
    let mut last = String::new();
    for row in results.rows() {
        let title = title(&row);
        let shown = if title == last { "" } else { &title };
        let [median, ratio, verdict] = cells(&row);
        table.add_row([shown, &row.scheduler.title, &median, &ratio, &verdict]);
        last = title;
    }
    table.to_string()
}

/// The workload and, if it has several, the metric.
pub fn title(row: &Row<'_>) -> String {
    format!("{} {}", row.workload.title, row.metric.name)
        .trim()
        .to_owned()
}

/// Median, ratio and verdict.
pub fn cells(row: &Row<'_>) -> [String; 3] {
    match &row.outcome {
        Outcome::Failed(why) => ["-".into(), "-".into(), why.clone()],
        Outcome::Measured {
            median, against, ..
        } => {
            let figure = format!("{} {}", bracketed(median), row.metric.unit);
            match against {
                None => [figure, String::new(), String::new()],
                Some((ratio, verdict)) => {
                    let text = match verdict {
                        Verdict::NoneShown => String::new(),
                        other => other.text().to_owned(),
                    };
                    [figure, bracketed(ratio), text]
                }
            }
        }
    }
}

fn bracketed(interval: &Interval) -> String {
    format!(
        "{} [{} to {}]",
        short(interval.value),
        short(interval.low),
        short(interval.high)
    )
}

/// Four digits or so.
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        v if v >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

/// The table of a guest whose figures mean nothing.
pub fn functional(results: &Results) -> String {
    let mut table = ui::table(["workload", "scheduler", "", "comparison"]);
    let mut last = String::new();
    for row in results.rows() {
        if row.workload.title == last && row.metric != &row.workload.metrics[0] {
            continue;
        }
        let shown = if row.workload.title == last {
            ""
        } else {
            &row.workload.title
        };
        let state = match &row.outcome {
            Outcome::Measured { runs, .. } => format!("ran {runs} times"),
            Outcome::Failed(why) => why.clone(),
        };
        table.add_row([shown, &row.scheduler.title, &state, FUNCTIONAL_ONLY]);
        last.clone_from(&row.workload.title);
    }
    table.to_string()
}

/// What `manycore observe` saw in runs of its own; nothing if there were none.
fn reasons(results: &Results) -> String {
    let rows = observations(results);
    if rows.is_empty() || results.functional_only.is_some() {
        return String::new();
    }
    let mut table = ui::table(OBSERVATIONS);
    let mut last = String::new();
    for mut row in rows {
        let workload = row[0].clone();
        if workload == last {
            row[0].clear();
        }
        table.add_row(row);
        last = workload;
    }
    format!("\nwhy, as `manycore observe` saw it in one more run of each:\n\n{table}\n")
}

pub const OBSERVATIONS: [&str; 6] = [
    "workload",
    "scheduler",
    "CPU time wasted",
    "longest violation",
    "p99 wakeup to run",
    "moves to another node",
];

pub fn observations(results: &Results) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for workload in &results.workloads {
        for scheduler in &results.schedulers {
            let Some(sample) = results.observed(&scheduler.name, &workload.name) else {
                continue;
            };
            let names = [workload.title.clone(), scheduler.title.clone()];
            let cells = match &sample.observed {
                Some(seen) => [
                    figure(seen, "/wasted/share_of_capacity", 100.0, "%"),
                    figure(seen, "/wasted/longest_violation_ms", 1.0, "ms"),
                    figure(seen, "/wakeup_to_run/p99_us", 1.0, "us"),
                    figure(seen, "/migrations/remote", 1.0, ""),
                ],
                None => {
                    let why = sample.failure.clone().unwrap_or("no report".into());
                    [why, "-".into(), "-".into(), "-".into()]
                }
            };
            rows.push([names.as_slice(), cells.as_slice()].concat());
        }
    }
    rows
}

fn figure(value: &Value, pointer: &str, scale: f64, unit: &str) -> String {
    value
        .pointer(pointer)
        .and_then(Value::as_f64)
        .map_or("-".into(), |number| {
            let number = number * scale;
            let text = if number.fract() == 0.0 {
                format!("{number}")
            } else {
                short(number)
            };
            format!("{text} {unit}").trim().to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn a_report_shows_losses_like_wins() {
        let text = report(&results());
        for expected in ["10.03 [10.01 to 10.05] us/op", "better", "worse", "EACCES"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }

    #[test]
    fn a_guest_without_a_fair_clock_gets_no_figures() {
        let mut results = results();
        results.functional_only = Some("plain TCG".into());
        let text = report(&results);
        assert!(text.contains(FUNCTIONAL_ONLY) && text.contains("ran 5 times"));
        assert!(!text.contains("10.03") && !text.contains("better") && !text.contains("us/op"));
        assert!(text.contains("EACCES"));
    }

    #[test]
    fn observations_are_shown_where_there_are_some() {
        let mut results = results();
        assert!(observations(&results).is_empty());
        let sample = &mut results.guests[0].record.samples[2];
        sample.purpose = Purpose::Observed;
        sample.observed = Some(serde_json::json!({
            "wasted": {"share_of_capacity": 0.253, "longest_violation_ms": null},
            "migrations": {"remote": 12},
        }));
        let rows = observations(&results);
        assert_eq!(rows[0][1..], ["scx_slow", "25.30 %", "-", "-", "12"]);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [12345.6, 123.45, 12.345, 1.2345, 0.12345, 0.012345].map(short);
        assert_eq!(
            shown,
            ["12346", "123.5", "12.35", "1.234", "0.123", "0.0123"]
        );
    }
}
