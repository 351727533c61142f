//! `cargo xtask bench`: schedulers measured against each other. The host makes a plan, boots a guest and reads its
//! reports; the guest, which is this very program under a hidden subcommand, loads the schedulers and runs the
//! workloads.

mod compare;
pub mod event;
mod force;
mod guest;
mod html;
mod jobs;
mod kept;
mod markdown;
mod order;
mod parse;
pub mod peers;
pub mod plan;
mod plots;
mod programs;
mod progress;
mod provision;
mod renew;
pub mod results;
pub mod schedulers;
pub mod session;
mod stats;
pub mod text;
mod work;
pub mod workload;

use crate::cache::Cache;
use crate::failure::Exit;
use crate::vm::clock::{self, Clock};
use crate::vm::run::{Accel, Spec};
use crate::vm::{self, AccelChoice};
use crate::{cmd, host, kernel, qemu, setup, workspace};
use anyhow::{Context, Result};
use clap::Subcommand;
use jobs::Job;
use kept::{Basis, Kept};
use order::{Entrant, Request};
use plan::{Purpose, Scheduler};
use results::Results;
use schedulers::{Chosen, Selection};
use session::Record;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use workload::{Setting, Size, Workload};

/// Measure schedulers against EEVDF
///
/// All of them run the same workloads with the same seeds in one guest, taking turns in random
/// order. A run counts only if the kernel says before and after it that the scheduler was in
/// force. The virtual clock (the default) makes comparisons hold on any machine; by a real
/// clock figures are printed only where each of the guest's CPUs has one of this machine's.
/// docs/method.md defines the workloads and says what may be concluded.
///
/// Examples:
///   cargo xtask bench                                     EEVDF and scx_rr
///   cargo xtask bench --peers --seeds 9 --topology t32
///   cargo xtask bench --sched rr,bpfland,cfs --workload pipe,hackbench-n2 --out /tmp/a
///   cargo xtask bench --compare /tmp/a /tmp/b             exit code 1 if something got worse
///   cargo xtask bench --docs docs/results.md /tmp/a /tmp/b
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    clock: clock::ClockArgs,
    /// A topology of vm/topologies.toml [default: the default there]
    #[arg(long)]
    topology: Option<String>,
    /// A kernel of vm/kernels.toml [default: the default there]
    #[arg(long)]
    kernel: Option<String>,
    /// Beside EEVDF: schedulers of this checkout, published upstream ones, and cfs, which is another kernel's
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "rr")]
    sched: Vec<String>,
    /// Workloads, or `all` [default: a selection]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    workload: Vec<String>,
    /// All published upstream schedulers too; they are built once, which takes a quarter of an hour
    #[arg(long)]
    peers: bool,
    /// How often each workload is run under each scheduler, with different seeds; a verdict needs 5
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=999))]
    seeds: u64,
    /// Run each workload once more under `manycore observe`, which tells why the figures are as they are
    #[arg(long)]
    observe: bool,
    /// The folder for results.json and report.html [default: a new one in target/bench]. If the bench fails, it has the records
    /// of the guests that were done, and the same command with the same commit goes on from there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How many guests run at the same time: one for each CPU of this machine is fastest by the virtual clock, where the
    /// figures are the same [default: as many as CPUs and memory allow; 1 by a real clock]
    #[arg(long, value_name = "N")]
    guests: Option<usize>,
    /// Install what is missing without asking
    #[arg(long, short)]
    yes: bool,
    /// Compare two results.json (or their folders) instead of measuring
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"], exclusive = true)]
    compare: Option<Vec<PathBuf>>,
    /// Write results into a page of documentation instead of measuring; they take the place of what the page has of the same
    /// guest, workload and schedulers
    #[arg(long, num_args = 2.., value_names = ["FILE", "RESULTS"], exclusive = true)]
    docs: Option<Vec<PathBuf>>,
    /// Write one report.html of several results, with plots from few CPUs to many, instead of measuring
    #[arg(long, num_args = 2.., value_names = ["FILE", "RESULTS"], exclusive = true)]
    html: Option<Vec<PathBuf>>,
}

/// What runs in the guest; no user needs it.
#[derive(Debug, Subcommand)]
pub enum GuestCommand {
    /// Carry out the plan on stdin
    Run,
    #[command(flatten)]
    Work(work::Work),
}

