//! Which service each task belongs to.
//!
//! [`Watch`] looks up the cgroup of each task that the scheduler meets, again every few seconds in case it moved, and
//! notices when a task is gone. It runs in a thread of its own: to the one that schedules, the answer is a word in memory.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Board;

/// How long what is known of a task stays good.
const LIFETIME: Duration = Duration::from_secs(3);
/// How many tasks to look at in one go, so that a machine with many does not make a CPU busy.
const AT_ONCE: usize = 256;

/// The tasks that the scheduler has met.
#[derive(Debug)]
pub struct Watch {
    proc: PathBuf,
    /// When each is to be looked at again.
    due: HashMap<i32, Instant>,
    next_sweep: Option<Instant>,
    /// The services that they were looked up in, by [`Board::version`].
    version: u32,
}

impl Watch {
    /// `proc`: where procfs is mounted.
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_path_buf(),
            due: HashMap::new(),
            next_sweep: None,
            version: 0,
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
        let version = board.version();
        if version != self.version {
            self.version = version;
            self.due.values_mut().for_each(|due| *due = now.min(*due));
        }
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
                let service = unified(&text).and_then(|cgroup| board.service_at(cgroup));
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
    use super::super::services::parse;
    use super::*;
    use crate::policy::Class;
    use control_plane::policy::Policy;
    use std::sync::Arc;

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
        // A policy comes: all are looked up in it at once.
        in_cgroup(6, "/db");
        assert!(!board.service_of(6).known);
        watch.poll(start + LIFETIME, &board);
        assert!(!board.service_of(6).known);
        let text = "[[service]]\ncgroup = \"/d*\"\nclass = \"batch\"\nweight = 50\n";
        board.follow(&Policy::parse(Path::new("p.toml"), text).unwrap());
        watch.poll(start + LIFETIME + Duration::from_millis(100), &board);
        let treatment = board.service_of(6);
        assert_eq!(
            (treatment.class, treatment.weight_percent),
            (Class::Batch, 50)
        );
        assert_eq!(board.next_gone(), None);
        fs::remove_dir_all(proc.path().join("5")).unwrap();
        watch.poll(start + 3 * LIFETIME, &board);
        assert_eq!(board.next_gone(), Some(5));
        assert!(!board.service_of(5).known);
    }
}
