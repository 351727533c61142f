//! Log-linear histograms of nanoseconds, as `bpf/observe.bpf.c` fills them.

use serde::Serialize;

/// `HIST_STEP_BITS` of `bpf/observe.h`: each power of two has 2^4 steps.
const STEP_BITS: u32 = 4;
const STEPS: usize = 1 << STEP_BITS;
const MAX_BITS: u32 = 40;
/// Buckets of a histogram.
pub(super) const BUCKETS: usize = (MAX_BITS - STEP_BITS + 1) as usize * STEPS;
/// Size of `struct obs_hist`.
pub(super) const HIST_BYTES: usize = (2 + BUCKETS) * 8;

/// Counts of nanosecond values. Percentiles are within 3.2% (half a bucket's width).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Histogram {
    sum_ns: u64,
    max_ns: u64,
    buckets: Vec<u64>,
}

/// What is told of a histogram, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub count: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            sum_ns: 0,
            max_ns: 0,
            buckets: vec![0; BUCKETS],
        }
    }
}

/// The smallest value of bucket `i`, and how many values it holds.
fn bucket_range(i: usize) -> (u64, u64) {
    if i < STEPS {
        return (i as u64, 1);
    }
    let octave = (i / STEPS) as u32;
    let width = 1u64 << (octave - 1);
    ((STEPS + i % STEPS) as u64 * width, width)
}

impl Histogram {
    /// Adds one CPU's `struct obs_hist`. False, and nothing is added, if the size is wrong.
    pub(super) fn add_bytes(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() != HIST_BYTES {
            return false;
        }
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|w| u64::from_ne_bytes(*w));
        self.sum_ns += words.next().unwrap_or(0);
        self.max_ns = self.max_ns.max(words.next().unwrap_or(0));
        for (bucket, n) in self.buckets.iter_mut().zip(words) {
            *bucket += n;
        }
        true
    }

    /// What was added since `earlier`. Its maximum is exact if it is that of the whole time, else its bucket's upper end.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let pairs = self.buckets.iter().zip(&earlier.buckets);
        let buckets: Vec<u64> = pairs.map(|(a, b)| a.saturating_sub(*b)).collect();
        let top = buckets.iter().rposition(|&n| n > 0);
        let top = top.map_or(0, |i| {
            let (low, width) = bucket_range(i);
            if i == BUCKETS - 1 {
                u64::MAX
            } else {
                low + width - 1
            }
        });
        Self {
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
            max_ns: self.max_ns.min(top),
            buckets,
        }
    }

    /// How many values it holds.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The value that the share `q` (0 to 1) of all values don't exceed: the middle of its bucket, at most the maximum.
    pub(super) fn quantile_ns(&self, q: f64) -> f64 {
        let count = self.count();
        if count == 0 {
            return 0.0;
        }
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                let (low, width) = bucket_range(i);
                let middle = low as f64 + (width - 1) as f64 / 2.0;
                return middle.min(self.max_ns as f64);
            }
        }
        self.max_ns as f64
    }

    /// Count, mean, percentiles and maximum.
    pub(super) fn percentiles(&self) -> Percentiles {
        let count = self.count();
        let us = |q| self.quantile_ns(q) / 1e3;
        Percentiles {
            count,
            mean_us: self.sum_ns as f64 / 1e3 / count.max(1) as f64,
            p50_us: us(0.5),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: self.max_ns as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The C side's `hist_bucket`, in words of its own.
    fn bucket_of(ns: u64) -> usize {
        (0..BUCKETS)
            .rposition(|i| bucket_range(i).0 <= ns)
            .unwrap_or(0)
    }

    fn histogram(values: &[u64]) -> Histogram {
        let mut words = vec![0u64; 2 + BUCKETS];
        for &v in values {
            words[0] += v;
            words[1] = words[1].max(v);
            words[2 + bucket_of(v)] += 1;
        }
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut h = Histogram::default();
        assert!(h.add_bytes(&bytes));
        h
    }

    #[test]
    fn buckets_follow_each_other_without_gap() {
        for i in 1..BUCKETS {
            let (low, width) = bucket_range(i - 1);
            assert_eq!(low + width, bucket_range(i).0, "bucket {i}");
        }
        let (low, width) = bucket_range(BUCKETS - 1);
        assert_eq!(low + width, 1 << MAX_BITS);
    }

    #[test]
    fn nothing_gives_zeroes() {
        assert_eq!(Histogram::default().percentiles(), Percentiles::default());
    }

    #[test]
    fn a_wrong_size_is_refused() {
        assert!(!Histogram::default().add_bytes(&[0; 16]));
    }

    proptest! {
        #[test]
        fn quantiles_are_within_half_a_bucket(mut values in prop::collection::vec(0u64..1 << 36, 1..200), q in 0.0..1.0f64) {
            let h = histogram(&values);
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1] as f64;
            let got = h.quantile_ns(q);
            prop_assert!((got - exact).abs() <= exact * 0.032 + 0.5, "{got} for {exact}");
        }

        #[test]
        fn a_difference_holds_what_came_later(a in prop::collection::vec(0u64..1 << 30, 0..50), b in prop::collection::vec(0u64..1 << 30, 1..50)) {
            let both: Vec<u64> = a.iter().chain(&b).copied().collect();
            let later = histogram(&both).since(&histogram(&a));
            let only = histogram(&b);
            prop_assert_eq!(later.count(), b.len() as u64);
            prop_assert_eq!(later.sum_ns, only.sum_ns);
            let exact = only.max_ns as f64;
            prop_assert!(later.max_ns as f64 >= exact);
            prop_assert!(later.max_ns as f64 <= exact * 1.0667 + 1.0);
        }
    }
}
