//! `report.html`: one file without scripts or other files, so that it can be mailed and opened anywhere.

use super::plots::{self, Line, Points};
use super::results::{Outcome, Results, Row};
use super::stats::{Interval, Verdict};
use super::text::{FUNCTIONAL_ONLY, OBSERVATIONS, cells, checks, observations, short, title};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:left;border-bottom:1px solid #ddd}\
.better{color:#05713b}.worse{color:#b00020}.none{color:#555}svg text{font:13px sans-serif}h2{margin-top:2em}";

/// One page about all of these, which may be of machines of different sizes.
pub fn page(all: &[Results]) -> String {
    let body: String = std::iter::once(scaling(all))
        .chain(all.iter().map(chapter))
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>manycore bench</title>\
         <style>{STYLE}</style></head><body>\n{body}</body></html>\n"
    )
}

/// Ratios to the baseline by the number of CPUs, where there are results of several sizes.
fn scaling(all: &[Results]) -> String {
    let mut charts: BTreeMap<(String, String), BTreeMap<String, Points>> = BTreeMap::new();
    for results in all
        .iter()
        .filter(|results| results.functional_only.is_none())
    {
        for row in results.rows() {
            if let Outcome::Measured {
                against: Some((ratio, _)),
                ..
            } = &row.outcome
            {
                charts
                    .entry((results.kernels().join(" and "), title(&row)))
                    .or_default()
                    .entry(row.scheduler.title.clone())
                    .or_default()
                    .push((results.cpus() as f64, ratio.value));
            }
        }
    }
    let mut text = String::new();
    for ((kernel, heading), lines) in charts {
        let lines: Vec<Line> = lines
            .into_iter()
            .map(|(label, mut points)| {
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Line { label, points }
            })
            .collect();
        if lines.iter().any(|line| line.points.len() > 1) {
            let _ = write!(
                text,
                "<h3>{}, {}</h3>\n{}",
                escape(&heading),
                escape(&kernel),
                plots::scaling(&lines)
            );
        }
    }
    if text.is_empty() {
        text
    } else {
        format!("<h1>From few CPUs to many</h1>\n<p>Ratios to EEVDF.</p>\n{text}")
    }
}

fn chapter(results: &Results) -> String {
    let mut body = format!(
        "<h1>Schedulers on {}</h1>\n{}",
        escape(&results.topology),
        setting(results)
    );
    if let Some(why) = &results.functional_only {
        let _ = writeln!(body, "<p><b>{FUNCTIONAL_ONLY}</b>: {}</p>", escape(why));
    }
    let rows = results.rows();
    let mut from = 0;
    while from < rows.len() {
        let heading = title(&rows[from]);
        let count = rows[from..]
            .iter()
            .take_while(|row| title(row) == heading)
            .count();
        body += &section(results, &heading, &rows[from..from + count]);
        from += count;
    }
    body + &why(results)
}

/// How a workload's latencies are distributed under each scheduler; nothing if it doesn't tell.
fn distribution(results: &Results, row: &Row<'_>) -> String {
    // Once for a workload, with its first figure.
    if row.metric != &row.workload.metrics[0] {
        return String::new();
    }
    let lines: Vec<Line> = results
        .schedulers
        .iter()
        .filter(|scheduler| results.failure(&scheduler.name).is_none())
        .map(|scheduler| Line {
            label: scheduler.title.clone(),
            points: results
                .histogram(&scheduler.name, &row.workload.name)
                .into_iter()
                .map(|(us, count)| (us as f64, count as f64))
                .collect(),
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    if lines.is_empty() {
        String::new()
    } else {
        plots::distribution(&lines)
    }
}

fn setting(results: &Results) -> String {
    let kernels = results.kernels();
    let lines = [
        ("kernel", kernels.join(" and ")),
        ("clock", results.clock.clone()),
        ("QEMU", results.qemu.clone()),
        ("host", results.host.clone()),
        (
            "runs",
            format!("{} of each, with different seeds", results.seeds),
        ),
        ("checks", checks(results).join("; ")),
        ("commit", results.commit.clone()),
        ("command", results.command.join(" ")),
    ];
    let rows: String = lines
        .iter()
        .map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(value)))
        .collect();
    format!(
        "<table>\n{rows}</table>\n<p>Medians with 95% bootstrap intervals. A verdict is given only where the interval of the \
         ratio to EEVDF excludes 1.</p>\n"
    )
}

fn section(results: &Results, heading: &str, rows: &[Row<'_>]) -> String {
    let mut text = format!("<h2>{}</h2>\n", escape(heading));
    if results.functional_only.is_some() {
        for row in rows {
            let state = match &row.outcome {
                Outcome::Measured { runs, .. } => format!("ran {runs} times"),
                Outcome::Failed(why) => why.clone(),
            };
            let _ = writeln!(text, "<p>{}: {}</p>", row.scheduler.title, escape(&state));
        }
        return text;
    }
    text += &chart(rows);
    text += &distribution(results, &rows[0]);
    text += "<table>\n<tr><th>scheduler</th><th>median</th><th>ratio to EEVDF</th><th></th></tr>\n";
    for row in rows {
        let [median, ratio, verdict] = cells(row).map(|cell| escape(&cell));
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{median}</td><td>{ratio}</td><td class=\"{}\">{verdict}</td></tr>",
            escape(&row.scheduler.title),
            class(row),
        );
    }
    text + "</table>\n"
}

