//! The loop around a scheduler.

use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam::channel::{Receiver, Sender, after, bounded, never, select};
use log::{info, warn};
use scx_stats::ToJson;

use super::keeper::Keeper;
use super::signals::Signals;
use super::{Anew, Daemon, Instance, Stale, keeper};
use crate::options::CommonOpts;
use crate::stats::{
    BackgroundPrinter, Printer, Reading, Record, Responder, Schema, Server, openmetrics,
};
use crate::{Topology, logging};

/// How often to look whether the kernel has ended the scheduler, and to call its `tick`.
const POLL: Duration = Duration::from_millis(100);
/// How long a request for metrics may wait for its figures: loading a scheduler anew takes longer on big machines.
const ANSWER: Duration = Duration::from_secs(2);
/// Requests for metrics within so long get the same figures: every user of the machine may ask, as often as they like.
const SAME_METRICS: Duration = Duration::from_millis(100);
/// How often in a row to try again when CPUs come or go while the scheduler is being loaded.
const MAX_STALE: u32 = 10;

/// Loads the scheduler and keeps it, and the policy if there is one, until a signal says so or the kernel ends it.
///
/// # Errors
/// If it can't be loaded, or if the kernel throws it out.
pub(super) fn run<D: Daemon>(daemon: &D, signals: &mut Signals) -> Result<()> {
    let mut keeper = Keeper::new(daemon.common())?;
    let scrapes = Scrapes::open(daemon)?;
    let mut carried = Reading::default();
    let mut outlets = None;
    let mut stale = 0;

    loop {
        let file = daemon.common().topology.as_deref();
        let topology = Topology::read_with(file).context("reading the topology")?;
        info!("{topology}");
        // One that came while there was no scheduler.
        if signals.stop.try_recv().is_ok() {
            keeper.into_iter().for_each(Keeper::stop);
            return Ok(());
        }
        let mut object = MaybeUninit::uninit();
        let mut instance = match daemon.attach(&topology, &mut object) {
            Ok(instance) => instance,
            Err(err) if err.is::<Stale>() && stale < MAX_STALE => {
                stale += 1;
                continue;
            }
            Err(err) => {
                let anew = err.downcast::<Anew>()?;
                return start_anew(daemon.common(), anew, signals);
            }
        };
        stale = 0;
        info!("{} is scheduling", D::NAME);
        if let Some(keeper) = &mut keeper
            && let Err(err) = keeper.attached(&topology)
        {
            instance.detach();
            return Err(err);
        }

        let outlets = outlets.get_or_insert_with(|| Outlets::<D>::open(daemon, &scrapes));
        let mut running = Running {
            instance: instance.as_ref(),
            carried: &carried,
            keeper: keeper.as_mut(),
        };
        running.follow_policy();
        let stopped = outlets.serve(&mut running, signals);

        let exit = instance.detach();
        // The last word: nothing is queued any more, and what was is counted as left.
        let mut last = instance.read()?;
        last.carry(&carried);
        carried = last;
        if let Err(reason) = exit.report() {
            bail!("the kernel ended the scheduler: {reason:#}");
        }
        if stopped || !exit.should_restart() {
            keeper.into_iter().for_each(Keeper::stop);
            return Ok(());
        }
        info!("CPUs came or went: starting again");
    }
}

/// Has a program take the place of this one, unless a signal says to end.
fn start_anew(common: &CommonOpts, mut anew: Anew, signals: &mut Signals) -> Result<()> {
    // One that refused its own file would leave behind what is in force.
    keeper::check_file(common)?;
    if signals.hold() {
        return Ok(());
    }
    logging::flush();
    Err(anew.0.exec()).context("starting anew")
}

/// A scheduler that is attached, and what goes with it.
struct Running<'a> {
    instance: &'a dyn Instance,
    /// What its predecessors counted.
    carried: &'a Reading,
    keeper: Option<&'a mut Keeper>,
}

impl Running<'_> {
    /// How long until there is something to do here.
    fn due_in(&self) -> Duration {
        self.keeper.as_ref().map_or(POLL, |keeper| keeper.due_in())
    }

    fn tick_policy(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.tick(self.instance.classes());
        }
    }

    fn reload_policy(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.reload();
        }
        self.follow_policy();
    }

    fn follow_policy(&self) {
        if let Some(policy) = self.keeper.as_ref().and_then(|keeper| keeper.policy()) {
            self.instance.follow(policy);
        }
    }

    fn read(&self) -> Result<Reading> {
        let mut reading = self.instance.read()?;
        reading.carry(self.carried);
        if let Some(keeper) = &self.keeper {
            reading.classed_cgroups = keeper.classed_cgroups(self.instance.classes());
        }
        Ok(reading)
    }
}

/// Requests for metrics. They are answered by the thread that runs the scheduler.
struct Scrapes<S: Record> {
    /// Kept for its life.
    _responder: Option<Responder>,
    /// Each comes with where to answer.
    requests: Receiver<Sender<S>>,
}

