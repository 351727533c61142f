//! A power budget (kernel `Documentation/power/powercap/powercap.rst`): over it, work is packed into fewer caches, one
//! fewer every half second; below 90 % of it, spread over one more again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Board, Source};

const INTERVAL: Duration = Duration::from_millis(500);
/// Below this part of the budget there is room for more.
const ROOM: f64 = 0.9;

/// The power that the machine's packages take.
#[derive(Debug)]
pub struct Power {
    root: PathBuf,
    budget_w: f64,
    nr_llcs: u32,
    active: u32,
    last: Option<(Instant, Vec<Zone>)>,
}

/// A power zone's counter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Zone {
    name: String,
    energy_uj: u64,
    /// Where the counter starts again from 0.
    range_uj: u64,
}

impl Power {
    /// `root`: `/sys/class/powercap`, or a fake one; `budget_w`: in watts, for all packages together.
    pub fn new(root: &Path, budget_w: f64, nr_llcs: u32) -> Self {
        Self {
            root: root.to_path_buf(),
            budget_w,
            nr_llcs,
            active: nr_llcs,
            last: None,
        }
    }

    /// Reads the counters of all packages: `intel-rapl:0` is one, `intel-rapl:0:1` is a part of one.
    fn read(&self) -> Result<Vec<Zone>, String> {
        let entries = fs::read_dir(&self.root).map_err(|err| err.to_string())?;
        let mut zones = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|err| err.to_string())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.matches(':').count() == 1 {
                zones.push(Zone {
                    energy_uj: number(&entry.path().join("energy_uj"))?,
                    range_uj: number(&entry.path().join("max_energy_range_uj"))?,
                    name,
                });
            }
        }
        if zones.is_empty() {
            return Err("no package reports its energy".to_string());
        }
        zones.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(zones)
    }

    fn adjust(&mut self, power_w: f64) {
        if power_w > self.budget_w {
            self.active = self.active.saturating_sub(1).max(1);
        } else if power_w < ROOM * self.budget_w {
            self.active = (self.active + 1).min(self.nr_llcs);
        }
    }
}

impl Source for Power {
    fn name(&self) -> String {
        format!("the power budget ({})", self.root.display())
    }

    fn poll(&mut self, now: Instant, board: &Board) -> Result<(), String> {
        if let Some((then, _)) = &self.last
            && now.duration_since(*then) < INTERVAL
        {
            return Ok(());
        }
        let zones = match self.read() {
            Ok(zones) => zones,
            Err(wrong) => {
                self.last = None;
                self.active = self.nr_llcs;
                board.set_active_llcs(u32::MAX);
                return Err(wrong);
            }
        };
        let before = self.last.replace((now, zones));
        if let (Some((then, before)), Some((_, zones))) = (before, &self.last)
            && before.len() == zones.len()
        {
            let energy_uj: u64 = before.iter().zip(zones).map(|(a, b)| used_uj(a, b)).sum();
            self.adjust(energy_uj as f64 / 1e6 / (now - then).as_secs_f64());
        }
        let packed = self.active < self.nr_llcs;
        board.set_active_llcs(if packed { self.active } else { u32::MAX });
        Ok(())
    }
}

/// What a zone has used between two readings, over an overflow of its counter.
fn used_uj(before: &Zone, after: &Zone) -> u64 {
    match after.energy_uj.checked_sub(before.energy_uj) {
        Some(used) => used,
        None => after
            .range_uj
            .saturating_sub(before.energy_uj)
            .saturating_add(after.energy_uj),
    }
}

fn number(file: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(file).map_err(|err| format!("{}: {err}", file.display()))?;
    text.trim()
        .parse()
        .map_err(|_| format!("{} is not a number", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_budget_work_is_packed_and_under_it_spread() {
        let root = tempfile::tempdir().unwrap();
        let board = Board::new(Vec::new());
        let mut power = Power::new(root.path(), 10.0, 4);
        let start = Instant::now();
        let mut step = 0;
        let mut energy = [0u64, 950_000_000];
        // Two packages of 1000 J counters, the second about to overflow; a part of one is not counted again.
        for zone in [
            "intel-rapl:0",
            "intel-rapl:1",
            "intel-rapl:0:0",
            "intel-rapl",
        ] {
            fs::create_dir(root.path().join(zone)).unwrap();
        }
        fs::write(root.path().join("intel-rapl:0:0/energy_uj"), "x").unwrap();
        let mut go = |board: &Board, power: &mut Power, watts: u64| {
            for (zone, energy) in energy.iter_mut().enumerate() {
                *energy = (*energy + watts * 500_000 / 2) % 1_000_000_000;
                let dir = root.path().join(format!("intel-rapl:{zone}"));
                fs::write(dir.join("energy_uj"), format!("{energy}\n")).unwrap();
                fs::write(dir.join("max_energy_range_uj"), "1000000000\n").unwrap();
            }
            step += 1;
            let result = power.poll(start + INTERVAL * step, board);
            (result, board.active_llcs())
        };
        assert_eq!(go(&board, &mut power, 0), (Ok(()), u32::MAX));
        let packed: Vec<u32> = (0..4).map(|_| go(&board, &mut power, 40).1).collect();
        assert_eq!(packed, [3, 2, 1, 1]);
        // Neither over nor well under: it stays.
        assert_eq!(go(&board, &mut power, 10).1, 1);
        let spread: Vec<u32> = (0..4).map(|_| go(&board, &mut power, 2).1).collect();
        assert_eq!(spread, [2, 3, u32::MAX, u32::MAX]);
        let _ = go(&board, &mut power, 40);
        assert_eq!(board.active_llcs(), 3);
        fs::write(root.path().join("intel-rapl:0/energy_uj"), "many").unwrap();
        let result = power.poll(start + INTERVAL * 100, &board);
        assert!(result.unwrap_err().contains("not a number"));
        assert_eq!(board.active_llcs(), u32::MAX);
    }
}
