//! In which order what is run. Loads are few, because in an emulated guest one takes as long as a few runs, but the
//! schedulers take turns in random order, so that none always has the machine as the same other one left it.

use super::plan::{Plan, Purpose, Run, Scheduler, Turn};
use super::schedulers::BASELINE;
use super::workload::{SELF_CHECK, Setting, Workload};
use fastrand::Rng;

/// The start of a run is put off by up to this: more than a tick at HZ=250.
const OFFSET_MAX_US: u64 = 5_000;
/// The seed of warm-ups and of observed runs, which are not timed.
const NO_SEED: u64 = 0;

/// Where the meter's report is written to in the guest.
pub const OBSERVED: &str = "/tmp/manycore-observed.json";

/// A scheduler, and the seeds with each of which it runs each workload.
#[derive(Debug, Clone, PartialEq)]
pub struct Entrant {
    pub scheduler: Scheduler,
    pub seeds: Vec<u64>,
}

/// All that a plan is made of.
#[derive(Debug)]
pub struct Request<'a> {
    pub entrants: Vec<Entrant>,
    pub workloads: Vec<&'a Workload>,
    pub setting: Setting,
    /// Turns of each scheduler, over which the seeds are spread.
    pub rounds: u64,
    /// Begin with the check of the clock, and end there if it fails.
    pub check: bool,
    /// Run each workload once more under `manycore observe`.
    pub observe: bool,
}

impl Request<'_> {
    pub fn plan(&self) -> Plan {
        let mut turns = vec![self.warm_up()];
        let all = self.entrants.iter().map(|entrant| &entrant.seeds);
        let count = all.clone().map(Vec::len).max().unwrap_or_default() as u64;
        let first = all.flatten().next().copied().unwrap_or_default();
        let mut rng = Rng::with_seed(count ^ self.rounds << 32 ^ first << 48);
        let rounds = self.rounds.clamp(1, count.max(1));
        for round in 0..rounds {
            let mut order: Vec<_> = self.entrants.iter().collect();
            rng.shuffle(&mut order);
            for Entrant { scheduler, seeds } in order {
                let mut runs = Vec::new();
                let seeds = (0..).zip(seeds);
                for (_, seed) in seeds.filter(|(at, _)| at % rounds == round) {
                    let mut workloads = self.workloads.clone();
                    rng.shuffle(&mut workloads);
                    runs.extend(workloads.iter().map(|w| self.run(w, *seed, Purpose::Timed)));
                }
                if self.observe && round + 1 == rounds {
                    let observed = |w: &&Workload| self.run(w, NO_SEED, Purpose::Observed);
                    runs.extend(self.workloads.iter().map(observed));
                }
                turns.push(Turn {
                    scheduler: scheduler.name.clone(),
                    runs,
                });
            }
        }
        for (id, run) in turns.iter_mut().flat_map(|turn| &mut turn.runs).enumerate() {
            run.id = id;
        }
        Plan {
            schedulers: self.entrants.iter().map(|e| e.scheduler.clone()).collect(),
            turns,
        }
    }

    /// Each workload once, unmeasured, under the kernel's own scheduler, so that programs are in the guest's memory.
    fn warm_up(&self) -> Turn {
        let mut all = self.entrants.iter().map(|entrant| &entrant.scheduler);
        let own = all.find(|s| s.daemon.is_none());
        let check = self
            .check
            .then(|| self.run(&SELF_CHECK, NO_SEED, Purpose::Check));
        let warm_ups = self
            .workloads
            .iter()
            .map(|w| self.run(w, NO_SEED, Purpose::Warmup));
        Turn {
            scheduler: own.map_or(BASELINE.into(), |s| s.name.clone()),
            runs: check.into_iter().chain(warm_ups).collect(),
        }
    }

    fn run(&self, workload: &Workload, seed: u64, purpose: Purpose) -> Run {
        // The same for all schedulers: they are given the same work at the same offsets.
        let mut rng = Rng::with_seed(fnv(workload.name) ^ seed);
        let offset_us = rng.u64(0..OFFSET_MAX_US);
        let mut command = workload.command(&self.setting, &mut rng);
        if purpose == Purpose::Observed || workload.is_metered() {
            let mut observed: Vec<_> = ["manycore", "observe", "--json", "-o", OBSERVED, "--"]
                .map(String::from)
                .to_vec();
            observed.append(&mut command);
            command = observed;
        }
        Run {
            id: 0,
            workload: workload.name.into(),
            seed,
            purpose,
            offset_us,
            command,
        }
    }
}

