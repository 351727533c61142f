//! OpenMetrics, as a monitoring system sees it, and who may read statistics at all.

use super::stats::Totals;
use crate::Setting;
use crate::cpus::online;
use crate::daemon::{Daemon, check_refusal, printed, run};
use crate::load::{Load, Work};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const ADDRESS: &str = "127.0.0.1:9464";
const SOCKET: &str = "/tmp/metrics.socket";
const STATS: &str = "/var/run/scx/root/stats";

/// A metric family.
#[derive(Debug, Default, Clone, PartialEq)]
struct Family {
    kind: String,
    unit: String,
    help: String,
    /// The value of its only sample, as it was written; of a histogram, its count.
    value: String,
    /// Of a histogram: how many are within each bound.
    buckets: Vec<u64>,
    sum: String,
}

pub(crate) fn metrics(setting: &Setting) -> Result<String> {
    // virtme-ng leaves the loopback device down.
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    ensure!(
        up.context("running ip")?.success(),
        "the loopback device can't be set up"
    );
    let daemon = Daemon::start(setting, &["--metrics", ADDRESS])?;
    let load = Load::start(2 * online()?.len(), Work::Sleep)?;
    let first = scrape()?;
    let mut before = first.clone();
    let mut grown = 0;
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(300));
        let totals = totals()?;
        let now = scrape()?;
        check_between(&before, &totals, &now)?;
        grown = counters(&now)?.values().sum::<u64>() - counters(&first)?.values().sum::<u64>();
        before = now;
    }
    ensure!(
        grown > 100,
        "under load all counters together grew by {grown} only"
    );
    drop(load);
    check_described(setting, &before)?;
    check_accepted(before.len())?;
    let mut histograms = before
        .iter()
        .filter(|(_, family)| family.kind == "histogram");
    if let Some((name, family)) = histograms.find(|(_, family)| family.value == "0") {
        bail!("under load nothing was counted in {name}: {family:?}");
    }
    daemon.stop()?;
    ensure!(
        TcpStream::connect(ADDRESS).is_err(),
        "somebody still serves metrics"
    );
    Ok(format!("{} families", before.len()))
}

/// Prometheus' own reader takes it for what it is, with all families.
fn check_accepted(families: usize) -> Result<()> {
    const READER: &str = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse\n\
        print(len(list(parse(sys.stdin.read()))))\n";
    let stream = TcpStream::connect(ADDRESS).context("connecting")?;
    let answer = get(stream, "GET /metrics HTTP/1.1")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let path = "/tmp/metrics.txt";
    fs::write(path, body).context("writing what was served")?;
    let python = std::env::var_os("MANYCORE_PYTHON").context("$MANYCORE_PYTHON is not set")?;
    let output = Command::new(python)
        .args(["-c", READER])
        .stdin(fs::File::open(path).context("reading what was served")?)
        .output()
        .context("running Python")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "Prometheus' reader refuses it: {said}"
    );
    let read = String::from_utf8_lossy(&output.stdout);
    ensure!(
        read.trim() == families.to_string(),
        "Prometheus' reader sees {} families, not {families}",
        read.trim()
    );
    Ok(())
}

/// A daemon answers a moment after its scheduler was loaded.
fn scrape() -> Result<Families> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let stream = TcpStream::connect(ADDRESS).context("connecting")?;
        let answer = get(stream, "GET /metrics HTTP/1.1")?;
        if !answer.starts_with("HTTP/1.1 503 ") || Instant::now() > deadline {
            return parse(&answer);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn get(mut stream: impl Read + Write, request: &str) -> Result<String> {
    stream
        .write_all(format!("{request}\r\nHost: localhost\r\n\r\n").as_bytes())
        .context("sending a request")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("reading an answer")?;
    Ok(answer)
}

/// Reads an answer, strictly.
fn parse(answer: &str) -> Result<Families> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(
        head.starts_with("HTTP/1.1 200 OK\r\n"),
        "the answer is {head}"
    );
    ensure!(
        head.contains("Content-Type: application/openmetrics-text; version=1.0.0"),
        "no OpenMetrics: {head}"
    );
    ensure!(
        head.contains(&format!("Content-Length: {}\r\n", body.len())),
        "not its length: {head}"
    );
    let body = body.strip_suffix("# EOF\n").context("no end")?;
    let mut families = Families::new();
    for line in body.lines() {
        match line.strip_prefix("# ") {
            Some(description) => add_description(&mut families, description),
            None => add_sample(&mut families, line),
        }
        .with_context(|| format!("in the line {line}"))?;
    }
    for (name, family) in &families {
        family.check(name)?;
    }
    Ok(families)
}

