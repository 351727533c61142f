//! Putting back what was there before: all of it that is still as it was written here.

use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::apply::{LeftAlone, Report, find, is_other_cgroup, not_ours, put_back, same_as_empty};
use super::machine::{ancestors, parent};
use super::plan::Change;
use super::{CgroupFile, Controller, Entry, Error, Journal, Machine, Target};

/// Puts everything back that the journal tells of, from the last change to the first, and empties it. Doing it again
/// does nothing.
///
/// A value that is not what was written here any more is left alone and reported; so is one that the kernel doesn't
/// let be put back.
///
/// # Errors
/// If the journal can't be written.
pub fn restore(machine: &Machine, journal: &mut Journal) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut stuck = Vec::new();
    let cgroups = Cgroups::of(machine);
    for entry in journal.entries.iter().rev() {
        if is_other_cgroup(machine, &entry.target, entry.cgroup_id) {
            continue;
        }
        // Without a file, the controller is off, and what was set is gone with it.
        let Ok(now) = machine.read(&entry.target) else {
            continue;
        };
        if now == entry.before {
            continue;
        }
        let in_use = in_use(&cgroups, &journal.entries, entry);
        if !entry.is_ours(&now) {
            report.left_alone.push(not_ours(entry, now));
        } else if let Some(reason) = in_use {
            report.left_alone.push(LeftAlone {
                reason,
                ..not_ours(entry, now)
            });
        } else {
            match put_back(machine, &entry.target, &entry.before) {
                Ok(()) => report.changes.push(was_put_back(entry, now)),
                Err(err) => stuck.push((entry.clone(), now, err)),
            }
        }
    }
    let owned = journal.entries.clone();
    for (entry, now, err) in stuck {
        match unstick(&cgroups, journal, &owned, &entry)? {
            Unstuck::Back => report.changes.push(was_put_back(&entry, now)),
            Unstuck::Not(what) => report.left_alone.push(LeftAlone {
                reason: format!(
                    "the kernel doesn't take {:?} now: {err}{what}",
                    entry.before
                ),
                ..not_ours(&entry, now)
            }),
        }
    }
    journal.entries.clear();
    journal.save()?;
    Ok(report)
}

fn was_put_back(entry: &Entry, from: String) -> Change {
    Change {
        target: entry.target.clone(),
        cgroup_id: entry.cgroup_id,
        from,
        to: entry.before.clone(),
        back: true,
        otherwise: None,
    }
}

/// The cgroups of a machine, listed when they are first asked for: one list does for many values.
#[derive(Debug)]
pub(super) struct Cgroups<'m> {
    machine: &'m Machine,
    list: OnceCell<Option<BTreeMap<String, u64>>>,
}

impl<'m> Cgroups<'m> {
    pub(super) fn of(machine: &'m Machine) -> Self {
        Self {
            machine,
            list: OnceCell::new(),
        }
    }

    /// Their paths; `None` if they can't be read.
    fn paths(&self) -> Option<impl Iterator<Item = &str>> {
        let list = self.list.get_or_init(|| self.machine.cgroups().ok());
        Some(list.as_ref()?.keys().map(String::as_str))
    }
}

pub(super) enum Unstuck {
    Back,
    /// What was done instead.
    Not(String),
}

/// Puts a value back that the kernel didn't take. A cpuset that can't be emptied is emptied by disabling and enabling its
/// controller, provided that nobody else would notice: no other cgroup has anything set by it, but for what is `given_up`.
pub(super) fn unstick(
    cgroups: &Cgroups<'_>,
    journal: &mut Journal,
    given_up: &[Entry],
    entry: &Entry,
) -> Result<Unstuck, Error> {
    let machine = cgroups.machine;
    // It may have gone with its controller, or with that of another.
    let is_back = || {
        machine
            .read(&entry.target)
            .map_or(true, |value| value == entry.before)
    };
    let otherwise = same_as_empty(machine, &entry.target, &entry.before);
    if !is_back() && otherwise.is_some() {
        renew_controller(cgroups, journal, given_up, entry)?;
    }
    if is_back() {
        journal.entries.retain(|other| !is_same(entry, other));
        return Ok(Unstuck::Back);
    }
    let Some(all) = otherwise.filter(|all| machine.write(&entry.target, all).is_ok()) else {
        return Ok(Unstuck::Not(String::new()));
    };
    for known in journal
        .entries
        .iter_mut()
        .filter(|other| is_same(entry, other))
    {
        known.wrote.clone_from(&all);
        known.earlier.clear();
    }
    Ok(Unstuck::Not(format!(
        "; it is {all:?} now, which is all there is"
    )))
}

fn is_same(entry: &Entry, other: &Entry) -> bool {
    entry.target == other.target && entry.cgroup_id == other.cgroup_id
}

