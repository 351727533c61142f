//! Reads what the BPF side measured of nodes, and gives it orders.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use control_plane::shards::Shards;
use libbpf_rs::{MapCore, MapFlags};
use log::debug;

use crate::balance::Balancer;

/// How often load is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// Time that tasks of one home node ran since load, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeTime {
    pub(crate) home_ns: u64,
    pub(crate) away_ns: u64,
}

/// Sums the rows of all CPUs, by node.
///
/// # Errors
/// If the map can't be read.
pub(crate) fn times(map: &impl MapCore, nodes: u32) -> Result<Vec<NodeTime>> {
    (0..nodes)
        .map(|node| {
            let rows = map
                .lookup_percpu(&node.to_ne_bytes(), MapFlags::ANY)
                .context("reading the times of nodes")?
                .unwrap_or_default();
            Ok(rows.iter().fold(NodeTime::default(), |sum, row| NodeTime {
                home_ns: sum.home_ns + word(row, 0),
                away_ns: sum.away_ns + word(row, 1),
            }))
        })
        .collect()
}

/// A 64-bit word of a row of `struct node_time`.
fn word(row: &[u8], index: usize) -> u64 {
    row.get(8 * index..8 * index + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_ne_bytes)
}

/// The daemon's part of the policy.
#[derive(Debug)]
pub(crate) struct Orders {
    nodes: u32,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    balancer: Balancer,
    last: Vec<NodeTime>,
    at: Instant,
    /// Tasks found queued at each node since then, summed over as many looks.
    queued: Vec<u64>,
    looks: u32,
}

impl Orders {
    pub(crate) fn new(shards: &Shards) -> Self {
        let mut cpus = vec![0; shards.nodes().len()];
        for shard in shards.shards() {
            cpus[shard.node as usize] += shard.online().count() as u32;
        }
        Self {
            nodes: cpus.len() as u32,
            state: RefCell::new(State {
                balancer: Balancer::new(&cpus),
                last: vec![NodeTime::default(); cpus.len()],
                at: Instant::now(),
                queued: vec![0; cpus.len()],
                looks: 0,
            }),
        }
    }

    pub(crate) fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Takes note of how many tasks are queued at each node now; once a second it looks at the load, and has homes moved
    /// if that has been uneven for long.
    ///
    /// # Errors
    /// If a map can't be read or written.
    pub(crate) fn tick(
        &self,
        queued: &[u64],
        node_times: &impl MapCore,
        orders: &impl MapCore,
    ) -> Result<()> {
        let state = &mut *self.state.borrow_mut();
        for (sum, now) in state.queued.iter_mut().zip(queued) {
            *sum += now;
        }
        state.looks += 1;
        let elapsed = state.at.elapsed();
        if elapsed < INTERVAL || self.nodes < 2 {
            return Ok(());
        }
        let now = times(node_times, self.nodes)?;
        let looks = f64::from(state.looks);
        let wanted: Vec<_> = now
            .iter()
            .zip(&state.last)
            .zip(&state.queued)
            .map(|((now, last), queued)| {
                let ran = (now.home_ns + now.away_ns).saturating_sub(last.home_ns + last.away_ns);
                Duration::from_nanos(ran) + elapsed.mul_f64(*queued as f64 / looks)
            })
            .collect();
        state.last = now;
        state.at = Instant::now();
        state.queued.fill(0);
        state.looks = 0;
        let order = state.balancer.observe(&wanted, elapsed);
        for node in 0..self.nodes {
            // What was not used of an earlier order is void.
            let (to, budget) = match order {
                Some(order) if order.from == node as usize => {
                    debug!(
                        "{} tasks of node {} move to {}",
                        order.tasks, order.from, order.to
                    );
                    (order.to as u32, order.tasks)
                }
                _ => (node, 0),
            };
            let mut row = [0; 16];
            row[..4].copy_from_slice(&to.to_ne_bytes());
            row[8..].copy_from_slice(&budget.to_ne_bytes());
            orders
                .update(&node.to_ne_bytes(), &row, MapFlags::ANY)
                .context("ordering homes to move")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_short_rows_are_zero() {
        let row: Vec<u8> = [7_u64, 9].iter().flat_map(|w| w.to_ne_bytes()).collect();
        assert_eq!((word(&row, 0), word(&row, 1), word(&row, 2)), (7, 9, 0));
    }
}