pub fn run_in_guest(command: &GuestCommand) -> Result<()> {
    match command {
        GuestCommand::Run => guest::run(),
        GuestCommand::Work(work) => work::run(work),
    }
}

pub fn run(args: &Args) -> Result<()> {
    if let Some([old, new]) = args.compare.as_deref() {
        return compare::run(&Results::read(old)?, &Results::read(new)?);
    }
    if let Some([out, from @ ..]) = args.docs.as_deref() {
        let old = workspace::read_if_there(out)?;
        return publish(out, from, |all| renew::page(&old, &markdown::page(all)));
    }
    if let Some([out, from @ ..]) = args.html.as_deref() {
        return publish(out, from, html::page);
    }
    // Wrong names are said before anything is installed or built.
    let workloads = choose_workloads(&args.workload)?;
    let selection = Selection::new(&args.sched, args.peers)?;
    let clock = args.clock.or(clock::Choice::Virtual)?;
    let cache = Cache::open()?;
    let catalogue = kernel::Catalogue::load()?;
    let kernel = args.kernel.as_deref().unwrap_or(&catalogue.default);
    catalogue.get(kernel)?;
    setup::ensure(&cache, &[kernel.to_owned()], args.yes)?;
    let topology = args.topology.as_deref();
    let spec = vm::prepare(&cache, Some(kernel), topology, AccelChoice::Auto, clock)?;
    let chosen = selection.ensure(&cache)?;
    if args.observe || workloads.iter().any(|workload| workload.is_metered()) {
        workspace::build("manycore", &["--bins"])?;
    }
    let extent = Extent {
        seeds: args.seeds,
        observe: args.observe,
        guests: args.guests,
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => new_folder()?,
    };
    let results = measure(&cache, spec, chosen, workloads, &extent, Some(&out))?;
    write(&results, &out)?;
    println!("{}", text::report(&results));
    eprintln!("results.json and report.html are in {}", out.display());
    Ok(())
}

/// Writes a page about results that there are already.
fn publish(out: &Path, from: &[PathBuf], page: impl Fn(&[Results]) -> String) -> Result<()> {
    let all: Vec<Results> = from
        .iter()
        .map(|path| Results::read(path))
        .collect::<Result<_>>()?;
    fs::write(out, page(&all)).with_context(|| format!("writing {}", out.display()))
}

fn choose_workloads(names: &[String]) -> Result<Vec<&'static Workload>> {
    match names {
        [] => Ok(workload::ALL.iter().filter(|w| w.default).collect()),
        [all] if all == "all" => Ok(workload::ALL.iter().collect()),
        names => names.iter().map(|name| workload::find(name)).collect(),
    }
}

/// How much is measured, and how fast.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub seeds: u64,
    pub observe: bool,
    /// At the same time; as many as fit if it isn't said.
    pub guests: Option<usize>,
}

/// Boots guests and has each scheduler run each workload with each seed. Of what fails before its end, `keep` has the records
/// of the guests that were done.
pub fn measure(
    cache: &Cache,
    spec: Spec,
    chosen: Chosen,
    workloads: Vec<&'static Workload>,
    extent: &Extent,
    keep: Option<&Path>,
) -> Result<Results> {
    let functional_only = no_figures(&spec);
    let commit = crate::results::commit().unwrap_or_else(|| "unknown".into());
    let qemu = qemu::version(cache).unwrap_or_default();
    let built = spec.programs;
    let programs = programs::set_aside(&built, &chosen.all)?;
    let spec = Spec {
        programs: programs.path().to_owned(),
        ..spec
    };
    let mut jobs = jobs(cache, &spec, &chosen, &workloads, extent)?;
    if let Some(out) = keep {
        keep_records(&mut jobs, out, &commit, &built, &qemu);
    }
    let at_once = extent.guests.unwrap_or_else(|| guests_at_once(&spec));
    let mut guests = jobs::run(cache, &jobs, at_once)?;
    guests[0].record.failed.extend(chosen.unbuilt);
    Ok(Results {
        format: results::FORMAT,
        command: as_typed(std::env::args().skip(1)),
        commit,
        made_at: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        host: host::describe(),
        qemu,
        clock: spec.clock.describe(spec.accel),
        topology: spec.topology.describe(),
        seeds: extent.seeds,
        functional_only,
        schedulers: chosen.all,
        workloads: workloads.iter().map(|w| (*w).into()).collect(),
        guests,
    })
}

