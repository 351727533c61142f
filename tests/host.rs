//! What needs no guest: bad use of xtask and of the schedulers, on this very machine.

// All of this file is tests.
#![allow(clippy::unwrap_used)]

use manycore_tests::boot::{Space, finish, finish_child, program};
use manycore_tests::machine::checkout;
use manycore_tests::plan::SCHEDULERS;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(300);

fn run(command: &mut Command) -> Output {
    finish(command, LIMIT).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It ended with this code, printed nothing, and complained with these words on one line, the last.
#[track_caller]
fn check_refusal(output: &Output, code: i32, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "it printed on standard output");
    let last = said.trim_end().lines().last().unwrap_or_default();
    for word in words {
        assert!(
            last.contains(word),
            "no {word:?} in the last line of: {said}"
        );
    }
}

#[test]
fn an_unknown_topology_or_kernel_lists_the_known_ones() {
    let space = Space::new().unwrap();
    let mut command = space
        .xtask(["vm", "run", "--topology", "t9", "--", "true"])
        .unwrap();
    check_refusal(&run(&mut command), 2, &["t9", "t2, t8, t16-smt, t32"]);
    let mut command = space
        .xtask(["vm", "run", "--kernel", "5.4", "--", "true"])
        .unwrap();
    check_refusal(&run(&mut command), 2, &["5.4", "6.12", "debian"]);
    for verb in ["fetch", "build"] {
        let mut command = space.xtask(["kernel", verb, "5.4"]).unwrap();
        check_refusal(&run(&mut command), 2, &["5.4", "6.12", "debian"]);
    }
    // Each has its own way into the cache.
    let mut command = space.xtask(["kernel", "fetch", "6.12"]).unwrap();
    check_refusal(&run(&mut command), 2, &["cargo xtask kernel build 6.12"]);
    space.check_clean().unwrap();
}

