//! The workloads: for each its command line, sized for the machine and varied by the seed, and how its output is read.
//! `docs/method.md` says what each is and why.

mod list;

use super::parse;
use crate::failure::Usage;
use anyhow::Result;
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;

pub use list::{ALL, SELF_CHECK};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Lower,
    Higher,
}

/// A figure that a workload yields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metric {
    /// Empty if the workload has but one.
    pub name: Cow<'static, str>,
    pub unit: Cow<'static, str>,
    pub better: Better,
}

impl Metric {
    const fn lower(name: &'static str, unit: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            unit: Cow::Borrowed(unit),
            better: Better::Lower,
        }
    }

    const fn higher(name: &'static str, unit: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            unit: Cow::Borrowed(unit),
            better: Better::Higher,
        }
    }
}

/// How much work there is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// Enough to see that it works.
    Taste,
    /// Enough for figures by a clock that counts instructions, where a second takes a minute.
    Lab,
    /// Enough for figures by a real clock.
    Full,
}

/// What a workload's command line depends on, beside the seed.
#[derive(Debug, Clone)]
pub struct Setting {
    pub cpus: usize,
    pub size: Size,
}

impl Setting {
    fn pick<T>(&self, taste: T, lab: T, full: T) -> T {
        match self.size {
            Size::Taste => taste,
            Size::Lab => lab,
            Size::Full => full,
        }
    }

    /// An amount that is right at 8 CPUs, made smaller on larger machines where each CPU's second costs the host one.
    fn lab_scaled(&self, at_8: u32, least: u32) -> u32 {
        (at_8 * 8 / u32::try_from(self.cpus).unwrap_or(u32::MAX).max(8)).max(least)
    }

    /// So many for each CPU, at least one.
    fn per_cpu(&self, of: usize, to: usize) -> usize {
        (self.cpus * of / to).max(1)
    }
}

/// How often each latency occurred: `(us, count)` in rising order.
pub type Histogram = Vec<(u64, u64)>;

type Command = fn(&Setting, &mut Rng) -> String;

/// Where a run's figures come from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// What it printed.
    Output(fn(&str) -> Option<Vec<f64>>),
    /// The histogram that it printed: the median and the 99th and 99.9th percentiles.
    Histogram(fn(&str) -> Option<Histogram>),
    /// The report of `manycore observe`, under which it ran: JSON pointers, and what their values are multiplied by.
    Meter(&'static [(&'static str, f64)]),
    /// How long it took, by the guest's clock.
    Elapsed,
    /// The virtual clock's count of instructions at its marks.
    Marks,
}

#[derive(Debug, Serialize)]
pub struct Workload {
    pub name: &'static str,
    /// As a reader knows it.
    pub title: &'static str,
    /// Part of a bench for which no workload is named.
    pub default: bool,
    pub metrics: &'static [Metric],
    #[serde(skip)]
    command: Command,
    #[serde(skip)]
    source: Source,
}

/// What a run left behind.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    pub output: &'a str,
    pub observed: Option<&'a Value>,
    pub seconds: f64,
}

impl Workload {
    pub fn command(&self, setting: &Setting, rng: &mut Rng) -> Vec<String> {
        let line = (self.command)(setting, rng);
        line.split_whitespace().map(String::from).collect()
    }

    /// Whether each run is one under `manycore observe`, whose report has the figures.
    pub fn is_metered(&self) -> bool {
        matches!(self.source, Source::Meter(_))
    }

    /// Whether only the virtual clock can tell the figures, and only at its end.
    pub fn needs_marks(&self) -> bool {
        matches!(self.source, Source::Marks)
    }

