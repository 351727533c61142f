//! The thread that schedules, and how the control plane talks to it.
//!
//! The BPF side knows the thread that schedules by the id of its process, so that thread is the main one; the control
//! plane runs in another. From when a scheduler is attached, the main thread may map no more memory for the rest of its life
//! (`scx_rustland_core` sees to that, against page faults while it schedules), so a second one can't be attached from it:
//! when CPUs came or went, the process starts itself anew.

use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use std::{env, fs, io};

use anyhow::{Result, anyhow};
use control_plane::lifecycle::Anew;
use control_plane::policy::Policy;
use control_plane::stats::Reading;
use control_plane::topology::hotplug_seq;
use control_plane::{Instance, Topology};
use crossbeam::channel::{Receiver, Sender, bounded};
use libbpf_rs::OpenObject;
use log::warn;
use rustix::process::setpriority_process;
use scx_pilot::cycle::{Arrival, Cycle, Kernel, NR_EVENTS, Published};
use scx_pilot::inputs::{Board, Readers};
use scx_pilot::layout::Layout;
use scx_pilot::policy::{Class, Kind, Machine, Pick, Place, Task};
use scx_utils::UserExitInfo;

use crate::bpf::{BpfScheduler, DispatchedTask, RL_CPU_ANY, keep_signal_handlers};
use crate::hasten::Hasten;
use crate::options::Opts;
use crate::stats::{NR_COUNTERS, NR_KERNEL_EVENTS};

/// What the process counted before it started itself anew, as numbers with commas between.
const CARRIED: &str = "SCX_PILOT_CARRIED";

/// What both threads know.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    ended: AtomicBool,
    /// Counters, then how many tasks the policy holds.
    figures: Published<{ NR_COUNTERS + 1 }>,
}

/// What the main thread is to do.
pub(crate) struct Order {
    opts: Opts,
    layout: Layout,
    board: Arc<Board>,
    shared: Arc<Shared>,
    /// Gets a message once the scheduler is attached, or could not be.
    attached: Sender<Result<()>>,
    /// Gets a message once it is detached.
    exit: Sender<UserExitInfo>,
}

/// The control plane's end.
pub(crate) struct Remote {
    orders: Sender<Order>,
    /// Counters of what this process was before it started itself anew.
    carried: Vec<u64>,
    /// The last reading, for what it will be after.
    last: Arc<Mutex<Option<Vec<u64>>>>,
}

impl Remote {
    pub(crate) fn new(orders: Sender<Order>) -> Self {
        let carried = env::var(CARRIED).unwrap_or_default();
        Self {
            orders,
            carried: carried.split(',').filter_map(|n| n.parse().ok()).collect(),
            last: Arc::default(),
        }
    }

    /// Has the main thread attach a scheduler, or starts the process anew if it has had one, or if CPUs came or went in its way.
    ///
    /// # Errors
    /// If that fails.
    pub(crate) fn attach(
        &self,
        opts: &Opts,
        topology: &Topology,
        board: &Arc<Board>,
        readers: Readers,
    ) -> Result<Box<dyn Instance>> {
        let before = hotplug_seq();
        let last = lock(&self.last).take();
        if let Some(counters) = last {
            return Err(anew(&counters).into());
        }
        let shared = Arc::new(Shared::default());
        let ((attached, is_attached), (exit, exits)) = (bounded(1), bounded(1));
        let order = Order {
            opts: opts.clone(),
            layout: Layout::new(topology),
            board: Arc::clone(board),
            shared: Arc::clone(&shared),
            attached,
            exit,
        };
        let gone = || anyhow!("the thread that schedules is gone");
        step_aside();
        self.orders.send(order).map_err(|_| gone())?;
        if let Err(err) = is_attached.recv().map_err(|_| gone())? {
            if hotplug_seq() == before {
                return Err(err);
            }
            log::info!("CPUs came or went: starting again ({err:#})");
            return Err(anew(&self.carried).into());
        }
        Ok(Box::new(Running {
            shared,
            board: Arc::clone(board),
            exits,
            carried: self.carried.clone(),
            last: Arc::clone(&self.last),
            _readers: readers,
        }))
    }
}

/// The same program with the same arguments, to be started in place of this one. From any thread but the one that may map no
/// memory; its process stays the same one, and starts ahead of others, or on a busy machine nobody would hear of the policy
/// for minutes. But not as a real-time one: what is bound to its CPU would wait for all of that.
fn anew(counters: &[u64]) -> Anew {
    let words: Vec<String> = counters.iter().map(u64::to_string).collect();
    set_policy(OWN, libc::SCHED_OTHER, 0);
    set_nice(-20);
    let mut command = Command::new(own_program());
    command.args(env::args_os().skip(1));
    command.env(CARRIED, words.join(","));
    Anew(command)
}

/// The file of this program, or what runs of it, if that file has been replaced or removed since.
fn own_program() -> PathBuf {
    let file = env::current_exe().ok().filter(|file| file.exists());
    file.unwrap_or_else(|| "/proc/self/exe".into())
}

