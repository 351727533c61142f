//! Where scx_numa has tasks at home.

use crate::Setting;
use crate::cases::stats::Totals;
use crate::cpus::online;
use crate::daemon::Daemon;
use crate::kernel::scheduler_dump;
use crate::procs::{Procs, Running, beside};
use crate::scene::TURN;
use anyhow::{Context, Result, ensure};
use manycore_tests::machine::Machine;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

/// Twice as many processes as there are CPUs, all with their memory on one node: CPUs of the other node run half of them,
/// most of the time, which would be reason enough to be at home there.
const EACH: usize = 2;
const LONG: Duration = Duration::from_secs(3);

pub(crate) fn memory_home(setting: &Setting) -> Result<String> {
    at_home_by_memory(Daemon::lent(setting)?, 1, 1)
}

/// A node of memory only belongs to the CPUs that are nearest to it.
pub(crate) fn cpuless_home(setting: &Setting) -> Result<String> {
    let machine = Machine::read(&setting.topology)?;
    let (memory, row) = machine
        .distances
        .iter()
        .enumerate()
        .next_back()
        .context("no distances")?;
    let others = row.iter().enumerate().filter(|(node, _)| *node != memory);
    let (nearest, _) = others
        .min_by_key(|(_, distance)| **distance)
        .context("one node")?;
    at_home_by_memory(Daemon::start(setting, &[])?, memory as u32, nearest as u32)
}

/// Tasks whose memory is on that node of the kernel's are at home on the other.
fn at_home_by_memory(daemon: Daemon, memory: u32, home: u32) -> Result<String> {
    let bind = format!("--membind={memory}");
    let count = EACH * online()?.len();
    let before = Totals::read()?;
    // The command itself is at home on whatever node it starts; then it asks for memory of another.
    let bound = Procs::start(count, &beside("spin")?, 1, &["numactl", &bind])?;
    bound.check_progress(TURN)?;
    std::thread::sleep(LONG);
    bound.check_progress(TURN)?;
    let dump = scheduler_dump();
    let given = Totals::read()?.0["home_memory"] - before.0["home_memory"];
    let homes = Homes::parse(&dump)?;
    let (seen, away) = homes.of(&bound.tids()?, home);
    drop(bound);
    let told = format!(
        "{count} processes, {given} homes by memory; {seen} seen, {away} of them at home elsewhere"
    );
    // Half of them, more or less, started there and have it anyway. One that is just being moved is not in the dump.
    ensure!(
        given >= count as u64 / 4 && seen >= count / 2 && away == 0,
        "{dump}\n{told}"
    );
    daemon.stop()?;
    Ok(told)
}

/// What each thread uses of a CPU, in percent, 0.5 to 3 ms at a time.
const LOAD: &str = "70";
/// There is a thread more than CPUs for so many CPUs.
const ONE_MORE_FOR: usize = 16;
/// For them to spread.
const SETTLED: Duration = Duration::from_millis(500);
const WATCHED: Duration = Duration::from_secs(1);
/// Of how many wakeups one may lead to a move. With --remote-wait-us 200, one of 81 did, and there were 27 new homes.
const MOVES_AMONG: u64 = 1000;

/// With a task more than CPUs at home, somebody waits for a moment now and then, while CPUs of other nodes idle. A CPU at
/// home is free before the wait is worth a move: nobody goes.
pub(crate) fn stays_home(setting: &Setting) -> Result<String> {
    let cpus = online()?.len();
    let daemon = Daemon::start(setting, &[])?;
    let threads = (cpus + cpus / ONE_MORE_FOR).to_string();
    let mut load = Command::new(beside("xtask")?);
    load.args(["in-guest", "loaded", "--percent", LOAD, "--threads"]);
    load.args([&threads, "--seed", "1", "--", "sleep", "20"]);
    let _load = Running::start(&mut load)?;
    std::thread::sleep(SETTLED);
    let before = Totals::read()?;
    std::thread::sleep(WATCHED);
    let after = Totals::read()?;
    let grown = |names: &[&str]| -> u64 {
        let of = |totals: &Totals| names.iter().map(|name| totals.0[*name]).sum::<u64>();
        of(&after) - of(&before)
    };
    let moves = grown(&["disp_remote"]);
    let homes = grown(&["home_away", "home_balanced", "home_ordered"]);
    let wakeups = grown(&["wake_prev", "wake_llc", "wake_node", "enq_home"]);
    let told = format!("{wakeups} wakeups, {moves} moves to another node, {homes} new homes");
    ensure!(wakeups > 20 * cpus as u64, "an idle machine: {told}");
    ensure!(
        moves <= wakeups / MOVES_AMONG && homes <= cpus as u64 / 8,
        "{told}"
    );
    daemon.stop()?;
    Ok(told)
}

