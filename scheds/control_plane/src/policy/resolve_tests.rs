use std::path::Path;

use proptest::prelude::*;

use super::resolve::{Resolved, online, resolve};
use super::schema::Policy;
use super::{Class, IdSet};
use crate::Topology;

fn policy(text: &str) -> Policy {
    Policy::parse(Path::new("p.toml"), text).unwrap()
}

/// A policy of one service a body, named /0, /1, ...
fn services(bodies: &[&str]) -> Policy {
    let service =
        |(index, body): (usize, &&str)| format!("[[service]]\ncgroup = \"/{index}\"\n{body}\n");
    policy(&bodies.iter().enumerate().map(service).collect::<String>())
}

fn cpus(resolved: &Resolved) -> Vec<String> {
    let cpus = |a: &super::resolve::Assignment| {
        a.cpus
            .as_ref()
            .map_or("-".into(), |share| share.ids.to_string())
    };
    resolved.services.iter().map(cpus).collect()
}

#[track_caller]
fn check(topology: &Topology, bodies: &[&str], expected: &[&str]) {
    assert_eq!(
        cpus(&resolve(&services(bodies), topology).unwrap()),
        expected,
        "{bodies:?}"
    );
}

#[track_caller]
fn check_mistake(topology: &Topology, bodies: &[&str], expected: &str) {
    let mistakes = resolve(&services(bodies), topology).unwrap_err();
    assert!(
        mistakes[0].to_string().starts_with(expected),
        "{mistakes:?}"
    );
}

/// 2 nodes of 2 LLCs of 4 CPUs.
fn small() -> Topology {
    Topology::fake(2, 2, 4)
}

const NARROW: &str = "width = \"narrow\"";
const NODE: &str = "width = \"node\"";
const WIDE: &str = "width = \"wide\"";
const EXCLUSIVE_NARROW: &str = "width = \"narrow\"\nexclusive = true";

#[test]
fn named_places() {
    check(
        &small(),
        &["cpus = \"1,3\"", "llcs = [1, 3]", "nodes = 1", "weight = 7"],
        &["1,3", "4-7,12-15", "8-15", "-"],
    );
}

#[test]
fn narrow_ones_take_turns_on_nodes_and_caches() {
    let five = [NARROW; 5];
    check(&small(), &five, &["0-3", "8-11", "4-7", "12-15", "0-3"]);
}

#[test]
fn narrow_ones_avoid_what_is_named() {
    check(
        &small(),
        &["llcs = 0", NARROW, NARROW],
        &["0-3", "8-11", "4-7"],
    );
}

#[test]
fn a_node_after_narrow_ones() {
    check(&small(), &[NODE, NARROW, NODE], &["8-15", "0-3", "0-7"]);
}

#[test]
fn exclusive_cpus_are_left_out_of_all_others() {
    check(
        &small(),
        &[WIDE, EXCLUSIVE_NARROW, NARROW, NODE],
        &["4-15", "0-3", "8-11", "4-7"],
    );
    let resolved = resolve(&services(&[WIDE, EXCLUSIVE_NARROW]), &small()).unwrap();
    assert!(resolved.services[0].cpus.as_ref().unwrap().whole);
    assert!(!resolved.services[1].cpus.as_ref().unwrap().whole);
}

#[test]
fn offline_cpus_are_left_out() {
    check(
        &small().without(1),
        &[NARROW, "cpus = \"0-1\"", WIDE],
        &["8-11", "0", "0,2-15"],
    );
}

#[test]
fn memory_is_that_of_the_cpus() {
    let mems = |topology: &Topology, bodies: &[&str]| -> Vec<String> {
        let resolved = resolve(&services(bodies), topology).unwrap();
        let mems = resolved
            .services
            .iter()
            .map(|a| a.mems.as_ref().unwrap().ids.to_string());
        mems.collect()
    };
    let local = |place: &str| format!("{place}\nmemory = \"local\"");
    assert_eq!(
        mems(
            &small(),
            &[&local("cpus = 9"), &local("cpus = \"7-8\""), "memory = 0"]
        ),
        ["1", "0-1", "0"]
    );
    // Node 0 has no memory; node 1 is the nearest that has.
    assert_eq!(
        mems(&small().with_memory(0, 0), &[&local("nodes = 0")]),
        ["1"]
    );
    // The kernel is told its own nodes.
    assert_eq!(
        mems(
            &small().cut_from_one(),
            &[&local("nodes = 1"), "memory = 1", "memory = [0, 1]"]
        ),
        ["0", "0", "0"]
    );
    // A node of memory only can be named.
    assert_eq!(
        mems(&small().with_memory(2, 1 << 30), &["memory = 2"]),
        ["2"]
    );
}

#[test]
fn what_bpf_policies_are_told() {
    let resolved = resolve(
        &services(&["class = \"batch\"\nslice_us = 5000", ""]),
        &small(),
    )
    .unwrap();
    let class = |index: usize| {
        let entry = resolved.services[index].class;
        (entry.class, entry.slice_us)
    };
    assert_eq!(class(0), (Class::Batch, Some(5000)));
    assert_eq!(class(1), (Class::Normal, None));
}