type Families = BTreeMap<String, Family>;

/// `TYPE name counter`
fn add_description(families: &mut Families, line: &str) -> Result<()> {
    let words: Vec<&str> = line.splitn(3, ' ').collect();
    let [what, name, rest] = words[..] else {
        bail!("too few words");
    };
    let family = families.entry(name.to_owned()).or_default();
    let place = match what {
        "TYPE" => &mut family.kind,
        "UNIT" => &mut family.unit,
        "HELP" => &mut family.help,
        _ => bail!("an unknown kind of line"),
    };
    ensure!(place.is_empty(), "it is there twice");
    rest.clone_into(place);
    Ok(())
}

/// `name_total{label="x"} 3`
fn add_sample(families: &mut Families, line: &str) -> Result<()> {
    let (series, value) = line.rsplit_once("} ").context("no sample")?;
    let (name, labels) = series.split_once('{').context("no labels")?;
    ensure!(labels.contains("scheduler=\""), "no scheduler");
    let (name, end) = ["_total", "_info", "_count", "_bucket", "_sum"]
        .iter()
        .find_map(|&end| Some((name.strip_suffix(end)?, end)))
        .unwrap_or((name, ""));
    let family = families.get_mut(name).context("no type")?;
    let expected: &[&str] = match family.kind.as_str() {
        "counter" => &["_total"],
        "gauge" => &[""],
        "info" => &["_info"],
        "histogram" => &["_count", "_bucket", "_sum"],
        _ => &[],
    };
    ensure!(expected.contains(&end), "not of its type");
    if end == "_bucket" {
        family.buckets.push(value.parse().context("a count")?);
        return Ok(());
    }
    let place = if end == "_sum" {
        &mut family.sum
    } else {
        &mut family.value
    };
    ensure!(place.is_empty(), "it is there twice");
    value.clone_into(place);
    Ok(())
}

impl Family {
    fn check(&self, name: &str) -> Result<()> {
        let complete = !self.kind.is_empty() && !self.help.is_empty() && !self.value.is_empty();
        ensure!(complete && name.ends_with(&self.unit), "{name}: {self:?}");
        if self.kind == "histogram" {
            let all: u64 = self.value.parse().context("a count")?;
            let adds_up = self.buckets.is_sorted() && self.buckets.last() == Some(&all);
            ensure!(adds_up, "{name}: {self:?}");
        }
        Ok(())
    }
}

fn counters(families: &Families) -> Result<BTreeMap<&str, u64>> {
    families
        .iter()
        .filter(|(_, family)| family.kind == "counter")
        .map(|(name, family)| {
            let value = family
                .value
                .parse()
                .with_context(|| format!("{name} is {}", family.value))?;
            Ok((name.as_str(), value))
        })
        .collect()
}

fn totals() -> Result<Totals> {
    let output = run("manycore", &["stats", "--json"], true)?;
    Totals::parse(printed(&output)?.trim())
}

/// Asked in between, `manycore stats` has a value in between for every counter.
fn check_between(before: &Families, totals: &Totals, after: &Families) -> Result<()> {
    for (name, family) in after {
        let earlier = before.get(name).with_context(|| format!("{name} is new"))?;
        let shrunk = earlier
            .buckets
            .iter()
            .zip(&family.buckets)
            .any(|(then, now)| then > now);
        ensure!(!shrunk, "{name} went from {earlier:?} to {family:?}");
    }
    let (before, after) = (counters(before)?, counters(after)?);
    ensure!(before.keys().eq(after.keys()), "the names have changed");
    for (name, &then) in &before {
        let now = after[name];
        // manycore_FIELD_UNIT, or without a unit
        let field = name.trim_start_matches("manycore_");
        let field = format!("{field}_");
        let total = totals
            .0
            .iter()
            .filter(|(own, _)| field.starts_with(&format!("{own}_")))
            // One may begin with the name of another.
            .max_by_key(|(own, _)| own.len());
        let (_, &total) = total.with_context(|| format!("manycore stats doesn't know {name}"))?;
        ensure!(
            then <= total && total <= now,
            "{name} was {then}, then {total}, then {now}"
        );
    }
    Ok(())
}

