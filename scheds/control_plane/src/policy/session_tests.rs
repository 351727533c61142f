use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::testing::{Fake, Fault};
use super::{Class, ClassChange, ClassEntry, Error, Policy, Session};

const POLICY: &str = r#"
[[service]]
cgroup = "/web/*"
width = "narrow"
class = "latency"
slice_us = 1000
weight = 200
[[service]]
cgroup = "/batch"
class = "batch"
"#;

fn policy(text: &str) -> Policy {
    Policy::parse(Path::new("p.toml"), text).unwrap()
}

fn start(fake: &Fake, text: &str) -> Result<Session, Error> {
    Session::start(
        policy(text),
        &fake.topology,
        fake.machine(),
        &fake.journal_path(),
    )
}

/// A map as a daemon has it.
#[derive(Debug, Default)]
struct Map {
    entries: BTreeMap<u64, ClassEntry>,
    changes: usize,
    room: Option<usize>,
}

impl Map {
    fn tick(&mut self, session: &mut Session) -> super::Report {
        let mut sink = |change: &ClassChange| {
            self.changes += 1;
            match change.entry {
                Some(_) if self.room.is_some_and(|room| self.entries.len() >= room) => {
                    Err(io::Error::other("full"))
                }
                Some(entry) => {
                    self.entries.insert(change.cgroup_id, entry);
                    Ok(())
                }
                None => {
                    self.entries.remove(&change.cgroup_id).unwrap();
                    Ok(())
                }
            }
        };
        session.tick(&mut sink).unwrap()
    }

    fn class(&self, fake: &Fake, cgroup: &str) -> Option<Class> {
        let id = fake.machine().cgroup_id(cgroup).unwrap();
        self.entries.get(&id).map(|entry| entry.class)
    }
}

#[test]
fn cgroups_are_followed() {
    let fake = Fake::new(&["/web", "/web/one", "/batch", "/batch/job", "/x"]);
    let before = fake.snapshot();
    let mut session = start(&fake, POLICY).unwrap();
    let mut map = Map::default();
    map.tick(&mut session);
    assert_eq!(map.class(&fake, "/web/one"), Some(Class::Latency));
    assert_eq!(
        map.class(&fake, "/batch/job"),
        Some(Class::Batch),
        "as the one above"
    );
    assert_eq!(
        (map.class(&fake, "/web"), map.class(&fake, "/x")),
        (None, None)
    );
    assert_eq!(fake.get("/web/one", "cpuset.cpus"), "0-3");

    let changes = map.changes;
    map.tick(&mut session);
    assert_eq!(map.changes, changes, "nothing is said twice");

    fake.mkdir("/web/two");
    fake.mkdir("/web/two/worker");
    map.tick(&mut session);
    assert_eq!(fake.get("/web/two", "cpuset.cpus"), "0-3");
    assert_eq!(fake.get("/web/two", "cpu.weight"), "200");
    assert_eq!(map.class(&fake, "/web/two/worker"), Some(Class::Latency));

    fake.rmdir("/web/two");
    fake.rmdir("/batch/job");
    fake.mkdir("/gap");
    fake.mkdir("/batch/job");
    map.tick(&mut session);
    assert_eq!(map.entries.len(), 3, "/web/one, /batch, /batch/job");
    assert_eq!(map.class(&fake, "/batch/job"), Some(Class::Batch));
    assert!(!format!("{session:?}").contains("/web/two"), "it leaks");

    fake.rmdir("/gap");
    session.stop().unwrap();
    let after = fake.snapshot();
    assert_eq!(after, before);
}

#[test]
fn a_service_within_another_is_the_inner_one() {
    let fake = Fake::new(&["/batch", "/batch/web", "/batch/web/x"]);
    let text = "[[service]]\ncgroup = \"/batch\"\nclass = \"batch\"\n[[service]]\ncgroup = \"/batch/web\"\n";
    let mut session = start(&fake, text).unwrap();
    let mut map = Map::default();
    map.tick(&mut session);
    assert_eq!(map.class(&fake, "/batch/web/x"), Some(Class::Normal));
}

