//! What the kernel's verifier looks at to admit a scheduler, which is what loading takes.

use crate::Setting;
use crate::cpus::read;
use crate::daemon::Daemon;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// What it was last, by scheduler and by kernel (`6.12`).
const LAST: &str = include_str!("verified.toml");
/// By how much it may be more than that, in percent: compilers differ a little.
const MORE: u64 = 25;

/// Of all programs of a scheduler.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Figures {
    /// Instructions, each as often as it was looked at.
    instructions: u64,
    /// States of registers and stack that it kept, to end where it had been.
    states: u64,
}

pub(crate) fn verified(setting: &Setting) -> Result<String> {
    let scheduler = setting.scheduler()?;
    let started = Instant::now();
    let daemon = Daemon::start(setting, &["-vv"])?;
    let took = started.elapsed();
    let log = daemon.stderr();
    daemon.stop()?;
    let (programs, now) = Figures::sum(&log)?;
    let told = format!(
        "{programs} programs, {} instructions, {} states, loaded within {:.1} s",
        now.instructions,
        now.states,
        took.as_secs_f64()
    );
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let Some(last) = Figures::last(scheduler.name, &kernel)? else {
        return Ok(format!("{told}; for the first time on this kernel"));
    };
    let told = format!(
        "{told}; last time {} and {}",
        last.instructions, last.states
    );
    ensure!(
        !now.is_much_more_than(last),
        "{told}: more than {MORE} % more. If it has to be, say so in tests/guest/cases/verified.toml"
    );
    Ok(told)
}

impl Figures {
    /// Of how many programs, and of all of them, from the log of a daemon that says everything.
    fn sum(log: &str) -> Result<(usize, Self)> {
        let (mut programs, mut all) = (0, Self::default());
        for line in log.lines() {
            // processed 23 insns (limit 1000000) max_states_per_insn 0 total_states 2 peak_states 2 mark_read 1
            let words: Vec<_> = line.split_whitespace().collect();
            if words.first() != Some(&"processed") {
                continue;
            }
            let after = |word: &str| {
                let at = words.iter().position(|it| *it == word)?;
                words.get(at + 1)?.parse::<u64>().ok()
            };
            let (Some(instructions), Some(states)) = (after("processed"), after("total_states"))
            else {
                bail!("the verifier says {line:?}");
            };
            programs += 1;
            all.instructions += instructions;
            all.states += states;
        }
        ensure!(programs > 0, "the log doesn't say what the verifier did");
        Ok((programs, all))
    }

    /// On a kernel of this release (`6.12.117-...`). None if it is not known.
    fn last(scheduler: &str, release: &str) -> Result<Option<Self>> {
        let all: BTreeMap<String, BTreeMap<String, Self>> =
            toml::from_str(LAST).context("reading verified.toml")?;
        let version: Vec<_> = release.split('.').take(2).collect();
        let of = all.get(scheduler);
        Ok(of.and_then(|of| of.get(&version.join("."))).copied())
    }

    fn is_much_more_than(self, last: Self) -> bool {
        let is = |now: u64, last: u64| now * 100 > last * (100 + MORE);
        is(self.instructions, last.instructions) || is(self.states, last.states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_summed_and_compared() {
        let log = "libbpf: prog 'a': -- BEGIN PROG LOAD LOG --\n\
                   processed 23 insns (limit 1000000) max_states_per_insn 0 total_states 2 peak_states 2 mark_read 1\n\
                   -- END PROG LOAD LOG --\n\
                   processed 77 insns (limit 1000000) max_states_per_insn 1 total_states 8 peak_states 8 mark_read 1\n";
        let (programs, all) = Figures::sum(log).unwrap();
        let expected = Figures {
            instructions: 100,
            states: 10,
        };
        assert_eq!((programs, all), (2, expected));
        assert!(Figures::sum("nothing\n").is_err());
        assert!(Figures::sum("processed some insns\n").is_err());

        let with = |instructions, states| Figures {
            instructions,
            states,
        };
        assert!(!with(125, 12).is_much_more_than(all));
        assert!(with(126, 10).is_much_more_than(all));
        assert!(with(50, 13).is_much_more_than(all));
    }

    #[test]
    fn the_last_figures_are_found_by_kernel() {
        let known = Figures::last("scx_steal", "6.12.117").unwrap();
        assert!(known.is_some_and(|known| known.instructions > 0));
        assert_eq!(Figures::last("scx_steal", "5.10.1").unwrap(), None);
        assert_eq!(Figures::last("scx_none", "6.12.117").unwrap(), None);
    }
}