/// Takes all threads but the main one, and those that they will start, out of what this daemon schedules: as real-time ones
/// they run, and end, whatever the main thread does. They have little to do from now on, and had much before: what is bound
/// to their CPU would have waited for that.
fn step_aside() {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let tids = tasks
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse().ok());
    let main = std::process::id() as i32;
    for tid in tids.filter(|tid| *tid != main) {
        set_policy(tid, libc::SCHED_RR, 1);
    }
}

/// This thread.
const OWN: i32 = 0;

fn set_policy(tid: i32, policy: i32, priority: i32) {
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: the pointer is to a whole sched_param, which the kernel only reads during the call.
    let done = unsafe { libc::sched_setscheduler(tid, policy, &raw const param) };
    if done != 0 {
        let err = io::Error::last_os_error();
        log::debug!("setting the scheduling policy of thread {tid} to {policy}: {err}");
    }
}

/// This thread's.
fn set_nice(nice: i32) {
    if let Err(err) = setpriority_process(None, nice) {
        log::debug!("setting this thread's nice level to {nice}: {err}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A scheduler that the main thread runs.
struct Running {
    shared: Arc<Shared>,
    board: Arc<Board>,
    exits: Receiver<UserExitInfo>,
    carried: Vec<u64>,
    last: Arc<Mutex<Option<Vec<u64>>>>,
    /// Kept for their life.
    _readers: Readers,
}

impl Instance for Running {
    fn exited(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }

    fn read(&self) -> Result<Reading> {
        let figures = self.shared.figures.read();
        let mut reading = Reading {
            counters: figures[..NR_COUNTERS].to_vec(),
            gauges: figures[NR_COUNTERS..].to_vec(),
            ..Reading::default()
        };
        reading.carry(&Reading {
            counters: self.carried.clone(),
            ..Reading::default()
        });
        *lock(&self.last) = Some(reading.counters.clone());
        Ok(reading)
    }

    fn follow(&self, policy: &Policy) {
        self.board.follow(policy);
    }

    fn detach(&mut self) -> UserExitInfo {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Nothing comes if that thread panicked, which it has said itself.
        self.exits.recv().unwrap_or_default()
    }
}

/// What the main thread does: one order after the other, until nobody can give any more.
pub(crate) fn serve(orders: &Receiver<Order>) {
    keep_signal_handlers();
    for order in orders {
        let (mut object, mut hasten) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        let mut scheduler = match Scheduler::attach(&order, &mut object, &mut hasten) {
            Ok(scheduler) => scheduler,
            Err(err) => {
                let _ = order.attached.send(Err(err));
                continue;
            }
        };
        let _ = order.attached.send(Ok(()));
        let exit = scheduler.run(&order.shared);
        order.shared.ended.store(true, Ordering::Release);
        // Said before the BPF side is freed, which takes the kernel a while on a busy machine.
        let _ = order.exit.send(exit);
    }
}

struct Scheduler<'o> {
    bpf: Bpf<'o>,
    cycle: Cycle,
    start: Instant,
}

impl<'o> Scheduler<'o> {
    fn attach(
        order: &Order,
        object: &'o mut MaybeUninit<OpenObject>,
        hasten: &'o mut MaybeUninit<OpenObject>,
    ) -> Result<Self> {
        let (opts, common) = (&order.opts, &order.opts.common);
        let slice_ns = opts.slice_us * 1000;
        // All memory that scheduling needs, before anything depends on it.
        let policy = opts.policy_kind.build(&order.layout, slice_ns);
        let cycle = Cycle::new(policy, Arc::clone(&order.board), order.layout.nr_online());
        // Memory that is mapped after the scheduler is attached would not be there when it is needed.
        let classes = opts.policy_kind == Kind::Deadline;
        let hasten = Hasten::attach(hasten, order.layout.nr_cpu_ids(), classes)
            .inspect_err(|err| {
                warn!(
                    "tasks of little weight may wait for long, and those of the latency class for the end of a slice of \
                     batch: {err:#}"
                );
            })
            .ok();
        let bpf = BpfScheduler::init(
            object,
            common.open_opts(),
            common.exit_dump_len,
            common.partial,
            common.verbose > 2,
            opts.kernel_places_idle(),
            false,
            slice_ns,
            "pilot",
        )?;
        // Up to here it may have been ahead of others, see `anew`.
        set_nice(0);
        Ok(Self {
            bpf: Bpf {
                bpf,
                layout: order.layout.clone(),
                places_all: !opts.kernel_places_idle(),
                own_is_given: false,
                own_is_next: false,
                hasten,
            },
            cycle,
            start: Instant::now(),
        })
    }

    /// Schedules until told to stop, or until the kernel has ended it.
    fn run(&mut self, shared: &Shared) -> UserExitInfo {
        while !shared.stop.load(Ordering::Relaxed) && !self.bpf.bpf.ended() {
            let now_ns = self.start.elapsed().as_nanos() as u64;
            self.bpf.own_is_given = false;
            self.bpf.own_is_next = false;
            let waiting = self.cycle.run(&mut self.bpf, now_ns);
            self.publish(shared, waiting);
            if let Some(hasten) = &mut self.bpf.hasten {
                hasten.look_for_late(now_ns);
            }
            // Gives the CPU away until there is something to do.
            self.bpf.bpf.notify_complete(waiting as u64);
        }
        let exit = self.bpf.bpf.detach();
        self.publish(shared, self.cycle.waiting());
        exit
    }

    fn publish(&mut self, shared: &Shared, waiting: usize) {
        let mut figures = [0; NR_COUNTERS + 1];
        figures[..NR_EVENTS].copy_from_slice(self.cycle.counters());
        figures[NR_EVENTS..NR_COUNTERS].copy_from_slice(&self.bpf.counters());
        figures[NR_COUNTERS] = waiting as u64;
        shared.figures.write(&figures);
    }
}

/// The BPF side, as the rounds of scheduling see it.
struct Bpf<'o> {
    bpf: BpfScheduler<'o>,
    layout: Layout,
    /// Whether tasks that find an idle CPU are for the policy to place, too. If the kernel does that, those that come here
    /// found none a moment ago, and whichever idles by now is there sooner than this thread is done.
    places_all: bool,
    /// Whether a task gets this thread's CPU after this round.
    own_is_given: bool,
    /// Whether this thread's CPU takes a latency task after this round, out of the queue for any CPU.
    own_is_next: bool,
    /// Unless the kernel refused it.
    hasten: Option<Hasten<'o>>,
}

impl Bpf<'_> {
    /// In the order of `stats::Stats`.
    fn counters(&mut self) -> [u64; NR_KERNEL_EVENTS] {
        [
            *self.bpf.nr_kernel_dispatches_mut(),
            *self.bpf.nr_bounce_dispatches_mut(),
            *self.bpf.nr_cancel_dispatches_mut(),
            *self.bpf.nr_sched_congested_mut(),
            *self.bpf.nr_failed_dispatches_mut(),
        ]
    }

    /// Has a CPU take a task that is to run at once: this one will when this thread is done, if the task may run here, and if
    /// it is the first that may.
    fn hasten(&mut self, task: &Task) {
        let Some(hasten) = self.hasten.as_mut().filter(|hasten| hasten.by_class()) else {
            return;
        };
        let here = rustix::thread::sched_getcpu() as u32;
        if !self.own_is_next && (task.anywhere || task.cpu == here) {
            self.own_is_next = true;
        } else {
            hasten.decided(task.pid);
        }
    }
}

