//! How fairly CPU time was shared.

use std::collections::BTreeMap;

use serde::Serialize;

use super::waste::Who;
use super::wire::TaskSample;

/// A thread competed all the time if it ran or waited for this share of its life, ...
const DEMAND: f64 = 0.9;
/// ... and its life covers this share of the measurement.
const PRESENCE: f64 = 0.5;

/// Threads that ask for the same: one command, one weight, one affinity, always runnable.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct EqualThreads {
    pub command: String,
    pub threads: usize,
    /// Jain's index of their speeds: 1 is equal, 1/threads is one thread having it all.
    pub jain: f64,
    /// The slowest and the fastest thread's share of the time in which it was runnable that it ran, 0 to 1.
    pub min_share: f64,
    pub max_share: f64,
}

/// What always-runnable threads of one weight got, against what their weight entitles them to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct WeightShare {
    pub weight: u32,
    pub threads: usize,
    /// Their share of the CPU time of all compared threads, 0 to 1.
    pub share: f64,
    /// The share that their weight gives them, where no thread can use more than one CPU.
    pub entitled: f64,
}

/// Fairness of one measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Fairness {
    /// The groups with at least two threads, least fair first.
    pub equal_threads: Vec<EqualThreads>,
    /// By weight, among the threads of the affinity for which the most weights compete; empty if all weigh the same.
    pub by_weight: Vec<WeightShare>,
}

/// Jain's fairness index, (sum x)^2 / (n sum x^2); 1 for no values or only zeroes.
pub(super) fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|x| x * x).sum();
    if squares == 0.0 {
        return 1.0;
    }
    sum * sum / (values.len() as f64 * squares)
}

/// Shares `total` CPU time among threads of these weights, none of which can use more than its `cap`: what is beyond a
/// cap goes to the others by weight.
pub(super) fn entitled(total: f64, threads: &[(u32, f64)]) -> Vec<f64> {
    let mut given = vec![0.0; threads.len()];
    let mut open: Vec<usize> = (0..threads.len()).collect();
    let mut left = total;
    loop {
        let weights: f64 = open.iter().map(|&i| f64::from(threads[i].0)).sum();
        let offer = |i: usize| left * f64::from(threads[i].0) / weights;
        let (full, rest): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|&&i| offer(i) >= threads[i].1);
        if full.is_empty() || rest.is_empty() {
            for &i in &open {
                given[i] = offer(i);
            }
            return given;
        }
        for i in full {
            given[i] = threads[i].1;
            left -= threads[i].1;
        }
        open = rest;
    }
}

fn life(t: &TaskSample) -> f64 {
    t.last_ns.saturating_sub(t.first_ns) as f64
}

/// Whether the thread's life covers enough of a measurement of `elapsed_ns` to be compared with others.
pub(super) fn was_present(t: &TaskSample, elapsed_ns: u64) -> bool {
    life(t) > 0.0 && life(t) >= PRESENCE * elapsed_ns as f64
}

/// Of the time in which the thread was runnable, the share in which it ran.
fn speed(t: &TaskSample) -> f64 {
    t.run_ns as f64 / (t.run_ns + t.wait_ns).max(1) as f64
}

/// SCHED_OTHER, SCHED_BATCH, SCHED_IDLE or SCHED_EXT: the policies that share by weight.
fn shares_by_weight(t: &TaskSample) -> bool {
    matches!(t.policy, 0 | 3 | 5 | 7)
}

/// Judges the threads of a measurement that took `elapsed_ns`.
pub(super) fn judge(tasks: &[TaskSample], elapsed_ns: u64) -> Fairness {
    let competing: Vec<&TaskSample> = tasks
        .iter()
        .filter(|t| shares_by_weight(t))
        .filter(|t| was_present(t, elapsed_ns))
        .filter(|t| (t.run_ns + t.wait_ns) as f64 >= DEMAND * life(t))
        .collect();
    Fairness {
        equal_threads: equal_threads(&competing),
        by_weight: by_weight(&competing),
    }
}

fn equal_threads(competing: &[&TaskSample]) -> Vec<EqualThreads> {
    let mut groups: BTreeMap<(&str, u32, Who), Vec<f64>> = BTreeMap::new();
    for t in competing {
        let key = (t.comm.as_str(), t.weight, t.who);
        groups.entry(key).or_default().push(speed(t));
    }
    let mut found: Vec<EqualThreads> = groups
        .into_iter()
        .filter(|(_, speeds)| speeds.len() > 1)
        .map(|((comm, _, _), speeds)| EqualThreads {
            command: comm.to_owned(),
            threads: speeds.len(),
            jain: jain(&speeds),
            min_share: speeds.iter().copied().fold(f64::INFINITY, f64::min),
            max_share: speeds.iter().copied().fold(0.0, f64::max),
        })
        .collect();
    found.sort_by(|a, b| a.jain.total_cmp(&b.jain));
    found
}

