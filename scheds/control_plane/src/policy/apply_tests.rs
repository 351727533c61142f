use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use super::testing::{Fake, Fault};
use super::{Error, Journal};

const CGROUPS: &[&str] = &["/a", "/b", "/s", "/s/deep", "/other"];

const POLICY: &str = r#"
[machine]
numa_balancing = false
[[service]]
cgroup = "/a"
width = "narrow"
memory = "local"
class = "latency"
weight = 500
exclusive = true
[[service]]
cgroup = "/s/deep"
cpus = "8-9"
exclusive = true
[[service]]
cgroup = "/b"
width = "wide"
class = "batch"
weight = 10
"#;

const CHANGED: &str = r#"
[[service]]
cgroup = "/a"
nodes = 1
weight = 300
[[service]]
cgroup = "/other"
cpus = "0-1"
memory = 0
"#;

/// Without and with controllers that were enabled before, on kernels that empty cpusets with tasks and that don't.
fn fakes() -> Vec<Fake> {
    let mut fakes = Vec::new();
    for strict in [false, true] {
        for enabled in [&[][..], &["/"], &["/", "/s"]] {
            let fake = Fake::new(CGROUPS);
            for cgroup in enabled {
                fake.set(cgroup, "cgroup.subtree_control", "+cpuset");
                fake.set(cgroup, "cgroup.subtree_control", "+cpu");
            }
            fake.behaviour.lock().unwrap().strict = strict;
            fakes.push(fake);
        }
    }
    fakes
}

#[test]
fn what_is_applied_is_undone() {
    for fake in fakes() {
        let before = fake.snapshot();
        fake.apply(POLICY).unwrap();
        for (cgroup, file, value) in [
            ("/a", "cpuset.cpus", "0-3"),
            ("/a", "cpuset.mems", "0"),
            ("/a", "cpuset.cpus.partition", "root"),
            ("/a", "cpu.weight", "500"),
            ("/s", "cpuset.cpus.exclusive", "8-9"),
            ("/s/deep", "cpuset.cpus", "8-9"),
            ("/s/deep", "cpuset.cpus.exclusive", "8-9"),
            ("/s/deep", "cpuset.cpus.partition", "root"),
            // Wide needs no limit.
            ("/b", "cpuset.cpus", ""),
            ("/b", "cpu.weight", "10"),
            ("/../proc/sys/kernel", "numa_balancing", "0"),
        ] {
            assert_eq!(fake.get(cgroup, file), value, "{cgroup} {file}");
        }
        let again = fake.apply(POLICY).unwrap();
        assert!(
            again.changes.is_empty() && again.left_alone.is_empty(),
            "{again:?}"
        );
        let report = fake.restore();
        assert!(report.left_alone.is_empty(), "{report:?}");
        assert_eq!(fake.snapshot(), before);
        assert!(!fake.journal_path().exists());
        assert_eq!(fake.restore(), super::Report::default());
    }
}

/// How many writes it takes.
fn writes(fake: &Fake, text: &str) -> usize {
    fake.set_fault(Fault::None);
    fake.apply(text).unwrap();
    let writes = fake.behaviour.lock().unwrap().writes;
    fake.restore();
    writes
}

#[test]
fn it_is_all_or_nothing() {
    for fake in fakes() {
        let before = fake.snapshot();
        for number in 0..writes(&fake, POLICY) {
            fake.set_fault(Fault::Fail(number));
            assert!(
                matches!(fake.apply(POLICY), Err(Error::Write { .. })),
                "{number}"
            );
            assert_eq!(fake.snapshot(), before, "write {number} failed");
            assert!(!fake.journal_path().exists());
        }
    }
}

#[test]
fn what_a_killed_process_left_is_undone() {
    for fake in fakes() {
        let before = fake.snapshot();
        for number in 0..writes(&fake, POLICY) {
            fake.set_fault(Fault::Die(number));
            assert!(catch_unwind(AssertUnwindSafe(|| fake.apply(POLICY))).is_err());
            fake.set_fault(Fault::None);
            let report = fake.restore();
            assert!(report.left_alone.is_empty(), "{number}: {report:?}");
            assert_eq!(fake.snapshot(), before, "killed at write {number}");
        }
    }
}

#[test]
fn a_restore_that_was_killed_is_done_again() {
    for fake in fakes() {
        let before = fake.snapshot();
        for number in 0.. {
            fake.set_fault(Fault::None);
            fake.apply(POLICY).unwrap();
            fake.set_fault(Fault::Die(number));
            let killed = catch_unwind(AssertUnwindSafe(|| fake.restore())).is_err();
            fake.set_fault(Fault::None);
            let report = fake.restore();
            assert!(report.left_alone.is_empty(), "{number}: {report:?}");
            assert_eq!(fake.snapshot(), before, "killed at write {number}");
            if !killed {
                break;
            }
        }
    }
}

/// With cpusets that have no limit, and those of all there is, taken for the same: until the end, some kernels allow no
/// better.
fn loosely(fake: &Fake) -> BTreeMap<PathBuf, String> {
    loosely_of(fake.snapshot())
}

