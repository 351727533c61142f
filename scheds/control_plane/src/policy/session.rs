//! A policy in force: what a daemon owns.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use log::{info, warn};

use super::apply::{Report, changes_for, forget_gone, transact_each};
use super::machine::parent;
use super::plan::{Change, Matched, cgroup_wishes, scan_error};
use super::schema::Policy;
use super::{
    CgroupFile, ClassChange, ClassEntry, ClassSink, Error, Journal, Machine, Resolved, Target,
    apply, resolve, restore,
};
use crate::Topology;

/// A policy in force. Dropping it puts everything back, as [`Session::stop`] does.
///
/// ```no_run
/// # use control_plane::policy::{ClassChange, Machine, Policy, Session, DEFAULT_JOURNAL};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let topology = control_plane::Topology::read()?;
/// let policy = Policy::read("policy.toml".as_ref()).map_err(control_plane::policy::Error::Mistakes)?;
/// let mut session = Session::start(policy, &topology, Machine::default(), DEFAULT_JOURNAL.as_ref())?;
/// session.tick(&mut |change: &ClassChange| {
///     println!("{}: {:?}", change.cgroup_id, change.entry); // into a BPF map
///     Ok(())
/// })?;
/// session.stop()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    machine: Machine,
    journal: Journal,
    policy: Policy,
    resolved: Resolved,
    /// The cgroups of the last look: id, and the service that each or one above it is.
    known: BTreeMap<String, Known>,
    /// What the sink has taken, by cgroup id.
    delivered: BTreeMap<u64, ClassEntry>,
    /// Whether the last offer to the sink failed, so that a full map is warned of once.
    sink_failed: bool,
    stopped: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: u64,
    service: Option<usize>,
}

impl Session {
    /// How often to call [`Session::tick`]: often enough to class a new cgroup well within a second.
    pub const TICK: Duration = Duration::from_millis(250);

    /// Undoes what a session that was killed left, if one was, and applies the policy.
    ///
    /// # Errors
    /// [`Error::Busy`] if another session is in force; [`Error::Mistakes`] and others as [`apply`]: nothing is applied
    /// then.
    pub fn start(
        policy: Policy,
        topology: &Topology,
        machine: Machine,
        journal: &Path,
    ) -> Result<Self, Error> {
        let journal = Journal::open(journal, &machine)?;
        Self::start_with(policy, topology, machine, journal)
    }