/// All that is served on the socket of statistics is there, gauges included.
fn check_described(setting: &Setting, families: &Families) -> Result<()> {
    let totals = totals()?;
    // The sum of a histogram is a part of it.
    for field in totals.0.keys().filter(|field| !field.ends_with("_ns_sum")) {
        let start = format!("manycore_{field}");
        let family = families.iter().find(|(name, _)| name.starts_with(&start));
        let (name, family) = family.with_context(|| format!("no metric for {field}"))?;
        let is_gauge = ["queued_", "classed_"];
        let kind = if is_gauge.iter().any(|start| field.starts_with(start)) {
            "gauge"
        } else {
            "counter"
        };
        ensure!(family.kind == kind, "{name} is a {}", family.kind);
    }
    ensure!(
        families.contains_key("manycore_scheduler"),
        "no name of {setting:?}"
    );
    Ok(())
}

pub(crate) fn stats_are_private(setting: &Setting) -> Result<String> {
    let dir = Path::new(STATS).parent().context("a path")?;
    let before = fs::exists(dir).context("looking for the directory")?;
    let mut daemon = Daemon::start(setting, &["--metrics", SOCKET])?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut found = format!("no {STATS} appears");
        if Path::new(STATS).exists() {
            let modes = (mode(&dir.display().to_string())?, mode(STATS)?);
            found = format!("the modes are {:o} and {:o}", modes.0, modes.1);
            // Nothing for others from the first moment; a socket gets the rest a moment after it is made.
            ensure!((modes.0 | modes.1) & 0o7 == 0, "{found}");
            if modes == (0o750, 0o660) {
                break;
            }
        }
        ensure!(Instant::now() < deadline, "{found}");
        std::thread::sleep(Duration::from_millis(50));
    }
    totals()?;
    let refused = run("manycore", &["stats", "--json"], false)?;
    check_refusal(&refused, 1, &[STATS, "only root and the group"])?;
    let metrics = get(
        UnixStream::connect(SOCKET).context("connecting")?,
        "GET /metrics HTTP/1.0",
    )?;
    parse(&metrics)?;
    let metrics_mode = mode(SOCKET)?;
    ensure!(
        metrics_mode == 0o660,
        "the mode of {SOCKET} is {metrics_mode:o}"
    );
    daemon.check_alive()?;
    let status = daemon.signal(Signal::TERM)?;
    ensure!(status.success(), "it ended with {status}");
    for socket in [STATS, SOCKET] {
        ensure!(!Path::new(socket).exists(), "{socket} is left behind");
    }
    ensure!(
        fs::exists(dir).context("looking for the directory")? == before,
        "{} is left behind",
        dir.display()
    );
    let nobody = run("manycore", &["stats"], true)?;
    check_refusal(&nobody, 1, &["no scheduler serves statistics"])?;
    Ok("root and group only".to_owned())
}

fn mode(path: &str) -> Result<u32> {
    let found = fs::metadata(path).with_context(|| format!("looking at {path}"))?;
    Ok(found.permissions().mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\
             Content-Type: application/openmetrics-text; version=1.0.0\r\n\r\n{body}",
            body.len()
        )
    }

    #[test]
    fn only_well_formed_answers_are_read() {
        let good = "# HELP a_seconds x\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                    a_seconds_sum{scheduler=\"s\"} 0.5\na_seconds_count{scheduler=\"s\"} 3\n\
                    a_seconds_bucket{scheduler=\"s\",le=\"1.0\"} 2\na_seconds_bucket{scheduler=\"s\",le=\"+Inf\"} 3\n\
                    # HELP b x\n# TYPE b counter\nb_total{scheduler=\"s\"} 7\n# EOF\n";
        let families = parse(&answer(good)).unwrap();
        assert_eq!(families["a_seconds"].buckets, [2, 3]);
        assert_eq!(counters(&families).unwrap(), BTreeMap::from([("b", 7)]));
        for (from, to) in [
            ("# EOF\n", ""),
            ("# TYPE b counter\n", ""),
            ("b_total", "b"),
            ("\"+Inf\"} 3", "\"+Inf\"} 1"),
            ("count{scheduler=\"s\"} 3", "count{scheduler=\"s\"} 4"),
            ("# HELP b x\n", "# HELP b x\n# HELP b x\n"),
            ("b_total{scheduler=\"s\"}", "b_total{}"),
        ] {
            assert!(
                parse(&answer(&good.replace(from, to))).is_err(),
                "{from} -> {to}"
            );
        }
        assert!(parse(&answer(good).replace("200 OK", "503 x")).is_err());
    }
}
