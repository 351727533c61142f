//! One measurement: the BPF meter, the sweeps over its spans, and the snapshots that reports are made of.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;

use anyhow::Result;
use libbpf_rs::OpenObject;

use super::fairness;
use super::hist::Histogram;
use super::host;
use super::locks::{self, Symbols};
use super::meter::{By, Config, Meter, Which};
use super::report::{Context, Report, Setting, Snapshot};
use super::topology::Places;
use super::waste::{Sweep, Totals};
use super::wire::TaskSample;

/// A measurement that has begun.
pub(super) struct Session<'obj> {
    meter: Meter<'obj>,
    config: Config,
    setting: Setting,
    exact: Sweep,
    settled: Sweep,
    totals: (Totals, Totals),
    records: u64,
    began_ns: u64,
    at_ns: u64,
    first: Snapshot,
    scheduler: String,
    online: String,
}

impl<'obj> Session<'obj> {
    /// Loads the meter and begins.
    ///
    /// # Errors
    /// See [`Meter::start`].
    pub(super) fn begin(
        object: &'obj mut MaybeUninit<OpenObject>,
        config: Config,
        transient_ns: u64,
    ) -> Result<Self> {
        let places = Places::read()?;
        let mut meter = Meter::start(object, &places, &config)?;
        if let Err(error) = host::become_realtime() {
            log::warn!(
                "can't run the reader as SCHED_FIFO ({error}): records may be lost under load"
            );
        }
        let setting = Setting {
            kernel: host::release(),
            cpus: places.cpus(),
            nodes: places.nodes(),
            transient_ns,
            min_span_ns: config.min_span_ns,
            balancer: meter.balancer,
            cost: config.cost,
        };
        let scheduler = host::scheduler();
        let online = host::online();
        let node_of = places.node_of(meter.cpu_ids());
        let began_ns = meter.begin()?;
        let mut session = Self {
            meter,
            config,
            setting,
            exact: Sweep::new(began_ns, node_of.clone()),
            settled: Sweep::new(began_ns, node_of),
            totals: Default::default(),
            records: 0,
            began_ns,
            at_ns: began_ns,
            first: Snapshot::default(),
            scheduler,
            online,
        };
        session.first = session.snapshot()?;
        Ok(session)
    }

    /// Makes room in the rings; to be called every few dozen milliseconds.
    pub(super) fn drain(&mut self) -> Result<()> {
        self.meter.drain()
    }

    /// Closes a period: computes the waste up to now. With `tasks` it returns what each thread did since the beginning.
    pub(super) fn close_period(&mut self, tasks: bool) -> Result<Vec<TaskSample>> {
        let elapsed = super::meter::now_ns().saturating_sub(self.began_ns);
        let (at, spans, samples) = self.meter.cut(tasks, elapsed)?;
        for cpus in self.meter.masks(self.exact.masks())? {
            let id = self.exact.masks() as u32;
            self.exact.set_mask(id, cpus.clone());
            self.settled.set_mask(id, cpus);
        }
        self.records += spans.len() as u64;
        for span in spans {
            self.exact.add(span);
            if let Some(rest) = span.settled(self.setting.transient_ns) {
                self.settled.add(rest);
            }
        }
        self.totals = (self.exact.settle(at), self.settled.settle(at));
        self.at_ns = at;
        Ok(samples)
    }

    /// All that was counted up to the end of the last period.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot {
            at_ns: self.at_ns,
            counters: self.meter.counters()?,
            wake: self.meter.histogram(Which::Wake)?,
            wait: self.meter.histogram(Which::Wait)?,
            groups: self.groups()?,
            exact: self.totals.0,
            settled: self.totals.1,
            vmstat: host::vmstat(),
            programs: self.meter.programs(),
            own_cpu_ns: host::own_cpu_ns(),
            records: self.records,
        })
    }

    fn groups(&self) -> Result<BTreeMap<String, (Histogram, Histogram)>> {
        let Some(by) = self.config.by else {
            return Ok(BTreeMap::new());
        };
        let paths = match by {
            By::Cgroup => host::cgroup_names(),
            By::Comm => BTreeMap::new(),
        };
        let named = self.meter.groups()?.into_iter().map(|group| {
            let name = match group.key {
                None => "(others)".to_owned(),
                Some((_, comm)) if by == By::Comm => comm,
                Some((id, _)) => paths
                    .get(&id)
                    .cloned()
                    .unwrap_or_else(|| format!("(removed cgroup {id})")),
            };
            (name, (group.wake, group.wait))
        });
        Ok(named.collect())
    }

    /// The whole time up to the end of the last period. `samples` are what closing it returned.
    pub(super) fn report(&self, samples: &[TaskSample]) -> Result<Report> {
        self.report_since(&self.first, &self.snapshot()?, samples)
    }

    /// The time between two snapshots, but for what can only be told of the whole time: fairness, and hot locks.
    pub(super) fn report_since(
        &self,
        from: &Snapshot,
        to: &Snapshot,
        samples: &[TaskSample],
    ) -> Result<Report> {
        let mut context = Context {
            scheduler: self.scheduler.clone(),
            scheduler_at_end: host::scheduler(),
            fairness: fairness::judge(samples, self.at_ns - self.began_ns),
            ..Context::default()
        };
        if self.config.locks {
            context.locks = Some(locks::hot_locks(&self.meter.locks()?, &Symbols::read()?));
        }
        if host::online() != self.online {
            context.warnings.push(
                "CPUs went on- or offline: shares of capacity and waste are wrong".to_owned(),
            );
        }
        Ok(Report::between(from, to, &self.setting, context))
    }

    /// The snapshot with which the measurement began.
    pub(super) fn first(&self) -> &Snapshot {
        &self.first
    }
}
