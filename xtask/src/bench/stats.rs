//! Medians, their bootstrap intervals, and what may be concluded from them.

use super::workload::Better;
use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 10_000;
/// The share of resamples that an interval holds.
const CONFIDENCE: f64 = 0.95;
/// Fewer than this many runs of either side make no verdict.
pub const VERDICT_MIN: usize = 5;
/// Any; it makes the intervals of the same samples the same each time.
const BOOTSTRAP_SEED: u64 = 0x6d61_6e79;

/// An estimate and the interval around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// How a scheduler compares with the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Better,
    Worse,
    /// The interval of the ratio includes 1.
    NoneShown,
    /// Too few runs to say.
    TooFew,
}

impl Verdict {
    pub fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoneShown => "no difference shown",
            Self::TooFew => "too few runs",
        }
    }
}

/// The middle value, or the mean of the two in the middle. None of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The value that this share of the values doesn't exceed (nearest rank). None of nothing.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The median with its bootstrap interval (percentile method).
pub fn median_interval(values: &[f64]) -> Option<Interval> {
    let value = median(values)?;
    let mut rng = Rng::with_seed(BOOTSTRAP_SEED);
    interval(value, || resampled_median(values, &mut rng))
}

/// The ratio of two medians with its bootstrap interval. The two sides are resampled independently: what differs
/// between runs of one seed is the state of the machine, which the schedulers do not share. The median of `baseline` must
/// be above 0, or there is none; those of its resamples may be 0, which makes an end of the interval infinite.
pub fn ratio_interval(values: &[f64], baseline: &[f64]) -> Option<Interval> {
    let value = median(values)? / median(baseline).filter(|base| *base > 0.0)?;
    let mut rng = Rng::with_seed(BOOTSTRAP_SEED);
    interval(value, || {
        let value = resampled_median(values, &mut rng)?;
        Some(ratio(value, resampled_median(baseline, &mut rng)?))
    })
}

/// Nothing is as much as nothing.
fn ratio(value: f64, base: f64) -> f64 {
    if value == 0.0 && base == 0.0 {
        1.0
    } else {
        value / base
    }
}

fn interval(value: f64, mut resample: impl FnMut() -> Option<f64>) -> Option<Interval> {
    let mut all = (0..RESAMPLES)
        .map(|_| resample())
        .collect::<Option<Vec<_>>>()?;
    all.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Some(Interval {
        value,
        low: percentile(&all, tail)?,
        high: percentile(&all, 1.0 - tail)?,
    })
}

fn resampled_median(values: &[f64], rng: &mut Rng) -> Option<f64> {
    let picked: Vec<_> = (0..values.len())
        .map(|_| values[rng.usize(..values.len())])
        .collect();
    median(&picked)
}

/// What may be said of a ratio to the baseline that comes from that many runs of each side.
pub fn verdict(ratio: &Interval, runs: usize, better: Better) -> Verdict {
    if runs < VERDICT_MIN {
        return Verdict::TooFew;
    }
    let smaller = ratio.high < 1.0;
    let larger = ratio.low > 1.0;
    match (better, smaller, larger) {
        (Better::Lower, true, _) | (Better::Higher, _, true) => Verdict::Better,
        (Better::Lower, _, true) | (Better::Higher, true, _) => Verdict::Worse,
        _ => Verdict::NoneShown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn medians_of_odd_even_and_nothing() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let sorted: Vec<_> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.5), Some(50.0));
        assert_eq!(percentile(&sorted, 0.99), Some(99.0));
        assert_eq!(percentile(&sorted, 1.0), Some(100.0));
        assert_eq!(percentile(&sorted, 0.0), Some(1.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_clear_difference_is_a_verdict_and_noise_is_none() {
        let base = [10.0, 10.1, 9.9, 10.2, 9.8];
        let half = base.map(|v| v / 2.0);
        let ratio = ratio_interval(&half, &base).unwrap();
        assert!((ratio.value - 0.5).abs() < 1e-9 && ratio.high < 0.6);
        assert_eq!(verdict(&ratio, 5, Better::Lower), Verdict::Better);
        assert_eq!(verdict(&ratio, 5, Better::Higher), Verdict::Worse);
        assert_eq!(verdict(&ratio, 4, Better::Lower), Verdict::TooFew);
        let same = ratio_interval(&[9.9, 10.3, 10.0, 9.7, 10.1], &base).unwrap();
        assert_eq!(verdict(&same, 5, Better::Lower), Verdict::NoneShown);
    }

    #[test]
    fn nothing_is_compared_with_nothing() {
        assert_eq!(ratio_interval(&[1.0], &[]), None);
        assert_eq!(ratio_interval(&[], &[1.0]), None);
        assert_eq!(ratio_interval(&[1.0], &[0.0]), None);
    }

    #[test]
    fn counts_that_are_mostly_0_have_an_interval() {
        let base = [0.0, 0.0, 2.0, 3.0, 4.0];
        let none = ratio_interval(&[0.0; 5], &base).unwrap();
        assert_eq!((none.low, none.value, none.high), (0.0, 0.0, 1.0));
        assert_eq!(verdict(&none, 5, Better::Lower), Verdict::NoneShown);
        let some = ratio_interval(&[2.0; 5], &base).unwrap();
        assert_eq!((some.value, some.high), (1.0, f64::INFINITY));
    }

    fn samples() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.001..1e6_f64, 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn an_interval_lies_within_the_samples_and_holds_the_median(values in samples()) {
            let found = median_interval(&values).unwrap();
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(0.0, f64::max);
            prop_assert!(low <= found.low && found.low <= found.value);
            prop_assert!(found.value <= found.high && found.high <= high);
        }

        #[test]
        fn equal_sides_are_never_told_apart(values in samples()) {
            let ratio = ratio_interval(&values, &values).unwrap();
            prop_assert!(ratio.low <= 1.0 && ratio.high >= 1.0);
            prop_assert_eq!(verdict(&ratio, 5, Better::Lower), Verdict::NoneShown);
        }

        #[test]
        fn units_do_not_matter(values in samples(), base in samples()) {
            let ratio = ratio_interval(&values, &base).unwrap();
            let scale = |v: &[f64]| v.iter().map(|x| x * 1000.0).collect::<Vec<_>>();
            let scaled = ratio_interval(&scale(&values), &scale(&base)).unwrap();
            prop_assert!((ratio.low / scaled.low - 1.0).abs() < 1e-9);
            prop_assert!((ratio.high / scaled.high - 1.0).abs() < 1e-9);
        }
    }
}