fn keep_records(jobs: &mut [Job], out: &Path, commit: &str, built: &Path, qemu: &str) {
    for (guest, job) in (1..).zip(jobs) {
        let basis = Basis {
            commit: commit.into(),
            built: built.into(),
            qemu: qemu.into(),
            clock: job.spec.clock.describe(job.spec.accel),
            kernel: job.spec.kernel.describe(),
            topology: job.spec.topology.describe(),
            plan: job.plan.clone(),
        };
        job.kept = Kept::new(out, guest, basis);
    }
}

/// Without a clock that passed its check there are no figures.
fn trust(record: &Record) -> Result<()> {
    let failed = record
        .samples
        .iter()
        .filter(|sample| sample.purpose == Purpose::Check)
        .find_map(|sample| sample.failure.as_ref());
    match failed {
        None => Ok(()),
        Some(why) => Err(Exit::with(
            1,
            format!("the check of the clock failed, so there are no figures: {why}"),
        )
        .into()),
    }
}

/// Why figures of this guest would say nothing about schedulers.
pub fn no_figures(spec: &Spec) -> Option<String> {
    match (spec.clock, spec.accel) {
        (Clock::Virtual { .. }, _) => None,
        (Clock::Real, Accel::Tcg) => Some(
            "plain TCG: the guest's CPUs are emulated and share this machine's, so an idle one costs nothing; use \
             --clock virtual"
                .into(),
        ),
        (Clock::Real, Accel::Kvm) if spec.topology.cpus() > host::cpus() => Some(format!(
            "{} CPUs of the guest share this machine's {}; use --clock virtual or a smaller topology",
            spec.topology.cpus(),
            host::cpus()
        )),
        (Clock::Real, Accel::Kvm) => None,
    }
}

/// How much work makes sense by that clock.
pub fn size(spec: &Spec) -> Size {
    match (spec.clock, spec.accel) {
        (Clock::Virtual { .. }, _) => Size::Lab,
        (Clock::Real, Accel::Tcg) => Size::Taste,
        (Clock::Real, Accel::Kvm) => Size::Full,
    }
}

/// This command, but for where its results go, which is nobody else's.
fn as_typed(mut args: impl Iterator<Item = String>) -> Vec<String> {
    let mut command = vec!["cargo".to_owned(), "xtask".to_owned()];
    while let Some(arg) = args.next() {
        if arg == "--out" {
            args.next();
        } else if !arg.starts_with("--out=") {
            command.push(arg);
        }
    }
    command
}

