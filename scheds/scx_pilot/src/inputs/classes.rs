//! Services: groups of tasks, told apart by their cgroups, and how each is to be treated.
//!
//! [`Watch`] looks up the cgroup of each task that the scheduler meets, again every few seconds in case it moved, and
//! notices when a task is gone. It runs in a thread of its own: to the one that schedules, the answer is a word in memory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Board;
use crate::policy::Class;

/// How long what is known of a task stays good.
const LIFETIME: Duration = Duration::from_secs(3);
/// How many tasks to look at in one go, so that a machine with many does not make a CPU busy.
const AT_ONCE: usize = 256;

/// A group of tasks, and how they are to be treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// Its cgroup, as a path below the root of the hierarchy with a leading slash; what is below it belongs to it.
    pub cgroup: String,
    pub class: Class,
    /// By what its tasks' weights are multiplied, in percent, 1 to 10000.
    pub weight: u32,
}

/// Parses `NAME=CGROUP:CLASS[:WEIGHT]`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(word: &str) -> Result<Service, String> {
    const FORM: &str = "must look like NAME=/CGROUP:CLASS[:WEIGHT]";
    let (name, rest) = word.split_once('=').ok_or(FORM)?;
    let mut parts = rest.split(':');
    let cgroup = parts.next().unwrap_or_default().trim_end_matches('/');
    let class = match parts.next().ok_or(FORM)? {
        "latency" => Class::Latency,
        "normal" => Class::Normal,
        "batch" => Class::Batch,
        other => return Err(format!("{other} is no class: latency, normal or batch")),
    };
    let weight = match parts.next() {
        None => 100,
        Some(word) => word
            .parse()
            .ok()
            .filter(|weight| (1..=10_000).contains(weight))
            .ok_or_else(|| format!("{word} is no weight: 1 to 10000 percent"))?,
    };
    if name.is_empty() || !cgroup.starts_with('/') || parts.next().is_some() {
        return Err(FORM.to_string());
    }
    Ok(Service {
        name: name.to_string(),
        cgroup: cgroup.to_string(),
        class,
        weight,
    })
}

/// The service to which a cgroup belongs, by index: the one with the nearest cgroup above.
pub fn service_of(services: &[Service], cgroup: &str) -> Option<usize> {
    let holds = |service: &Service| {
        cgroup
            .strip_prefix(&service.cgroup)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    services
        .iter()
        .enumerate()
        .filter(|(_, service)| holds(service))
        .max_by_key(|(_, service)| service.cgroup.len())
        .map(|(index, _)| index)
}

/// The tasks that the scheduler has met.
#[derive(Debug)]
pub struct Watch {
    proc: PathBuf,
    /// When each is to be looked at again.
    due: HashMap<i32, Instant>,
    /// Those whose end could not be told yet.
    next_sweep: Option<Instant>,
}

impl Watch {
    /// `proc`: where procfs is mounted.
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_path_buf(),
            due: HashMap::new(),
            next_sweep: None,
        }
    }

    /// Looks up tasks that are new, and some of those that were looked up long ago.
    pub fn poll(&mut self, now: Instant, board: &Board) {
        while let Some(pid) = board.next_asked() {
            self.look_up(pid, now, board);
        }
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        self.next_sweep = Some(now + Duration::from_millis(100));
        let old: Vec<i32> = self
            .due
            .iter()
            .filter(|&(_, &due)| due <= now)
            .map(|(&pid, _)| pid)
            .take(AT_ONCE)
            .collect();
        for pid in old {
            self.look_up(pid, now, board);
        }
    }

    fn look_up(&mut self, pid: i32, now: Instant, board: &Board) {
        match fs::read_to_string(self.proc.join(format!("{pid}/cgroup"))) {
            Ok(text) => {
                let service =
                    unified(&text).and_then(|cgroup| service_of(board.services(), cgroup));
                board.assign(pid, service);
                self.due.insert(pid, now + LIFETIME);
            }
            // It is gone; if that can't be told now, it is found gone again.
            Err(_) if board.retire(pid) => {
                self.due.remove(&pid);
            }
            Err(_) => {
                self.due.insert(pid, now + LIFETIME);
            }
        }
    }
}

/// The cgroup in the unified hierarchy (cgroup v2), from `/proc/PID/cgroup`.
fn unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn services_are_parsed_or_refused_with_the_reason() {
        assert_eq!(
            parse("web=/system.slice/web.service/:latency:300"),
            Ok(Service {
                name: "web".into(),
                cgroup: "/system.slice/web.service".into(),
                class: Class::Latency,
                weight: 300
            })
        );
        assert_eq!(parse("b=/b:batch").unwrap().weight, 100);
        assert!(parse("b=/b:fast").unwrap_err().contains("no class"));
        assert!(parse("b=/b:batch:0").unwrap_err().contains("no weight"));
        for wrong in [
            "",
            "b",
            "b=/b",
            "b=b:batch",
            "=/b:batch",
            "b=/b:batch:1:2",
            "b=/:batch",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_nearest_cgroup_above_counts() {
        let services = ["a=/a:batch", "b=/a/b:latency"].map(|word| parse(word).unwrap());
        assert_eq!(service_of(&services, "/a"), Some(0));
        assert_eq!(service_of(&services, "/a/c"), Some(0));
        assert_eq!(service_of(&services, "/a/b/c"), Some(1));
        assert_eq!(service_of(&services, "/ab"), None);
        assert_eq!(service_of(&services, "/"), None);
    }

    #[test]
    fn tasks_are_followed_until_they_are_gone() {
        let proc = tempfile::tempdir().unwrap();
        let board = Arc::new(Board::new(vec![
            parse("web=/web:latency").unwrap(),
            parse("batch=/batch:batch").unwrap(),
        ]));
        let mut watch = Watch::new(proc.path());
        let in_cgroup = |pid: i32, cgroup: &str| {
            let dir = proc.path().join(pid.to_string());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup"), format!("1:cpu:/x\n0::{cgroup}\n")).unwrap();
        };
        let start = Instant::now();
        in_cgroup(5, "/web/worker");
        board.service_of(5);
        watch.poll(start, &board);
        assert_eq!(board.service_of(5).class, Class::Latency);
        in_cgroup(5, "/batch");
        watch.poll(start + LIFETIME, &board);
        assert_eq!(board.service_of(5).class, Class::Batch);
        assert_eq!(board.next_gone(), None);
        fs::remove_dir_all(proc.path().join("5")).unwrap();
        watch.poll(start + 3 * LIFETIME, &board);
        assert_eq!(board.next_gone(), Some(5));
        assert!(!board.service_of(5).known);
    }
}
