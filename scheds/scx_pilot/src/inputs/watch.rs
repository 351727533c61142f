//! Which service each task belongs to.
//!
//! [`Watch`] looks up the cgroup of each task that the scheduler meets, again every few seconds in case it moved, and
//! notices when a task is gone. It runs in a thread of its own: to the one that schedules, the answer is a word in memory.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Board;

/// How long what is known of a task stays good; on a machine with more than some 7000 tasks, as long as it takes to look at all.
const LIFETIME: Duration = Duration::from_secs(3);
/// How many tasks to look at in one go, so that a machine with many does not make a CPU busy.
const AT_ONCE: usize = 256;
/// But so many are enough to remember: most are gone by then.
const MOST: usize = 1 << 16;

/// The tasks that the scheduler has met.
#[derive(Debug)]
pub struct Watch {
    proc: PathBuf,
    /// When each is to be looked at again.
    due: HashMap<i32, Instant>,
    /// The same in that order, with some that no longer hold.
    queue: VecDeque<(Instant, i32)>,
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
            queue: VecDeque::new(),
            next_sweep: None,
            version: 0,
        }
    }

    /// Looks up tasks that are new, and some of those that were looked up long ago.
    pub fn poll(&mut self, now: Instant, board: &Board) {
        for pid in std::iter::from_fn(|| board.next_asked()).take(AT_ONCE) {
            self.look_up(pid, now, board);
        }
        if self.next_sweep.is_some_and(|at| now < at) {
            return;
        }
        self.next_sweep = Some(now + Duration::from_millis(100));
        let version = board.version();
        if version != self.version {
            self.version = version;
            self.due.values_mut().for_each(|due| *due = now);
            self.queue = self.due.keys().map(|&pid| (now, pid)).collect();
        }
        let mut looks = 0;
        while (looks < AT_ONCE || self.due.len() > MOST)
            && let Some(&(at, pid)) = self.queue.front()
            && at <= now
        {
            self.queue.pop_front();
            if self.due.get(&pid) == Some(&at) {
                self.look_up(pid, now, board);
                looks += 1;
            }
        }
    }

    fn look_up(&mut self, pid: i32, now: Instant, board: &Board) {
        match fs::read_to_string(self.proc.join(format!("{pid}/cgroup"))) {
            Ok(text) => {
                let service = unified(&text).and_then(|cgroup| board.service_at(cgroup));
                board.assign(pid, service);
                self.look_again(pid, now + LIFETIME);
            }
            // It is gone; if that can't be told now, it is found gone again.
            Err(_) if board.retire(pid) => {
                self.due.remove(&pid);
            }
            Err(_) => self.look_again(pid, now + LIFETIME),
        }
    }

    fn look_again(&mut self, pid: i32, at: Instant) {
        self.due.insert(pid, at);
        self.queue.push_back((at, pid));
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

    /// However many there are, each is looked at in its turn.
    #[test]
    fn none_of_many_tasks_is_forgotten() {
        let count = 40 * AT_ONCE as i32;
        let proc = tempfile::tempdir().unwrap();
        let board = Board::new(vec![parse("web=/web:latency").unwrap()]);
        let mut watch = Watch::new(proc.path());
        let mut now = Instant::now();
        for pid in 0..count {
            watch.look_again(pid, now);
        }
        // Nobody is in this /proc: all are found gone, those that there is no room for a bit later.
        let mut gone = std::collections::HashSet::new();
        for _ in 0..60 {
            now += Duration::from_millis(100);
            watch.poll(now, &board);
            gone.extend(std::iter::from_fn(|| board.next_gone()));
        }
        assert_eq!(gone.len(), count as usize);
        assert!(watch.due.is_empty() && watch.queue.is_empty());
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