/// Where scx_numa's dump says that tasks are at home.
struct Homes {
    /// The node of each queue.
    nodes: BTreeMap<u32, u32>,
    /// The queue of each task, by its thread's id.
    tasks: BTreeMap<i32, u32>,
}

impl Homes {
    fn parse(dump: &str) -> Result<Self> {
        let (mut nodes, mut tasks, mut of) = (BTreeMap::new(), BTreeMap::new(), None);
        for line in dump.lines().map(str::trim) {
            if let Some((shard, node)) = shard(line) {
                nodes.insert(shard, node);
            } else if let Some(tid) = thread(line) {
                of = Some(tid);
            } else if let (Some(tid), Some(home)) = (of, home(line)) {
                tasks.insert(tid, home);
            }
        }
        ensure!(
            !nodes.is_empty(),
            "no queue in the scheduler's dump:\n{dump}"
        );
        Ok(Self { nodes, tasks })
    }

    /// How many of these threads the dump has, and how many of those are at home elsewhere than on this node.
    fn of(&self, tids: &[i32], node: u32) -> (usize, usize) {
        let homes = tids.iter().filter_map(|tid| self.tasks.get(tid));
        let nodes: Vec<_> = homes.map(|shard| self.nodes.get(shard)).collect();
        let away = nodes.iter().filter(|at| **at != Some(&node)).count();
        (nodes.len(), away)
    }
}

/// `shard 1: node 1, 4 CPUs, idle 0, 5 queued`: the queue and its node.
fn shard(line: &str) -> Option<(u32, u32)> {
    let (shard, rest) = line.strip_prefix("shard ")?.split_once(": node ")?;
    let (node, _) = rest.split_once(',')?;
    Some((shard.parse().ok()?, node.parse().ok()?))
}

/// `*R spin[193] -132ms`, or `*R spin[193] *root -132ms` where there may be several schedulers: a task is being told of.
fn thread(line: &str) -> Option<i32> {
    let (before, rest) = line.rsplit_once("] ")?;
    let time = rest.rsplit(' ').next()?;
    time.strip_suffix("ms")?.parse::<i64>().ok()?;
    before.rsplit_once('[')?.1.parse().ok()
}

/// `... home=1 ...`: its home.
fn home(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once(" home=")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_in_dumps_of_each_kernel() {
        let of_612 = "shard 0: node 0, 4 CPUs, idle 0, 2 queued
            shard 1: node 1, 4 CPUs, idle 0, 5 queued
            *R spin[7] -28ms
              cpus=ff no_mig=0
              vtime=1 slice_ns=2000000 allowed=8 home=1 away_ns=0
             R kworker/0:2[8] -108ms
              vtime=1 slice_ns=2000000 allowed=1 home=-1 away_ns=0
             R a] b[9] +0ms
              vtime=1 slice_ns=2000000 allowed=8 home=0 away_ns=0";
        let of_73 = of_612
            .replace("] -", "] *root -")
            .replace("] +", "] *root +");
        for dump in [of_612, &of_73] {
            let homes = Homes::parse(dump).unwrap();
            assert_eq!(homes.of(&[7, 8, 9, 10], 1), (2, 1), "{dump}");
        }
    }
}
