//! From sets to files: which values a policy wants, and which of them have to be written.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::machine::{ancestors, parent};
use super::schema::{Mistake, Policy};
use super::{
    Assignment, CgroupFile, Controller, Entry, Error, IdSet, Machine, Report, Resolved, Share,
    Target,
};

/// A value that a policy wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub target: Target,
    /// The id of its cgroup.
    pub cgroup_id: Option<u64>,
    pub value: String,
}

/// A value to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub target: Target,
    pub cgroup_id: Option<u64>,
    /// What is there now.
    pub from: String,
    pub to: String,
    /// Whether it is put back to what it was before any policy.
    pub back: bool,
    /// What to write if the kernel doesn't take `to`: until some kernel after 6.12, a cpuset with tasks in it can be changed
    /// but not emptied (`validate_change` in `kernel/cgroup/cpuset.c`).
    pub otherwise: Option<String>,
}

/// Cgroups that services are: path, id, index of the service.
pub(super) type Matched = Vec<(String, u64, usize)>;

/// The cgroups that are services.
pub(super) fn matched(policy: &Policy, cgroups: &BTreeMap<String, u64>) -> Matched {
    let service = |(path, id): (&String, &u64)| Some((path.clone(), *id, policy.service_of(path)?));
    cgroups.iter().filter_map(service).collect()
}

/// What is wrong with a policy on this machine, apart from its topology: cgroup v1, controllers that are not there or
/// not enabled, one exclusive service of two cgroups. Empty if nothing is.
///
/// # Errors
/// If the cgroups can't be read.
pub fn check(
    policy: &Policy,
    resolved: &Resolved,
    machine: &Machine,
) -> Result<Vec<Mistake>, Error> {
    let mut mistakes = Vec::new();
    if let Some(switch) = &policy.numa_balancing
        && let Err(err) = machine.read(&Target::NumaBalancing)
    {
        let reason = format!("this kernel has no numa_balancing to set: {err}");
        mistakes.push(policy.mistake(switch.line, reason));
    }
    let Some(first) = policy.services.first() else {
        return Ok(mistakes);
    };
    let root = machine.cgroup_root().display();
    let available = match machine.words("/", "cgroup.controllers") {
        Ok(words) => words,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            let reason = format!(
                "{root} is not a cgroup v2 hierarchy, so services can't be told apart: boot with cgroup v2 \
                 (systemd.unified_cgroup_hierarchy=1)"
            );
            mistakes.push(policy.mistake(first.line, reason));
            return Ok(mistakes);
        }
        Err(source) => return Err(scan_error(machine, source)),
    };
    for (service, assignment) in policy.services.iter().zip(&resolved.services) {
        for controller in controllers(assignment) {
            if !available.contains(&controller.to_string()) {
                let reason = format!(
                    "the {controller} controller isn't available: {root}/cgroup.controllers has no {controller}"
                );
                mistakes.push(policy.mistake(service.line, reason));
            }
        }
    }
    if mistakes.is_empty() {
        check_cgroups(policy, resolved, machine, &mut mistakes)?;
    }
    Ok(mistakes)
}

fn check_cgroups(
    policy: &Policy,
    resolved: &Resolved,
    machine: &Machine,
    mistakes: &mut Vec<Mistake>,
) -> Result<(), Error> {
    let cgroups = machine.cgroups().map_err(|err| scan_error(machine, err))?;
    let matched = matched(policy, &cgroups);
    for (index, service) in policy.services.iter().enumerate() {
        let own: Vec<&str> = matched
            .iter()
            .filter(|(_, _, service)| *service == index)
            .map(|(path, ..)| path.as_str())
            .collect();
        if service.exclusive && own.len() > 1 {
            let reason = format!(
                "`exclusive` is for one cgroup, but it is {}",
                own.join(" and ")
            );
            mistakes.push(policy.mistake(service.line, reason));
        }
        if policy.enable_controllers {
            continue;
        }
        for path in own {
            for controller in controllers(&resolved.services[index]) {
                if let Some(off) = first_without(machine, path, controller) {
                    let reason = format!(
                        "the {controller} controller isn't enabled in {off} for {path}, and `enable_controllers` is \
                         false"
                    );
                    mistakes.push(policy.mistake(service.line, reason));
                }
            }
        }
    }
    Ok(())
}

/// The topmost cgroup above this one that doesn't hand the controller down.
fn first_without<'p>(machine: &Machine, path: &'p str, controller: Controller) -> Option<&'p str> {
    let off = |cgroup: &&str| {
        let target = Target::Controller {
            cgroup: (*cgroup).to_owned(),
            controller,
        };
        machine.read(&target).is_ok_and(|value| value == "off")
    };
    ancestors(path).into_iter().find(off)
}

