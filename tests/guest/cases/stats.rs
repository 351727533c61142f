//! Statistics, as clients see them.

use crate::Setting;
use crate::cpus::online;
use crate::daemon::{Daemon, run};
use crate::load::{Load, Random, Work};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use scx_stats::StatsClient;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// One answer. By convention, tasks enter queues as `enq_*` and leave them as `disp_*` or `dequeued`; `queued_*` are in
/// them now, and everything else is a total, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Totals(pub(crate) BTreeMap<String, u64>);

impl Totals {
    /// Asks on the usual socket, with upstream's client.
    pub(crate) fn read() -> Result<Self> {
        Self::read_by(&mut connect()?)
    }

    fn read_by(client: &mut StatsClient) -> Result<Self> {
        let answer = client
            .request("stats", Vec::new())
            .context("asking for statistics")?;
        Ok(Self::of(answer))
    }

    pub(crate) fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line)
            .map(Self::of)
            .with_context(|| format!("not statistics: {line}"))
    }

    /// Histograms are lists, and left out.
    fn of(answer: BTreeMap<String, Value>) -> Self {
        let number = |(name, value): (String, Value)| Some((name, value.as_u64()?));
        Self(answer.into_iter().filter_map(number).collect())
    }

    fn sum(&self, fits: impl Fn(&str) -> bool) -> i128 {
        self.0
            .iter()
            .filter(|(name, _)| fits(name))
            .map(|(_, value)| i128::from(*value))
            .sum()
    }

    fn entered(&self) -> i128 {
        self.sum(|name| name.starts_with("enq_"))
    }

    fn left(&self) -> i128 {
        self.sum(|name| name.starts_with("disp_") || name == "dequeued")
    }

    fn queued(&self) -> i128 {
        self.sum(|name| name.starts_with("queued_"))
    }

    /// How many more have entered the queues than have left them or are in them.
    fn surplus(&self) -> i128 {
        self.entered() - self.left() - self.queued()
    }

    /// Fails if a total has shrunk, or if the names have changed.
    pub(crate) fn check_grown_since(&self, earlier: &Self) -> Result<()> {
        ensure!(self.0.keys().eq(earlier.0.keys()), "the names have changed");
        for (name, value) in &self.0 {
            let before = earlier.0[name];
            ensure!(
                *value >= before || name.starts_with("queued_") || name.starts_with("classed_"),
                "{name} went from {before} to {value}"
            );
        }
        Ok(())
    }

    /// Fails unless two answers can belong to queues that lose nobody. Each was read within a moment: first all totals,
    /// then the lengths of the queues. When the earlier one's lengths were read, the totals were somewhere between
    /// those of the two; each CPU may have been between moving a task and counting it.
    fn check_adds_up(earlier: &Self, later: &Self, cpus: usize) -> Result<()> {
        let slack = cpus as i128;
        let queued = earlier.queued();
        ensure!(
            earlier.entered() - queued <= later.left() + slack
                && later.entered() - queued >= earlier.left() - slack,
            "the totals don't add up: {earlier:?}, then {later:?}"
        );
        Ok(())
    }
}

/// A daemon serves them a moment after its scheduler was loaded.
fn connect() -> Result<StatsClient> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match StatsClient::new().connect(Some(60_000)) {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("connecting to the socket of statistics");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Whether somebody serves statistics at this moment.
pub(crate) fn are_served() -> bool {
    StatsClient::new().connect(Some(60_000)).is_ok()
}

/// How many lines a monitor must have printed, two in a second.
const LINES: usize = 3;
/// For so long the totals are looked at under load.
const WHILE: Duration = Duration::from_secs(3);
/// Longer only until everybody has printed, and no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// All but one that is being printed.
fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
}

