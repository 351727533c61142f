//! `manycore topo` on machines that are described by files, below `$SCX_SYSFS_PREFIX`.
//!
//! After a wanted change of the drawing, `UPDATE=1 cargo test -p manycore --test topo` writes it anew.

// All of this file is tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A machine that exists in files only.
struct Machine {
    dir: tempfile::TempDir,
}

/// A CPU of it.
#[derive(Clone)]
struct Cpu {
    id: usize,
    node: usize,
    socket: usize,
    llc: usize,
    core: usize,
    online: bool,
}

impl Machine {
    /// `distances` by node, in the order of `nodes`, of which some may have no CPU.
    fn new(cpus: &[Cpu], possible: &str, nodes: &[(usize, u64)], distances: &[&str]) -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let list = |keep: &dyn Fn(&Cpu) -> bool| {
            let ids: Vec<String> = cpus
                .iter()
                .filter(|cpu| keep(cpu))
                .map(|cpu| cpu.id.to_string())
                .collect();
            ids.join(",")
        };
        machine.write("cpu/possible", possible);
        machine.write("cpu/present", &list(&|_| true));
        machine.write("cpu/online", &list(&|cpu| cpu.online));
        for cpu in cpus {
            let dir = format!("cpu/cpu{}", cpu.id);
            machine.write(&format!("{dir}/node{}/x", cpu.node), "");
            machine.write(&format!("node/node{}/cpu{}/x", cpu.node, cpu.id), "");
            if !cpu.online {
                continue;
            }
            machine.write(&format!("{dir}/topology/core_id"), &cpu.core.to_string());
            machine.write(
                &format!("{dir}/topology/physical_package_id"),
                &cpu.socket.to_string(),
            );
            machine.write(&format!("{dir}/topology/cluster_id"), "0");
            let cache = format!("{dir}/cache/index3");
            machine.write(&format!("{cache}/id"), &cpu.llc.to_string());
            let shared = list(&|other| other.online && other.llc == cpu.llc);
            machine.write(&format!("{cache}/shared_cpu_list"), &shared);
        }
        let ids: Vec<String> = nodes.iter().map(|(id, _)| id.to_string()).collect();
        machine.write("node/online", &ids.join(","));
        for ((id, mib), row) in nodes.iter().zip(distances) {
            machine.write(&format!("node/node{id}/distance"), row);
            let memory = format!("Node {id} MemTotal:       {} kB", mib * 1024);
            machine.write(&format!("node/node{id}/meminfo"), &memory);
        }
        machine
    }

    /// CPUs numbered by socket, die, core and thread; a socket is a node, a die has a cache.
    fn regular(sockets: usize, dies: usize, cores: usize, threads: usize, mib: u64) -> Self {
        let each = dies * cores * threads;
        let cpus: Vec<Cpu> = (0..sockets * each)
            .map(|id| Cpu {
                id,
                node: id / each,
                socket: id / each,
                llc: id / (cores * threads),
                core: id % each / threads,
                online: true,
            })
            .collect();
        let possible = format!("0-{}", cpus.len() - 1);
        let nodes: Vec<(usize, u64)> = (0..sockets).map(|node| (node, mib)).collect();
        let distances: &[&str] = if sockets == 1 {
            &["10"]
        } else {
            &["10 21", "21 10"]
        };
        Self::new(&cpus, &possible, &nodes, distances)
    }

    fn write(&self, path: &str, text: &str) {
        self.write_at(&format!("sys/devices/system/{path}"), text);
    }

    fn write_at(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
    }

    fn topo(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_manycore"));
        command.arg("topo").args(args);
        command
            .env("SCX_SYSFS_PREFIX", self.dir.path())
            .env("COLUMNS", "100");
        command.output().unwrap()
    }

    fn drawing(&self, args: &[&str]) -> String {
        let output = self.topo(args);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.drawing(&[&["--json"], args].concat())).unwrap()
    }
}

#[track_caller]
fn snapshot(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/topo/{name}"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{} is not:\n{found}", path.display());
}

#[test]
fn t2() {
    snapshot("t2.txt", &Machine::regular(1, 1, 2, 1, 2048).drawing(&[]));
}

#[test]
fn t8() {
    snapshot("t8.txt", &Machine::regular(2, 1, 4, 1, 1536).drawing(&[]));
}

