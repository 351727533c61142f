//! The life of a scheduler: check, load, wait, say why it ended, and load it anew if CPUs came or went.

mod keeper;
pub mod preflight;
mod run;
mod signals;

use std::io;
use std::mem::MaybeUninit;
use std::process::{Command, ExitCode};

use anyhow::Result;
use libbpf_rs::OpenObject;
use scx_utils::UserExitInfo;

use crate::classes::ClassMap;
use crate::options::{CommonOpts, Misuse};
use crate::policy::{Error as PolicyError, Policy};
use crate::stats::{self, Printer, Reading, Record};
use crate::{Topology, logging};
use signals::Signals;

pub use signals::block_signals;

/// A policy, as the control plane sees it.
pub trait Daemon {
    /// What it serves as statistics.
    type Stats: Record;

    /// The name of the binary, such as `scx_x`.
    const NAME: &'static str;
    /// Its version, `env!("CARGO_PKG_VERSION")`.
    const VERSION: &'static str;

    /// The options that it shares with all others.
    fn common(&self) -> &CommonOpts;

    /// Opens, sets up, loads and attaches the scheduler. From here on it schedules.
    ///
    /// # Errors
    /// Wrap a failure to attach in [`attach_error`]; [`Anew`].
    fn attach<'o>(
        &self,
        topology: &Topology,
        object: &'o mut MaybeUninit<OpenObject>,
    ) -> Result<Box<dyn Instance + 'o>>;

    /// Names what was read.
    fn stats(reading: &Reading) -> Self::Stats;
}

/// A scheduler that is attached.
pub trait Instance {
    /// Whether the kernel has ended it.
    fn exited(&self) -> bool;

    /// Reads its counters and gauges.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn read(&self) -> Result<Reading>;

    /// Called ten times a second at most while it schedules, however often statistics are asked for, for what a daemon
    /// does beside the scheduling. If it fails, that is logged, and it is not called again.
    ///
    /// # Errors
    /// As the daemon likes.
    fn tick(&self) -> Result<()> {
        Ok(())
    }

    /// Its map of service classes, if it tells them apart.
    fn classes(&self) -> Option<&ClassMap> {
        None
    }

    /// A policy is in force, or another one in its place: for a daemon that treats services itself. Their cgroups have
    /// been given what the policy says already.
    fn follow(&self, _policy: &Policy) {}

    /// Detaches it, unless the kernel has done so, and says why it ended.
    fn detach(&mut self) -> UserExitInfo;
}

/// A failure to attach that is worth another try: CPUs came or went after the topology was read.
#[derive(Debug, thiserror::Error)]
#[error("CPUs came or went while the scheduler was being loaded")]
struct Stale;

/// Only another process can attach one, so this program is to take the place of this one. The policy that is in force stays
/// so meanwhile, and a signal that comes meanwhile is heard by the new one.
#[derive(Debug, thiserror::Error)]
#[error("the daemon has to start itself anew")]
pub struct Anew(pub Command);

/// Says why the kernel refused to attach: `exit` has its reason if it got far enough to give one.
pub fn attach_error(error: anyhow::Error, exit: &UserExitInfo) -> anyhow::Error {
    if exit.should_restart() {
        return Stale.into();
    }
    match exit.report() {
        Err(reason) => error.context(format!("{reason:#}")),
        Ok(()) => error,
    }
}

/// The whole of a daemon's `main`: does what the options say and returns its exit code, 0 after a regular end and 1
/// after a failure, also if the kernel threw the scheduler out. (Wrong use is 2, by clap or by [`CommonOpts::check`], and so are
/// mistakes in a policy.)
pub fn start<D: Daemon>(daemon: &D) -> ExitCode {
    if !daemon.common().only_prints() {
        block_signals();
    }
    logging::init(daemon.common().verbose);
    let done = act(daemon);
    logging::flush();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            if let Some(PolicyError::Mistakes(mistakes)) = err.downcast_ref() {
                for mistake in mistakes {
                    eprintln!("{}: {mistake}", D::NAME);
                }
                return ExitCode::from(2);
            }
            eprintln!("{}: {err:#}", D::NAME);
            if err.is::<Misuse>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn act<D: Daemon>(daemon: &D) -> Result<()> {
    let common = daemon.common();
    if common.version {
        println!(
            "{} {}",
            D::NAME,
            scx_utils::build_id::full_version(D::VERSION)
        );
        return Ok(());
    }
    if common.help_stats {
        return stats::describe::<D::Stats>(&mut io::stdout(), common.json);
    }
    common.check()?;
    let mut signals = Signals::listen(common.policy.policy.is_some())?;
    if let Some(interval) = common.monitor {
        return stats::monitor(Printer::new(D::NAME, common.json), interval, &signals.stop);
    }
    keeper::check_file(common)?;
    let host = preflight::Host::this();
    if let Err(reason) = host.check(D::NAME, common.libbpf.kconfig.is_some()) {
        keeper::undo_leftovers(common);
        return Err(reason.into());
    }
    run::run(daemon, &mut signals)
}
