//! `bench --docs FILE RESULTS...`: results as a page of the documentation.

use super::results::{Outcome, Results, Row};
use super::stats::Verdict;
use super::text::{OBSERVATIONS, checks, observations, short, title};
use crate::markdown;
use std::fmt::Write as _;
use std::iter::once;

/// One page about all of these.
pub fn page(all: &[Results]) -> String {
    let mut text = String::from(
        "# Results\n\nThis page is made by `cargo xtask bench --docs`, not typed; [method.md](method.md) says what the workloads and the clock \
         are, and what may be concluded. A cell is the ratio of medians to EEVDF's, with its 95% interval; **bold** where the interval \
         excludes 1 in the scheduler's favour, *italic* where it does against it, plain where no difference is shown. Below 1 is better, but for \
         figures that are marked \"higher is better\".\n",
    );
    for results in all {
        text += &section(results);
    }
    text
}

fn section(results: &Results) -> String {
    let mut text = format!(
        "\n## {} on {}\n\n",
        results.kernels().join(" and "),
        results.topology
    );
    if let Some(why) = &results.functional_only {
        let _ = writeln!(text, "Functional only: {why}");
        return text;
    }
    text += &table(results);
    text += &failures(results);
    text += &reasons(results);
    let _ = write!(
        text,
        "\n- clock: {}\n- {} runs of each\n",
        results.clock, results.seeds
    );
    for check in checks(results) {
        let _ = writeln!(text, "- {check}");
    }
    let _ = writeln!(
        text,
        "- commit {}, QEMU {}, made on {}\n- `{}`",
        results.commit,
        results.qemu,
        results.host,
        results.command.join(" ")
    );
    text
}

fn table(results: &Results) -> String {
    let shown: Vec<_> = results
        .schedulers
        .iter()
        .filter(|scheduler| results.failure(&scheduler.name).is_none())
        .collect();
    let header = shown.iter().map(|scheduler| scheduler.title.as_str());
    let all = results.rows();
    let mut rows = Vec::new();
    let mut from = 0;
    while from < all.len() {
        let heading = title(&all[from]);
        let line: Vec<_> = all[from..]
            .iter()
            .take_while(|row| title(row) == heading)
            .collect();
        from += line.len();
        let higher = match line[0].metric.better {
            super::workload::Better::Higher => " (higher is better)",
            super::workload::Better::Lower => "",
        };
        let mut row = vec![format!("{heading}{higher}")];
        row.extend(
            line.into_iter()
                .filter(|row| results.failure(&row.scheduler.name).is_none())
                .map(cell),
        );
        rows.push(row);
    }
    markdown::table(once("workload").chain(header), rows)
}

/// A figure of the baseline, a ratio of others; a figure too where the baseline's is 0, or none.
fn cell(row: &Row<'_>) -> String {
    match &row.outcome {
        Outcome::Failed(why) => why.replace('|', "/"),
        Outcome::Measured {
            median,
            against: None,
            ..
        } => format!("{} {}", short(median.value), row.metric.unit)
            .trim()
            .to_owned(),
        Outcome::Measured {
            against: Some((ratio, verdict)),
            ..
        } => {
            let mark = match verdict {
                Verdict::Better => "**",
                Verdict::Worse => "*",
                Verdict::NoneShown | Verdict::TooFew => "",
            };
            format!(
                "{mark}{}{mark} [{} to {}]",
                short(ratio.value),
                short(ratio.low),
                short(ratio.high)
            )
        }
    }
}

fn failures(results: &Results) -> String {
    let lines: String = results
        .schedulers
        .iter()
        .filter_map(|scheduler| {
            let why = results.failure(&scheduler.name)?;
            Some(format!("- {}: {}\n", scheduler.title, in_short(why)))
        })
        .collect();
    if lines.is_empty() {
        lines
    } else {
        format!("\nNo figures:\n\n{lines}")
    }
}

fn reasons(results: &Results) -> String {
    let rows = observations(results);
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\nWhy, as `manycore observe` saw it in one more run of each:\n\n{}",
        markdown::table(OBSERVATIONS, rows)
    )
}

/// Of what a scheduler said in failing, the first words and its last error: what is between is its log, with colours and
/// paths of the machine. All of it is in results.json.
fn in_short(why: &str) -> String {
    let what = why.split(':').next().unwrap_or(why);
    match why.rsplit_once("Error: ") {
        Some((_, error)) => format!("{what}: {}", error.trim()),
        None => why.chars().filter(|c| !c.is_control()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn wins_losses_and_failures_are_on_the_page() {
        let page = page(&[results()]);
        for expected in [
            "| perf bench sched pipe | 10.03 us/op | **0.501**",
            "*3.9",
            "- scx_bad: failed to load: <EACCES>",
            "`cargo xtask bench`",
        ] {
            assert!(page.contains(expected), "{expected} in {page}");
        }
        assert!(!page.contains("| scx_bad |"));
    }

    #[test]
    fn a_long_log_is_cut_to_its_error() {
        let why = "failed to load: ended with exit status: 1: \u{1b}[2m/x/y.rs: WARN; Error: No layer spec";
        assert_eq!(in_short(why), "failed to load: No layer spec");
        assert_eq!(
            in_short("failed to load: <EACCES>"),
            "failed to load: <EACCES>"
        );
    }

    #[test]
    fn figures_that_mean_nothing_are_not_told() {
        let mut results = results();
        results.functional_only = Some("plain TCG".into());
        let page = page(&[results]);
        assert!(page.contains("plain TCG") && !page.contains("10.03"));
    }
}
