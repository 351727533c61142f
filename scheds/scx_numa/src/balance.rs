//! Which homes should move: nodes whose tasks have wanted more CPU time than those of another node, for seconds. What
//! they want is what they had and what they waited for: a task that is queued for a second wanted a second.
//!
//! Tasks of a node that is too busy run elsewhere now and then already, taken by idle CPUs one wait at a time. That is
//! for moments. What lasts is better served by fewer tasks at home there.

use std::time::Duration;

/// Load is averaged over about this.
const MEMORY: Duration = Duration::from_secs(3);
/// No move before the average has seen this much.
const WARM_UP: Duration = Duration::from_secs(3);
/// Tasks for each CPU, by which two nodes must differ for a move.
const GAP: f64 = 0.25;

/// A move of homes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// How many tasks.
    pub(crate) tasks: u64,
}

/// Follows the load of nodes.
#[derive(Clone, Debug)]
pub(crate) struct Balancer {
    /// CPUs of each node.
    cpus: Vec<f64>,
    /// Tasks with that home that ran or waited at a time, averaged.
    load: Vec<f64>,
    seen: Duration,
}

impl Balancer {
    /// For nodes with that many CPUs each.
    pub(crate) fn new(cpus: &[u32]) -> Self {
        Self {
            cpus: cpus.iter().map(|&cpus| f64::from(cpus.max(1))).collect(),
            load: vec![0.0; cpus.len()],
            seen: Duration::ZERO,
        }
    }

    /// `wanted`: the time that tasks of each home ran, wherever that was, or waited at home, in the interval that has
    /// just ended. Says what to move now, if anything.
    pub(crate) fn observe(&mut self, wanted: &[Duration], interval: Duration) -> Option<Order> {
        if interval.is_zero() || wanted.len() != self.load.len() {
            return None;
        }
        let keep = (-interval.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        for (load, wanted) in self.load.iter_mut().zip(wanted) {
            let now = wanted.as_secs_f64() / interval.as_secs_f64();
            // The first readings count in full, or all nodes would look idle at first.
            *load = if self.seen.is_zero() {
                now
            } else {
                *load * keep + now * (1.0 - keep)
            };
        }
        self.seen += interval;
        if self.seen < WARM_UP {
            return None;
        }
        self.order()
    }

    fn order(&self) -> Option<Order> {
        let share = |node: &usize| self.load[*node] / self.cpus[*node];
        let nodes = 0..self.load.len();
        let from = nodes.clone().max_by(|a, b| share(a).total_cmp(&share(b)))?;
        let to = nodes.min_by(|a, b| share(a).total_cmp(&share(b)))?;
        if share(&from) - share(&to) < GAP {
            return None;
        }
        // Half of what would make the two equal, for each takes effect before the next is given, and a task may use
        // less than a CPU: from below, so that nothing swings.
        let (cf, ct) = (self.cpus[from], self.cpus[to]);
        let excess = (self.load[from] * ct - self.load[to] * cf) / (cf + ct);
        Some(Order {
            from,
            to,
            tasks: ((excess / 2.0) as u64).max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(1);

    fn secs(list: &[f64]) -> Vec<Duration> {
        list.iter().map(|&s| Duration::from_secs_f64(s)).collect()
    }

    #[test]
    fn equal_nodes_are_left_alone_and_so_are_moments() {
        let mut balancer = Balancer::new(&[4, 4]);
        for _ in 0..20 {
            assert_eq!(balancer.observe(&secs(&[3.0, 2.8]), STEP), None);
        }
        assert_eq!(balancer.observe(&secs(&[4.0, 2.5]), STEP), None);
    }

    #[test]
    fn what_lasts_is_moved_to_the_idlest_node() {
        let mut balancer = Balancer::new(&[4, 4, 4]);
        let used = secs(&[8.0, 1.0, 3.0]);
        assert_eq!(balancer.observe(&used, STEP), None);
        assert_eq!(balancer.observe(&used, STEP), None);
        let order = balancer.observe(&used, STEP).unwrap();
        assert_eq!((order.from, order.to), (0, 1));
        assert!((1..=2).contains(&order.tasks), "{order:?}");
    }

    #[test]
    fn nodes_are_compared_for_their_size() {
        let mut balancer = Balancer::new(&[16, 4]);
        for _ in 0..10 {
            assert_eq!(balancer.observe(&secs(&[12.0, 3.0]), STEP), None);
        }
    }

    /// However many tasks there are and wherever they start, the moves end, and end near balance.
    #[test]
    fn moves_come_to_an_end() {
        for start in [[16_u32, 0], [9, 7], [40, 8], [3, 1]] {
            let mut tasks = start.map(f64::from);
            let mut balancer = Balancer::new(&[8, 8]);
            let mut quiet = 0;
            for _ in 0..200 {
                let used: Vec<f64> = tasks.iter().map(|&t| t.min(16.0)).collect();
                match balancer.observe(&secs(&used), STEP) {
                    Some(order) => {
                        let moved = (order.tasks as f64).min(tasks[order.from]);
                        tasks[order.from] -= moved;
                        tasks[order.to] += moved;
                        quiet = 0;
                    }
                    None => quiet += 1,
                }
            }
            assert!(quiet > 100, "{start:?}: still moving: {tasks:?}");
        }
    }
}
