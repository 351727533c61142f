//! `bench --compare OLD NEW`: what a change did.

use super::results::{Kind, Results};
use super::stats::{self, Interval, Verdict};
use super::text::short;
use super::workload::Metric;
use crate::failure::{Exit, Usage};
use crate::ui;
use anyhow::Result;

/// A figure in both.
#[derive(Debug, PartialEq)]
struct Change<'a> {
    workload: &'a Kind,
    metric: &'a Metric,
    scheduler: &'a str,
    old: f64,
    new: f64,
    ratio: Interval,
    verdict: Verdict,
}

/// Prints the differences; ends with exit code 1 if something got worse.
pub fn run(old: &Results, new: &Results) -> Result<()> {
    check(old, new)?;
    let changes = changes(old, new);
    let mut table = ui::table(["workload", "scheduler", "old", "new", "new / old", ""]);
    for change in &changes {
        let name = format!("{} {}", change.workload.title, change.metric.name);
        let figure = |value| format!("{} {}", short(value), change.metric.unit);
        table.add_row([
            name.trim().to_owned(),
            change.scheduler.to_owned(),
            figure(change.old),
            figure(change.new),
            format!(
                "{} [{} to {}]",
                short(change.ratio.value),
                short(change.ratio.low),
                short(change.ratio.high)
            ),
            change.verdict.text().to_owned(),
        ]);
    }
    println!("{table}");
    let lost = lost(old, new);
    for line in &lost {
        println!("{line}");
    }
    let worse = changes
        .iter()
        .filter(|change| change.verdict == Verdict::Worse)
        .count();
    if worse + lost.len() > 0 {
        return Err(Exit::with(
            1,
            format!("{worse} figures got worse, {} were lost", lost.len()),
        )
        .into());
    }
    Ok(())
}

/// Figures that were taken differently are not compared.
fn check(old: &Results, new: &Results) -> Result<()> {
    for results in [old, new] {
        if let Some(why) = &results.functional_only {
            return Err(Usage(format!("not comparable, functional only: {why}")).into());
        }
    }
    for (what, a, b) in [
        ("clocks", &old.clock, &new.clock),
        ("topologies", &old.topology, &new.topology),
        (
            "kernels",
            &old.kernels().join(", "),
            &new.kernels().join(", "),
        ),
    ] {
        if a != b {
            return Err(Usage(format!("their {what} differ: {a}, and {b}")).into());
        }
    }
    Ok(())
}

fn changes<'a>(old: &'a Results, new: &'a Results) -> Vec<Change<'a>> {
    let mut list = Vec::new();
    for workload in &new.workloads {
        for metric in &workload.metrics {
            for scheduler in &new.schedulers {
                let before = old.values(&scheduler.name, workload, metric);
                let after = new.values(&scheduler.name, workload, metric);
                if let Some(ratio) = stats::ratio_interval(&after, &before) {
                    list.push(Change {
                        workload,
                        metric,
                        scheduler: &scheduler.title,
                        old: stats::median(&before).unwrap_or_default(),
                        new: stats::median(&after).unwrap_or_default(),
                        ratio,
                        verdict: stats::verdict(
                            &ratio,
                            before.len().min(after.len()),
                            metric.better,
                        ),
                    });
                }
            }
        }
    }
    list
}

/// What had a figure and has none any more, though it was asked for.
fn lost(old: &Results, new: &Results) -> Vec<String> {
    let mut list = Vec::new();
    for workload in &new.workloads {
        for scheduler in &new.schedulers {
            let metric = &workload.metrics[0];
            let had = |r: &Results| !r.values(&scheduler.name, workload, metric).is_empty();
            if had(old) && !had(new) {
                list.push(format!(
                    "{}: no figure any more under {}",
                    workload.title, scheduler.title
                ));
            }
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn nothing_changed_is_no_regression() {
        run(&results(), &results()).unwrap();
    }

    #[test]
    fn a_regression_ends_with_one() {
        let mut new = results();
        for sample in &mut new.guests[0].record.samples {
            if sample.scheduler == "fast" {
                sample.values[0] *= 1.5;
            }
        }
        let old = results();
        let changes = changes(&old, &new);
        let worse: Vec<_> = changes
            .iter()
            .filter(|change| change.verdict == Verdict::Worse)
            .map(|change| change.scheduler)
            .collect();
        assert_eq!(worse, ["scx_fast"]);
        assert!(run(&old, &new).unwrap_err().is::<Exit>());
        // The other way round it is an improvement.
        run(&new, &old).unwrap();
    }

    #[test]
    fn a_lost_figure_is_a_regression() {
        let mut new = results();
        let samples = &mut new.guests[0].record.samples;
        samples.retain(|sample| sample.scheduler != "slow");
        assert_eq!(
            lost(&results(), &new),
            ["perf bench sched pipe: no figure any more under scx_slow"]
        );
        assert!(run(&results(), &new).is_err());
    }

    #[test]
    fn what_was_measured_differently_is_refused() {
        let mut other = results();
        other.clock = "real".into();
        assert!(run(&results(), &other).unwrap_err().is::<Usage>());
        let mut other = results();
        other.functional_only = Some("plain TCG".into());
        assert!(run(&results(), &other).unwrap_err().is::<Usage>());
    }
}