pub(crate) fn stats(setting: &Setting) -> Result<String> {
    let name = setting.scheduler()?.name;
    let cpus = online()?;
    let daemon = Daemon::lent(setting)?;
    let printed_before = whole_lines(&daemon.stdout()).count();
    let mut client = connect()?;
    let first = check_exact(&mut client).context("before the load")?;
    check_described(name, &first)?;

    let monitors = [
        Daemon::spawn(name, &["--monitor", "0.5", "--json"])?,
        Daemon::spawn(name, &["--monitor", "0.5"])?,
    ];
    let mut load = Load::start(2 * cpus.len(), Work::Spin)?;
    load.add(Load::start(cpus.len(), Work::Sleep)?);
    load.add(Load::start(1, Work::Fork)?);
    let mut random = Random::new(11);
    let mut last = first.clone();
    let mut samples = 0;
    let started = Instant::now();
    // On a busy host a program may take longer to start than all of this does.
    let printed = || {
        whole_lines(&monitors[0].stdout()).count() >= LINES
            && !monitors[1].stdout().is_empty()
            && whole_lines(&daemon.stdout()).count() >= printed_before + LINES
    };
    while started.elapsed() < WHILE || (started.elapsed() < PATIENCE && !printed()) {
        let worker = &load.workers[random.below(3 * cpus.len())];
        worker.set_cpus(&random.some_of(&cpus))?;
        let now = Totals::read_by(&mut client)?;
        now.check_grown_since(&last)?;
        Totals::check_adds_up(&last, &now, cpus.len())?;
        // Another client sees the same figures, a moment later.
        if samples % 5 == 0 {
            Totals::read()?.check_grown_since(&now)?;
        }
        last = now;
        samples += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(load);
    ensure!(
        last.entered() - first.entered() > 100,
        "only {} tasks were queued under load: {last:?}",
        last.entered() - first.entered()
    );
    let quiet = check_exact(&mut client)?;
    check_monitors(monitors, &first, &quiet)?;
    check_printed(&daemon, printed_before, &first)?;
    daemon.stop()?;
    Ok(format!(
        "{samples} answers add up; {} tasks were queued",
        quiet.entered()
    ))
}

/// Everything that is served is described.
fn check_described(name: &str, totals: &Totals) -> Result<()> {
    let help = run(name, &["--help-stats"], true)?;
    let text = String::from_utf8_lossy(&help.stdout);
    for field in totals.0.keys() {
        ensure!(
            text.contains(field),
            "--help-stats does not mention {field}"
        );
    }
    Ok(())
}

/// On a quiet machine the totals must be right to the last task. It is never quite quiet, so some tries are needed; but
/// one task that was lost or counted twice would spoil all of them.
fn check_exact(client: &mut StatsClient) -> Result<Totals> {
    const TRIES: usize = 50;
    let mut seen: Vec<Totals> = Vec::new();
    for _ in 0..TRIES {
        std::thread::sleep(Duration::from_millis(50));
        let totals = Totals::read_by(client)?;
        if totals.surplus() == 0 {
            return Ok(totals);
        }
        seen.push(totals);
    }
    let surplus: Vec<_> = seen.iter().map(Totals::surplus).collect();
    anyhow::bail!(
        "on a quiet machine the totals never add up: entered - left - queued is {surplus:?}; {:?}, at the end {:?}",
        seen.first(),
        seen.last()
    )
}

/// The same as a new client, in words.
pub(crate) fn on_quiet_machine() -> Result<String> {
    let totals = check_exact(&mut connect()?)?;
    Ok(format!(
        "{} tasks were queued and all left",
        totals.entered()
    ))
}

/// `--monitor` prints the same figures and ends with Ctrl-C.
fn check_monitors(monitors: [Daemon; 2], first: &Totals, last: &Totals) -> Result<()> {
    let [mut json, mut table] = monitors;
    for monitor in [&mut json, &mut table] {
        let status = monitor.signal(Signal::INT)?;
        ensure!(
            status.code() == Some(0),
            "--monitor ended with {status} after SIGINT: {}",
            monitor.stderr()
        );
    }
    let mut before = first.clone();
    let text = json.stdout();
    let lines: Vec<_> = whole_lines(&text).collect();
    ensure!(
        lines.len() >= LINES,
        "--monitor --json printed only {text:?}"
    );
    for line in &lines[..LINES] {
        let now = Totals::parse(line)?;
        now.check_grown_since(&before).context("--monitor --json")?;
        before = now;
    }
    last.check_grown_since(&before).context("after --monitor")?;
    for field in first.0.keys() {
        ensure!(
            table.stdout().contains(field),
            "--monitor does not print {field}: {}",
            table.stdout()
        );
    }
    Ok(())
}

/// So does `--stats`, from the scheduler's own process.
fn check_printed(daemon: &Daemon, already: usize, first: &Totals) -> Result<()> {
    let text = daemon.stdout();
    let lines: Vec<_> = whole_lines(&text).collect();
    ensure!(
        lines.len() >= already + LINES,
        "--stats --json printed only {} lines meanwhile",
        lines.len().saturating_sub(already)
    );
    let mut before: Option<Totals> = None;
    for line in lines {
        let now = Totals::parse(line)?;
        if let Some(before) = &before {
            now.check_grown_since(before).context("--stats --json")?;
        }
        before = Some(now);
    }
    let last = before.context("no line")?;
    last.check_grown_since(first).context("--stats --json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(entered: u64, left: u64, queued: u64) -> Totals {
        Totals(BTreeMap::from([
            ("enq_shared".to_owned(), entered),
            ("disp_own".to_owned(), left),
            ("queued_shared".to_owned(), queued),
        ]))
    }

    #[test]
    fn totals_that_shrink_or_lose_a_task_are_seen() {
        let before = totals(10, 8, 2);
        assert_eq!(before.surplus(), 0);
        assert_eq!(totals(10, 7, 2).surplus(), 1);
        assert!(totals(10, 8, 1).check_grown_since(&before).is_ok());
        assert!(totals(9, 8, 1).check_grown_since(&before).is_err());
        assert!(Totals::check_adds_up(&before, &totals(20, 19, 1), 1).is_ok());
        // Eight of ten have left; a queue of nine can't be.
        assert!(Totals::check_adds_up(&totals(10, 8, 9), &totals(11, 9, 2), 1).is_err());
        assert!(Totals::check_adds_up(&totals(100, 8, 2), &totals(101, 9, 2), 1).is_err());
    }
}