#[test]
fn mistakes() {
    let small = &small();
    for (bodies, said) in [
        (
            &["cpus = \"14-17\""][..],
            "p.toml:3: CPU 16-17 don't exist: this machine has 0-15",
        ),
        (
            &["nodes = 2"],
            "p.toml:3: node 2 doesn't exist: this machine has 0-1",
        ),
        (
            &["llcs = \"0,4\""],
            "p.toml:3: LLC 4 doesn't exist: this machine has 0-3",
        ),
        (&["memory = 3"], "p.toml:3: node 3 doesn't exist"),
        (
            &["memory = \"local\""],
            "p.toml:3: `memory = \"local\"` needs",
        ),
        (
            &["cpus = 1\nexclusive = true", "cpus = \"0-3\""],
            "p.toml:7: CPUs 1 are exclusively those of \"/0\" (line 1)",
        ),
        (
            &["cpus = 1\nexclusive = true", "cpus = 1\nexclusive = true"],
            "p.toml:7: CPUs 1 are exclusively those of \"/0\" (line 1)",
        ),
        (
            &["cpus = \"0-15\"\nexclusive = true"],
            "p.toml:1: exclusive services have all CPUs",
        ),
        (
            &[EXCLUSIVE_NARROW, "nodes = \"0-1\""],
            "p.toml:3: no LLC is left",
        ),
        (
            &["width = \"node\"\nexclusive = true", "cpus = 0", "cpus = 8"],
            "p.toml:3: no node is left",
        ),
    ] {
        check_mistake(small, bodies, said);
    }
    check_mistake(
        &Topology::fake(1, 1, 2).without(1),
        &["cpus = 1"],
        "p.toml:3: an empty set: CPU 1 has no CPU that is online",
    );
    check_mistake(
        &small.clone().with_memory(2, 0),
        &["memory = 2"],
        "p.toml:3: node 2 has no memory",
    );
    check_mistake(
        &small.clone().with_memory(2, 1),
        &["nodes = 2"],
        "p.toml:3: an empty set: node 2 has no CPU that is online",
    );
}

#[test]
fn a_flat_machine_is_warned_of() {
    let resolved = resolve(&services(&[NARROW, NODE]), &Topology::fake(1, 1, 8)).unwrap();
    assert_eq!(cpus(&resolved), ["0-7", "0-7"]);
    assert_eq!(resolved.warnings.len(), 2);
    assert!(
        resolve(&services(&[NARROW]), &small())
            .unwrap()
            .warnings
            .is_empty()
    );
}

fn topologies() -> impl Strategy<Value = Topology> {
    (
        1u32..5,
        1u32..5,
        1u32..9,
        proptest::collection::vec(0u32..160, 0..6),
    )
        .prop_map(|(nodes, llcs, cpus, offline)| {
            let total = nodes * llcs * cpus;
            // CPU 0 stays.
            let offline = offline
                .into_iter()
                .map(|cpu| cpu % total)
                .filter(|&cpu| cpu > 0);
            offline.fold(Topology::fake(nodes, llcs, cpus), Topology::without)
        })
}

proptest! {
    #[test]
    fn sets_are_online_not_empty_and_the_same_again(
        topology in topologies(),
        picks in proptest::collection::vec(0usize..5, 0..8),
    ) {
        let bodies = [NARROW, NODE, WIDE, EXCLUSIVE_NARROW, "cpus = 0\nmemory = \"local\""];
        let bodies: Vec<_> = picks.iter().map(|&pick| bodies[pick]).collect();
        let policy = services(&bodies);
        let result = resolve(&policy, &topology);
        prop_assert_eq!(&result, &resolve(&policy, &topology));
        let Ok(resolved) = result else { return Ok(()) };
        let online = online(&topology);
        let mut exclusive = IdSet::default();
        for (index, assignment) in resolved.services.iter().enumerate() {
            let cpus = &assignment.cpus.as_ref().unwrap().ids;
            prop_assert!(!cpus.is_empty() && cpus.is_subset(&online));
            prop_assert!(cpus.intersection(&exclusive).is_empty());
            if assignment.exclusive {
                exclusive.extend(cpus);
                for (other, theirs) in resolved.services.iter().enumerate() {
                    let theirs = &theirs.cpus.as_ref().unwrap().ids;
                    prop_assert!(other == index || theirs.intersection(cpus).is_empty());
                }
            }
        }
        prop_assert!(!online.is_subset(&exclusive));
    }

    #[test]
    fn narrow_ones_are_disjoint_when_there_are_enough_caches(topology in topologies(), count in 1usize..16) {
        let usable = topology.llcs().iter().filter(|llc| !llc.cpus.is_empty()).count();
        let count = count.min(usable);
        let resolved = resolve(&services(&vec![NARROW; count]), &topology).unwrap();
        let mut seen = IdSet::default();
        for assignment in &resolved.services {
            let cpus = &assignment.cpus.as_ref().unwrap().ids;
            prop_assert!(cpus.intersection(&seen).is_empty());
            seen.extend(cpus);
        }
    }
}