    /// The same with a journal that is open already, so that nobody else came first.
    ///
    /// # Errors
    /// As [`Session::start`].
    pub fn start_with(
        policy: Policy,
        topology: &Topology,
        machine: Machine,
        mut journal: Journal,
    ) -> Result<Self, Error> {
        if !journal.entries.is_empty() {
            let report = restore(&machine, &mut journal)?;
            info!(
                "an earlier policy was not undone: put back {} values",
                report.changes.len()
            );
            tell(&report);
        }
        let resolved = resolve(&policy, topology).map_err(Error::Mistakes)?;
        for warning in &resolved.warnings {
            warn!("{warning}");
        }
        let report = apply(&policy, &resolved, &machine, &mut journal)?;
        info!(
            "policy {} of {} services in force, {} values changed",
            policy.file.display(),
            policy.services.len(),
            report.changes.len()
        );
        tell(&report);
        Ok(Self {
            machine,
            journal,
            policy,
            resolved,
            known: BTreeMap::new(),
            delivered: BTreeMap::new(),
            sink_failed: false,
            stopped: false,
        })
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What each service was given.
    pub fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// Looks for cgroups that came and went: applies the policy to new ones, and offers the sink what has changed.
    /// What it refuses is offered again next time.
    ///
    /// # Errors
    /// If the cgroups can't be read or the journal can't be written. What fails for one cgroup is in the report, and
    /// not tried again.
    pub fn tick(&mut self, sink: &mut dyn ClassSink) -> Result<Report, Error> {
        let scan = self.machine.cgroups();
        let scan = scan.map_err(|err| scan_error(&self.machine, err))?;
        let mut now: BTreeMap<String, Known> = BTreeMap::new();
        let mut new = Matched::new();
        for (path, id) in scan {
            let known = self
                .known
                .get(&path)
                .filter(|known| known.id == id)
                .copied();
            let known = known.unwrap_or_else(|| {
                let own = self.policy.service_of(&path);
                new.extend(own.map(|service| (path.clone(), id, service)));
                // A path sorts before those below it.
                let above = parent(&path).and_then(|above| now.get(above));
                Known {
                    id,
                    service: own.or(above.and_then(|above| above.service)),
                }
            });
            now.insert(path, known);
        }
        let came_or_went = !new.is_empty()
            || self
                .known
                .iter()
                .any(|(path, known)| now.get(path).is_none_or(|now| now.id != known.id));
        self.known = now;
        // Before anything is written, which takes long if they are many.
        self.offer(sink);
        let report = if came_or_went {
            let paths: Vec<String> = new.iter().map(|(path, ..)| path.clone()).collect();
            let applied = forget_gone(&self.machine, &mut self.journal);
            let applied = applied.and_then(|()| self.apply_to(new));
            if applied.is_err() {
                // They are new again at the next look.
                self.known.retain(|path, _| !paths.contains(path));
            }
            applied?
        } else {
            Report::default()
        };
        tell(&report);
        Ok(report)
    }

    /// Applies the policy to cgroups that are new, each by itself.
    fn apply_to(&mut self, mut new: Matched) -> Result<Report, Error> {
        let mut failed = Vec::new();
        new.retain(|(path, _, service)| {
            let twice =
                self.resolved.services[*service].exclusive && self.is_another(path, *service);
            if twice {
                let name = &self.policy.services[*service].name;
                failed.push(format!(
                    "{path} gets no CPUs: {name:?} is exclusive and another cgroup already"
                ));
            }
            !twice
        });
        let wishes = cgroup_wishes(
            &self.resolved,
            &new,
            &self.partitions(),
            &self.machine,
            &self.journal.entries,
        );
        let changes = changes_for(&self.machine, &self.journal.entries, &wishes)?.changes;
        let groups = by_cgroup(&changes);
        let groups: Vec<&[Change]> = groups.iter().map(Vec::as_slice).collect();
        let errors = transact_each(&self.machine, &mut self.journal, &groups)?;
        failed.extend(errors.iter().map(Error::to_string));
        Ok(Report {
            changes,
            left_alone: Vec::new(),
            failed,
        })
    }

    /// The cgroups that have been made partitions.
    fn partitions(&self) -> Matched {
        let owned = self.journal.entries.iter();
        let made = owned.filter_map(|entry| match &entry.target {
            Target::File {
                cgroup,
                file: CgroupFile::Partition,
            } => Some((cgroup, entry.cgroup_id?)),
            _ => None,
        });
        made.filter_map(|(path, id)| Some((path.clone(), id, self.policy.service_of(path)?)))
            .collect()
    }

    /// Whether a cgroup other than this one is that service by its own name.
    fn is_another(&self, path: &str, service: usize) -> bool {
        let matcher = &self.policy.services[service].matcher;
        let mut known = self.known.iter();
        known.any(|(other, known)| {
            other != path && known.service == Some(service) && matcher.matches(other)
        })
    }

    fn offer(&mut self, sink: &mut dyn ClassSink) {
        let wanted: BTreeMap<u64, ClassEntry> = self
            .known
            .values()
            .filter_map(|known| Some((known.id, self.resolved.services[known.service?].class)))
            .collect();
        let gone = self.delivered.keys().filter(|id| !wanted.contains_key(id));
        // Those that are gone first, so that a full map has room.
        let mut changes: Vec<ClassChange> = gone
            .map(|&cgroup_id| ClassChange {
                cgroup_id,
                entry: None,
            })
            .collect();
        let differs = wanted
            .iter()
            .filter(|(id, entry)| self.delivered.get(id) != Some(entry));
        changes.extend(differs.map(|(&cgroup_id, &entry)| ClassChange {
            cgroup_id,
            entry: Some(entry),
        }));
        let mut refused = None;
        for change in &changes {
            match (sink.change(change), change.entry) {
                (Ok(()), Some(entry)) => {
                    self.delivered.insert(change.cgroup_id, entry);
                }
                (Ok(()), None) => {
                    self.delivered.remove(&change.cgroup_id);
                }
                (Err(err), _) => refused = Some(err),
            }
        }
        if let Some(err) = refused.as_ref().filter(|_| !self.sink_failed) {
            warn!("not all cgroups could be classed, will try again: {err}");
        }
        self.sink_failed = refused.is_some();
    }

    /// How many cgroups have a class, as far as the sink has taken them.
    pub fn classed_cgroups(&self) -> usize {
        self.delivered.len()
    }

    /// How many cgroups there were at the last tick.
    pub fn known_cgroups(&self) -> usize {
        self.known.len()
    }

    /// Offers all classes anew at the next tick: the map is a new one, as after a restart of the scheduler.
    pub fn forget_delivered(&mut self) {
        self.delivered.clear();
    }

    /// Applies another policy in place of this one, or the same on a changed machine: all of it or, if there is an
    /// error, none of it, and this one stays in force.
    ///
    /// # Errors
    /// As [`apply`].
    pub fn reload(&mut self, policy: Policy, topology: &Topology) -> Result<Report, Error> {
        let resolved = resolve(&policy, topology).map_err(Error::Mistakes)?;
        let report = apply(&policy, &resolved, &self.machine, &mut self.journal)?;
        self.policy = policy;
        self.resolved = resolved;
        // The next tick looks at all of them anew.
        self.known.clear();
        tell(&report);
        Ok(report)
    }

    /// Puts everything back.
    ///
    /// # Errors
    /// If the journal can't be written.
    pub fn stop(mut self) -> Result<Report, Error> {
        self.stopped = true;
        let report = restore(&self.machine, &mut self.journal)?;
        tell(&report);
        Ok(report)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        match restore(&self.machine, &mut self.journal) {
            Ok(report) => tell(&report),
            Err(err) => {
                warn!("the policy could not be undone, `manycore policy restore` does it: {err}")
            }
        }
    }
}

/// What several cgroups need first, then each by itself, so that one that fails takes no other with it: each controller, the
/// CPUs that are granted to exclusive services, then the files of each cgroup.
fn by_cgroup(changes: &[Change]) -> Vec<Vec<Change>> {
    let (mut controllers, mut granted) = (Vec::new(), Vec::new());
    let mut own: BTreeMap<&str, Vec<Change>> = BTreeMap::new();
    for change in changes {
        match &change.target {
            Target::Controller { .. } => controllers.push(vec![change.clone()]),
            Target::File { cgroup, file } if *file != CgroupFile::Exclusive => {
                own.entry(cgroup).or_default().push(change.clone());
            }
            _ => granted.push(change.clone()),
        }
    }
    let shared = controllers.into_iter().chain([granted]);
    shared.chain(own.into_values()).collect()
}

fn tell(report: &Report) {
    for left in &report.left_alone {
        warn!(
            "{} is left alone, it says {:?} and not {:?}: {}",
            left.target, left.now, left.wrote, left.reason
        );
    }
    for failed in &report.failed {
        warn!("{failed}");
    }
}
