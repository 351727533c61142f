//! `cargo xtask vm`: virtual machines through virtme-ng, with this machine's files as theirs, read-only.

pub mod clock;
mod monitor;
mod processes;
pub mod run;
pub mod rundir;
mod stillness;
pub mod topology;

use crate::cache::Cache;
use crate::failure::{Exit, Usage};
use crate::host::Kvm;
use crate::kernel::{self, Kernel};
use crate::{qemu, setup, ui, workspace};
use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use clock::Clock;
use run::{Accel, End, Outcome, Spec};
use rustix::process::getppid;
use std::time::Duration;
use topology::{Topologies, Topology};

/// How many of the console's last lines are shown when a guest fails.
const SHOWN_LINES: usize = 25;
/// What `timeout(1)` ends with.
const TIMEOUT_CODE: u8 = 124;
/// What a shell ends with when a signal ended its command: this plus the signal's number.
const SIGNAL_BASE: u8 = 128;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Run(RunArgs),
    /// Show the topologies of vm/topologies.toml
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Boot a guest and run a command in it as root
///
/// The guest's files are this machine's, read-only, with a writable /tmp that is forgotten at
/// the end; the daemons of this checkout are on its PATH. The command's output is live, and its
/// exit code is the exit code here: 124 after a timeout, 255 if the guest died. Without a
/// command a shell starts; leave it with `exit`.
///
/// Examples:
///   cargo xtask vm run -- uname -r
///   cargo xtask vm run --topology t32 --kernel 6.12 -- lscpu -e
///   cargo xtask vm run --clock virtual -- hackbench -g 4
///   cargo xtask vm run -- 'scx_rr --stats 1 & sleep 30'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct RunArgs {
    /// A kernel of vm/kernels.toml [default: the default there]
    #[arg(long)]
    kernel: Option<String>,
    /// A topology of vm/topologies.toml [default: the default there]
    #[arg(long)]
    topology: Option<String>,
    /// How the guest's CPUs run: kvm needs the hardware's virtualization, tcg emulates
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,
    #[command(flatten)]
    clock: clock::ClockArgs,
    /// End the guest after this many seconds, boot included
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// End the guest when the process that started this one has ended, even if it was killed
    #[arg(long, requires = "command")]
    with_parent: bool,
    /// The command: several words are run as they are, a single one by the shell
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    Auto,
    Kvm,
    Tcg,
}

pub fn run(args: &Args) -> Result<()> {
    match &args.command {
        Action::Run(args) => run_guest(args),
        Action::List { json } => list(*json),
    }
}

fn list(json: bool) -> Result<()> {
    let topologies = Topologies::load()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&topologies.all())?);
        return Ok(());
    }
    let mut table = ui::table(["topology", "CPUs", "memory", "what it is"]);
    for t in topologies.all() {
        let default = if t.name == topologies.default {
            " (default)"
        } else {
            ""
        };
        table.add_row([
            format!("{}{default}", t.name),
            t.cpus().to_string(),
            format!("{} MiB", t.memory_mib()),
            t.summary.clone(),
        ]);
    }
    println!("{table}");
    Ok(())
}

fn run_guest(args: &RunArgs) -> Result<()> {
    let cache = Cache::open()?;
    let prepared = prepare(
        &cache,
        args.kernel.as_deref(),
        args.topology.as_deref(),
        args.accel,
        args.clock.or(clock::Choice::Real)?,
    )?;
    let script = if args.command.is_empty() {
        None
    } else {
        Some(run::script_prelude(&prepared.programs)? + &command_line(&args.command))
    };
    let spec = Spec {
        timeout: args.timeout.map(Duration::from_secs),
        parent: args.with_parent.then(getppid).flatten(),
        script,
        ..prepared
    };
    if spec.script.is_none() {
        eprintln!(
            "booting {} on {}; leave the shell with `exit`",
            spec.kernel.describe(),
            spec.topology.describe()
        );
        return run::shell(&cache, &spec);
    }
    let outcome = run::run(
        &cache,
        &spec,
        Box::new(std::io::stdout()),
        Box::new(std::io::stderr()),
    )?;
    if let Some(s) = &outcome.clock_stats {
        eprintln!("{s}");
    }
    conclude(&cache, &outcome)
}