impl Machine for Bpf<'_> {
    fn idle_cpu(&mut self, pid: i32, near: u32) -> Option<u32> {
        // The kernel lets this thread run where the task that woke up ran last. Without this, that one would have to go
        // elsewhere each time.
        if self.own_cpu() == Some(near) {
            self.own_is_given = true;
            return Some(near);
        }
        let cpu = u32::try_from(self.bpf.select_cpu(pid, near as i32, 0)).ok()?;
        // A CPU that is just coming up counts as idle before it takes any work.
        self.layout.is_online(cpu).then_some(cpu)
    }

    fn own_cpu(&mut self) -> Option<u32> {
        // This thread isn't among them.
        let running = *self.bpf.nr_running_mut();
        let some_idle = running + 1 < u64::from(self.layout.nr_online());
        (self.places_all && some_idle && !self.own_is_given)
            .then(|| rustix::thread::sched_getcpu() as u32)
    }
}

impl Kernel for Bpf<'_> {
    fn next(&mut self) -> Option<Arrival> {
        // An error is over at the next try: it was interrupted.
        let task = self.bpf.dequeue_task().ok().flatten()?;
        Some(Arrival {
            pid: task.pid,
            cpu: task.cpu.max(0) as u32,
            nr_allowed: task.nr_cpus_allowed,
            weight: task.weight,
            ran_from_ns: task.start_ts,
            ran_until_ns: task.stop_ts,
            burst_ns: task.exec_runtime,
            token: [task.flags, task.enq_cnt],
        })
    }

    fn run(&mut self, pick: &Pick, place: Place) -> bool {
        if let Some(hasten) = &mut self.hasten {
            hasten.note(pick.task.pid, pick.task.class);
        }
        let [flags, enq_cnt] = pick.task.token;
        let decision = DispatchedTask {
            pid: pick.task.pid,
            cpu: match place {
                Place::Cpu(cpu) => cpu as i32,
                Place::Any => RL_CPU_ANY,
            },
            flags,
            slice_ns: pick.slice_ns,
            vtime: pick.rank,
            enq_cnt,
        };
        let sent = self.bpf.dispatch_task(&decision).is_ok();
        if sent && pick.task.class == Class::Latency && place == Place::Any {
            self.hasten(&pick.task);
        }
        sent
    }
}
