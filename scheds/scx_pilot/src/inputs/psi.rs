//! Pressure stall information (kernel `Documentation/accounting/psi.rst`): for which part of the time some task of a
//! service was ready to run and had no CPU. A service under pressure is given more: its weight grows with the pressure of
//! the last quarter of a second, up to four times at 100 %.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::{Board, Source};

/// The weight of a service that is under pressure all the time, in percent of its own.
const MOST: f64 = 400.0;

/// The pressure on one service.
#[derive(Debug)]
pub struct Psi {
    service: usize,
    file: PathBuf,
    last: Option<(Instant, u64)>,
}

impl Psi {
    /// `root`: where cgroup v2 is mounted; `cgroup`: the service's, with a leading slash.
    pub fn new(service: usize, root: &Path, cgroup: &str) -> Self {
        Self {
            service,
            file: root
                .join(cgroup.trim_start_matches('/'))
                .join("cpu.pressure"),
            last: None,
        }
    }

    fn read(&self) -> Result<u64, String> {
        let text = fs::read_to_string(&self.file).map_err(|err| err.to_string())?;
        total_us(&text).ok_or_else(|| "no total of CPU pressure in it".to_string())
    }
}

impl Source for Psi {
    fn name(&self) -> String {
        self.file.display().to_string()
    }

    fn poll(&mut self, now: Instant, board: &Board) -> Result<(), String> {
        let total = self.read().inspect_err(|_| {
            board.set_boost(self.service, 100);
        });
        let before = self.last.take();
        let total = total?;
        self.last = Some((now, total));
        if let Some((then, earlier)) = before {
            let elapsed_us = (now - then).as_micros().max(1) as f64;
            let pressure = total.saturating_sub(earlier) as f64 / elapsed_us;
            let percent = 100.0 + (MOST - 100.0) * pressure.clamp(0.0, 1.0);
            board.set_boost(self.service, percent as u32);
        }
        Ok(())
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
    use super::super::classes;
    use super::*;
    use std::time::Duration;

    #[test]
    fn pressure_raises_weight_and_its_absence_does_not() {
        let root = tempfile::tempdir().unwrap();
        let board = Board::new(vec![classes::parse("web=/web:normal").unwrap()]);
        let mut psi = Psi::new(0, root.path(), "/web");
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert!(psi.poll(at(0), &board).is_err());
        fs::create_dir(root.path().join("web")).unwrap();
        let file = root.path().join("web/cpu.pressure");
        let write = |total: u64| {
            let text = format!(
                "some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
            );
            fs::write(&file, text).unwrap();
        };
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
        fs::write(&file, "some garbage\n").unwrap();
        assert!(psi.poll(at(1250), &board).is_err());
        assert_eq!(board.boost(0), 100);
        // What was before it went wrong is not compared with what comes after.
        write(9_000_000);
        psi.poll(at(1500), &board).unwrap();
        assert_eq!(board.boost(0), 100);
    }
}