#[test]
fn t16_smt() {
    let machine = Machine::regular(2, 2, 2, 2, 1536);
    let mut schedstat = "version 17\ntimestamp 1\n".to_string();
    for cpu in 0..16 {
        let mask = |size: u32| ((1u32 << size) - 1) << (cpu / size * size);
        schedstat += &format!(
            "cpu{cpu} 0 0 0\ndomain0 SMT {:08x} 1\ndomain1 MC {:08x} 1\n",
            mask(2),
            mask(4)
        );
        schedstat += &format!("domain2 PKG {:08x} 1\ndomain3 NUMA 0000ffff 1\n", mask(8));
    }
    machine.write_at("proc/schedstat", &schedstat);
    snapshot("t16-smt.txt", &machine.drawing(&[]));

    let svg = machine.dir.path().join("machine.svg");
    assert_eq!(machine.drawing(&["--svg", svg.to_str().unwrap()]), "");
    snapshot("t16-smt.svg", &fs::read_to_string(&svg).unwrap());

    let json = machine.json(&[]);
    assert_eq!(
        json["sched_domains"][2]["domains"],
        serde_json::json!(["0-7", "8-15"])
    );
    assert_eq!(
        json["nodes"][1]["llcs"][0]["cores"][1],
        serde_json::json!([10, 11])
    );
    assert_eq!(json["cpus"][9]["socket"], 1);
}

/// More possible CPUs than present ones, more of those than online ones, ids with gaps, and a node of memory only.
fn odd() -> Machine {
    let cpus: Vec<Cpu> = [0, 1, 2, 8, 9, 300]
        .into_iter()
        .map(|id| Cpu {
            id,
            node: if id < 8 { 0 } else { 3 },
            socket: if id < 8 { 0 } else { 4 },
            llc: if id < 8 { 0 } else { 7 },
            core: id,
            online: id != 2,
        })
        .collect();
    let distances = ["10 21 30", "21 10 17", "30 17 10"];
    Machine::new(
        &cpus,
        "0-2,8-9,300-303",
        &[(0, 512), (3, 100 * 1024), (5, 65536)],
        &distances,
    )
}

#[test]
fn odd_machine() {
    let machine = odd();
    snapshot("odd.txt", &machine.drawing(&[]));
    let json = machine.json(&[]);
    assert_eq!(
        (&json["possible"], &json["present"], &json["online"]),
        (&9.into(), &6.into(), &5.into())
    );
    assert_eq!(json["nodes"][0]["offline"], serde_json::json!([2]));
    assert_eq!(json["nodes"][2]["attached_to"], 3);
    assert_eq!(json["elsewhere"], serde_json::json!([301, 302, 303]));
    assert_eq!(json["cpus"][2]["socket"], Value::Null);
}

#[test]
fn a_file_takes_the_place_of_the_kernel() {
    // What a host hides: the kernel sees one cache and one node.
    let machine = Machine::regular(1, 1, 8, 1, 4096);
    let path = machine.dir.path().join("hidden.toml");
    let hidden = "version = 1\n[[node]]\nid = 0\ndistances = [10, 32]\n[[node.llc]]\ncpus = \"0-1\"\n[[node.llc]]\ncpus = \"2-3\"\n\
                  [[node]]\nid = 1\ndistances = [32, 10]\n[[node.llc]]\ncpus = \"4-7\"\n";
    fs::write(&path, hidden).unwrap();
    let file = path.to_str().unwrap();
    snapshot("hidden.txt", &machine.drawing(&["--topology", file]));

    fs::write(&path, hidden.replace("4-7", "4-8")).unwrap();
    let output = machine.topo(&["--topology", file]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert_eq!(
        said.trim_end(),
        format!("manycore: {file}:13: there is no CPU 8: possible are 0-7")
    );
}

#[test]
fn nobody_may_look() {
    let machine = Machine::regular(2, 1, 4, 1, 1536);
    open(machine.dir.path());
    let program = machine.dir.path().join("manycore");
    // Copied by another process: a child that a test beside this one has forked would keep what this process writes
    // open until its own exec, and until then the kernel refuses to run it (ETXTBSY).
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_manycore"))
        .arg(&program)
        .status()
        .unwrap();
    assert!(copied.success());
    let mut command = Command::new(program);
    command
        .arg("topo")
        .env("SCX_SYSFS_PREFIX", machine.dir.path());
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stderr.is_empty());
}

fn open(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}