#[test]
fn what_a_full_map_refused_is_offered_again() {
    let fake = Fake::new(&["/web", "/web/1", "/web/2", "/web/3"]);
    let mut session = start(&fake, POLICY).unwrap();
    let mut map = Map {
        room: Some(2),
        ..Map::default()
    };
    map.tick(&mut session);
    assert_eq!(map.entries.len(), 2);
    fake.rmdir("/web/1");
    map.tick(&mut session);
    assert_eq!(map.class(&fake, "/web/3"), Some(Class::Latency));
    map.entries.clear();
    session.forget_delivered();
    map.tick(&mut session);
    assert_eq!(map.entries.len(), 2);
}

#[test]
fn one_cgroup_that_fails_takes_no_other_with_it() {
    let fake = Fake::new(&["/web", "/web/0"]);
    let mut session = start(&fake, POLICY).unwrap();
    fake.mkdir("/web/1");
    fake.mkdir("/web/2");
    fake.set_fault(Fault::Fail(1));
    let mut map = Map::default();
    let report = map.tick(&mut session);
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert_eq!(
        fake.get("/web/1", "cpuset.cpus"),
        "",
        "wholly or not at all"
    );
    assert_eq!(fake.get("/web/2", "cpuset.cpus"), "0-3");
    assert_eq!(fake.get("/web/2", "cpu.weight"), "200");
    assert!(
        map.tick(&mut session).failed.is_empty(),
        "it is not tried again"
    );
}

/// They come at the same moment, and one is below a cgroup that has tasks of its own.
#[test]
fn a_parent_that_hands_nothing_on_takes_nothing_from_others() {
    let fake = Fake::new(&["/a", "/b"]);
    let mut session = start(&fake, "[[service]]\ncgroup = \"/*/new\"\ncpus = 1\n").unwrap();
    let mut map = Map::default();
    map.tick(&mut session);
    std::fs::write(fake.root().join("b/cgroup.procs"), "1\n").unwrap();
    fake.mkdir("/a/new");
    fake.mkdir("/b/new");
    let report = map.tick(&mut session);
    assert!(
        report.failed.iter().any(|failed| failed.contains("/b")),
        "{report:?}"
    );
    assert_eq!(fake.get("/a/new", "cpuset.cpus"), "1");
    assert!(!fake.root().join("b/new/cpuset.cpus").exists());
}

#[test]
fn cgroups_that_could_not_be_noted_are_tried_again() {
    let fake = Fake::new(&["/web"]);
    let mut session = start(&fake, POLICY).unwrap();
    let mut map = Map::default();
    map.tick(&mut session);
    // It is written to a file of that name first.
    let mut in_the_way = fake.journal_path().into_os_string();
    in_the_way.push(".new");
    std::fs::create_dir(&in_the_way).unwrap();
    fake.mkdir("/web/1");
    let failed = session.tick(&mut |_: &ClassChange| Ok(()));
    assert!(matches!(failed, Err(Error::Journal { .. })), "{failed:?}");
    std::fs::remove_dir(&in_the_way).unwrap();
    assert!(map.tick(&mut session).failed.is_empty());
    assert_eq!(fake.get("/web/1", "cpuset.cpus"), "0-3");
}

#[test]
fn a_second_cgroup_of_an_exclusive_service_gets_none() {
    let fake = Fake::new(&["/a.slice", "/a.slice/x.service", "/b.slice"]);
    let mut session = start(
        &fake,
        "[[service]]\nunit = \"x.service\"\ncpus = 1\nexclusive = true\n",
    )
    .unwrap();
    let mut map = Map::default();
    assert!(map.tick(&mut session).failed.is_empty());
    fake.mkdir("/b.slice/x.service");
    let report = map.tick(&mut session);
    assert!(
        report.failed[0].contains("/b.slice/x.service"),
        "{report:?}"
    );
    assert!(!fake.root().join("b.slice/x.service/cpuset.cpus").exists());
}

