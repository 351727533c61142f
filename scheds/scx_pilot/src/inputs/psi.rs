//! Pressure stall information (kernel `Documentation/accounting/psi.rst`): for which part of the time some task of a
//! service was ready to run and had no CPU. A service under pressure is given more: its weight grows with the pressure of
//! the last quarter of a second, up to four times at 100 %.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use control_plane::policy::Machine;

use super::{Board, Source};

/// The weight of a service that is under pressure all the time, in percent of its own.
const MOST: f64 = 400.0;

/// The pressure on one cgroup.
#[derive(Debug)]
struct Meter {
    file: PathBuf,
    last: Option<(Instant, u64)>,
}

impl Meter {
    /// `root`: where cgroup v2 is mounted; `cgroup`: a path with a leading slash.
    fn new(root: &Path, cgroup: &str) -> Self {
        Self {
            file: root
                .join(cgroup.trim_start_matches('/'))
                .join("cpu.pressure"),
            last: None,
        }
    }

    /// The part of the time since the last look, 0 to 1; `None` at the first.
    fn read(&mut self, now: Instant) -> io::Result<Option<f64>> {
        let before = self.last.take();
        let text = fs::read_to_string(&self.file)?;
        let total =
            total_us(&text).ok_or_else(|| io::Error::other("no total of CPU pressure in it"))?;
        self.last = Some((now, total));
        Ok(before.map(|(then, earlier)| {
            let elapsed_us = (now - then).as_micros().max(1) as f64;
            (total.saturating_sub(earlier) as f64 / elapsed_us).clamp(0.0, 1.0)
        }))
    }
}

/// What a service counts under so much pressure, in percent.
fn boost(pressure: f64) -> u32 {
    (100.0 + (MOST - 100.0) * pressure) as u32
}

/// The pressure on one service, which is one cgroup.
#[derive(Debug)]
pub struct Psi {
    service: usize,
    meter: Meter,
}

impl Psi {
    /// `root`: where cgroup v2 is mounted; `cgroup`: the service's, with a leading slash.
    pub fn new(service: usize, root: &Path, cgroup: &str) -> Self {
        Self {
            service,
            meter: Meter::new(root, cgroup),
        }
    }
}

impl Source for Psi {
    fn name(&self) -> String {
        self.meter.file.display().to_string()
    }

    fn poll(&mut self, now: Instant, board: &Board) -> Result<(), String> {
        let read = self.meter.read(now);
        match read {
            Ok(Some(pressure)) => board.set_boost(self.service, boost(pressure)),
            Ok(None) => {}
            Err(_) => board.set_boost(self.service, 100),
        }
        read.map(|_| ()).map_err(|err| err.to_string())
    }
}

/// The pressure on the services of the policy, each of which may be many cgroups that come and go. The one under the most
/// pressure counts.
#[derive(Debug)]
pub struct PolicyPsi {
    root: PathBuf,
    meters: HashMap<String, Meter>,
    /// Those that count more than their weight now.
    boosted: Vec<usize>,
}

impl PolicyPsi {
    /// `root`: where cgroup v2 is mounted.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
            meters: HashMap::new(),
            boosted: Vec::new(),
        }
    }

    /// By service, the most pressure on one of its cgroups.
    fn read(&mut self, now: Instant, board: &Board) -> Result<HashMap<usize, f64>, String> {
        let all = Machine::at(&self.root, "/proc").cgroups();
        let all = all.map_err(|err| err.to_string())?;
        let cgroups = board.policys_among(all.into_keys());
        let mut most = HashMap::new();
        let mut before = std::mem::take(&mut self.meters);
        let mut result = Ok(());
        for (service, cgroup) in cgroups {
            let meter = before.remove(&cgroup);
            let mut meter = meter.unwrap_or_else(|| Meter::new(&self.root, &cgroup));
            match meter.read(now) {
                Ok(pressure) => {
                    let most = most.entry(service).or_insert(0.0_f64);
                    *most = most.max(pressure.unwrap_or(0.0));
                    self.meters.insert(cgroup, meter);
                }
                // Gone since it was listed.
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) => result = Err(format!("{}: {err}", meter.file.display())),
            }
        }
        result.map(|()| most)
    }
}

