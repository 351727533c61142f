//! Writing values, all or none, and putting them back.

use std::collections::{HashMap, HashSet};
use std::io;

use rustix::io::Errno;

use super::machine::parent;
use super::plan::{Change, hand_over, read_or_default, sort};
use super::restore::{Cgroups, in_use, unstick};
use super::schema::Policy;
use super::{CgroupFile, Entry, Error, Journal, Machine, Resolved, Target, Wish, check, wishes};

/// A value that is not what was written here any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftAlone {
    pub target: Target,
    pub wrote: String,
    pub now: String,
    /// Why it was not put back.
    pub reason: String,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was written, in that order.
    pub changes: Vec<Change>,
    /// What was not touched, or could not be put back quite as it was.
    pub left_alone: Vec<LeftAlone>,
    /// What failed for one cgroup while others were served.
    pub failed: Vec<String>,
}

/// Applies a policy in place of the one that the journal tells of: what only that one changed is put back.
///
/// # Errors
/// [`Error::Mistakes`], and then nothing was touched. If a write fails, all that were done are taken back.
pub fn apply(
    policy: &Policy,
    resolved: &Resolved,
    machine: &Machine,
    journal: &mut Journal,
) -> Result<Report, Error> {
    let (wishes, mut report) = compare(policy, resolved, machine, journal.entries())?;
    hand_over(machine, &wishes, &mut report);
    sort(&mut report.changes);
    transact(machine, journal, &report.changes)?;
    forget_gone(machine, journal)?;
    Ok(report)
}

/// What would be another value after [`apply`], which may take more than one step to some of them.
///
/// # Errors
/// [`Error::Mistakes`]; if the machine can't be read.
pub fn dry_run(
    policy: &Policy,
    resolved: &Resolved,
    machine: &Machine,
    owned: &[Entry],
) -> Result<Report, Error> {
    let (_, mut report) = compare(policy, resolved, machine, owned)?;
    sort(&mut report.changes);
    Ok(report)
}

/// What a policy wants, and what is otherwise.
fn compare(
    policy: &Policy,
    resolved: &Resolved,
    machine: &Machine,
    owned: &[Entry],
) -> Result<(Vec<Wish>, Report), Error> {
    let mistakes = check(policy, resolved, machine)?;
    if !mistakes.is_empty() {
        return Err(Error::Mistakes(mistakes));
    }
    let wishes = wishes(policy, resolved, machine, owned)?;
    let mut report = changes_for(machine, owned, &wishes)?;
    put_back_the_rest(machine, owned, &wishes, &mut report);
    Ok((wishes, report))
}

/// The changes that bring wishes about.
pub(super) fn changes_for(
    machine: &Machine,
    owned: &[Entry],
    wishes: &[Wish],
) -> Result<Report, Error> {
    let mut report = Report::default();
    let index = Index::new(owned);
    for wish in wishes {
        let now = match read_or_default(machine, &wish.target) {
            Ok(now) => now,
            Err(err) if is_gone(machine, &wish.target, wish.cgroup_id, &err) => continue,
            Err(source) => {
                return Err(Error::Read {
                    target: wish.target.clone(),
                    source,
                });
            }
        };
        let entry = index.get(&wish.target, wish.cgroup_id).map(|at| &owned[at]);
        match entry {
            // Somebody else's by now.
            Some(entry) if !entry.is_ours(&now) && now != entry.before => {
                report.left_alone.push(not_ours(entry, now));
            }
            _ if is_exactly(&wish.target, &now, &wish.value) => {}
            _ => report.changes.push(Change {
                target: wish.target.clone(),
                cgroup_id: wish.cgroup_id,
                from: now,
                to: wish.value.clone(),
                back: false,
                otherwise: None,
            }),
        }
    }
    sort(&mut report.changes);
    Ok(report)
}

/// Adds what earlier policies changed and this one doesn't want.
fn put_back_the_rest(machine: &Machine, owned: &[Entry], wishes: &[Wish], report: &mut Report) {
    let cgroups = Cgroups::of(machine);
    for entry in owned {
        let wanted = |wish: &Wish| wish.target == entry.target && wish.cgroup_id == entry.cgroup_id;
        if wishes.iter().any(wanted) || is_other_cgroup(machine, &entry.target, entry.cgroup_id) {
            continue;
        }
        let Ok(now) = machine.read(&entry.target) else {
            continue;
        };
        if now == entry.before {
            continue;
        }
        if !entry.is_ours(&now) {
            report.left_alone.push(not_ours(entry, now));
        } else if let Some(reason) = in_use(&cgroups, owned, entry) {
            report.left_alone.push(LeftAlone {
                reason,
                ..not_ours(entry, now)
            });
        } else {
            report.changes.push(Change {
                target: entry.target.clone(),
                cgroup_id: entry.cgroup_id,
                from: now,
                to: entry.before.clone(),
                back: true,
                otherwise: same_as_empty(machine, &entry.target, &entry.before),
            });
        }
    }
}

