//! The cases of `manycore_tests::plan`, run in guests. Each guest is booted once and runs those of its cases that were asked
//! for, one after the other; each is a test of its own, named like `6.12/t8/scx_rr/fair`.
//!
//! ```text
//! cargo test -p manycore-tests --test vm                    the quick set
//! cargo test -p manycore-tests --test vm -- 6.12/t8         one guest
//! cargo test -p manycore-tests --test vm -- --ignored       the rest of the full set: up to 256 CPUs, much slower
//! ```

mod booted;
mod lanes;

use anyhow::Result;
use lanes::Lanes;
use libtest_mimic::{Arguments, Trial};
use manycore_tests::boot::guests_at_a_time;
use manycore_tests::plan::{GUESTS, Guest};
use manycore_tests::results::passed_already;
use std::sync::Arc;

fn main() -> Result<()> {
    let mut args = Arguments::from_args();
    // The guests run ahead of what is told of them, which is in the order of the plan.
    args.test_threads = Some(1);
    let passed = passed_already();
    let is_left = |guest: &Guest, case: &str| !passed.contains(&trial_name(guest, case));
    let mut lanes = Lanes::new(guests_at_a_time()?);
    let mut due = Vec::new();
    for guest in GUESTS {
        let mut cases = guest.cases();
        cases.retain(|case| is_left(guest, case));
        let selected = cases
            .iter()
            .filter(|case| is_selected(&args, guest, &trial_name(guest, case)))
            .cloned()
            .collect();
        let results = Arc::new(lanes.add(guest, selected));
        due.extend(
            cases
                .into_iter()
                .map(|case| (guest, case, Arc::clone(&results))),
        );
    }
    let lanes = Arc::new(lanes);
    let trials = due
        .into_iter()
        .map(|(guest, case, results)| {
            let lanes = Arc::clone(&lanes);
            Trial::test(trial_name(guest, &case), move || {
                lanes.start();
                let told = results.of(&case);
                // If it failed, all is said again at the end, which may be hours away.
                if let Some(line) = told.line {
                    eprintln!("{line}");
                }
                told.result
            })
            .with_ignored_flag(guest.full)
        })
        .collect();
    libtest_mimic::run(&args, trials).exit();
}

fn trial_name(guest: &Guest, case: &str) -> String {
    format!("{}/{case}", guest.name())
}

/// Whether libtest-mimic will run it.
fn is_selected(args: &Arguments, guest: &Guest, name: &str) -> bool {
    let fits = |filter: &str| {
        if args.exact {
            name == filter
        } else {
            name.contains(filter)
        }
    };
    args.filter.as_deref().is_none_or(fits)
        && !args.skip.iter().any(|skip| fits(skip))
        && (args.include_ignored || guest.full == args.ignored)
}
