//! `cargo xtask demo`: from nothing to a comparison of schedulers in one command.

use crate::bench::results::{Outcome, Results};
use crate::bench::schedulers::Selection;
use crate::bench::workload::{self, Workload};
use crate::bench::{Extent, measure, text};
use crate::cache::Cache;
use crate::failure::Exit;
use crate::vm::clock::{Choice, ClockArgs};
use crate::vm::topology::Topologies;
use crate::vm::{self, AccelChoice};
use crate::{kernel, setup};
use anyhow::Result;
use std::time::Instant;

const WORKLOADS: [&str; 4] = ["pipe", "hackbench-1", "switch", "burst-1.5"];
const SCHEDULER: &str = "rr";
/// As many as a verdict needs.
const SEEDS: u64 = 5;

/// Compare scx_rr with EEVDF in a VM: a message between two tasks, 40 tasks that talk, more
/// tasks than CPUs
///
/// Whatever is missing is installed, fetched or built first. A workload or a scheduler that
/// fails, fails the demo. `cargo xtask bench` measures more, and other schedulers.
///
/// Examples:
///   cargo xtask demo
///   cargo xtask demo --kernel 6.12 --topology t32
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    clock: ClockArgs,
    /// A topology of vm/topologies.toml [default: the default there]
    #[arg(long)]
    topology: Option<String>,
    /// A kernel of vm/kernels.toml [default: the default there]
    #[arg(long)]
    kernel: Option<String>,
    /// Print JSON, every figure included
    #[arg(long)]
    json: bool,
    /// Install what is missing without asking
    #[arg(long, short)]
    yes: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let cache = Cache::open()?;
    // Wrong names are said before anything is installed or built.
    if let Some(topology) = &args.topology {
        Topologies::load()?.get(topology)?;
    }
    let clock = args.clock.or(Choice::Virtual)?;
    let catalogue = kernel::Catalogue::load()?;
    let kernel = args.kernel.as_deref().unwrap_or(&catalogue.default);
    catalogue.get(kernel)?;
    setup::ensure(&cache, &[kernel.to_owned()], args.yes)?;
    let topology = args.topology.as_deref();
    let spec = vm::prepare(&cache, Some(kernel), topology, AccelChoice::Auto, clock)?;
    let chosen = Selection::new(&[SCHEDULER.into()], false)?.ensure(&cache)?;
    let workloads: Vec<&'static Workload> = WORKLOADS
        .iter()
        .map(|name| workload::find(name))
        .collect::<Result<_>>()?;
    let extent = Extent {
        seeds: SEEDS,
        observe: false,
        guests: None,
    };
    let results = measure(&cache, spec, chosen, workloads, &extent, None)?;
    check(&results)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print!("{}", as_text(&results));
        eprintln!("done in {} s", started.elapsed().as_secs());
    }
    Ok(())
}

/// All that was planned must have run, each time under the scheduler that was meant.
fn check(results: &Results) -> Result<()> {
    let failures: Vec<_> = results
        .rows()
        .into_iter()
        .filter_map(|row| match row.outcome {
            Outcome::Measured { .. } => None,
            Outcome::Failed(why) => Some(format!(
                "{} under {}: {why}",
                row.workload.title, row.scheduler.title
            )),
        })
        .collect();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Exit::with(1, failures.join("\nerror: ")).into())
    }
}

fn as_text(results: &Results) -> String {
    let (table, meaning) = match &results.functional_only {
        Some(why) => (
            text::functional(results),
            format!("{}: {why}", text::FUNCTIONAL_ONLY),
        ),
        None if results.by_virtual_clock() => (
            text::figures(results),
            "in this guest a nanosecond is an instruction, and its CPUs advance together however few this machine has: \
             the ratios hold here as elsewhere, the times themselves are no real machine's (docs/method.md)"
                .into(),
        ),
        None => (text::figures(results), results.clock.clone()),
    };
    format!(
        "\n{table}\n\nkernel     {}\ntopology   {}\nruns       {} of each; medians with 95% intervals\nclock      {meaning}\n",
        results.kernels().join(" and "),
        results.topology,
        results.seeds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::tests::results;

    #[test]
    fn every_kind_of_failure_fails_the_demo_and_says_why() {
        let mut results = results();
        results.schedulers.retain(|s| s.name != "bad");
        check(&results).unwrap();
        results.guests[0].record.samples[1].failure = Some("exit code 1: no memory".into());
        let text = check(&results).unwrap_err().to_string();
        assert!(
            text.contains("under scx_fast") && text.contains("no memory"),
            "{text}"
        );
    }

    #[test]
    fn the_clock_is_explained() {
        let mut results = results();
        let text = as_text(&results);
        assert!(text.contains("a nanosecond is an instruction") && text.contains("10.03"));
        results.functional_only = Some("plain TCG".into());
        let text = as_text(&results);
        assert!(text.contains("functional only: plain TCG") && !text.contains("10.03"));
    }
}