/// A guest with no script yet, on the named (or default) kernel and topology, with everything that it needs present.
pub fn prepare(
    cache: &Cache,
    kernel: Option<&str>,
    topology: Option<&str>,
    accel: AccelChoice,
    clock: Clock,
) -> Result<Spec> {
    // Wrong names are said before anything is installed or built.
    let topologies = Topologies::load()?;
    let topology = topologies.get(topology.unwrap_or(&topologies.default))?;
    let catalogue = kernel::Catalogue::load()?;
    let name = kernel.unwrap_or(&catalogue.default);
    catalogue.get(name)?;
    let accel = match clock {
        Clock::Real => accel,
        Clock::Virtual { .. } if accel == AccelChoice::Kvm => {
            return Err(Usage("a virtual clock needs --accel tcg".into()).into());
        }
        Clock::Virtual { .. } => AccelChoice::Tcg,
    };
    setup::ensure(cache, &[name.to_owned()], false)?;
    let kernel = kernel::ensure(cache, name)?;
    clock.ensure()?;
    Ok(Spec {
        accel: choose_accel(cache, &kernel, accel)?,
        clock,
        kernel,
        topology: Topology::clone(topology),
        programs: workspace::bin_dir()?,
        timeout: None,
        parent: None,
        script: None,
    })
}

fn choose_accel(cache: &Cache, kernel: &Kernel, choice: AccelChoice) -> Result<Accel> {
    match choice {
        AccelChoice::Tcg => Ok(Accel::Tcg),
        AccelChoice::Auto => Ok(match qemu::kvm(cache, &kernel.image()) {
            Kvm::Usable => Accel::Kvm,
            Kvm::No(_) => Accel::Tcg,
        }),
        AccelChoice::Kvm => match qemu::kvm(cache, &kernel.image()) {
            Kvm::Usable => Ok(Accel::Kvm),
            Kvm::No(why) => bail!("KVM is not usable here ({why}): use --accel tcg"),
        },
    }
}

/// Several words are a command with its arguments; a single one is a line for the shell.
fn command_line(command: &[String]) -> String {
    match command {
        [line] => format!("{line}\n"),
        words => {
            let quoted: Vec<_> = words.iter().map(|word| run::quote(word)).collect();
            format!("exec {}\n", quoted.join(" "))
        }
    }
}

const INTERRUPTED: &str = "interrupted, so the guest was ended";

fn interrupted(signal: usize) -> Exit {
    Exit::with(signal_code(signal), INTERRUPTED)
}

fn signal_code(signal: usize) -> u8 {
    SIGNAL_BASE + u8::try_from(signal).unwrap_or_default()
}

/// Turns how a guest ended into this command's end, with the console's last words if it ended badly.
pub fn conclude(cache: &Cache, outcome: &Outcome) -> Result<()> {
    let (code, what) = match &outcome.end {
        End::Exited(0) => return Ok(()),
        End::Exited(code) => return Err(Exit::silent(*code).into()),
        End::Interrupted(signal) => (signal_code(*signal), INTERRUPTED.to_owned()),
        End::Timeout(limit) => (
            TIMEOUT_CODE,
            format!(
                "the guest was ended after the timeout of {} s",
                limit.as_secs()
            ),
        ),
        End::NoBoot(limit) => (
            TIMEOUT_CODE,
            format!(
                "the guest did not get to its command within {} s",
                limit.as_secs()
            ),
        ),
        End::StoodStill(time) => (
            TIMEOUT_CODE,
            format!(
                "the emulated CPUs stood still for {} s, so the emulator has lost an interrupt: run it again",
                time.as_secs()
            ),
        ),
        End::Died { panic: Some(why) } => (255, format!("the guest's kernel panicked: {why}")),
        End::Died { panic: None } => (255, "the guest ended before its command did".to_owned()),
    };
    let path = cache.keep_log("console", &outcome.console)?;
    let tail = run::tail(&outcome.console, SHOWN_LINES);
    let tail = if tail.is_empty() {
        "(the console is empty)"
    } else {
        &tail
    };
    Err(Exit::with(
        code,
        format!(
            "{what}; the console ({}) ends with:\n{tail}",
            path.display()
        ),
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_for_the_shell_and_several_are_not() {
        let line = |words: &[&str]| {
            command_line(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(line(&["a; b"]), "a; b\n");
        assert_eq!(line(&["echo", "a b"]), "exec 'echo' 'a b'\n");
    }
}