pub(super) fn scan_error(machine: &Machine, source: io::Error) -> Error {
    Error::Scan {
        root: machine.cgroup_root().to_owned(),
        source,
    }
}

fn controllers(assignment: &Assignment) -> Vec<Controller> {
    let cpuset = assignment.cpus.is_some() || assignment.mems.is_some();
    let cpu = assignment.weight.is_some();
    let both = [(cpuset, Controller::Cpuset), (cpu, Controller::Cpu)];
    both.into_iter()
        .filter_map(|(wanted, c)| wanted.then_some(c))
        .collect()
}

/// What a target says where its controller is not enabled: the value that it will have once that is.
pub(super) fn read_or_default(machine: &Machine, target: &Target) -> io::Result<String> {
    match (machine.read(target), target) {
        (Err(err), Target::File { file, .. }) if err.kind() == io::ErrorKind::NotFound => {
            Ok(file.default_value().to_owned())
        }
        (result, _) => result,
    }
}

/// All that a policy wants of the machine, in the order in which it has to be written. `owned` is what the journal
/// says of earlier changes.
///
/// # Errors
/// If the cgroups can't be read.
pub fn wishes(
    policy: &Policy,
    resolved: &Resolved,
    machine: &Machine,
    owned: &[Entry],
) -> Result<Vec<Wish>, Error> {
    let cgroups = machine.cgroups().map_err(|err| scan_error(machine, err))?;
    let matched = matched(policy, &cgroups);
    let mut wishes = cgroup_wishes(resolved, &matched, &Matched::new(), machine, owned);
    if let Some(switch) = &policy.numa_balancing {
        wishes.push(Wish {
            target: Target::NumaBalancing,
            cgroup_id: None,
            value: switch.value.to_string(),
        });
    }
    Ok(wishes)
}

/// What is wanted of these cgroups and of those above them. Those `beside` them have what they want already.
pub(super) fn cgroup_wishes(
    resolved: &Resolved,
    matched: &Matched,
    beside: &Matched,
    machine: &Machine,
    owned: &[Entry],
) -> Vec<Wish> {
    let mut files = Vec::new();
    let mut controllers = BTreeSet::new();
    let mut exclusive: BTreeMap<&str, IdSet> = BTreeMap::new();
    for (path, id, service) in matched {
        let assignment = &resolved.services[*service];
        for (file, value) in file_wishes(assignment, path, *id, machine, owned) {
            controllers.extend(
                ancestors(path)
                    .into_iter()
                    .map(|above| (above, file.controller())),
            );
            files.push(Wish {
                target: Target::file(path, file),
                cgroup_id: Some(*id),
                value,
            });
        }
        if let Some(cpus) = granted(assignment, path) {
            for cgroup in ancestors(path).into_iter().skip(1).chain([path.as_str()]) {
                exclusive.entry(cgroup).or_default().extend(cpus);
            }
        }
    }
    // Nobody loses what was granted through the same cgroup.
    for (path, _, service) in beside {
        let Some(cpus) = granted(&resolved.services[*service], path) else {
            continue;
        };
        for cgroup in ancestors(path) {
            if let Some(all) = exclusive.get_mut(cgroup) {
                all.extend(cpus);
            }
        }
    }
    let id = |cgroup: &str| machine.cgroup_id(cgroup).ok();
    files.extend(exclusive.into_iter().map(|(cgroup, cpus)| Wish {
        target: Target::file(cgroup, CgroupFile::Exclusive),
        cgroup_id: id(cgroup),
        value: cpus.to_string(),
    }));
    files.extend(controllers.into_iter().map(|(cgroup, controller)| Wish {
        target: Target::Controller {
            cgroup: cgroup.to_owned(),
            controller,
        },
        cgroup_id: id(cgroup),
        value: "on".to_owned(),
    }));
    files
}

/// The CPUs that have to be granted to a service's cgroup all the way down, as it is a partition below one that is none.
fn granted<'r>(assignment: &'r Assignment, path: &str) -> Option<&'r IdSet> {
    let below = assignment.exclusive && parent(path) != Some("/");
    let cpus = assignment.cpus.as_ref().filter(|_| below)?;
    Some(&cpus.ids)
}

