//! Reading and printing statistics.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam::channel::Receiver;
use scx_stats::StatsClient;
use serde_json::Value;

use super::hist::Hist;

/// Where `scx_stats` serves by default.
pub const SOCKET: &str = "/var/run/scx/root/stats";

/// Prints samples to stdout, as a table or as JSON, one object a line.
#[derive(Debug)]
pub struct Printer {
    name: String,
    json: bool,
    last: Option<(Instant, Value)>,
}

impl Printer {
    /// `name` heads each table.
    pub fn new(name: &str, json: bool) -> Self {
        Self {
            name: name.to_string(),
            json,
            last: None,
        }
    }

    /// Prints a sample that was taken `at` that time.
    ///
    /// # Errors
    /// If stdout can't be written, for example because its reader is gone.
    pub fn print(&mut self, at: Instant, sample: Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{sample}")?;
        } else {
            let before = self.last.as_ref().map(|(then, value)| (at - *then, value));
            out.write_all(table(&self.name, &sample, before).as_bytes())?;
        }
        self.last = Some((at, sample));
        out.flush()
    }
}

/// Formats a sample: one line for each figure, and how much it grew a second since the one before.
fn table(name: &str, sample: &Value, before: Option<(Duration, &Value)>) -> String {
    let mut text = format!("{name}\n");
    let fields = flatten(sample);
    let before = before.map(|(elapsed, earlier)| (elapsed, flatten(earlier)));
    let (hists, fields): (BTreeMap<_, _>, BTreeMap<_, _>) = fields
        .into_iter()
        .partition(|(_, value)| Hist::counts_of(value).is_some());
    let width = fields.keys().map(String::len).max().unwrap_or(0);
    for (key, value) in &fields {
        let rate = before.as_ref().and_then(|(elapsed, earlier)| {
            let grown = value.as_u64()?.checked_sub(earlier.get(key)?.as_u64()?)?;
            Some(format!(" {:>12.0}/s", grown as f64 / elapsed.as_secs_f64()))
        });
        text += &format!(
            "  {key:width$} {:>16}{}\n",
            value.to_string(),
            rate.unwrap_or_default()
        );
    }
    for (key, counts) in hists {
        let counts = Hist::counts_of(counts).unwrap_or_default();
        let bound = |share| match Hist::quantile_ns(&counts, share) {
            Some(ns) if ns.is_finite() => format!("{:.3} us", ns / 1e3),
            Some(_) => "more than is counted".to_string(),
            None => "-".to_string(),
        };
        text += &format!(
            "  {key:width$} {:>16}, half up to {}, 99% up to {}\n",
            counts.iter().sum::<u64>(),
            bound(0.5),
            bound(0.99)
        );
    }
    text
}

/// The fields of a sample, those of nested ones as `outer.inner`.
fn flatten(sample: &Value) -> BTreeMap<String, &Value> {
    let mut fields = BTreeMap::new();
    let mut todo = vec![(String::new(), sample)];
    while let Some((name, value)) = todo.pop() {
        let dotted = |key: &str| {
            if name.is_empty() {
                key.to_string()
            } else {
                format!("{name}.{key}")
            }
        };
        match value {
            Value::Object(inner) => {
                todo.extend(inner.iter().map(|(key, value)| (dotted(key), value)))
            }
            // a histogram
            Value::Array(_) if name.ends_with("_ns") && Hist::counts_of(value).is_some() => {
                fields.insert(name, value);
            }
            Value::Array(inner) => {
                todo.extend(
                    inner
                        .iter()
                        .enumerate()
                        .map(|(i, value)| (dotted(&i.to_string()), value)),
                );
            }
            _ => {
                fields.insert(name, value);
            }
        }
    }
    fields
}

/// Asks whatever scheduler serves statistics for them, once.
///
/// # Errors
/// If none does, or this user may not ask it.
pub fn once() -> Result<Value> {
    let mut client = StatsClient::new().connect(Some(5000)).map_err(|err| {
        let kind = err.downcast_ref::<io::Error>().map(io::Error::kind);
        let why = match kind {
            Some(io::ErrorKind::PermissionDenied) => {
                "only root and the group of its directory may read it"
            }
            Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                "no scheduler serves statistics there"
            }
            _ => "cannot connect",
        };
        err.context(format!("{SOCKET}: {why}"))
    })?;
    client
        .request::<Value>("stats", Vec::new())
        .with_context(|| format!("{SOCKET}: asking for statistics"))
}

/// Prints the statistics of whatever scheduler serves them, until told to stop. Waits for one if there is none.
///
/// # Errors
/// If stdout can't be written.
pub fn monitor(mut printer: Printer, interval: Duration, stop: &Receiver<()>) -> Result<()> {
    let mut waiting = false;
    loop {
        let pause = match StatsClient::new().connect(Some(5000)) {
            Ok(mut client) => {
                waiting = false;
                while let Ok(sample) = client.request::<Value>("stats", Vec::new()) {
                    printer.print(Instant::now(), sample)?;
                    if stop.recv_timeout(interval).is_ok() {
                        return Ok(());
                    }
                }
                Duration::from_millis(100)
            }
            Err(_) => {
                if !waiting {
                    log::info!("no scheduler serves statistics on {SOCKET}; waiting for one");
                }
                waiting = true;
                Duration::from_secs(1)
            }
        };
        if stop.recv_timeout(pause).is_ok() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_show_rates_of_what_grew() {
        let before = json!({"enqueues": 100, "queued": 5});
        let now = json!({"enqueues": 300, "queued": 3});
        assert_eq!(
            table("x", &now, None),
            "x\n  enqueues              300\n  queued                  3\n"
        );
        assert_eq!(
            table("x", &now, Some((Duration::from_secs(2), &before))),
            "x\n  enqueues              300          100/s\n  queued                  3\n"
        );
    }

    #[test]
    fn histograms_are_one_line() {
        let sample = json!({"wait_ns": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 5, 0]});
        assert_eq!(
            table("x", &sample, None),
            "x\n  wait_ns               10, half up to 1.024 us, 99% up to 2.048 us\n"
        );
    }

    #[test]
    fn nested_fields_are_dotted() {
        let nested = json!({"a": 1, "b": {"c": 2, "d": [3, 4]}});
        let flat = flatten(&nested);
        let names: Vec<&str> = flat.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b.c", "b.d.0", "b.d.1"]);
    }
}