fn by_weight(competing: &[&TaskSample]) -> Vec<WeightShare> {
    let mut pools: BTreeMap<Who, BTreeMap<u32, Vec<&TaskSample>>> = BTreeMap::new();
    for &t in competing {
        let pool = pools.entry(t.who).or_default();
        pool.entry(t.weight).or_default().push(t);
    }
    let Some(pool) = pools.into_values().max_by_key(BTreeMap::len) else {
        return Vec::new();
    };
    if pool.len() < 2 {
        return Vec::new();
    }
    let threads: Vec<&TaskSample> = pool.values().flatten().copied().collect();
    let total: f64 = threads.iter().map(|t| t.run_ns as f64).sum();
    let caps: Vec<(u32, f64)> = threads.iter().map(|t| (t.weight, life(t))).collect();
    let given = entitled(total, &caps);
    pool.iter()
        .map(|(&weight, members)| {
            let ran: f64 = members.iter().map(|t| t.run_ns as f64).sum();
            let due = threads
                .iter()
                .zip(&given)
                .filter(|(t, _)| t.weight == weight);
            WeightShare {
                weight,
                threads: members.len(),
                share: ran / total.max(1.0),
                entitled: due.map(|(_, g)| g).sum::<f64>() / total.max(1.0),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn thread(comm: &str, weight: u32, run_ns: u64, wait_ns: u64) -> TaskSample {
        TaskSample {
            pid: 1,
            tgid: 1,
            who: Who::Any,
            weight,
            policy: 0,
            exited: false,
            first_ns: 0,
            last_ns: 1000,
            run_ns,
            wait_ns,
            comm: comm.to_owned(),
        }
    }

    #[test]
    fn jain_knows_its_extremes() {
        assert_eq!(jain(&[3.0, 3.0, 3.0]), 1.0);
        assert_eq!(jain(&[1.0, 0.0, 0.0, 0.0]), 0.25);
        assert_eq!(jain(&[]), 1.0);
    }

    #[test]
    fn sleepers_and_latecomers_do_not_compete() {
        let mut late = thread("a", 1024, 100, 0);
        late.first_ns = 900;
        let tasks = [thread("a", 1024, 500, 500), thread("a", 1024, 100, 0), late];
        assert_eq!(judge(&tasks, 1000), Fairness::default());
    }

    #[test]
    fn equal_threads_are_compared_by_command() {
        let tasks = [
            thread("a", 1024, 900, 100),
            thread("a", 1024, 100, 900),
            thread("b", 1024, 500, 500),
            thread("b", 1024, 500, 500),
        ];
        let found = judge(&tasks, 1000).equal_threads;
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].command, "a");
        assert!((found[0].jain - 1.0 / 1.64).abs() < 1e-9);
        assert_eq!(found[1].jain, 1.0);
    }

    #[test]
    fn a_heavy_thread_is_entitled_to_one_cpu_at_most() {
        // 2 CPUs for 100 ns, one thread of weight 8 beside two of weight 1.
        let given = entitled(200.0, &[(8, 100.0), (1, 100.0), (1, 100.0)]);
        assert_eq!(given, [100.0, 50.0, 50.0]);
    }

    #[test]
    fn shares_are_compared_with_weights() {
        let tasks = [thread("a", 3072, 750, 250), thread("b", 1024, 250, 750)];
        let shares = judge(&tasks, 1000).by_weight;
        assert_eq!(shares.len(), 2);
        assert_eq!(
            (shares[1].weight, shares[1].share, shares[1].entitled),
            (3072, 0.75, 0.75)
        );
    }

    proptest! {
        #[test]
        fn jain_is_between_one_over_n_and_one(values in prop::collection::vec(0.0..1e6f64, 1..50)) {
            let index = jain(&values);
            prop_assert!(index <= 1.0 + 1e-9 && index >= 1.0 / values.len() as f64 - 1e-9);
        }

        #[test]
        fn all_that_can_be_used_is_given_out(threads in prop::collection::vec((1u32..5000, 1.0..100.0f64), 1..20), part in 0.05..1.0f64) {
            let caps: f64 = threads.iter().map(|t| t.1).sum();
            let given = entitled(caps * part, &threads);
            let sum: f64 = given.iter().sum();
            prop_assert!((sum - caps * part).abs() < 1e-6 * caps);
            for (g, (_, cap)) in given.iter().zip(&threads) {
                prop_assert!(*g <= cap + 1e-6 * caps);
            }
        }
    }
}