impl Source for PolicyPsi {
    fn name(&self) -> String {
        "the CPU pressure of the policy's services".to_owned()
    }

    fn poll(&mut self, now: Instant, board: &Board) -> Result<(), String> {
        let read = self.read(now, board);
        let (most, result) = match read {
            Ok(most) => (most, Ok(())),
            Err(wrong) => (HashMap::new(), Err(wrong)),
        };
        for service in self.boosted.drain(..) {
            if !most.contains_key(&service) {
                board.set_boost(service, 100);
            }
        }
        for (service, pressure) in most {
            board.set_boost(service, boost(pressure));
            self.boosted.push(service);
        }
        result
    }
}

/// For how long some task had to wait, in microseconds since the cgroup was made.
fn total_us(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    line.split_whitespace()
        .find_map(|word| word.strip_prefix("total="))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::super::services;
    use super::*;
    use control_plane::policy::Policy;
    use std::time::Duration;

    fn write(root: &Path, cgroup: &str, total: u64) {
        let text = format!(
            "some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        );
        fs::create_dir_all(root.join(cgroup)).unwrap();
        fs::write(root.join(cgroup).join("cpu.pressure"), text).unwrap();
    }

    #[test]
    fn the_cgroup_under_the_most_pressure_counts_for_a_service_of_a_policy() {
        let root = tempfile::tempdir().unwrap();
        let board = Board::new(vec![services::parse("web=/web:normal").unwrap()]);
        let policy = "[[service]]\ncgroup = \"/job-*\"\nname = \"jobs\"\n";
        board.follow(&Policy::parse(Path::new("p.toml"), policy).unwrap());
        let jobs = board.number_of("jobs").unwrap();
        let mut psi = PolicyPsi::new(root.path());
        let start = Instant::now();
        let mut at = |ms: u64| {
            psi.poll(start + Duration::from_millis(ms), &board).unwrap();
            (board.boost(0), board.boost(jobs))
        };
        write(root.path(), "job-1", 0);
        write(root.path(), "job-2", 0);
        write(root.path(), "web", 0);
        assert_eq!(at(250), (100, 100));
        write(root.path(), "job-1", 50_000);
        write(root.path(), "job-2", 125_000);
        write(root.path(), "web", 250_000);
        assert_eq!(at(500), (100, 250));
        // One that comes has no past, and one that goes no longer counts.
        fs::remove_dir_all(root.path().join("job-2")).unwrap();
        write(root.path(), "job-3", 9_000_000);
        assert_eq!(at(750), (100, 100));
        write(root.path(), "job-3", 9_250_000);
        assert_eq!(at(1000), (100, 400));
        fs::remove_dir_all(root.path().join("job-1")).unwrap();
        fs::remove_dir_all(root.path().join("job-3")).unwrap();
        assert_eq!(at(1250), (100, 100));
    }

    #[test]
    fn pressure_raises_weight_and_its_absence_does_not() {
        let root = tempfile::tempdir().unwrap();
        let board = Board::new(vec![services::parse("web=/web:normal").unwrap()]);
        let mut psi = Psi::new(0, root.path(), "/web");
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!(psi.poll(at(0), &board).is_err());
        let write = |total| write(root.path(), "web", total);
        write(1_000_000);
        psi.poll(at(250), &board).unwrap();
        assert_eq!(board.boost(0), 100);
        write(1_125_000);
        psi.poll(at(500), &board).unwrap();
        assert_eq!(board.boost(0), 250);
        psi.poll(at(750), &board).unwrap();
        assert_eq!(board.boost(0), 100);
        // More than all the time: the clocks differ a little.
        write(2_000_000);
        psi.poll(at(1000), &board).unwrap();
        assert_eq!(board.boost(0), 400);
        fs::write(root.path().join("web/cpu.pressure"), "some garbage\n").unwrap();
        assert!(psi.poll(at(1250), &board).is_err());
        assert_eq!(board.boost(0), 100);
        // What was before it went wrong is not compared with what comes after.
        write(9_000_000);
        psi.poll(at(1500), &board).unwrap();
        assert_eq!(board.boost(0), 100);
    }
}