#[test]
fn wrong_words_are_wrong_use() {
    let space = Space::new().unwrap();
    for args in [
        &["no-such-command"][..],
        &["vm", "run", "--timeout", "0", "--", "true"],
        &["vm", "run", "--accel", "magic", "--", "true"],
    ] {
        let output = run(&mut space.xtask(args.iter().copied()).unwrap());
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn schedulers_say_who_they_are_and_what_they_refuse() {
    for scheduler in SCHEDULERS {
        let program = program(scheduler.name).unwrap();
        for (option, shown) in [
            ("-V", scheduler.name.trim_start_matches("scx_")),
            ("--help", "Examples:\n"),
            ("--help-stats", "tasks"),
        ] {
            let output = run(Command::new(&program).arg(option));
            assert!(output.status.success(), "{option}: {}", stderr(&output));
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.contains(shown), "{option} prints no {shown:?}: {text}");
        }
        for slice in ["0", "3600000000"] {
            let output = run(Command::new(&program).args(["--slice-us", slice]));
            assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
            assert!(stderr(&output).contains("--slice-us"));
        }
    }
}

#[test]
fn metrics_that_other_machines_could_read_are_wrong_use() {
    for scheduler in SCHEDULERS {
        let program = program(scheduler.name).unwrap();
        let args = ["--metrics", "0.0.0.0:9464"];
        check_refusal(
            &run(Command::new(&program).args(args)),
            2,
            &["0.0.0.0:9464", "--metrics-any"],
        );
        let output = run(Command::new(&program).args(["--metrics", "example.org"]));
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    }
}

/// `docs/stats.md` says how it is made.
#[test]
fn the_page_of_statistics_is_what_the_daemons_say() {
    let mut command = Command::new(program("manycore").unwrap());
    command.args(["stats", "--docs"]);
    for scheduler in SCHEDULERS {
        command.arg(program(scheduler.name).unwrap());
    }
    let output = run(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    let page = fs::read_to_string(checkout().join("docs/stats.md")).unwrap();
    assert!(
        page == String::from_utf8_lossy(&output.stdout),
        "make docs/stats.md anew, as it says at its end of the introduction"
    );
}

/// As on most machines. Where there is sched_ext, the guests' cases are the test: this one must not load anything.
#[test]
fn a_kernel_without_sched_ext_is_named_with_the_option_and_a_way_out() {
    if Path::new("/sys/kernel/sched_ext").exists() {
        eprintln!("this machine's kernel has sched_ext");
        return;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for scheduler in SCHEDULERS {
        let output = run(&mut Command::new(program(scheduler.name).unwrap()));
        let way_out = format!("cargo xtask vm run -- {}", scheduler.name);
        check_refusal(
            &output,
            1,
            &[release.trim(), "CONFIG_SCHED_CLASS_EXT", &way_out],
        );
        assert_eq!(stderr(&output).trim_end().lines().count(), 1);
    }
}

/// An xtask with an empty cache of its own, for which Debian's mirror is out of reach.
fn with_empty_cache(space: &Space, args: &[&str]) -> Command {
    let mut command = space.xtask(args.iter().copied()).unwrap();
    command
        .env("MANYCORE_CACHE", space.path().join("cache"))
        // Nobody listens on port 1.
        .env("MANYCORE_DEBIAN_MIRROR", "http://127.0.0.1:1/debian")
        .env("http_proxy", "")
        .env("no_proxy", "127.0.0.1");
    command
}

/// Nothing in the cache that could be taken for a kernel, and nothing half-done.
#[track_caller]
fn check_no_kernel(cache: &Path) {
    for dir in ["kernels/debian", "stage"] {
        let inside: Vec<_> = fs::read_dir(cache.join(dir))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        assert!(inside.is_empty(), "left in the cache: {inside:?}");
    }
}

#[test]
fn without_a_network_a_fetch_says_so_and_leaves_nothing() {
    let space = Space::new().unwrap();
    let output = run(&mut with_empty_cache(
        &space,
        &["kernel", "fetch", "debian"],
    ));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("network"), "{}", stderr(&output));
    check_no_kernel(&space.path().join("cache"));
}

/// A mirror that takes connections and never answers, so that a download from it is under way for as long as the test
/// needs; then Ctrl-C, to xtask alone, as `kill -INT` or a supervisor sends it.
#[test]
fn an_interrupted_download_says_so_and_leaves_neither_processes_nor_files() {
    let space = Space::new().unwrap();
    let mirror = TcpListener::bind("127.0.0.1:0").unwrap();
    let site = format!("http://{}/debian", mirror.local_addr().unwrap());
    let mut command = with_empty_cache(&space, &["kernel", "fetch", "debian"]);
    command
        .env("MANYCORE_DEBIAN_MIRROR", site)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // Once apt is connected, the download has begun.
    let _connection = mirror.accept().unwrap();
    let cache = space.path().join("cache");
    assert!(!users_of(&cache).is_empty());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = finish_child(child, Duration::from_secs(30)).unwrap();
    check_refusal(&output, 1, &["interrupted", "again"]);
    assert_eq!(users_of(&cache), [""; 0], "still running");
    check_no_kernel(&cache);
}

/// The processes that were started with this cache.
fn users_of(cache: &Path) -> Vec<String> {
    let wanted = format!("MANYCORE_CACHE={}", cache.display());
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|proc| {
            fs::read(proc.join("environ"))
                .is_ok_and(|env| env.split(|b| *b == 0).any(|var| var == wanted.as_bytes()))
        })
        .map(|proc| fs::read_to_string(proc.join("comm")).unwrap_or_default())
        .collect()
}

/// The cache on a disk of 1 MiB, in a mount namespace of its own, which ends with it.
#[test]
fn a_full_disk_is_named_with_the_folder() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root may mount a small disk");
        return;
    }
    let space = Space::new().unwrap();
    let cache = space.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=1m tmpfs {0} && head -c 1M /dev/zero >{0}/full 2>/dev/null; \"$@\"; code=$?; \
         find {0} -name '*.json' -o -name vmlinuz; exit $code",
        cache.display()
    );
    let inner = with_empty_cache(&space, &["kernel", "fetch", "debian"]);
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", &script, "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    let output = run(&mut command);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "a kernel was left");
    assert!(
        said.contains("space") || said.contains("make room"),
        "it does not say that the disk is full: {said}"
    );
    assert!(
        said.contains("MANYCORE_CACHE"),
        "it does not say what to do: {said}"
    );
}