fn loosely_of(mut files: BTreeMap<PathBuf, String>) -> BTreeMap<PathBuf, String> {
    for (path, text) in &mut files {
        let all = match path.file_name().unwrap().to_str().unwrap() {
            "cpuset.cpus" => "0-15\n",
            "cpuset.mems" => "0-1\n",
            _ => continue,
        };
        if text == all {
            *text = "\n".to_owned();
        }
    }
    files
}

#[test]
fn a_changed_file_is_applied_wholly_or_not_at_all() {
    for fake in fakes() {
        let before = fake.snapshot();
        fake.apply(POLICY).unwrap();
        let first = fake.snapshot();
        for number in 0.. {
            fake.set_fault(Fault::Fail(number));
            if fake.apply(CHANGED).is_ok() {
                break;
            }
            assert_eq!(
                loosely(&fake),
                loosely_of(first.clone()),
                "write {number} failed"
            );
        }
        fake.set_fault(Fault::None);
        assert_eq!(fake.get("/a", "cpuset.cpus"), "8-15");
        assert_eq!(fake.get("/a", "cpuset.cpus.partition"), "member");
        assert_eq!(fake.get("/other", "cpuset.cpus"), "0-1");
        assert_eq!(fake.get("/../proc/sys/kernel", "numa_balancing"), "1");
        let report = fake.restore();
        assert!(report.left_alone.is_empty(), "{report:?}");
        assert_eq!(fake.snapshot(), before);
    }
}

#[test]
fn a_change_that_was_killed_is_undone_to_the_beginning() {
    for fake in fakes() {
        let before = fake.snapshot();
        for number in 0.. {
            fake.set_fault(Fault::None);
            fake.apply(POLICY).unwrap();
            fake.set_fault(Fault::Die(number));
            let killed = catch_unwind(AssertUnwindSafe(|| fake.apply(CHANGED))).is_err();
            fake.set_fault(Fault::None);
            let report = fake.restore();
            assert!(report.left_alone.is_empty(), "{number}: {report:?}");
            assert_eq!(fake.snapshot(), before, "killed at write {number}");
            if !killed {
                break;
            }
        }
    }
}

#[test]
fn what_others_set_since_is_left_alone() {
    for fake in fakes() {
        fake.apply(POLICY).unwrap();
        fake.set("/a", "cpu.weight", "42");
        fake.set("/b", "cpu.weight", "7");
        // Neither a change nor the end undoes it.
        let report = fake.apply(CHANGED).unwrap();
        assert_eq!(report.left_alone.len(), 2, "{report:?}");
        assert_eq!(
            (fake.get("/a", "cpu.weight"), fake.get("/b", "cpu.weight")),
            ("42".into(), "7".into())
        );
        let report = fake.restore();
        assert!(
            report.left_alone.iter().any(|left| left.now == "42"),
            "{report:?}"
        );
        assert_eq!(fake.get("/a", "cpu.weight"), "42");
        // The file is gone where its controller was off.
        if fake.root().join("a/cpuset.cpus").exists() {
            assert_eq!(fake.get("/a", "cpuset.cpus"), "");
        }
    }
}

#[test]
fn a_controller_that_others_use_since_stays() {
    let fake = Fake::new(CGROUPS);
    fake.apply(POLICY).unwrap();
    fake.set("/other", "cpuset.cpus", "5");
    fake.set("/other", "cpu.max", "1000 100000");
    let report = fake.restore();
    let said: Vec<_> = report
        .left_alone
        .iter()
        .map(|left| left.reason.as_str())
        .collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said.iter()
            .any(|said| said.starts_with("/other cpuset.cpus needs it")),
        "{said:?}"
    );
    assert_eq!(fake.get("/", "cgroup.subtree_control"), "cpu cpuset");
    assert_eq!(fake.get("/other", "cpuset.cpus"), "5");
    assert_eq!(fake.get("/a", "cpuset.cpus"), "");
}

#[test]
fn a_cpuset_that_can_not_be_emptied_is_at_least_wide() {
    let fake = Fake::new(CGROUPS);
    fake.behaviour.lock().unwrap().strict = true;
    fake.set("/", "cgroup.subtree_control", "+cpuset");
    // Renewing the controller would lose this.
    fake.set("/other", "cpuset.cpus", "5");
    fake.apply("[[service]]\ncgroup = \"/a\"\ncpus = 1\n")
        .unwrap();
    let report = fake.restore();
    assert!(
        report.left_alone[0].reason.contains("all there is"),
        "{report:?}"
    );
    assert_eq!(fake.get("/a", "cpuset.cpus"), "0-15");
    assert_eq!(fake.get("/other", "cpuset.cpus"), "5");
}

#[test]
fn another_cgroup_of_the_same_path_is_none_of_ours() {
    let fake = Fake::new(CGROUPS);
    fake.apply(POLICY).unwrap();
    fake.rmdir("/b");
    fake.mkdir("/between");
    fake.mkdir("/b");
    fake.set("/b", "cpu.weight", "10");
    fake.restore();
    assert_eq!(fake.get("/b", "cpu.weight"), "10");
}