/// The set that does the same as an empty one: all that the cgroup above may use. `None` if it isn't about that.
pub(super) fn same_as_empty(machine: &Machine, target: &Target, value: &str) -> Option<String> {
    let Target::File { cgroup, file } = target else {
        return None;
    };
    let effective = match file {
        CgroupFile::Cpus => "cpuset.cpus.effective",
        CgroupFile::Mems => "cpuset.mems.effective",
        _ => return None,
    };
    let all = machine.text(parent(cgroup)?, effective).ok()?;
    (value.is_empty() && !all.is_empty()).then_some(all)
}

/// Entries by what they are about, for looking up many.
#[derive(Debug, Default)]
struct Index(HashMap<(Target, Option<u64>), usize>);

impl Index {
    fn new(entries: &[Entry]) -> Self {
        let key = |entry: &Entry| (entry.target.clone(), entry.cgroup_id);
        Self(entries.iter().map(key).zip(0..).collect())
    }

    fn get(&self, target: &Target, cgroup_id: Option<u64>) -> Option<usize> {
        self.0.get(&(target.clone(), cgroup_id)).copied()
    }
}

pub(super) fn find<'e>(
    owned: &'e [Entry],
    target: &Target,
    cgroup_id: Option<u64>,
) -> Option<&'e Entry> {
    let mut owned = owned.iter();
    owned.find(|entry| entry.target == *target && entry.cgroup_id == cgroup_id)
}

pub(super) fn not_ours(entry: &Entry, now: String) -> LeftAlone {
    LeftAlone {
        target: entry.target.clone(),
        wrote: entry.wrote.clone(),
        now,
        reason: "somebody else has set it since".to_owned(),
    }
}

/// A partition that lost its CPUs is not what was wanted, though what was written.
fn is_exactly(target: &Target, now: &str, wanted: &str) -> bool {
    match target {
        Target::File {
            file: CgroupFile::Partition,
            ..
        } => now == wanted,
        _ => target.same(now, wanted),
    }
}

/// Whether the path leads to another cgroup by now, or to none.
pub(super) fn is_other_cgroup(machine: &Machine, target: &Target, cgroup_id: Option<u64>) -> bool {
    target
        .cgroup()
        .is_some_and(|cgroup| machine.cgroup_id(cgroup).ok() != cgroup_id)
}

/// Whether that failed because the cgroup was removed meanwhile.
fn is_gone(machine: &Machine, target: &Target, cgroup_id: Option<u64>, err: &io::Error) -> bool {
    let code = Errno::from_io_error(err);
    matches!(code, Some(Errno::NOENT | Errno::NODEV)) && is_other_cgroup(machine, target, cgroup_id)
}

/// Writes all changes or, if one fails, none. What was there before is in the journal first.
///
/// # Errors
/// That of the change that failed; the machine is then as it was before.
pub(super) fn transact(
    machine: &Machine,
    journal: &mut Journal,
    changes: &[Change],
) -> Result<(), Error> {
    let failed = transact_each(machine, journal, &[changes])?;
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Writes groups of changes, each wholly or not at all, and tells why those failed that did.
///
/// # Errors
/// If the journal can't be written; before anything is.
pub(super) fn transact_each(
    machine: &Machine,
    journal: &mut Journal,
    groups: &[&[Change]],
) -> Result<Vec<Error>, Error> {
    if groups.iter().all(|changes| changes.is_empty()) {
        return Ok(Vec::new());
    }
    let before = journal.entries.clone();
    let mut index = Index::new(&before);
    for changes in groups {
        note(journal, changes, &mut index);
    }
    if let Err(err) = journal.save() {
        journal.entries = before;
        return Err(err);
    }
    let mut outcome = Outcome::new(journal, &before);
    let mut failed = Vec::new();
    for changes in groups {
        match write_all(machine, changes) {
            Ok(()) => outcome.written(machine, journal, changes),
            Err((err, not_undone)) => {
                outcome.not_written(journal, changes, &not_undone);
                failed.push(err);
            }
        }
    }
    outcome.settle(machine, journal)?;
    Ok(failed)
}

/// What becomes of noted changes.
#[derive(Debug)]
struct Outcome<'b> {
    before: &'b [Entry],
    was: Index,
    is: Index,
    /// Entries that are done with, by index.
    done: HashSet<usize>,
    stuck: Vec<Entry>,
}

impl<'b> Outcome<'b> {
    fn new(journal: &Journal, before: &'b [Entry]) -> Self {
        Self {
            before,
            was: Index::new(before),
            is: Index::new(&journal.entries),
            done: HashSet::new(),
            stuck: Vec::new(),
        }
    }

    fn written(&mut self, machine: &Machine, journal: &mut Journal, changes: &[Change]) {
        for change in changes {
            let Some(at) = self.is.get(&change.target, change.cgroup_id) else {
                continue;
            };
            let entry = &mut journal.entries[at];
            entry.earlier.clear();
            if change.back
                && machine
                    .read(&entry.target)
                    .map_or(true, |now| now == entry.before)
            {
                self.done.insert(at);
            }
        }
    }

