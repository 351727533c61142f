//! Finds groups of CPUs in a matrix of core-to-core latencies. Pure: it measures nothing.
//!
//! A machine is a hierarchy: threads in cores, cores around a cache, caches in nodes. So the latencies of pairs fall
//! into a few classes, and a *level* is a cut of the CPUs into groups that explains one more class. Latencies are
//! compared by their logarithm, as their noise grows with them.
//!
//! Noise has structure too if one looks hard enough: among 64 equal CPUs some pairs are always fast by chance. So a
//! level counts only if it is worth its description (minimum description length): the bits that it takes off the
//! latencies, each coded by its distance from the median of its class (a Laplace code, which outliers bend little),
//! must be more than the bits that say who is in which group. Both are exact counts, so nothing has to be tuned to
//! the size of the machine.

use std::collections::BTreeMap;

/// A level counts only if pairs of different groups are slower than pairs within by this factor: a mesh has
/// differences of some percent by distance that are no caches.
const MIN_RATIO: f64 = 1.15;
/// How many times its description a level must save. Chance alone reaches about 1.
const MIN_EVIDENCE: f64 = 1.5;
/// The greatest share of the finer groups that may be alone in a group: those whose siblings are offline.
const MAX_ALONE: f64 = 0.25;
/// Latencies can't be told apart better than this (relative), so that a matrix without noise has no infinite evidence.
const PRECISION: f64 = 0.01;
/// How many cuts of a dendrogram are looked at closely: those before the widest gaps.
const MAX_CUTS: usize = 12;
/// How many of those are refined.
const MAX_REFINED: usize = 3;
const MAX_REFINEMENTS: usize = 10;

/// Latencies between CPUs in nanoseconds, the same in both directions. A CPU is an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    len: usize,
    ns: Vec<f64>,
}

impl Matrix {
    /// A matrix for so many CPUs, nothing of which is measured.
    pub fn new(len: usize) -> Self {
        Self {
            len,
            ns: vec![f64::NAN; len * len],
        }
    }

    /// How many CPUs there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no CPU.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets a latency in both directions. What isn't a positive number counts as not measured.
    pub fn set(&mut self, a: usize, b: usize, ns: f64) {
        let ns = if ns > 0.0 && ns.is_finite() {
            ns
        } else {
            f64::NAN
        };
        self.ns[a * self.len + b] = ns;
        self.ns[b * self.len + a] = ns;
    }

    /// `None` if it was not measured.
    pub fn get(&self, a: usize, b: usize) -> Option<f64> {
        let ns = self.ns[a * self.len + b];
        (!ns.is_nan()).then_some(ns)
    }

    /// All measured pairs, each once.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, usize, f64)> {
        (0..self.len).flat_map(move |a| {
            (a + 1..self.len).filter_map(move |b| self.get(a, b).map(|ns| (a, b, ns)))
        })
    }
}

/// A cut of the CPUs into groups that are faster within than between.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// The groups in the order of their lowest CPU; CPUs in order.
    pub groups: Vec<Vec<usize>>,
    /// Median latency of pairs within a group (and in different groups of the next finer level).
    pub within_ns: f64,
    /// Median latency of pairs in different groups (and in one group of the next coarser level).
    pub between_ns: f64,
    /// Share of the CPUs (or finer groups) whose own group is the nearest to them, 0 to 1.
    pub agreement: f64,
    /// How many times its own description the level saves; above 1.5, else it would not be here.
    pub evidence: f64,
}

/// Finds the levels, the finest first; none if the machine is flat. Each is nested in the next.
pub fn levels(matrix: &Matrix) -> Vec<Level> {
    let logs = Logs::new(matrix);
    let singles: Cut = (0..matrix.len()).map(|cpu| vec![cpu]).collect();
    let all: Cut = vec![(0..matrix.len()).collect()];
    let mut cuts = Vec::new();
    if matrix.len() > 2 {
        split(&logs, &singles, &all, &mut cuts);
    }
    let mut levels = Vec::new();
    for index in 0..cuts.len() {
        let fine = if index == 0 {
            &singles
        } else {
            &cuts[index - 1]
        };
        let coarse = cuts.get(index + 1).unwrap_or(&all);
        levels.extend(logs.judge(fine, &cuts[index], coarse));
    }
    levels
}

type Cut = Vec<Vec<usize>>;

/// Adds all levels between a finer and a coarser cut to `found`, the finest first.
fn split(logs: &Logs, fine: &Cut, coarse: &Cut, found: &mut Vec<Cut>) {
    if let Some(cut) = best_cut(logs, fine, coarse) {
        split(logs, fine, &cut, found);
        found.push(cut.clone());
        split(logs, &cut, coarse, found);
    }
}

