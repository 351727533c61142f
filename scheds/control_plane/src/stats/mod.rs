//! Statistics: counters that each CPU keeps for itself in BPF (`bpf/lib/stats.bpf.h`), summed to totals since load
//! and served on the socket of `scx_stats`, where upstream's clients look for them too.
//!
//! Counters only ever grow, also over a restart of the scheduler inside the daemon. So any number of readers see the
//! same figures, each takes its own differences, and a counter for Prometheus is just the figure.
//!
//! A field of a daemon's struct is a counter, unless `#[stat(_gauge)]` says that it is a value of the moment;
//! `#[stat(_unit = "seconds")]` gives its unit. A `Vec<u64>` with `#[stat(_hist)]`, whose name ends with `_ns`, has the
//! counts of a [`Hist`], and a counter `NAME_sum` beside it its sum. From these, the [`Schema`], everything else is made: the page of the
//! docs, OpenMetrics, the table.

mod background;
mod hist;
mod http;
mod metrics;
mod print;
mod schema;
mod server;
mod socket;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};
use scx_stats::Meta;
use serde::Serialize;

pub use background::BackgroundPrinter;
pub use hist::Hist;
pub use http::{Address, Responder};
pub use metrics::{PREFIX, openmetrics};
pub use print::{Printer, SOCKET, monitor, once};
pub use schema::{Field, Kind, Schema, describe};
pub use server::Server;

/// What a daemon serves: a struct that derives `scx_stats_derive::Stats` and `serde::Serialize`, of numbers.
pub trait Record: Meta + Serialize + Clone + Default + Send + 'static {}

impl<T: Meta + Serialize + Clone + Default + Send + 'static> Record for T {}

/// What was read from a scheduler: the order of either is the policy's business.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Events since load. They only grow.
    pub counters: Vec<u64>,
    /// Values of this moment.
    pub gauges: Vec<u64>,
    /// Since load, as counters.
    pub hists: Vec<Hist>,
    /// Cgroups that have a class by the policy now. The control plane's, not the scheduler's.
    pub classed_cgroups: u64,
}

impl Reading {
    /// Adds the counters and histograms of an earlier instance of the same scheduler. Gauges are of the moment, so they
    /// stay.
    pub fn carry(&mut self, earlier: &Self) {
        if self.counters.len() < earlier.counters.len() {
            self.counters.resize(earlier.counters.len(), 0);
        }
        for (counter, before) in self.counters.iter_mut().zip(&earlier.counters) {
            *counter += before;
        }
        if self.hists.len() < earlier.hists.len() {
            self.hists.resize(earlier.hists.len(), Hist::default());
        }
        for (hist, before) in self.hists.iter_mut().zip(&earlier.hists) {
            hist.add(before);
        }
    }
}

/// Sums the rows of all CPUs of a map made by `bpf/lib/stats.bpf.h`.
///
/// # Errors
/// If the map can't be read.
pub fn sum(stats: &impl MapCore) -> Result<Vec<u64>> {
    let rows = stats
        .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
        .context("reading the counters")?
        .context("the map of counters is empty")?;
    Ok(sum_rows(&rows))
}

fn sum_rows(rows: &[Vec<u8>]) -> Vec<u64> {
    let mut totals = Vec::new();
    for row in rows {
        let words = row
            .chunks_exact(8)
            .filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes));
        for (index, word) in words.enumerate() {
            match totals.get_mut(index) {
                Some(total) => *total += word,
                None => totals.push(word),
            }
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_summed_by_column() {
        let row = |words: [u64; 2]| {
            words
                .iter()
                .flat_map(|word| word.to_ne_bytes())
                .collect::<Vec<u8>>()
        };
        assert_eq!(
            sum_rows(&[row([1, 10]), row([2, u64::from(u32::MAX)]), row([0, 1])]),
            [3, 4294967306]
        );
        assert_eq!(sum_rows(&[]), Vec::<u64>::new());
    }

    #[test]
    fn counters_are_carried_and_gauges_are_not() {
        let hist = |count: u64| Hist {
            counts: vec![0, count],
            sum_ns: 2 * count,
        };
        let reading = |counters: [u64; 2], gauge: u64, count: u64| Reading {
            counters: counters.to_vec(),
            gauges: vec![gauge],
            hists: vec![hist(count)],
            classed_cgroups: gauge,
        };
        let mut now = reading([1, 2], 7, 3);
        let earlier = reading([10, 20], 9, 4);
        now.carry(&earlier);
        assert_eq!(now, reading([11, 22], 7, 7));
        // a new instance that could not be read yet
        let mut empty = Reading::default();
        empty.carry(&earlier);
        assert_eq!((empty.counters, empty.hists), (vec![10, 20], vec![hist(4)]));
    }
}
