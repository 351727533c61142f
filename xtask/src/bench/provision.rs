//! Inside the guest, before the first run: what the workloads execute is put into memory. The guest's files are served by
//! the host, through a virtual clock at a pace that nobody can tell, and what the host takes must not be measured.

use super::plan::Plan;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// On a tmpfs, as all of /run.
const HOME: &str = "/run/manycore-bench";
/// A daemon of the boot whose workers come and go.
const UDEV: &str = "systemd-udevd";

/// The environment of a workload.
#[derive(Debug)]
pub struct Home {
    pub path: OsString,
    pub libraries: PathBuf,
    /// To work in.
    pub dir: PathBuf,
}

/// Copies all programs that the plan's commands name, and the libraries that they need.
///
/// A word of a command that is no program's name, or a program that can't be copied, is left as it is: it then runs from
/// where it lies.
pub fn provision(plan: &Plan) -> Result<Home> {
    let home = Path::new(HOME);
    let (bin, lib, dir) = (home.join("bin"), home.join("lib"), home.join("work"));
    for dir in [&bin, &lib, &dir] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let words: BTreeSet<&String> = plan
        .turns
        .iter()
        .flat_map(|turn| &turn.runs)
        .flat_map(|run| &run.command)
        .collect();
    let mut libraries = BTreeSet::new();
    for word in words {
        if let Some(program) = find(word, &path) {
            copy(&program, &bin.join(word))?;
            libraries.extend(libraries_of(&program));
        }
    }
    for library in &libraries {
        if let Some(name) = library.file_name() {
            copy(library, &lib.join(name))?;
        }
    }
    let paths = std::iter::once(bin).chain(std::env::split_paths(&path));
    Ok(Home {
        path: std::env::join_paths(paths).context("building PATH")?,
        libraries: lib,
        dir,
    })
}

/// The program that a shell would run for that word.
fn find(word: &str, path: &OsString) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    if word.is_empty() || word.starts_with(['.', '-']) || word.contains('/') {
        return None;
    }
    std::env::split_paths(path)
        .map(|dir| dir.join(word))
        .find(|file| {
            fs::metadata(file)
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 1 != 0)
        })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {} into memory", from.display()))
}

/// What the dynamic loader says. Nothing of a script or of a static program.
fn libraries_of(program: &Path) -> Vec<PathBuf> {
    let Ok(output) = Command::new("ldd").arg(program).output() else {
        return Vec::new();
    };
    paths(&String::from_utf8_lossy(&output.stdout))
}

fn paths(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once("=>")?;
            let word = rest.split_whitespace().next()?;
            word.starts_with('/').then(|| word.into())
        })
        .collect()
}

/// Ends what the boot left running that would get in the way: the devices are all there.
pub fn quieten() {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().parse::<i32>();
        let Some(pid) = pid.ok().and_then(Pid::from_raw) else {
            continue;
        };
        let is_udev = fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(UDEV));
        if is_udev {
            // Its workers end with it; one that is gone already is as good.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t\
                    libnone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            paths(text),
            [PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6")]
        );
        assert!(paths("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn only_programs_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = OsString::from(dir.path());
        fs::write(dir.path().join("data"), "").unwrap();
        assert_eq!(find("data", &path), None);
        let program = dir.path().join("tool");
        fs::write(&program, "").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).unwrap();
        assert_eq!(find("tool", &path), Some(program));
        for word in ["-l", "3000", ".", "./tool", ""] {
            assert_eq!(find(word, &path), None, "{word}");
        }
    }
}