/// The cut between two others that explains most, if any is worth it.
fn best_cut(logs: &Logs, fine: &Cut, coarse: &Cut) -> Option<Cut> {
    if fine.len() <= coarse.len() + 1 {
        // One group fewer at most: nothing between that could be told from a stray CPU.
        return None;
    }
    // What is nearly as good may be better once refined.
    let mut cuts: Vec<(f64, Cut)> = Dendrogram::new(logs, fine, coarse)
        .cuts()
        .filter_map(|cut| Some((logs.surplus(fine, &cut, coarse)?, cut)))
        .collect();
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0));
    cuts.truncate(MAX_REFINED);
    let refined = cuts.into_iter().filter_map(|(_, cut)| {
        let cut = refine(logs, fine, cut, coarse);
        Some((logs.gain(fine, &cut, coarse)?, cut))
    });
    refined
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, cut)| cut)
}

/// Moves each of the finer groups to where it is nearest, until none moves: early decisions of a dendrogram hang on
/// single latencies, and are not taken back by it.
fn refine(logs: &Logs, fine: &Cut, mut cut: Cut, coarse: &Cut) -> Cut {
    let bound = labels(coarse, logs.len);
    for _ in 0..MAX_REFINEMENTS {
        let mut moved = false;
        for element in fine {
            let Some(own) = cut.iter().position(|group| group.contains(&element[0])) else {
                continue;
            };
            let Some(own_log) = logs.between(element, &cut[own]) else {
                continue; // alone
            };
            let home = bound[element[0]];
            let near = (0..cut.len())
                .filter(|&other| other != own)
                .filter(|&other| cut[other].first().is_some_and(|&cpu| bound[cpu] == home))
                .filter_map(|other| Some((logs.between(element, &cut[other])?, other)))
                .min_by(|a, b| a.0.total_cmp(&b.0));
            if let Some((log, other)) = near
                && log < own_log - PRECISION
            {
                cut[own].retain(|cpu| !element.contains(cpu));
                cut[other].extend(element);
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let mut cut = normalize(cut);
    pair_up(fine, &mut cut, coarse);
    cut
}

/// Joins the only two that are alone where all others are pairs. Between siblings there is a single latency, and if
/// just that one is wrong, nothing but the rule of the others tells that they belong together.
fn pair_up(fine: &Cut, cut: &mut Cut, coarse: &Cut) {
    let sizes: Vec<usize> = cut.iter().map(|group| count(fine, group)).collect();
    if usual(&sizes) != 2 {
        return;
    }
    let before = cut.clone();
    let mut joined = std::mem::take(cut);
    for group in coarse {
        let alone: Vec<usize> = (0..before.len())
            .filter(|&index| sizes[index] == 1 && group.binary_search(&before[index][0]).is_ok())
            .collect();
        if let [a, b] = alone[..] {
            let moved = std::mem::take(&mut joined[b]);
            joined[a].extend(moved);
        }
    }
    *cut = normalize(joined);
}

fn normalize(mut cut: Cut) -> Cut {
    for group in &mut cut {
        group.sort_unstable();
    }
    cut.retain(|group| !group.is_empty());
    cut.sort();
    cut
}

/// The index of each CPU's group.
fn labels(cut: &Cut, len: usize) -> Vec<usize> {
    let mut labels = vec![0; len];
    for (index, group) in cut.iter().enumerate() {
        for &cpu in group {
            labels[cpu] = index;
        }
    }
    labels
}

/// Logarithms of latencies.
struct Logs {
    len: usize,
    log: Vec<f64>,
}

impl Logs {
    /// Cuts high outliers off at the slowest that is not rare.
    fn new(matrix: &Matrix) -> Self {
        let mut sorted: Vec<f64> = matrix.pairs().map(|(_, _, ns)| ns.ln()).collect();
        sorted.sort_by(f64::total_cmp);
        let cap = match sorted.get(sorted.len() * 95 / 100) {
            Some(high) => high + 0.25,
            None => f64::INFINITY,
        };
        Self {
            len: matrix.len,
            // NaN stays NaN
            log: matrix
                .ns
                .iter()
                .map(|ns| if ns.ln() > cap { cap } else { ns.ln() })
                .collect(),
        }
    }

    fn get(&self, a: usize, b: usize) -> Option<f64> {
        let log = self.log[a * self.len + b];
        (!log.is_nan()).then_some(log)
    }

    /// The median between the members of one group and the other members of another; `None` if there is no pair.
    fn between(&self, element: &[usize], group: &[usize]) -> Option<f64> {
        let mut logs: Vec<f64> = element
            .iter()
            .flat_map(|&a| group.iter().map(move |&b| (a, b)))
            .filter(|(_, b)| !element.contains(b))
            .filter_map(|(a, b)| self.get(a, b))
            .collect();
        median(&mut logs)
    }

    /// The pairs that a cut tells apart: in one coarse group but in different fine ones; those within the cut's groups
    /// first, then those between.
    fn classes(&self, fine: &Cut, cut: &Cut, coarse: &Cut) -> (Vec<f64>, Vec<f64>) {
        let (fine, cut) = (labels(fine, self.len), labels(cut, self.len));
        let (mut within, mut between) = (Vec::new(), Vec::new());
        for group in coarse {
            for (index, &a) in group.iter().enumerate() {
                for &b in &group[index + 1..] {
                    match self.get(a, b) {
                        Some(_) if fine[a] == fine[b] => {}
                        Some(log) if cut[a] == cut[b] => within.push(log),
                        Some(log) => between.push(log),
                        None => {}
                    }
                }
            }
        }
        (within, between)
    }

    /// How many nats a cut saves beyond its own description, however few.
    fn surplus(&self, fine: &Cut, cut: &Cut, coarse: &Cut) -> Option<f64> {
        let (saved, cost, _) = self.weigh(fine, cut, coarse)?;
        Some(saved - cost)
    }

    /// The same beyond the safety margin; `None` if there is nothing, or if the cut can't be a level.
    fn gain(&self, fine: &Cut, cut: &Cut, coarse: &Cut) -> Option<f64> {
        let alone = cut.iter().filter(|group| count(fine, group) == 1).count();
        if alone as f64 > MAX_ALONE * fine.len() as f64 {
            return None;
        }
        let (saved, cost, ratio) = self.weigh(fine, cut, coarse)?;
        (ratio >= MIN_RATIO && saved > MIN_EVIDENCE * cost).then_some(saved - MIN_EVIDENCE * cost)
    }

    /// What a cut saves, what it costs to describe, and how much slower pairs between its groups are.
    fn weigh(&self, fine: &Cut, cut: &Cut, coarse: &Cut) -> Option<(f64, f64, f64)> {
        let (mut within, mut between) = self.classes(fine, cut, coarse);
        let mut all = [within.as_slice(), between.as_slice()].concat();
        let (near, far) = (median(&mut within)?, median(&mut between)?);
        let centre = median(&mut all)?;
        let pairs = all.len() as f64;
        let before = deviations(&all, centre);
        let after = deviations(&within, near) + deviations(&between, far);
        let saved = pairs * (before / after).ln();
        // Two more numbers (a centre and the place of the level), each to the precision that the pairs give it.
        let cost = describe(fine, cut, coarse) + 2.0 * pairs.ln();
        Some((saved, cost, (far - near).exp()))
    }

    fn judge(&self, fine: &Cut, cut: &Cut, coarse: &Cut) -> Option<Level> {
        let (saved, cost, _) = self.weigh(fine, cut, coarse)?;
        let (mut within, mut between) = self.classes(fine, cut, coarse);
        let bound = labels(coarse, self.len);
        let at_home = |element: &&Vec<usize>| {
            let own = cut.iter().position(|group| group.contains(&element[0]));
            let home = own.and_then(|own| self.between(element, &cut[own]));
            home.is_none_or(|home| {
                (0..cut.len())
                    .filter(|&other| Some(other) != own)
                    .filter(|&other| bound[cut[other][0]] == bound[element[0]])
                    .filter_map(|other| self.between(element, &cut[other]))
                    .all(|other| home < other)
            })
        };
        Some(Level {
            groups: cut.clone(),
            within_ns: median(&mut within)?.exp(),
            between_ns: median(&mut between)?.exp(),
            agreement: fine.iter().filter(at_home).count() as f64 / fine.len() as f64,
            evidence: saved / cost,
        })
    }
}

/// The sum of the distances from a class's centre, none below the precision.
fn deviations(logs: &[f64], centre: f64) -> f64 {
    logs.iter()
        .map(|log| (log - centre).abs().max(PRECISION))
        .sum()
}

/// How many nats it takes to say who is in which group: the logarithm of the number of ways to put the finer groups
/// into groups of these sizes, and the sizes. Machines are regular, so a size is free if it is the usual one; what
/// chance finds is not.
fn describe(fine: &Cut, cut: &Cut, coarse: &Cut) -> f64 {
    let sizes: Vec<usize> = cut.iter().map(|group| count(fine, group)).collect();
    let usual = usual(&sizes);
    let odd = sizes.iter().filter(|&&size| size != usual).count();
    let mut nats = odd as f64 * (fine.len() as f64).ln();
    for group in coarse {
        nats += ln_factorial(count(fine, group));
        let mut times: BTreeMap<usize, usize> = BTreeMap::new();
        for (part, &size) in cut.iter().zip(&sizes) {
            if group.binary_search(&part[0]).is_ok() {
                *times.entry(size).or_default() += 1;
            }
        }
        for (size, times) in times {
            nats -= times as f64 * ln_factorial(size) + ln_factorial(times);
        }
    }
    nats
}

/// How many of the finer groups are in a group.
fn count(fine: &Cut, group: &[usize]) -> usize {
    fine.iter()
        .filter(|element| group.binary_search(&element[0]).is_ok())
        .count()
}

/// The most frequent size.
fn usual(sizes: &[usize]) -> usize {
    let mut times: BTreeMap<usize, usize> = BTreeMap::new();
    for &size in sizes {
        *times.entry(size).or_default() += 1;
    }
    times
        .into_iter()
        .max_by_key(|&(_, times)| times)
        .map_or(0, |(size, _)| size)
}

fn ln_factorial(n: usize) -> f64 {
    (2..=n).map(|i| (i as f64).ln()).sum()
}

/// The median, the upper one of two; reorders. `None` if there is nothing.
fn median(values: &mut [f64]) -> Option<f64> {
    let middle = values.len() / 2;
    if values.is_empty() {
        return None;
    }
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// Which groups are joined in which order when always the two nearest are (average linkage).
struct Dendrogram<'a> {
    fine: &'a Cut,
    /// Two elements each, of which the first stands for both from then on, and their mean log latency.
    joins: Vec<(usize, usize, f64)>,
}

impl<'a> Dendrogram<'a> {
    fn new(logs: &Logs, fine: &'a Cut, coarse: &Cut) -> Self {
        let bound = labels(coarse, logs.len);
        let n = fine.len();
        // Sums and counts, so that the mean of joined groups is that of all their pairs.
        let (mut sum, mut count) = (vec![0.0; n * n], vec![0.0; n * n]);
        for a in 0..n {
            for b in 0..n {
                if a == b || bound[fine[a][0]] != bound[fine[b][0]] {
                    continue;
                }
                for (&x, &y) in fine[a]
                    .iter()
                    .flat_map(|x| fine[b].iter().map(move |y| (x, y)))
                {
                    if let Some(log) = logs.get(x, y) {
                        sum[a * n + b] += log;
                        count[a * n + b] += 1.0;
                    }
                }
            }
        }
        let mut alive: Vec<usize> = (0..n).collect();
        let mut joins = Vec::new();
        while let Some((a, b, height)) = nearest(&alive, &sum, &count, n) {
            joins.push((a, b, height));
            alive.retain(|&other| other != b);
            for &c in &alive {
                for (to, from) in [(a * n + c, b * n + c), (c * n + a, c * n + b)] {
                    sum[to] += sum[from];
                    count[to] += count[from];
                }
            }
        }
        Self { fine, joins }
    }

    /// The cuts before the widest gaps.
    fn cuts(&self) -> impl Iterator<Item = Cut> {
        let mut gaps: Vec<(f64, usize)> = (1..self.joins.len())
            .map(|done| (self.joins[done].2 - self.joins[done - 1].2, done))
            .collect();
        gaps.sort_by(|a, b| b.0.total_cmp(&a.0));
        gaps.truncate(MAX_CUTS);
        gaps.into_iter().map(|(_, done)| self.cut(done))
    }

    /// The groups after so many joins.
    fn cut(&self, done: usize) -> Cut {
        let mut groups = self.fine.clone();
        for &(into, from, _) in &self.joins[..done] {
            let joined = std::mem::take(&mut groups[from]);
            groups[into].extend(joined);
        }
        normalize(groups)
    }
}

/// The two nearest that have any pair measured.
fn nearest(alive: &[usize], sum: &[f64], count: &[f64], n: usize) -> Option<(usize, usize, f64)> {
    let mut best: Option<(usize, usize, f64)> = None;
    for (index, &a) in alive.iter().enumerate() {
        for &b in &alive[index + 1..] {
            let at = a * n + b;
            if count[at] > 0.0 {
                let mean = sum[at] / count[at];
                if best.is_none_or(|(_, _, least)| mean < least) {
                    best = Some((a, b, mean));
                }
            }
        }
    }
    best
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