/// Disables and enables a file's controller in the cgroup above it, if that changes nothing of others'. The kernel doesn't
/// disable one that is handed on, so this is done from the bottom up. It is in the journal too.
fn renew_controller(
    cgroups: &Cgroups<'_>,
    journal: &mut Journal,
    given_up: &[Entry],
    entry: &Entry,
) -> Result<(), Error> {
    let machine = cgroups.machine;
    let Target::File { cgroup, file } = &entry.target else {
        return Ok(());
    };
    let (Some(above), Some(paths)) = (parent(cgroup), cgroups.paths()) else {
        return Ok(());
    };
    let below = |path: &&str| above == "/" || ancestors(path).contains(&above);
    let family: Vec<&str> = paths.filter(below).collect();
    let controller = file.controller();
    let used = |path: &&str| set_by_others(machine, given_up, path, controller).is_some();
    if family.iter().any(used) {
        return Ok(());
    }
    let switch = |cgroup: &str| Target::Controller {
        cgroup: cgroup.to_owned(),
        controller,
    };
    let mut on: Vec<&str> = std::iter::once(above).chain(family).collect();
    on.retain(|cgroup| {
        machine
            .read(&switch(cgroup))
            .is_ok_and(|value| value == "on")
    });
    on.sort_by_key(|cgroup| Reverse(ancestors(cgroup).len()));
    let settled = journal.entries.len();
    journal.entries.extend(on.iter().map(|cgroup| Entry {
        target: switch(cgroup),
        cgroup_id: machine.cgroup_id(cgroup).ok(),
        before: "on".to_owned(),
        wrote: "off".to_owned(),
        earlier: Vec::new(),
    }));
    journal.save()?;
    // If one can't be disabled, those above it can't either, and nothing is lost.
    let _ = on
        .iter()
        .try_for_each(|cgroup| machine.write(&switch(cgroup), "off"));
    for cgroup in on.iter().rev() {
        machine
            .write(&switch(cgroup), "on")
            .map_err(|source| Error::Write {
                target: switch(cgroup),
                value: "on".to_owned(),
                source,
            })?;
    }
    journal.entries.truncate(settled);
    journal.save()
}

/// Why a controller that was enabled here has to stay: somebody else has set something by it since, or hands it on.
pub(super) fn in_use(cgroups: &Cgroups<'_>, owned: &[Entry], entry: &Entry) -> Option<String> {
    if entry.before == "off" {
        needed_by(cgroups, owned, &entry.target)
    } else {
        None
    }
}

/// What somebody else needs a controller for.
fn needed_by(cgroups: &Cgroups<'_>, owned: &[Entry], target: &Target) -> Option<String> {
    let machine = cgroups.machine;
    let Target::Controller { cgroup, controller } = target else {
        return None;
    };
    let children = cgroups
        .paths()?
        .filter(|path| parent(path) == Some(cgroup.as_str()));
    for child in children {
        if let Some(file) = set_by_others(machine, owned, child, *controller) {
            return Some(format!(
                "{child} {file} needs it and was set by somebody else"
            ));
        }
        let below = Target::Controller {
            cgroup: child.to_owned(),
            controller: *controller,
        };
        let handed_on = machine.read(&below).is_ok_and(|value| value == "on");
        let by_us = owned.iter().any(|entry| entry.target == below);
        if handed_on && !by_us {
            return Some(format!(
                "{child} hands the controller on, which somebody else has told it to"
            ));
        }
    }
    None
}

/// The files of a controller that a policy doesn't set, with their values in a new cgroup.
const OTHER_FILES: &[(Controller, &str, &str)] = &[
    (Controller::Cpu, "cpu.max", "max"),
    (Controller::Cpu, "cpu.max.burst", "0"),
    (Controller::Cpu, "cpu.idle", "0"),
    (Controller::Cpu, "cpu.uclamp.min", "0.00"),
    (Controller::Cpu, "cpu.uclamp.max", "max"),
];

/// The first file of this controller that isn't as in a new cgroup, and not as it was set here.
fn set_by_others(
    machine: &Machine,
    owned: &[Entry],
    cgroup: &str,
    controller: Controller,
) -> Option<&'static str> {
    const FILES: [CgroupFile; 5] = [
        CgroupFile::Mems,
        CgroupFile::Cpus,
        CgroupFile::Exclusive,
        CgroupFile::Partition,
        CgroupFile::Weight,
    ];
    let id = machine.cgroup_id(cgroup).ok();
    for file in FILES
        .into_iter()
        .filter(|file| file.controller() == controller)
    {
        let target = Target::file(cgroup, file);
        let Ok(now) = machine.read(&target) else {
            continue;
        };
        let ours = find(owned, &target, id).is_some_and(|entry| entry.is_ours(&now));
        if now != file.default_value() && !ours {
            return Some(file.name());
        }
    }
    let others = OTHER_FILES.iter().filter(|(by, ..)| *by == controller);
    let changed = |(_, file, default): &&(Controller, &str, &str)| {
        let now = machine.text(cgroup, file);
        now.is_ok_and(|now| now.split(' ').next() != Some(*default))
    };
    let changed = others.clone().find(changed);
    changed.map(|(_, file, _)| *file)
}
