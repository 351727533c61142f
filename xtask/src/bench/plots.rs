//! Plots of several lines, as SVG: latency distributions, and figures by the number of CPUs.

use super::html::escape;
use super::text::short;
use std::fmt::Write as _;

/// What a line shows, and its points.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub label: String,
    pub points: Points,
}

pub type Points = Vec<(f64, f64)>;

/// A value's place on an axis, and what it is called.
type Tick = (f64, String);

const LEFT: f64 = 70.0;
const TOP: f64 = 10.0;
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 260.0;
const LEGEND: f64 = 190.0;
/// Told apart by most people; the first is the baseline's.
const COLOURS: [&str; 11] = [
    "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d",
    "#8c564b", "#777777", "#b2a100",
];

/// How latencies are distributed: for each line `(us, count)` in rising order. The axis is stretched towards 100%, as it
/// is the tail that matters.
pub fn distribution(lines: &[Line]) -> String {
    let reach = 3.3;
    let nines = |share: f64| (-(1.0 - share).max(1e-9).log10()).min(reach);
    let lines: Vec<Line> = lines
        .iter()
        .map(|line| {
            let total: f64 = line.points.iter().map(|(_, count)| count).sum();
            let mut seen = 0.0;
            let points = line.points.iter().map(|(us, count)| {
                seen += count;
                (us.max(1.0).log10(), nines(seen / total.max(1.0)))
            });
            Line {
                label: line.label.clone(),
                points: points.collect(),
            }
        })
        .collect();
    let y = [0.5, 0.9, 0.99, 0.999].map(|share| (nines(share), format!("{}%", share * 100.0)));
    let x = [1.0, 10.0, 100.0, 1000.0, 5000.0].map(|us: f64| (us.log10(), short_us(us)));
    plot(&lines, &x, &y)
}

fn short_us(us: f64) -> String {
    format!("{us:.0} us")
}

/// How far a logarithmic axis of ratios reaches from 1: to the last that is neither 0 nor infinite, at least to 1.25.
pub fn reach(ratios: impl IntoIterator<Item = f64>) -> f64 {
    ratios
        .into_iter()
        .map(|ratio| ratio.ln().abs())
        .filter(|distance| distance.is_finite())
        .fold(1.25_f64.ln(), f64::max)
}

/// Where a ratio is on such an axis, from `-reach` to `reach`; if it is further away, at the end.
pub fn along(ratio: f64, reach: f64) -> f64 {
    ratio.ln().clamp(-reach, reach)
}

/// Ratios by the number of CPUs, both axes logarithmic.
pub fn scaling(lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let reach = reach(all().map(|(_, ratio)| *ratio));
    let y = [(-reach).exp(), 1.0, reach.exp()].map(|ratio| (ratio.ln(), short(ratio)));
    let mut cpus: Vec<u64> = all().map(|(cpus, _)| *cpus as u64).collect();
    cpus.sort_unstable();
    cpus.dedup();
    let x: Vec<Tick> = cpus
        .iter()
        .map(|n| ((*n as f64).ln(), format!("{n} CPUs")))
        .collect();
    let lines: Vec<Line> = lines
        .iter()
        .map(|line| Line {
            label: line.label.clone(),
            points: line
                .points
                .iter()
                .map(|(cpus, ratio)| (cpus.max(1.0).ln(), along(*ratio, reach)))
                .collect(),
        })
        .collect();
    plot(&lines, &x, &y)
}

/// Lines between axes that reach from the least to the greatest of their ticks.
fn plot(lines: &[Line], x_ticks: &[Tick], y_ticks: &[Tick]) -> String {
    let x = axis(x_ticks, LEFT, LEFT + WIDTH);
    let y = axis(y_ticks, TOP + HEIGHT, TOP);
    let (width, height) = (LEFT + WIDTH + LEGEND, TOP + HEIGHT + 30.0);
    let mut svg = format!(
        "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n"
    );
    for (at, name) in x_ticks {
        let (at, bottom) = (x(*at), TOP + HEIGHT);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            bottom + 18.0
        );
    }
    for (at, name) in y_ticks {
        let (at, right) = (y(*at), LEFT + WIDTH);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (i, line) in lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: String = line
            .points
            .iter()
            .map(|(a, b)| format!("{:.1},{:.1} ", x(*a), y(*b)))
            .collect();
        let at = TOP + 12.0 + 18.0 * i as f64;
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{at:.1}\" fill=\"{colour}\">{}</text>",
            points.trim_end(),
            LEFT + WIDTH + 12.0,
            escape(&line.label)
        );
    }
    svg + "</svg>\n"
}

/// Maps values to places; what lies outside of the ticks is put at the end.
fn axis(ticks: &[Tick], from: f64, to: f64) -> impl Fn(f64) -> f64 + use<> {
    let low = ticks
        .iter()
        .map(|(at, _)| *at)
        .fold(f64::INFINITY, f64::min);
    let high = ticks
        .iter()
        .map(|(at, _)| *at)
        .fold(f64::NEG_INFINITY, f64::max);
    let span = if high > low { high - low } else { 1.0 };
    move |value| from + (to - from) * ((value - low) / span).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        Line {
            label: "a <b>".into(),
            points: points.to_vec(),
        }
    }

    fn last_point(svg: &str) -> (f64, f64) {
        let points = svg.split("points=\"").nth(1).unwrap();
        let last = points.split('"').next().unwrap().split(' ').next_back();
        let (x, y) = last.unwrap().split_once(',').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    }

    #[test]
    fn a_longer_tail_lies_further_right() {
        let short = distribution(&[line(&[(5.0, 99.0), (10.0, 1.0)])]);
        let long = distribution(&[line(&[(5.0, 99.0), (900.0, 1.0)])]);
        assert!(last_point(&long).0 > last_point(&short).0);
        // Both end at 100%, which is the top.
        assert_eq!(last_point(&long).1, last_point(&short).1);
        assert!(short.contains("a &lt;b&gt;"));
    }

    #[test]
    fn losing_more_with_more_cpus_goes_up() {
        let svg = scaling(&[line(&[(8.0, 1.0), (32.0, 2.0), (128.0, 8.0)])]);
        assert_eq!(last_point(&svg), (LEFT + WIDTH, TOP));
        assert!(svg.contains("128 CPUs"));
    }

    #[test]
    fn a_count_of_0_is_at_the_bottom() {
        let svg = scaling(&[line(&[(8.0, 4.0), (32.0, 0.0)])]);
        assert_eq!(last_point(&svg).1, TOP + HEIGHT);
        assert!(svg.contains(">4.000<"));
    }

    #[test]
    fn nothing_to_show_is_no_panic() {
        assert!(scaling(&[]).ends_with("</svg>\n"));
        assert!(distribution(&[line(&[])]).ends_with("</svg>\n"));
    }
}