impl<S: Record> Scrapes<S> {
    fn open<D: Daemon<Stats = S>>(daemon: &D) -> Result<Self> {
        let Some(address) = &daemon.common().metrics else {
            return Ok(Self {
                _responder: None,
                requests: never(),
            });
        };
        let (sender, requests) = bounded::<Sender<S>>(1);
        let schema = Schema::of::<S>();
        let last: Mutex<Option<(Instant, String)>> = Mutex::default();
        let source = move || {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((at, text)) = last.as_ref()
                && at.elapsed() < SAME_METRICS
            {
                return Some(text.clone());
            }
            let (reply, answer) = bounded(1);
            sender.send_timeout(reply, ANSWER).ok()?;
            let sample = answer.recv_timeout(ANSWER).ok()?.to_json().ok()?;
            let text = openmetrics(&schema, &sample, D::NAME, D::VERSION).ok()?;
            *last = Some((Instant::now(), text.clone()));
            Some(text)
        };
        let responder = Responder::launch(address, source)
            .with_context(|| format!("serving metrics on {address}"))?;
        info!("metrics are served on {}, as /metrics", responder.address);
        Ok(Self {
            _responder: Some(responder),
            requests,
        })
    }
}

/// Where statistics go. They outlive a restart of the scheduler.
struct Outlets<D: Daemon> {
    /// Kept for its life; `None` if the socket could not be made.
    _server: Option<Server<D::Stats>>,
    requests: Receiver<()>,
    replies: Option<Sender<D::Stats>>,
    scrapes: Receiver<Sender<D::Stats>>,
    printer: Option<(BackgroundPrinter, Duration)>,
    last: Reading,
}

impl<D: Daemon> Outlets<D> {
    fn open(daemon: &D, scrapes: &Scrapes<D::Stats>) -> Self {
        let common = daemon.common();
        // Scheduling goes on without statistics, but not silently.
        let server = Server::<D::Stats>::launch()
            .inspect_err(|err| warn!("no statistics: {err:#}"))
            .ok();
        let (replies, requests) = match server.as_ref().and_then(Server::channels) {
            Some((replies, requests)) => (Some(replies), requests),
            None => (None, never()),
        };
        let printer = common.stats.and_then(|interval| {
            let mut printer = Printer::new(D::NAME, common.json);
            let started = BackgroundPrinter::start(move |at, sample| printer.print(at, sample));
            let started = started.inspect_err(|err| warn!("statistics are not printed: {err:#}"));
            Some((started.ok()?, interval))
        });
        Self {
            _server: server,
            requests,
            replies,
            scrapes: scrapes.requests.clone(),
            printer,
            last: Reading::default(),
        }
    }

    /// Answers requests and prints until told to stop, or until the kernel has ended the scheduler. Returns whether it was
    /// told to.
    fn serve(&mut self, running: &mut Running<'_>, signals: &Signals) -> bool {
        let mut print_at = self
            .printer
            .as_ref()
            .map(|(_, interval)| Instant::now() + *interval);
        let mut tick_at = Some(Instant::now());
        while !running.instance.exited() {
            let wait = print_at.map_or(POLL, |at| at.saturating_duration_since(Instant::now()));
            let wait = wait.min(POLL).min(running.due_in());
            select! {
                recv(signals.stop) -> _ => return true,
                recv(signals.reload) -> _ => running.reload_policy(),
                recv(self.requests) -> request => match (request, &self.replies) {
                    (Ok(()), Some(replies)) => {
                        let replies = replies.clone();
                        // Fails if the client is gone, which is its business.
                        let _ = replies.send(self.sample(running));
                    }
                    _ => self.requests = never(),
                },
                recv(self.scrapes) -> scrape => match scrape {
                    Ok(reply) => {
                        // Full or gone: it has given up.
                        let _ = reply.try_send(self.sample(running));
                    }
                    Err(_) => self.scrapes = never(),
                },
                recv(after(wait)) -> _ => {}
            }
            running.tick_policy();
            if tick_at.is_some_and(|at| at <= Instant::now()) {
                tick_at = Some(Instant::now() + POLL);
                if let Err(err) = running.instance.tick() {
                    warn!(
                        "{}: the daemon's own work ends here, scheduling goes on: {err:#}",
                        D::NAME
                    );
                    tick_at = None;
                }
            }
            if print_at.is_some_and(|at| at <= Instant::now()) {
                print_at = self.print(running);
            }
        }
        signals.stop.try_recv().is_ok()
    }

    fn sample(&mut self, running: &Running<'_>) -> D::Stats {
        match running.read() {
            Ok(reading) => self.last = reading,
            Err(err) => warn!("statistics are of earlier: {err:#}"),
        }
        D::stats(&self.last)
    }

    /// Prints a sample and says when the next is due.
    fn print(&mut self, running: &Running<'_>) -> Option<Instant> {
        let sample = self.sample(running).to_json();
        let (printer, interval) = self.printer.as_mut()?;
        let goes_on = match sample {
            Ok(sample) => printer.print(sample),
            Err(err) => {
                warn!("printing no more statistics: {err:#}");
                false
            }
        };
        goes_on.then(|| Instant::now() + *interval)
    }
}