    /// The whole histogram of a run, if that is where the figures come from.
    pub fn histogram(&self, output: &str) -> Histogram {
        match self.source {
            Source::Histogram(read) => read(output).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// One figure for each metric, or why there is none. Of a workload that [needs marks](Self::needs_marks) they are
    /// the first mark's number and the number of operations, for [`Self::resolve`].
    pub fn read(&self, left: &Left<'_>) -> Result<Vec<f64>, String> {
        let values = match self.source {
            Source::Output(read) => read(left.output),
            Source::Marks => {
                return parse::marks(left.output).ok_or_else(|| not_understood(left.output));
            }
            Source::Histogram(read) => {
                read(left.output).and_then(|counts| parse::percentiles(&counts))
            }
            Source::Elapsed => Some(vec![left.seconds]),
            Source::Meter(pointers) => pointers
                .iter()
                .map(|(pointer, scale)| Some(left.observed?.pointer(pointer)?.as_f64()? * scale))
                .collect(),
        };
        values
            .filter(|values| values.len() == self.metrics.len())
            .ok_or_else(|| match (self.is_metered(), left.observed) {
                (true, Some(report)) => {
                    format!("the meter refuses its figure: {}", report["warnings"])
                }
                (true, None) => format!("the meter left no report: {}", last_lines(left.output)),
                (false, _) => not_understood(left.output),
            })
    }

    /// What [`Self::read`] gave, and the virtual clock's marks, turned into figures.
    pub fn resolve(&self, read: &[f64], clock: Option<&Value>) -> Result<Vec<f64>, String> {
        let [first, operations] = read else {
            return Err("its marks are not told".into());
        };
        let marks = clock.and_then(|clock| clock["marks"].as_array()).ok_or(
            "only the virtual clock counts instructions, and tells when QEMU ends in order",
        )?;
        let at = |i: usize| marks.get(*first as usize + i).and_then(Value::as_i64);
        match (at(0), at(1), at(2)) {
            (Some(a), Some(b), Some(c)) if c - b > b - a => {
                Ok(vec![((c - b) - (b - a)) as f64 / operations])
            }
            _ => Err("the virtual clock has not seen its marks".into()),
        }
    }
}

fn not_understood(output: &str) -> String {
    format!("its output is not understood: {}", last_lines(output))
}

fn last_lines(output: &str) -> String {
    let lines: Vec<_> = output
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

pub fn find(name: &str) -> Result<&'static Workload> {
    if name == SELF_CHECK.name {
        return Ok(&SELF_CHECK);
    }
    ALL.iter().find(|w| w.name == name).ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|w| w.name).collect();
        Usage(format!("no workload {name:?}; known: {}", known.join(", "))).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for workload in ALL {
            assert_eq!(find(workload.name).unwrap().title, workload.title);
        }
        let error = find("nothing").unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("pipe, pipe-instructions"));
    }

    #[test]
    fn the_same_seed_gives_the_same_command_at_every_size() {
        for (cpus, size) in [(2, Size::Taste), (8, Size::Lab), (256, Size::Full)] {
            let setting = Setting { cpus, size };
            for workload in ALL {
                let command = |seed| workload.command(&setting, &mut Rng::with_seed(seed));
                assert_eq!(command(3), command(3));
                // No count is zero, however small the machine.
                let words = command(3);
                let zero =
                    words.iter().any(|word| word == "0") && !workload.name.starts_with("rt-app");
                assert!(!zero, "{words:?}");
            }
        }
    }

    #[test]
    fn output_that_is_not_understood_is_shown() {
        let left = left("a\n\nperf: command not found\n");
        let error = find("pipe").unwrap().read(&left).unwrap_err();
        assert!(error.ends_with("a / perf: command not found"), "{error}");
    }

    fn left(output: &str) -> Left<'_> {
        Left {
            output,
            observed: None,
            seconds: 2.5,
        }
    }

    #[test]
    fn a_metered_workload_needs_a_report_that_tells() {
        let waste = find("waste").unwrap();
        let error = waste.read(&left("boom\n")).unwrap_err();
        assert!(
            error.contains("no report") && error.contains("boom"),
            "{error}"
        );
        let mut report = serde_json::json!({
            "wasted": {"share_of_capacity": 0.25, "longest_violation_ms": 3.0},
        });
        let read = |report: &Value| {
            waste.read(&Left {
                observed: Some(report),
                ..left("")
            })
        };
        assert_eq!(read(&report).unwrap(), [25.0, 3.0]);
        report["wasted"]["share_of_capacity"] = Value::Null;
        report["warnings"] = serde_json::json!(["7 records were lost"]);
        assert!(read(&report).unwrap_err().contains("7 records"));
    }

    #[test]
    fn instructions_are_counted_between_marks() {
        let cost = find("pipe-instructions").unwrap();
        let read = cost.read(&left("first_mark 1\noperations 100\n")).unwrap();
        let clock = serde_json::json!({"marks": [5, 10, 30, 1050]});
        assert_eq!(cost.resolve(&read, Some(&clock)).unwrap(), [10.0]);
        assert!(cost.resolve(&read, None).is_err());
        assert!(cost.resolve(&[4.0, 100.0], Some(&clock)).is_err());
    }
}
