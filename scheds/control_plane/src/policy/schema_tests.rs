use std::path::Path;

use super::IdSet;
use super::schema::{At, Mistake, Place, Policy};

fn parse(text: &str) -> Result<Policy, Vec<String>> {
    Policy::parse(Path::new("p.toml"), text)
        .map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect())
}

#[test]
fn everything_that_may_be_written() {
    let policy = parse(
        r#"
[machine]
numa_balancing = false
enable_controllers = false

[[service]]
name = "db"
unit = "db.service"
cpus = "0-3,8"
memory = "local"
class = "latency"
weight = 500
slice_us = 2000
exclusive = true

[[service]]
cgroup = "/batch/*"
width = "wide"
memory = [0, 1]
class = "batch"
"#,
    )
    .unwrap();
    assert_eq!(policy.numa_balancing, Some(At { value: 0, line: 3 }));
    assert!(!policy.enable_controllers);
    let db = &policy.services[0];
    assert_eq!((db.name.as_str(), db.line), ("db", 6));
    let cpus = IdSet::parse("0-3,8").unwrap();
    assert_eq!(
        db.place,
        Some(At {
            value: Place::Cpus(cpus),
            line: 9
        })
    );
    assert_eq!((db.weight, db.slice_us), (Some(500), Some(2000)));
    assert_eq!(policy.services[1].name, "/batch/*");
    assert_eq!(policy.service_of("/batch/x"), Some(1));
    assert_eq!(policy.service_of("/batch"), None);
    assert_eq!(parse("").unwrap().services, []);
}

#[test]
fn each_mistake_names_its_line() {
    let service = |body: &str| format!("[[service]]\ncgroup = \"/a\"\n{body}\n");
    for (text, said) in [
        (service("wieght = 1"), "p.toml:3: unknown field `wieght`"),
        ("[machin]\n".to_owned(), "p.toml:1: unknown field `machin`"),
        (
            service("weight = 0"),
            "p.toml:3: `weight` is 0, not 1 to 10000",
        ),
        (
            service("weight = 1.5"),
            "p.toml:3: invalid type: floating point `1.5`",
        ),
        (
            service("slice_us = 99"),
            "p.toml:3: `slice_us` is 99, not 100 to 100000",
        ),
        (service("cpus = []"), "p.toml:3: `cpus` is an empty set"),
        (service("cpus = \"\""), "p.toml:3: `cpus` is an empty set"),
        (
            service("memory = \"\""),
            "p.toml:3: `memory` is an empty set",
        ),
        (
            service("cpus = \"3-1\""),
            "p.toml:3: invalid value: string \"3-1\", expected ids",
        ),
        (service("cpus = [-1]"), "p.toml:3: invalid value"),
        (
            service("width = \"thin\""),
            "p.toml:3: unknown variant `thin`",
        ),
        (service("class = \"rt\""), "p.toml:3: unknown variant `rt`"),
        (
            service("memory = \"near\""),
            "p.toml:3: invalid value: string \"near\"",
        ),
        (
            service("cpus = 1\nnodes = 0"),
            "p.toml:1: a service has one place, not `nodes` and `cpus`",
        ),
        (service("exclusive = true"), "p.toml:1: `exclusive` needs"),
        (
            service("unit = \"a.service\""),
            "p.toml:1: a service has either",
        ),
        (
            "[[service]]\nweight = 1".to_owned(),
            "p.toml:1: a service needs",
        ),
        (
            "[[service]]\ncgroup = \"a\"".to_owned(),
            "p.toml:2: the cgroup \"a\" doesn't begin",
        ),
        (
            "[[service]]\ncgroup = \"/a/*\"\nexclusive = true\ncpus = 1".to_owned(),
            "p.toml:1: `exclusive` is for one cgroup",
        ),
        (
            "[machine]\nnuma_balancing = 7".to_owned(),
            "p.toml:2: invalid value: integer `7`",
        ),
        ("[[service]\n".to_owned(), "p.toml:1: "),
    ] {
        let mistakes = parse(&text).unwrap_err();
        assert!(mistakes[0].starts_with(said), "{text}\n{mistakes:?}");
        assert!(!mistakes[0].contains('\n'), "{mistakes:?}");
    }
}

#[test]
fn all_mistakes_are_named_at_once() {
    let text = "[[service]]\ncgroup = \"/a\"\nweight = 0\n[[service]]\ncpus = []\n";
    let mistakes = parse(text).unwrap_err();
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}

#[test]
fn a_missing_file_is_named() {
    let mistakes = Policy::read(Path::new("/no/such.toml")).unwrap_err();
    assert!(
        mistakes[0]
            .to_string()
            .starts_with("/no/such.toml: cannot be read")
    );
}
