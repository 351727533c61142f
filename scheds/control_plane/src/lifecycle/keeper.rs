//! Keeps a policy in force while a scheduler runs: applies it once that is attached, follows cgroups, reads the file again
//! on SIGHUP, and undoes it at the end, whatever the end is. What one that was killed left is in the journal: the next start
//! undoes it, also one that gets no further.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use log::{error, info, warn};

use crate::Topology;
use crate::classes::ClassMap;
use crate::options::CommonOpts;
use crate::policy::{
    ClassChange, Error, Journal, Machine, Policy, PolicyOpts, Session, check, resolve, restore,
};

/// A policy, from the check before anything is loaded to the end.
#[derive(Debug)]
pub(super) struct Keeper {
    opts: PolicyOpts,
    /// As in [`CommonOpts::topology`].
    topology_file: Option<PathBuf>,
    state: State,
    tick_at: Instant,
    /// Whether the last look at cgroups failed, so that it is warned of once.
    blind: bool,
}

#[derive(Debug)]
enum State {
    /// Nothing is changed yet; nobody else can apply a policy.
    Ready(Policy, Journal),
    InForce(Session),
    /// It could not be applied.
    Failed,
}

/// Says what is wrong with a policy, before anything else is done.
///
/// # Errors
/// [`Error::Mistakes`]
pub(super) fn check_file(common: &CommonOpts) -> Result<()> {
    if let Some(policy) = common.policy.read()? {
        let topology = read_topology(common.topology.as_deref())?;
        let resolved = resolve(&policy, &topology).map_err(Error::Mistakes)?;
        let mistakes = check(&policy, &resolved, &Machine::default())?;
        if !mistakes.is_empty() {
            return Err(Error::Mistakes(mistakes).into());
        }
    }
    Ok(())
}

/// Undoes what one that was killed left, for a daemon that won't get as far as a [`Keeper`].
pub(super) fn undo_leftovers(common: &CommonOpts) {
    // Without leftovers no journal is made. One that is in use is not left over.
    let journal = Journal::look(&common.policy.policy_journal, &Machine::default());
    if journal.is_ok_and(|entries| !entries.is_empty())
        && let Ok(Some(keeper)) = Keeper::new(common)
    {
        keeper.stop();
    }
}

fn read_topology(file: Option<&Path>) -> Result<Topology> {
    Topology::read_with(file).context("reading the topology")
}

impl Keeper {
    /// Gets ready to apply the policy of these options; `None` without one.
    ///
    /// # Errors
    /// [`Error::Busy`] if another policy is kept in force; [`Error::Journal`].
    pub(super) fn new(common: &CommonOpts) -> Result<Option<Self>> {
        let opts = common.policy.clone();
        let Some(policy) = opts.read()? else {
            return Ok(None);
        };
        let journal = Journal::open(&opts.policy_journal, &Machine::default())?;
        Ok(Some(Self {
            opts,
            topology_file: common.topology.clone(),
            state: State::Ready(policy, journal),
            tick_at: Instant::now(),
            blind: false,
        }))
    }

    /// A scheduler was attached: applies the policy, or the one in force again, as this one's map is empty and CPUs may
    /// have come or gone.
    ///
    /// # Errors
    /// As [`Session::start`]; only if none was in force yet.
    pub(super) fn attached(&mut self, topology: &Topology) -> Result<()> {
        self.tick_at = Instant::now();
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Ready(policy, journal) => {
                let session = Session::start_with(policy, topology, Machine::default(), journal)?;
                self.state = State::InForce(session);
            }
            State::InForce(mut session) => {
                session.forget_delivered();
                let policy = session.policy().clone();
                if let Err(err) = session.reload(policy, topology) {
                    warn!("the policy's places stay as they were before CPUs came or went: {err}");
                }
                self.state = State::InForce(session);
            }
            State::Failed => {}
        }
        Ok(())
    }

    /// How long until [`Keeper::tick`] has something to do.
    pub(super) fn due_in(&self) -> Duration {
        self.tick_at.saturating_duration_since(Instant::now())
    }

    /// Looks for cgroups that came, went or moved, if it is time to.
    pub(super) fn tick(&mut self, map: Option<&ClassMap>) {
        let State::InForce(session) = &mut self.state else {
            return;
        };
        if self.tick_at > Instant::now() {
            return;
        }
        let looked = match map {
            Some(mut map) => session.tick(&mut map),
            // This scheduler doesn't tell classes apart.
            None => session.tick(&mut |_: &ClassChange| Ok(())),
        };
        if let Err(err) = &looked
            && !self.blind
        {
            warn!("new cgroups don't get the policy: {err}");
        }
        self.blind = looked.is_err();
        self.tick_at = Instant::now() + Session::TICK;
    }

    /// How many cgroups have a class: in the scheduler's map, if it has one.
    pub(super) fn classed_cgroups(&self, map: Option<&ClassMap>) -> u64 {
        match (&self.state, map) {
            (State::InForce(session), None) => session.classed_cgroups() as u64,
            (State::InForce(session), Some(map)) => map.count().unwrap_or_else(|err| {
                warn!("{err:#}");
                session.classed_cgroups() as u64
            }),
            _ => 0,
        }
    }

    /// The policy that is in force.
    pub(super) fn policy(&self) -> Option<&Policy> {
        match &self.state {
            State::InForce(session) => Some(session.policy()),
            State::Ready(..) | State::Failed => None,
        }
    }

    /// Reads the file again and applies what it says now: all of it or, if anything is wrong, none.
    pub(super) fn reload(&mut self) {
        match self.try_reload() {
            Ok(changed) => {
                info!("the policy was read again, {changed} values changed");
                self.tick_at = Instant::now();
            }
            Err(err) => {
                match err.downcast_ref::<Error>() {
                    // One a line, as a compiler does.
                    Some(Error::Mistakes(mistakes)) => {
                        mistakes.iter().for_each(|mistake| error!("{mistake}"));
                    }
                    _ => error!("{err:#}"),
                }
                error!("the policy in force stays as it is");
            }
        }
    }

    fn try_reload(&mut self) -> Result<usize> {
        let State::InForce(session) = &mut self.state else {
            return Ok(0);
        };
        let policy = self.opts.read()?.context("there is no policy")?;
        let topology = read_topology(self.topology_file.as_deref())?;
        Ok(session.reload(policy, &topology)?.changes.len())
    }

    /// Undoes the policy. Dropping it does as well.
    pub(super) fn stop(mut self) {
        self.undo();
    }

    fn undo(&mut self) {
        let undone = match std::mem::replace(&mut self.state, State::Failed) {
            State::InForce(session) => session.stop(),
            // What another left, by kill -9, or by starting itself anew.
            State::Ready(_, mut journal) if !journal.entries().is_empty() => {
                restore(&Machine::default(), &mut journal)
            }
            State::Ready(..) | State::Failed => return,
        };
        match undone {
            Ok(report) => info!("policy undone, {} values put back", report.changes.len()),
            Err(err) => {
                warn!("the policy could not be undone, `manycore policy restore` does it: {err}")
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.undo();
    }
}