    /// What could not be taken back is still to be put back some day.
    fn not_written(&mut self, journal: &mut Journal, changes: &[Change], not_undone: &[Target]) {
        for change in changes {
            let Some(at) = self.is.get(&change.target, change.cgroup_id) else {
                continue;
            };
            let entry = &mut journal.entries[at];
            if not_undone.contains(&change.target) {
                self.stuck.push(entry.clone());
            } else if let Some(old) = self.was.get(&change.target, change.cgroup_id) {
                entry.clone_from(&self.before[old]);
            } else {
                self.done.insert(at);
            }
        }
    }

    fn settle(self, machine: &Machine, journal: &mut Journal) -> Result<(), Error> {
        let mut at = 0..;
        journal
            .entries
            .retain(|_| !at.next().is_some_and(|at| self.done.contains(&at)));
        let cgroups = Cgroups::of(machine);
        for entry in &self.stuck {
            unstick(&cgroups, journal, &self.stuck, entry)?;
        }
        journal.save()
    }
}

/// Writes changes in order. If one fails, those before are taken back in reverse, and the targets told for which that
/// failed too.
fn write_all(machine: &Machine, changes: &[Change]) -> Result<(), (Error, Vec<Target>)> {
    for (done, change) in changes.iter().enumerate() {
        let Err(err) = write_one(machine, change) else {
            continue;
        };
        if let Error::Write { source, .. } | Error::Read { source, .. } = &err
            && is_gone(machine, &change.target, change.cgroup_id, source)
        {
            continue;
        }
        // The failed one too: it may have been written and then found to have no effect.
        let undone = &changes[..=done];
        for change in undone.iter().rev() {
            if machine
                .read(&change.target)
                .is_ok_and(|now| now != change.from)
            {
                // What is left of it is looked at when all is done: it may go with a controller.
                let _ = put_back(machine, &change.target, &change.from);
            }
        }
        // What a target said before the first of its changes.
        let mut first: HashMap<&Target, &Change> = HashMap::new();
        for change in undone {
            first.entry(&change.target).or_insert(change);
        }
        let is_left = |change: &&&Change| {
            machine
                .read(&change.target)
                .is_ok_and(|now| now != change.from)
                && !is_other_cgroup(machine, &change.target, change.cgroup_id)
        };
        let failed = first.values().filter(is_left);
        let failed = failed.map(|change| change.target.clone()).collect();
        return Err((err, failed));
    }
    Ok(())
}

fn write_one(machine: &Machine, change: &Change) -> Result<(), Error> {
    let failed = |source| Error::Write {
        target: change.target.clone(),
        value: change.to.clone(),
        source,
    };
    if is_other_cgroup(machine, &change.target, change.cgroup_id) {
        return Err(failed(Errno::NOENT.into()));
    }
    if change.back {
        return match (
            put_back(machine, &change.target, &change.to),
            &change.otherwise,
        ) {
            (Err(err), Some(otherwise)) if Errno::from_io_error(&err) == Some(Errno::NOSPC) => {
                machine.write(&change.target, otherwise).map_err(failed)
            }
            (result, _) => result.map_err(failed),
        };
    }
    machine.write(&change.target, &change.to).map_err(failed)?;
    let now = machine.read(&change.target).map_err(|source| Error::Read {
        target: change.target.clone(),
        source,
    })?;
    if is_exactly(&change.target, &now, &change.to) {
        return Ok(());
    }
    Err(Error::Refused {
        target: change.target.clone(),
        value: change.to.clone(),
        now,
    })
}

/// Writes a value that was there before.
pub(super) fn put_back(machine: &Machine, target: &Target, before: &str) -> io::Result<()> {
    // The kernel explains an invalid partition, but takes the word only.
    let value = match target {
        Target::File {
            file: CgroupFile::Partition,
            ..
        } => before.split(' ').next().unwrap_or(before),
        _ => before,
    };
    machine.write(target, value)
}

/// Enters changes that are about to be written.
fn note(journal: &mut Journal, changes: &[Change], index: &mut Index) {
    for change in changes {
        let key = (change.target.clone(), change.cgroup_id);
        let Some(&at) = index.0.get(&key) else {
            index.0.insert(key, journal.entries.len());
            journal.entries.push(Entry {
                target: change.target.clone(),
                cgroup_id: change.cgroup_id,
                before: change.from.clone(),
                wrote: change.to.clone(),
                earlier: Vec::new(),
            });
            continue;
        };
        let entry = &mut journal.entries[at];
        let next = if change.back {
            change.otherwise.as_ref()
        } else {
            Some(&change.to)
        };
        if let Some(next) = next {
            let last = std::mem::replace(&mut entry.wrote, next.clone());
            entry.earlier.push(last);
        }
    }
}

/// Drops what the journal says of cgroups that are gone.
pub(super) fn forget_gone(machine: &Machine, journal: &mut Journal) -> Result<(), Error> {
    let before = journal.entries.len();
    journal
        .entries
        .retain(|entry| !is_other_cgroup(machine, &entry.target, entry.cgroup_id));
    if journal.entries.len() == before {
        Ok(())
    } else {
        journal.save()
    }
}
