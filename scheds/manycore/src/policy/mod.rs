//! `manycore policy`: say which services are narrow and local and which are wide, apply it, look at it, undo it.
//!
//! The work is `control_plane::policy`'s; here are its options ([`PolicyArgs`]), and [`show`], which prints.

mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use control_plane::Topology;
use control_plane::policy::{
    self, DEFAULT_JOURNAL, Error, Journal, Machine, Mistake, Policy, Resolved,
};

use show::Format;

/// Say which services are narrow and local and which are wide; apply it to their cgroups, and undo it.
#[derive(Debug, Args)]
#[command(after_long_help = HELP, arg_required_else_help = true)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCmd,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    /// Where it is noted what was there before
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_JOURNAL)]
    journal: PathBuf,

    /// Where cgroup v2 is mounted
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/sys/fs/cgroup"
    )]
    cgroup_root: PathBuf,
}

#[derive(Debug, Subcommand)]
enum PolicyCmd {
    /// Say whether a policy can be applied to this machine, and if not, why: each mistake with its line
    Check { file: PathBuf },
    /// Show what each service of a policy gets; without FILE, which values the policy in force has changed
    Show { file: Option<PathBuf> },
    /// Show what is different on this machine from what a policy wants
    Diff { file: PathBuf },
    /// Apply a policy in place of the one in force: all of it or, if anything fails, none
    Apply {
        file: PathBuf,
        /// Only print what would be written
        #[arg(long)]
        dry_run: bool,
    },
    /// Put everything back that a policy has changed, also after a crash; does no harm if there is nothing
    Restore,
    /// Write a commented policy to start from, of this machine and what runs on it
    Suggest,
}

const HELP: &str = "\
A policy is a TOML file (docs/policy.md has all keys, limits and examples):
  [machine]
  numa_balancing = false          # memory stays where services put it

  [[service]]
  unit = \"db.service\"             # or cgroup = \"/a/b\", with * and **
  width = \"narrow\"                # one last-level cache; or node, wide;
                                  # or nodes = [0], llcs = [1], cpus = \"0-3\"
  memory = \"local\"
  class = \"latency\"               # or normal, batch: what BPF schedulers are told

From nothing to a policy in force and back:
  manycore policy suggest > policy.toml      then remove the # before what you want
  manycore policy check policy.toml          each mistake with its line
  manycore policy diff policy.toml           what is different now
  sudo manycore policy apply policy.toml     again after each change of the file
  sudo manycore policy restore               as if nothing had been

`apply` serves the cgroups that exist. A scheduler that was started with --policy FILE also follows those that come and
go, and undoes it all when it ends.

Exit codes: 0 done, 1 failed or mistakes in the policy, 2 wrong use.";

/// Runs one of the subcommands.
pub(crate) fn run(args: &PolicyArgs) -> Result<ExitCode> {
    match try_run(args) {
        Err(err) => match err.downcast_ref::<Error>() {
            // One a line, as a compiler does.
            Some(Error::Mistakes(mistakes)) => {
                show::mistakes(mistakes, Format::of(args.json))?;
                Ok(ExitCode::FAILURE)
            }
            _ => Err(err),
        },
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn try_run(args: &PolicyArgs) -> Result<()> {
    let machine = Machine::at(&args.cgroup_root, "/proc");
    let format = Format::of(args.json);
    let journal = &args.journal;
    match &args.command {
        PolicyCmd::Check { file } => {
            let (policy, resolved) = load(file)?;
            warn(&resolved.warnings);
            let mistakes = policy::check(&policy, &resolved, &machine)?;
            if !mistakes.is_empty() {
                return Err(Error::Mistakes(mistakes).into());
            }
            show::check(&policy, format)
        }
        PolicyCmd::Show { file: Some(file) } => {
            let (policy, resolved) = load(file)?;
            warn(&resolved.warnings);
            show::services(&policy, &resolved, &machine, format)
        }
        PolicyCmd::Show { file: None } => {
            let entries = Journal::look(journal, &machine)?;
            show::in_force(&entries, &machine, format)
        }
        PolicyCmd::Diff { file } => {
            let (policy, resolved) = load(file)?;
            // What an earlier policy changed is as good as anything else here: this compares with now.
            let report = policy::dry_run(&policy, &resolved, &machine, &[])?;
            show::diff(&report, format)
        }
        PolicyCmd::Apply { file, dry_run } => {
            let (policy, resolved) = load(file)?;
            warn(&resolved.warnings);
            let report = if *dry_run {
                let entries = Journal::look(journal, &machine)?;
                policy::dry_run(&policy, &resolved, &machine, &entries)?
            } else {
                let mut journal = Journal::open(journal, &machine)?;
                policy::apply(&policy, &resolved, &machine, &mut journal)?
            };
            show::applied(&report, *dry_run, format)
        }
        PolicyCmd::Restore => {
            let mut journal = Journal::open(journal, &machine)?;
            let report = policy::restore(&machine, &mut journal)?;
            show::restored(&report, format)
        }
        PolicyCmd::Suggest => {
            let text = policy::suggest(&topology()?, &machine)?;
            show::print(&text)
        }
    }
}

fn load(file: &Path) -> Result<(Policy, Resolved)> {
    let policy = Policy::read(file).map_err(Error::Mistakes)?;
    let resolved = policy::resolve(&policy, &topology()?).map_err(Error::Mistakes)?;
    Ok((policy, resolved))
}

fn topology() -> Result<Topology> {
    Topology::read().context("reading the topology")
}

fn warn(warnings: &[Mistake]) {
    for warning in warnings {
        eprintln!("manycore: warning: {warning}");
    }
}