/// What each guest is to do.
fn jobs(
    cache: &Cache,
    spec: &Spec,
    chosen: &Chosen,
    workloads: &[&'static Workload],
    extent: &Extent,
) -> Result<Vec<Job>> {
    let size = size(spec);
    let request = |entrants: Vec<Entrant>, observe| Request {
        rounds: rounds(size, extent.seeds),
        entrants,
        workloads: workloads.to_vec(),
        setting: Setting {
            cpus: spec.topology.cpus(),
            size,
        },
        check: no_figures(spec).is_none(),
        observe,
    };
    let mut jobs: Vec<_> = share_out(size, extent.seeds, &chosen.main)
        .into_iter()
        .enumerate()
        .map(|(at, entrants)| Job {
            spec: spec.clone(),
            plan: request(entrants, extent.observe && at == 0).plan(),
            kept: None,
        })
        .collect();
    if let Some(cfs) = &chosen.cfs {
        jobs.push(Job {
            spec: Spec {
                kernel: kernel::ensure(cache, schedulers::CFS_KERNEL)?,
                ..spec.clone()
            },
            plan: request(vec![entrant(cfs, (1..=extent.seeds).collect())], false).plan(),
            kept: None,
        });
    }
    Ok(jobs)
}

/// What each guest runs. By the virtual clock it is always two of them, whether they run at the same time or not, so
/// that figures don't depend on this machine's CPUs. If the number of seeds is odd, each has the last one of half of the
/// schedulers, as a bench takes as long as the busier guest.
fn share_out(size: Size, seeds: u64, schedulers: &[Scheduler]) -> Vec<Vec<Entrant>> {
    let guests = match size {
        Size::Lab if seeds >= 2 => 2,
        _ => 1,
    };
    let share = |guest| {
        let of_scheduler = |(at, scheduler)| {
            let whole = seeds - seeds % guests;
            let theirs = (1..=whole).filter(|seed| (seed - 1) % guests == guest);
            let last = (whole + 1..=seeds).filter(|_| at % guests == guest);
            entrant(scheduler, theirs.chain(last).collect())
        };
        (0..).zip(schedulers).map(of_scheduler).collect()
    };
    (0..guests).map(share).collect()
}

fn entrant(scheduler: &Scheduler, seeds: Vec<u64>) -> Entrant {
    Entrant {
        scheduler: scheduler.clone(),
        seeds,
    }
}

/// How many guests can run at the same time without being in each other's way.
fn guests_at_once(spec: &Spec) -> usize {
    match spec.clock {
        // The clock has one thread for all of a guest's CPUs.
        Clock::Virtual { .. } => {
            let room = host::memory_mib() * 3 / 4 / spec.topology.memory_mib().max(1);
            room.clamp(1, host::cpus().max(1))
        }
        Clock::Real => 1,
    }
}

/// In an emulated guest a load takes as long as several runs.
fn rounds(size: Size, seeds: u64) -> u64 {
    match size {
        Size::Taste | Size::Lab => 1,
        Size::Full => seeds,
    }
}

/// Named after this moment.
fn new_folder() -> Result<PathBuf> {
    let time = cmd::output(Command::new("date").arg("+%Y%m%d-%H%M%S"))?;
    let bin = workspace::bin_dir()?;
    Ok(bin.parent().unwrap_or(&bin).join("bench").join(time.trim()))
}

fn write(results: &Results, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    let json = serde_json::to_string_pretty(results).context("writing the results")?;
    for (name, text) in [
        ("results.json", json),
        ("report.html", html::page(std::slice::from_ref(results))),
    ] {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    kept::clear(out, results.guests.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Usage;

    #[test]
    fn a_failed_check_leaves_no_figures() {
        let mut record = Record {
            samples: vec![results::tests::sample("eevdf", 1, 1.0)],
            ..Record::default()
        };
        trust(&record).unwrap();
        record.samples[0].purpose = Purpose::Check;
        trust(&record).unwrap();
        record.samples[0].failure = Some("at 0.5 of the speed".into());
        let error = trust(&record).unwrap_err().to_string();
        assert!(
            error.contains("no figures") && error.contains("0.5"),
            "{error}"
        );
    }

    #[test]
    fn the_command_is_told_without_its_folder() {
        let args = ["bench", "--out", "/home/me/x", "--peers", "--out=y"].map(String::from);
        let told = as_typed(args.into_iter()).join(" ");
        assert_eq!(told, "cargo xtask bench --peers");
    }

    #[test]
    fn each_scheduler_has_each_seed_in_one_guest_and_guests_have_the_same_to_do() {
        let schedulers = vec![schedulers::kernels_own(); 4];
        let shares = |size, seeds| -> Vec<Vec<Vec<u64>>> {
            let guests = share_out(size, seeds, &schedulers);
            let of_guest = |guest: Vec<Entrant>| guest.into_iter().map(|e| e.seeds).collect();
            guests.into_iter().map(of_guest).collect()
        };
        assert_eq!(
            shares(Size::Lab, 5),
            [
                [vec![1, 3, 5], vec![1, 3], vec![1, 3, 5], vec![1, 3]],
                [vec![2, 4], vec![2, 4, 5], vec![2, 4], vec![2, 4, 5]]
            ]
        );
        assert_eq!(shares(Size::Lab, 2), [vec![vec![1]; 4], vec![vec![2]; 4]]);
        assert_eq!(shares(Size::Lab, 1), [vec![vec![1]; 4]]);
        assert_eq!(shares(Size::Full, 3), [vec![vec![1, 2, 3]; 4]]);
    }

    #[test]
    fn workloads_are_a_selection_all_or_those_named() {
        let names = |list: &[&str]| -> Vec<String> { list.iter().map(|s| (*s).into()).collect() };
        let some = choose_workloads(&[]).unwrap().len();
        let all = choose_workloads(&names(&["all"])).unwrap().len();
        assert!(some > 3 && all > some);
        assert_eq!(choose_workloads(&names(&["pipe"])).unwrap()[0].name, "pipe");
        let error = choose_workloads(&names(&["pipe", "pip"])).unwrap_err();
        assert!(error.is::<Usage>());
    }
}