/// The FNV-1a hash: stable over versions of the standard library.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::super::plan::Daemon;
    use super::super::schedulers::kernels_own;
    use super::super::workload::{ALL, Size};
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn request(schedulers: usize, seeds: u64, rounds: u64, observe: bool) -> Request<'static> {
        let mut list = vec![kernels_own()];
        list.extend((1..schedulers).map(|i| Scheduler {
            name: format!("s{i}"),
            title: format!("scx_s{i}"),
            daemon: Some(Daemon {
                command: vec!["x".into()],
                ops: "x".into(),
            }),
        }));
        Request {
            entrants: list
                .into_iter()
                .map(|scheduler| Entrant {
                    scheduler,
                    seeds: (1..=seeds).collect(),
                })
                .collect(),
            workloads: ALL.iter().collect(),
            setting: Setting {
                cpus: 8,
                size: Size::Lab,
            },
            rounds,
            check: true,
            observe,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_scheduler_gets_every_workload_with_every_seed_once(
            schedulers in 1_usize..6, seeds in 1_u64..9, rounds in 1_u64..12, observe: bool
        ) {
            let plan = request(schedulers, seeds, rounds, observe).plan();
            let mut timed = HashMap::new();
            let mut observed = 0;
            for (turn, run) in plan.turns.iter().flat_map(|t| t.runs.iter().map(move |r| (t, r))) {
                match run.purpose {
                    Purpose::Timed => {
                        let key = (turn.scheduler.clone(), run.workload.clone(), run.seed);
                        *timed.entry(key).or_insert(0) += 1;
                    }
                    Purpose::Observed => observed += 1,
                    Purpose::Warmup => prop_assert_eq!(&turn.scheduler, BASELINE),
                    Purpose::Check => prop_assert_eq!(run.id, 0),
                }
            }
            prop_assert_eq!(timed.len(), schedulers * ALL.len() * usize::try_from(seeds).unwrap());
            prop_assert!(timed.values().all(|count| *count == 1));
            prop_assert_eq!(observed, if observe { schedulers * ALL.len() } else { 0 });
        }

        #[test]
        fn all_schedulers_are_given_the_same_work(seeds in 1_u64..5, rounds in 1_u64..5) {
            let plan = request(3, seeds, rounds, false).plan();
            let mut work = HashMap::new();
            for run in plan.turns.iter().flat_map(|t| &t.runs) {
                let given = (run.command.clone(), run.offset_us);
                let first = work.entry((run.workload.clone(), run.seed)).or_insert(given.clone());
                prop_assert_eq!(&*first, &given);
            }
        }
    }

    #[test]
    fn a_plan_can_be_made_again_and_its_runs_are_numbered() {
        let plan = request(4, 5, 2, true).plan();
        assert_eq!(plan, request(4, 5, 2, true).plan());
        for id in 0..plan.runs() {
            assert_eq!(plan.run(id).unwrap().1.id, id);
        }
    }

    #[test]
    fn seeds_differ_in_their_offsets() {
        let plan = request(1, 5, 1, false).plan();
        let mut offsets: Vec<_> = plan.turns[1]
            .runs
            .iter()
            .filter(|run| run.workload == "pipe")
            .map(|run| run.offset_us)
            .collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), 5);
    }
}