fn class(row: &Row<'_>) -> &'static str {
    match &row.outcome {
        Outcome::Failed(_) => "worse",
        Outcome::Measured { against, .. } => match against {
            Some((_, Verdict::Better)) => "better",
            Some((_, Verdict::Worse)) => "worse",
            _ => "none",
        },
    }
}

fn why(results: &Results) -> String {
    let rows = observations(results);
    if rows.is_empty() || results.functional_only.is_some() {
        return String::new();
    }
    let line = |cells: &[String], tag: &str| {
        let cells: String = cells
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", escape(cell)))
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String = rows.iter().map(|row| line(row, "td")).collect();
    format!(
        "<h2>Why, as manycore observe saw it</h2>\n<p>In one more run of each, which is not timed.</p>\n<table>\n{}{body}</table>\n",
        line(&OBSERVATIONS.map(String::from), "th")
    )
}

const LEFT: f64 = 160.0;
const WIDTH: f64 = 560.0;
const LINE: f64 = 24.0;

/// The ratios to EEVDF with their intervals, on a logarithmic axis: twice as fast is as far from 1 as twice as slow.
fn chart(rows: &[Row<'_>]) -> String {
    let ratios: Vec<(&Row<'_>, Interval)> = rows
        .iter()
        .filter_map(|row| match &row.outcome {
            Outcome::Measured {
                against: Some((ratio, _)),
                ..
            } => Some((row, *ratio)),
            _ => None,
        })
        .collect();
    if ratios.is_empty() {
        return String::new();
    }
    let ends = ratios.iter().flat_map(|(_, ratio)| [ratio.low, ratio.high]);
    let reach = plots::reach(ends);
    let x = |ratio: f64| LEFT + WIDTH * (0.5 + 0.48 * plots::along(ratio, reach) / reach);
    let height = LINE * (ratios.len() + 2) as f64;
    let mut svg = format!(
        "<svg width=\"{0}\" height=\"{height}\" viewBox=\"0 0 {0} {height}\" role=\"img\">\n",
        LEFT + WIDTH
    );
    for tick in [(-reach).exp(), 1.0, reach.exp()] {
        let (at, bottom) = (x(tick), height - LINE);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"4\" y2=\"{bottom:.1}\" stroke=\"#bbb\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            height - 6.0,
            short(tick)
        );
    }
    for (i, (row, ratio)) in ratios.iter().enumerate() {
        let y = LINE * (i as f64 + 0.8);
        let colour = match class(row) {
            "better" => "#05713b",
            "worse" => "#b00020",
            _ => "#555",
        };
        let _ = writeln!(
            svg,
            "<text x=\"0\" y=\"{:.1}\">{}</text>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"3\"/>\
             <circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>",
            y + 4.0,
            escape(&row.scheduler.title),
            x(ratio.low),
            x(ratio.high),
            x(ratio.value),
        );
    }
    svg + "</svg>\n"
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn the_page_stands_alone_and_shows_everything() {
        let page = page(&[results()]);
        for outside in ["<script", "http:", "https:", "src=", "href=", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        for shown in [
            "scx_fast",
            "scx_slow",
            "class=\"worse\"",
            "class=\"better\"",
            "<svg",
        ] {
            assert!(page.contains(shown), "{shown}");
        }
        // A scheduler's words are text, not markup.
        assert!(page.contains("&lt;EACCES&gt;") && !page.contains("<EACCES>"));
    }

    #[test]
    fn losses_lie_right_of_one_and_wins_left() {
        let results = results();
        let rows = results.rows();
        let chart = chart(&rows);
        let at: Vec<f64> = chart
            .split("cx=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        let one = LEFT + WIDTH / 2.0;
        assert!(
            at[0] < one && at[1] > one && (at[2] - one).abs() < 2.0,
            "{at:?}"
        );
        assert!(at.iter().all(|x| (LEFT..LEFT + WIDTH).contains(x)));
    }

    #[test]
    fn an_interval_without_end_reaches_to_the_edge() {
        let mut results = results();
        for sample in &mut results.guests[0].record.samples {
            match (sample.scheduler.as_str(), sample.seed) {
                ("eevdf", 1 | 2) | ("fast", _) => sample.values = vec![0.0],
                _ => {}
            }
        }
        let page = page(&[results]);
        assert!(!page.contains("NaN") && !page.contains("\"inf\""), "{page}");
        assert!(page.contains("to inf]"));
    }

    #[test]
    fn results_of_two_sizes_are_plotted_by_size() {
        let (mut small, mut large) = (results(), results());
        small.guests[0].record.machine.cpus = 8;
        large.guests[0].record.machine.cpus = 64;
        assert!(!page(&[small.clone()]).contains("polyline"));
        let both = page(&[small, large]);
        assert!(both.contains("polyline") && both.contains("64 CPUs"));
    }

    #[test]
    fn latencies_are_shown_as_a_distribution() {
        let mut results = results();
        for sample in &mut results.guests[0].record.samples {
            sample.histogram = vec![(5, 90), (50, 10)];
        }
        assert_eq!(results.histogram("fast", "pipe"), [(5, 450), (50, 50)]);
        assert!(page(&[results]).contains("polyline"));
    }

    #[test]
    fn without_a_fair_clock_there_is_no_chart() {
        let mut results = results();
        results.functional_only = Some("plain TCG".into());
        let page = page(&[results]);
        assert!(!page.contains("<svg") && page.contains(FUNCTIONAL_ONLY));
    }
}