fn file_wishes(
    assignment: &Assignment,
    path: &str,
    id: u64,
    machine: &Machine,
    owned: &[Entry],
) -> Vec<(CgroupFile, String)> {
    // A cgroup that isn't limited needs no limit to all there is.
    let unlimited = |file| {
        let target = Target::file(path, file);
        let own = owned
            .iter()
            .find(|entry| entry.target == target && entry.cgroup_id == Some(id));
        let before = own.map(|entry| entry.before.clone());
        let before = before.or_else(|| read_or_default(machine, &target).ok());
        before.is_some_and(|value| value.is_empty())
    };
    let share = |file, share: &Option<Share>| {
        let share = share.as_ref()?;
        (!share.whole || !unlimited(file)).then(|| (file, share.ids.to_string()))
    };
    [
        share(CgroupFile::Mems, &assignment.mems),
        share(CgroupFile::Cpus, &assignment.cpus),
        assignment
            .weight
            .map(|weight| (CgroupFile::Weight, weight.to_string())),
        assignment
            .exclusive
            .then(|| (CgroupFile::Partition, "root".to_owned())),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Lets exclusive CPUs change hands. The kernel lets no two cgroups have the same at any time, and takes a partition apart
/// that loses CPUs. So partitions that get other CPUs are dissolved meanwhile, and what a cgroup is to lose is taken from it
/// before anybody is given anything.
pub(super) fn hand_over(machine: &Machine, wishes: &[Wish], report: &mut Report) {
    let (left_alone, changes) = (&report.left_alone, &mut report.changes);
    let mut more = Vec::new();
    for wish in wishes {
        if let Target::File {
            cgroup,
            file: CgroupFile::Partition,
        } = &wish.target
            && !left_alone.iter().any(|left| left.target == wish.target)
            && changes.iter().any(|change| moves_cpus(change, cgroup))
            && let Ok(now) = machine.read(&wish.target)
            && now != "member"
        {
            changes.retain(|change| change.target != wish.target);
            let step = |from: &str, to: &str| Change {
                target: wish.target.clone(),
                cgroup_id: wish.cgroup_id,
                from: from.to_owned(),
                to: to.to_owned(),
                back: false,
                otherwise: None,
            };
            more.extend([step(&now, "member"), step("member", &wish.value)]);
        }
    }
    for change in changes.iter_mut() {
        let Some((from, to)) = exclusive_sets(change) else {
            continue;
        };
        let kept = from.intersection(&to);
        if kept != from && kept != to {
            let rest = Change {
                from: kept.to_string(),
                ..change.clone()
            };
            change.to = kept.to_string();
            change.back = false;
            more.push(rest);
        }
    }
    changes.append(&mut more);
}

fn moves_cpus(change: &Change, of: &str) -> bool {
    matches!(
        &change.target,
        Target::File { cgroup, file: CgroupFile::Cpus | CgroupFile::Exclusive } if cgroup == of
    )
}

/// The exclusive CPUs that a cgroup has before and after a change of them.
fn exclusive_sets(change: &Change) -> Option<(IdSet, IdSet)> {
    let is_exclusive = matches!(
        change.target,
        Target::File {
            file: CgroupFile::Exclusive,
            ..
        }
    );
    let sets = || Some((IdSet::parse(&change.from)?, IdSet::parse(&change.to)?));
    is_exclusive.then(sets).flatten()
}

/// Sorts changes into an order in which the kernel takes them: controllers are enabled from the top down before what
/// needs them, partitions are dissolved before and made after CPUs change hands, and controllers are disabled last,
/// from the bottom up.
pub(super) fn sort(changes: &mut [Change]) {
    changes.sort_by_cached_key(|change| {
        let depth = change
            .target
            .cgroup()
            .map_or(0, |cgroup| ancestors(cgroup).len());
        let (phase, depth) = match (&change.target, change.to.as_str()) {
            (Target::Controller { .. }, "on") => (0, depth),
            (Target::Controller { .. }, _) => (6, usize::MAX - depth),
            (
                Target::File {
                    file: CgroupFile::Partition,
                    ..
                },
                "member",
            ) => (1, depth),
            (
                Target::File {
                    file: CgroupFile::Partition,
                    ..
                },
                _,
            ) => (4, depth),
            // What is taken away is so from the bottom up.
            _ if exclusive_sets(change).is_some_and(|(from, to)| to.is_subset(&from)) => {
                (1, usize::MAX - depth)
            }
            (
                Target::File {
                    file: CgroupFile::Exclusive,
                    ..
                },
                _,
            ) => (3, depth),
            (Target::File { .. }, _) => (2, depth),
            (Target::NumaBalancing, _) => (5, depth),
        };
        (phase, depth, change.target.clone())
    });
}