#[test]
fn a_mistake_changes_nothing() {
    let v1 = Fake::new(&[]);
    fs::remove_file(v1.root().join("cgroup.controllers")).unwrap();
    let no_cpuset = Fake::new(CGROUPS);
    fs::write(no_cpuset.root().join("cgroup.controllers"), "cpu\n").unwrap();
    let disabled =
        "[machine]\nenable_controllers = false\n[[service]]\ncgroup = \"/a\"\ncpus = 1\n";
    let twice = "[[service]]\nunit = \"x.service\"\ncpus = 1\nexclusive = true\n";
    for (fake, text, said) in [
        (v1, POLICY, "p.toml:4: "),
        (
            no_cpuset,
            POLICY,
            "p.toml:4: the cpuset controller isn't available",
        ),
        (
            Fake::new(CGROUPS),
            disabled,
            "p.toml:3: the cpuset controller isn't enabled in / for /a",
        ),
        (
            Fake::new(&[
                "/a.slice",
                "/b.slice",
                "/a.slice/x.service",
                "/b.slice/x.service",
            ]),
            twice,
            "p.toml:1: `exclusive` is for one cgroup, but it is /a.slice/x.service and /b.slice/x.service",
        ),
    ] {
        let before = fake.snapshot();
        let Err(Error::Mistakes(mistakes)) = fake.apply(text) else {
            panic!("{text} was applied");
        };
        assert!(mistakes[0].to_string().starts_with(said), "{mistakes:?}");
        assert_eq!(fake.snapshot(), before);
        assert!(
            Journal::look(&fake.journal_path(), &fake.machine())
                .unwrap()
                .is_empty()
        );
    }
}

/// Exclusive services below a slice each, two of them below the same, and one at the top.
fn traders(cpus: [&str; 4]) -> String {
    let paths = ["/s/one", "/s/two", "/t/three", "/top"];
    paths
        .iter()
        .zip(cpus)
        .map(|(path, cpus)| {
            format!("[[service]]\ncgroup = \"{path}\"\ncpus = \"{cpus}\"\nexclusive = true\n")
        })
        .collect()
}

/// In turn; the second keeps some of its own.
const HANDS: [[&str; 4]; 3] = [
    ["0-1", "2-4", "6-7", "8-9"],
    ["6-7", "0,2", "8-9", "1,3-4"],
    ["2-4", "6-7", "0-1", "8-10"],
];

fn fake_of_traders() -> Fake {
    Fake::new(&["/s", "/s/one", "/s/two", "/t", "/t/three", "/top"])
}

#[test]
fn exclusive_cpus_change_hands() {
    let fake = fake_of_traders();
    let before = fake.snapshot();
    for cpus in HANDS.iter().chain(&HANDS) {
        fake.apply(&traders(*cpus)).unwrap();
        for (cgroup, cpus) in ["/s/one", "/s/two", "/t/three", "/top"].iter().zip(cpus) {
            assert_eq!(fake.get(cgroup, "cpuset.cpus"), *cpus);
            assert_eq!(fake.get(cgroup, "cpuset.cpus.partition"), "root");
        }
        let same = fake.apply(&traders(*cpus)).unwrap();
        assert_eq!(same, super::Report::default());
    }
    let report = fake.restore();
    assert!(report.left_alone.is_empty(), "{report:?}");
    assert_eq!(fake.snapshot(), before);
}

#[test]
fn a_partition_that_somebody_else_has_set_stays() {
    let fake = fake_of_traders();
    fake.apply(&traders(HANDS[0])).unwrap();
    fake.set("/top", "cpuset.cpus.partition", "isolated");
    let report = fake.apply(&traders(HANDS[2])).unwrap();
    assert_eq!(fake.get("/top", "cpuset.cpus.partition"), "isolated");
    assert_eq!(report.left_alone.len(), 1, "{report:?}");
}

#[test]
fn exclusive_cpus_change_hands_wholly_or_not_at_all() {
    let fake = fake_of_traders();
    let (first, second) = (traders(HANDS[0]), traders(HANDS[1]));
    fake.apply(&first).unwrap();
    let applied = fake.snapshot();
    for number in 0.. {
        fake.set_fault(Fault::Fail(number));
        if fake.apply(&second).is_ok() {
            assert!(number > 10, "{number} writes");
            break;
        }
        assert_eq!(fake.snapshot(), applied, "write {number} failed");
    }
    fake.set_fault(Fault::None);
    fake.restore();
    let before = fake.snapshot();
    for number in 0.. {
        fake.set_fault(Fault::None);
        fake.apply(&first).unwrap();
        fake.set_fault(Fault::Die(number));
        let killed = catch_unwind(AssertUnwindSafe(|| fake.apply(&second))).is_err();
        fake.set_fault(Fault::None);
        let report = fake.restore();
        assert!(report.left_alone.is_empty(), "{number}: {report:?}");
        assert_eq!(fake.snapshot(), before, "killed at write {number}");
        if !killed {
            break;
        }
    }
}
