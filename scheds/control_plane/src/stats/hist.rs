//! Histograms of durations (`bpf/lib/hist.bpf.h`).

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};
use serde_json::Value;

use super::sum_rows;

/// How many times something took how long, since load. Buckets double: `counts[0]` is of up to 1 ns, `counts[i]` of more
/// than 2^(i-1) and up to 2^i ns, the last one of everything above.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hist {
    pub counts: Vec<u64>,
    /// Of all durations, in nanoseconds.
    pub sum_ns: u64,
}

impl Hist {
    /// Reads all histograms of a map made by `bpf/lib/hist.bpf.h`, summed over CPUs.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn read(map: &impl MapCore) -> Result<Vec<Self>> {
        let one = |id: u32| {
            let rows = map
                .lookup_percpu(&id.to_ne_bytes(), MapFlags::ANY)
                .context("reading a histogram")?
                .context("a histogram is missing")?;
            let words = sum_rows(&rows);
            let (sum_ns, counts) = words.split_first().context("an empty histogram")?;
            Ok(Self {
                counts: counts.to_vec(),
                sum_ns: *sum_ns,
            })
        };
        (0..map.max_entries()).map(one).collect()
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.sum_ns += other.sum_ns;
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The counts as a sample has them.
    pub(super) fn counts_of(value: &Value) -> Option<Vec<u64>> {
        value.as_array()?.iter().map(Value::as_u64).collect()
    }

    /// Upper bounds in nanoseconds, the last one infinite, and counts.
    pub(super) fn buckets(counts: &[u64]) -> impl Iterator<Item = (f64, u64)> {
        let last = counts.len().saturating_sub(1);
        counts.iter().enumerate().map(move |(index, &count)| {
            let bound = if index == last {
                f64::INFINITY
            } else {
                (index as f64).exp2()
            };
            (bound, count)
        })
    }

    /// The bound in nanoseconds below which this share (0 to 1) of all durations is; `None` if there is none.
    pub(super) fn quantile_ns(counts: &[u64], share: f64) -> Option<f64> {
        let all: u64 = counts.iter().sum();
        let wanted = (share * all as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        Self::buckets(counts).find_map(|(bound, count)| {
            seen += count;
            (seen >= wanted).then_some(bound)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bounds() {
        let counts = [0, 0, 5, 4, 1];
        assert_eq!(Hist::quantile_ns(&counts, 0.5), Some(4.0));
        assert_eq!(Hist::quantile_ns(&counts, 0.9), Some(8.0));
        assert_eq!(Hist::quantile_ns(&counts, 0.99), Some(f64::INFINITY));
        assert_eq!(Hist::quantile_ns(&[0, 0], 0.5), None);
    }

    #[test]
    fn sums() {
        let mut hist = Hist::default();
        let more = Hist {
            counts: vec![1, 2],
            sum_ns: 5,
        };
        hist.add(&more);
        hist.add(&more);
        assert_eq!((hist.counts, hist.sum_ns), (vec![2, 4], 10));
    }
}
