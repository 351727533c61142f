//! Runs in a guest, as root, and looks at it from outside the schedulers: through `/sys`, `/proc`, their command lines
//! and their statistics. `run TOPOLOGY CASE...` runs the named cases, each in a process of its own.

mod bpf_skel;
mod broken;
mod cases;
mod cgroup;
mod checker;
mod cpus;
mod daemon;
mod kernel;
mod load;
mod procs;
mod runner;
mod scene;

use anyhow::{Context, Result, bail};
use manycore_tests::plan::{self, Scheduler};
use std::process::ExitCode;

/// What a case is told.
#[derive(Debug)]
struct Setting {
    /// A name of `vm/topologies.toml`.
    topology: String,
    scheduler: Option<&'static Scheduler>,
}

impl Setting {
    fn scheduler(&self) -> Result<&'static Scheduler> {
        self.scheduler.context("this case is about a scheduler")
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["run", topology, cases @ ..] => runner::run(topology, cases),
        ["case", topology, case] => one(topology, case),
        // What `fault_forks` sets off.
        ["bomb"] => procs::bomb(),
        _ => {
            eprintln!(
                "usage: manycore-guest run TOPOLOGY CASE...\nin a guest: cargo xtask vm run -- manycore-guest run t8 scx_rr/loads"
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the case of this name is told.
fn setting(topology: &str, case: &str) -> Result<Setting> {
    let scheduler = match case.split_once('/') {
        Some((name, _)) => {
            Some(plan::scheduler_named(name).with_context(|| format!("no scheduler {name}"))?)
        }
        None => None,
    };
    Ok(Setting {
        topology: topology.to_owned(),
        scheduler,
    })
}

/// Runs a case in this process. What it found goes to standard output.
fn one(topology: &str, name: &str) -> Result<()> {
    let case = name.rsplit('/').next().unwrap_or(name);
    let Some(function) = cases::function(case) else {
        bail!("no case {case}");
    };
    let found = function(&setting(topology, name)?)?;
    println!("{found}");
    Ok(())
}