#[test]
fn an_exclusive_service_that_starts_again_leaves_others_their_cpus() {
    let fake = Fake::new(&["/s", "/s/db", "/s/cache"]);
    let mut session = start(
        &fake,
        "[[service]]\ncgroup = \"/s/db\"\ncpus = \"0-3\"\nexclusive = true\n\
         [[service]]\ncgroup = \"/s/cache\"\ncpus = \"4-7\"\nexclusive = true\n",
    )
    .unwrap();
    let mut map = Map::default();
    map.tick(&mut session);
    for restarted in ["/s/db", "/s/cache", "/s/db"] {
        fake.rmdir(restarted);
        fake.mkdir("/s/between");
        fake.mkdir(restarted);
        assert!(map.tick(&mut session).failed.is_empty());
        fake.rmdir("/s/between");
        for cgroup in ["/s/db", "/s/cache"] {
            assert_eq!(
                fake.get(cgroup, "cpuset.cpus.partition"),
                "root",
                "{cgroup}"
            );
        }
        assert_eq!(fake.get("/s", "cpuset.cpus.exclusive"), "0-7");
    }
}

#[test]
fn what_a_killed_one_left_is_undone_at_the_next_start() {
    let fake = Fake::new(&["/web", "/web/one", "/batch"]);
    let before = fake.snapshot();
    // Its destructor doesn't run, only the lock goes.
    let mut session = start(&fake, POLICY).unwrap();
    Map::default().tick(&mut session);
    assert!(matches!(start(&fake, POLICY), Err(Error::Busy { .. })));
    let text = std::fs::read(fake.journal_path()).unwrap();
    session.stop().unwrap();
    fake.apply(POLICY).unwrap();
    std::fs::write(fake.journal_path(), text).unwrap();

    let session = start(&fake, "[[service]]\ncgroup = \"/batch\"\nweight = 5\n").unwrap();
    assert_eq!(fake.get("/batch", "cpu.weight"), "5");
    assert!(!fake.root().join("web/one/cpu.weight").exists());
    drop(session);
    assert_eq!(fake.snapshot(), before, "dropping it undoes it");
}

#[test]
fn a_reload_is_all_or_nothing() {
    let fake = Fake::new(&["/web", "/web/one", "/batch"]);
    let before = fake.snapshot();
    let mut session = start(&fake, POLICY).unwrap();
    let mut map = Map::default();
    map.tick(&mut session);
    let in_force = fake.snapshot();
    let wrong = policy(
        "[[service]]\ncgroup = \"/batch\"\nweight = 5\n[[service]]\ncgroup = \"/web\"\ncpus = 99\n",
    );
    assert!(matches!(
        session.reload(wrong, &fake.topology),
        Err(Error::Mistakes(_))
    ));
    assert_eq!(fake.snapshot(), in_force);
    let changes = map.changes;
    map.tick(&mut session);
    assert_eq!(map.changes, changes);

    let next = policy("[[service]]\ncgroup = \"/batch\"\nweight = 5\n");
    session.reload(next, &fake.topology).unwrap();
    map.tick(&mut session);
    assert_eq!(map.class(&fake, "/web/one"), None);
    assert_eq!(map.class(&fake, "/batch"), Some(Class::Normal));
    assert_eq!(fake.get("/batch", "cpu.weight"), "5");
    session.stop().unwrap();
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn a_thousand_cgroups_come_and_go() {
    let fake = Fake::new(&["/web"]);
    let mut session = start(&fake, POLICY).unwrap();
    let mut map = Map::default();
    for round in 0..2 {
        for n in 0..1000 {
            fake.mkdir(&format!("/web/{round}-{n}"));
        }
        let begin = Instant::now();
        map.tick(&mut session);
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(map.entries.len(), 1000);
        assert_eq!(fake.get(&format!("/web/{round}-999"), "cpu.weight"), "200");
        for n in 0..1000 {
            fake.rmdir(&format!("/web/{round}-{n}"));
        }
    }
    map.tick(&mut session);
    assert!(map.entries.is_empty());
    assert_eq!(session.known_cgroups(), 1, "/web");
}
