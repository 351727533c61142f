//! The BPF side of the meter: load it, take passes, read its maps.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::mem::MaybeUninit;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail};
use libbpf_rs::btf::{Btf, types::Func};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{
    Iter, IterOpts, Link, MapCore, MapFlags, MapHandle, MapType, OpenObject, RingBuffer,
    RingBufferBuilder, libbpf_sys,
};

use super::fairness;
use super::hist::Histogram;
use super::topology::Places;
use super::waste::Span;
use super::wire::{self, CpuCounters, Record, TaskSample};
use crate::bpf_skel::{BpfSkel, BpfSkelBuilder, OpenBpfSkel};

/// Groups for which histograms are kept, with `--by`: all, the rest, and this many.
const GROUP_SLOTS: u32 = 62;
const GROUP_FIRST: u32 = 2;
const LOCK_SITES: u32 = 8192;
/// `MASK_WORDS` of `bpf/observe.h`.
const MASK_WORDS: u32 = 64;

/// By what latencies are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum By {
    /// The task's cgroup.
    Cgroup,
    /// The task's command name.
    Comm,
}

/// What to measure and with how much memory.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub by: Option<By>,
    pub locks: bool,
    /// Ask the kernel to time the BPF programs.
    pub cost: bool,
    pub min_span_ns: u64,
    /// For the rings of all CPUs together.
    pub ring_bytes: u64,
}

/// Which histogram of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    Wake,
    Wait,
}

/// Contention of one lock call site, by kernel stack, innermost frame first.
#[derive(Debug, Clone)]
pub(super) struct LockSite {
    pub stack: Vec<u64>,
    pub flags: u32,
    pub count: u64,
    pub total_ns: u64,
    pub max_ns: u64,
}

/// Latencies of one cgroup or command.
#[derive(Debug, Clone)]
pub(super) struct Group {
    /// The cgroup's id and the command's name, of which one is empty. None: all groups for which there was no slot left.
    pub key: Option<(u64, String)>,
    pub wake: Histogram,
    pub wait: Histogram,
}

/// What the kernel says about one of the meter's programs.
#[derive(Debug, Clone, Default)]
pub(super) struct ProgramCost {
    pub run_ns: u64,
    pub runs: u64,
    /// Events that the kernel didn't pass to it, because it was running on that CPU already.
    pub missed: u64,
}

/// What a pass of the iterator is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Init,
    Cut,
    Tasks,
}

#[derive(Debug, Default)]
struct Inbox {
    spans: Vec<Span>,
    exited: Vec<TaskSample>,
}

/// The loaded and attached meter.
pub(super) struct Meter<'obj> {
    skel: BpfSkel<'obj>,
    _links: Vec<Link>,
    pass: Link,
    ring: RingBuffer<'static>,
    _rings: Vec<MapHandle>,
    inbox: Rc<RefCell<Inbox>>,
    cpus: u32,
    /// The function of the kernel's load balancer, if it has one that can be watched.
    pub balancer: Option<&'static str>,
    _bpf_stats: Option<std::os::fd::OwnedFd>,
}

/// CLOCK_MONOTONIC in nanoseconds, which is what bpf_ktime_get_ns reads.
pub(super) fn now_ns() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Refuses, with the remedy, where the meter can't work.
fn check_host() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("observe needs root to load its BPF programs: run it with sudo");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "this kernel has no BTF (/sys/kernel/btf/vmlinux): use one built with CONFIG_DEBUG_INFO_BTF=y"
        );
    }
    let release = super::host::release();
    if super::host::version(&release) < (6, 1) {
        bail!("kernel {release} is too old: observe needs 6.1 or later");
    }
    Ok(())
}

fn has_function(btf: &Btf<'_>, name: &str) -> bool {
    btf.type_by_name::<Func<'_>>(name).is_some()
}

/// Power-of-two bytes for each of `cpus` rings.
fn ring_size(total: u64, cpus: usize) -> u32 {
    let each = (total / cpus.max(1) as u64).clamp(64 << 10, 64 << 20) as u32;
    1 << each.ilog2()
}

fn configure(
    open: &mut OpenBpfSkel<'_>,
    config: &Config,
    cpu_ids: u32,
    possible: u32,
) -> Result<Option<&'static str>> {
    let words = cpu_ids.div_ceil(64);
    if words > MASK_WORDS {
        bail!(
            "this machine has {cpu_ids} CPU numbers; observe was built for {}",
            MASK_WORDS * 64
        );
    }
    let groups = GROUP_FIRST + if config.by.is_some() { GROUP_SLOTS } else { 0 };
    let ro = open
        .maps
        .rodata_data
        .as_mut()
        .context("the BPF object has no .rodata")?;
    ro.nr_cpu_ids = cpu_ids;
    ro.nr_possible = possible;
    ro.mask_words = words;
    ro.nr_groups = groups;
    ro.min_span_ns = config.min_span_ns;
    ro.by_cgroup = config.by == Some(By::Cgroup);
    ro.by_comm = config.by == Some(By::Comm);

    open.maps.cpus.set_max_entries(cpu_ids)?;
    open.maps.rings.set_max_entries(cpu_ids)?;
    open.maps.hists.set_max_entries(2 * groups)?;
    open.maps.groups.set_max_entries(groups)?;
    if config.locks {
        open.maps.stacks.set_max_entries(LOCK_SITES)?;
        open.maps.locks.set_max_entries(LOCK_SITES)?;
    }
    open.progs.observe_lock_begin.set_autoload(config.locks);
    open.progs.observe_lock_end.set_autoload(config.locks);

    let btf = Btf::from_vmlinux().context("can't read the kernel's BTF")?;
    let throttle = has_function(&btf, "throttle_cfs_rq");
    open.progs.observe_throttle.set_autoload(throttle);
    let balancer = ["sched_balance_rq", "load_balance"]
        .into_iter()
        .find(|name| has_function(&btf, name));
    match balancer {
        Some(name) => open
            .progs
            .observe_balance
            .set_attach_target(0, Some(name.to_owned()))?,
        None => open.progs.observe_balance.set_autoload(false),
    }
    Ok(balancer)
}

impl<'obj> Meter<'obj> {
    /// Loads the programs and attaches them, and notes what runs and waits now. Nothing counts until [`Meter::begin`].
    ///
    /// # Errors
    /// If this user may not, this kernel can't, or there isn't the memory.
    pub(super) fn start(
        object: &'obj mut MaybeUninit<OpenObject>,
        places: &Places,
        config: &Config,
    ) -> Result<Self> {
        check_host()?;
        let possible =
            libbpf_rs::num_possible_cpus().context("can't count the possible CPUs")? as u32;
        let highest = places.iter().map(|(cpu, _)| cpu + 1).max().unwrap_or(1);
        let cpu_ids = possible.max(highest);

        let mut open = BpfSkelBuilder::default()
            .open(object)
            .context("can't open the BPF object")?;
        let balancer = configure(&mut open, config, cpu_ids, possible)?;
        let bpf_stats = config
            .cost
            .then(super::host::enable_bpf_stats)
            .transpose()?;
        let skel = open.load().context("the kernel refused the BPF programs")?;

        let inbox = Rc::new(RefCell::new(Inbox::default()));
        let (rings, ring) = make_rings(&skel, places, config.ring_bytes, &inbox)?;
        for (cpu, place) in places.iter() {
            let mut value = vec![0; wire::CPU_BYTES];
            for (at, word) in [place.core, place.llc, place.node].into_iter().enumerate() {
                value[at * 4..][..4].copy_from_slice(&word.to_ne_bytes());
            }
            skel.maps
                .cpus
                .update(&cpu.to_ne_bytes(), &value, MapFlags::ANY)?;
        }
        let links = attach(&skel, config, balancer)?;
        let pass = skel
            .progs
            .observe_pass
            .attach_iter_with_opts(IterOpts::None)?;
        let mut meter = Self {
            skel,
            _links: links,
            pass,
            ring,
            _rings: rings,
            inbox,
            cpus: cpu_ids,
            balancer,
            _bpf_stats: bpf_stats,
        };
        meter.run_pass(Pass::Init, now_ns())?;
        Ok(meter)
    }

    /// One more than the highest CPU number.
    pub(super) fn cpu_ids(&self) -> u32 {
        self.cpus
    }

    /// From now on everything counts. Returns the time.
    pub(super) fn begin(&mut self) -> Result<u64> {
        let now = now_ns();
        self.bss()?.begin_at = now;
        Ok(now)
    }

    /// Reads what has arrived, to make room in the rings.
    pub(super) fn drain(&mut self) -> Result<()> {
        self.ring.consume().context("can't read the rings")
    }

    /// Closes a period at the present time: returns that time, and all spans that begin before it and weren't returned
    /// yet, each up to its end or to that time at least. With `tasks` also what each thread did since the beginning.
    /// Threads that exited are forgotten once their life is too short for `elapsed_ns`, the time since the beginning.
    pub(super) fn cut(
        &mut self,
        tasks: bool,
        elapsed_ns: u64,
    ) -> Result<(u64, Vec<Span>, Vec<TaskSample>)> {
        let at = now_ns();
        let pass = if tasks { Pass::Tasks } else { Pass::Cut };
        let live = self.run_pass(pass, at)?;
        self.drain()?;
        let spans = std::mem::take(&mut self.inbox.borrow_mut().spans);
        self.inbox
            .borrow_mut()
            .exited
            .retain(|t| fairness::was_present(t, elapsed_ns));
        let mut samples = Vec::new();
        if tasks {
            samples.extend(self.inbox.borrow().exited.iter().cloned());
            let (records, _) = live.as_chunks::<{ wire::TASK_BYTES }>();
            samples.extend(records.iter().filter_map(|r| wire::task(r)));
        }
        Ok((at, spans, samples))
    }

    fn bss(&mut self) -> Result<&mut crate::bpf_skel::types::bss> {
        let bss = self.skel.maps.bss_data.as_mut();
        Ok(bss.context("the BPF object has no .bss")?)
    }

    fn run_pass(&mut self, pass: Pass, at: u64) -> Result<Vec<u8>> {
        let bss = self.bss()?;
        bss.cut_at = at;
        bss.pass = pass as u32;
        let mut out = Vec::new();
        let mut tasks = Iter::new(&self.pass).context("can't start the task iterator")?;
        tasks
            .read_to_end(&mut out)
            .context("the task iterator failed")?;
        Ok(out)
    }

    /// Counters of each CPU.
    pub(super) fn counters(&self) -> Result<BTreeMap<u32, CpuCounters>> {
        let mut all = BTreeMap::new();
        for cpu in 0..self.cpus {
            let bytes = self
                .skel
                .maps
                .cpus
                .lookup(&cpu.to_ne_bytes(), MapFlags::ANY)?;
            let counters = bytes.and_then(|b| CpuCounters::parse(&b));
            all.insert(
                cpu,
                counters.ok_or_else(|| anyhow!("no counters of CPU {cpu}"))?,
            );
        }
        Ok(all)
    }

    /// The masks from number `from` on that tasks were seen to have.
    pub(super) fn masks(&mut self, from: usize) -> Result<Vec<BTreeSet<u32>>> {
        let known = self
            .bss()?
            .next_mask
            .min(self.skel.maps.masks.max_entries());
        (from as u32..known)
            .map(|id| {
                let bytes = self
                    .skel
                    .maps
                    .masks
                    .lookup(&id.to_ne_bytes(), MapFlags::ANY)?;
                Ok(mask_cpus(&bytes.unwrap_or_default()))
            })
            .collect()
    }

    /// The histogram of all tasks.
    pub(super) fn histogram(&self, which: Which) -> Result<Histogram> {
        self.histogram_of(0, which)
    }

    /// The histograms of each group.
    pub(super) fn groups(&self) -> Result<Vec<Group>> {
        let mut slots = vec![(None, 1)];
        for key in self.skel.maps.groups.keys() {
            let Some(slot) = self.skel.maps.groups.lookup(&key, MapFlags::ANY)? else {
                continue;
            };
            let (Some(id), Some(slot)) = (key.first_chunk::<8>(), slot.first_chunk::<4>()) else {
                continue;
            };
            let key = (u64::from_ne_bytes(*id), wire::comm(&key[8..]));
            slots.push((Some(key), u32::from_ne_bytes(*slot)));
        }
        let read = |(key, slot)| {
            let wake = self.histogram_of(slot, Which::Wake)?;
            let wait = self.histogram_of(slot, Which::Wait)?;
            Ok(Group { key, wake, wait })
        };
        slots.into_iter().map(read).collect()
    }

    fn histogram_of(&self, group: u32, which: Which) -> Result<Histogram> {
        let index = 2 * group + which as u32;
        let per_cpu = self
            .skel
            .maps
            .hists
            .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)?;
        let mut sum = Histogram::default();
        for bytes in per_cpu.unwrap_or_default() {
            if !sum.add_bytes(&bytes) {
                bail!("the BPF object's histograms have another size than expected");
            }
        }
        Ok(sum)
    }

    /// Contended locks by call site.
    pub(super) fn locks(&self) -> Result<Vec<LockSite>> {
        let mut sites = Vec::new();
        for key in self.skel.maps.locks.keys() {
            let Some(per_cpu) = self.skel.maps.locks.lookup_percpu(&key, MapFlags::ANY)? else {
                continue;
            };
            let (stack, flags) = key.split_at(4);
            let frames = self
                .skel
                .maps
                .stacks
                .lookup(stack, MapFlags::ANY)?
                .unwrap_or_default();
            let mut site = LockSite {
                stack: words(&frames).take_while(|&ip| ip != 0).collect(),
                flags: flags.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)),
                count: 0,
                total_ns: 0,
                max_ns: 0,
            };
            for bytes in per_cpu {
                let mut fields = words(&bytes);
                site.count += fields.next().unwrap_or(0);
                site.total_ns += fields.next().unwrap_or(0);
                site.max_ns = site.max_ns.max(fields.next().unwrap_or(0));
            }
            sites.push(site);
        }
        Ok(sites)
    }

    /// What the kernel says about each of the meter's programs, by name.
    pub(super) fn programs(&self) -> BTreeMap<String, ProgramCost> {
        let infos = libbpf_rs::query::ProgInfoIter::default();
        let ours: BTreeSet<u32> = self.program_ids();
        infos
            .filter(|info| ours.contains(&info.id))
            .map(|info| {
                let cost = ProgramCost {
                    run_ns: info.run_time_ns,
                    runs: info.run_cnt,
                    missed: info.recursion_misses,
                };
                (info.name.to_string_lossy().into_owned(), cost)
            })
            .collect()
    }

    fn program_ids(&self) -> BTreeSet<u32> {
        let progs = self.skel.object().progs();
        progs
            .filter(|p| p.autoload())
            .filter_map(|p| {
                use std::os::fd::AsFd;
                libbpf_rs::Program::id_from_fd(p.as_fd()).ok()
            })
            .collect()
    }
}

/// A ring for each online CPU, and one reader for all.
fn make_rings(
    skel: &BpfSkel<'_>,
    places: &Places,
    total: u64,
    inbox: &Rc<RefCell<Inbox>>,
) -> Result<(Vec<MapHandle>, RingBuffer<'static>)> {
    let size = ring_size(total, places.cpus());
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let mut rings = Vec::new();
    for (cpu, _) in places.iter() {
        use std::os::fd::{AsFd, AsRawFd};
        let ring = MapHandle::create(MapType::RingBuf, Some("observe_ring"), 0, 0, size, &opts)
            .with_context(|| {
                format!(
                    "no memory for a ring of {} KiB for each CPU: lower --ring-mib",
                    size >> 10
                )
            })?;
        let fd = ring.as_fd().as_raw_fd();
        skel.maps
            .rings
            .update(&cpu.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)?;
        rings.push(ring);
    }
    let mut builder = RingBufferBuilder::new();
    for ring in &rings {
        let inbox = Rc::clone(inbox);
        builder.add(ring, move |bytes| {
            match wire::parse(bytes) {
                Some(Record::Span(span)) => inbox.borrow_mut().spans.push(span),
                Some(Record::Task(task)) => inbox.borrow_mut().exited.push(task),
                None => log::error!("a record of {} bytes came from the kernel", bytes.len()),
            }
            0
        })?;
    }
    let reader = builder.build().context("can't map the rings")?;
    Ok((rings, reader))
}

fn attach(skel: &BpfSkel<'_>, config: &Config, balancer: Option<&str>) -> Result<Vec<Link>> {
    let progs = &skel.progs;
    let mut wanted = vec![
        &progs.observe_switch,
        &progs.observe_waking,
        &progs.observe_wakeup,
        &progs.observe_wakeup_new,
        &progs.observe_migrate,
        &progs.observe_affinity,
    ];
    if progs.observe_throttle.autoload() {
        wanted.push(&progs.observe_throttle);
    }
    if balancer.is_some() {
        wanted.push(&progs.observe_balance);
    }
    if config.locks {
        wanted.extend([&progs.observe_lock_begin, &progs.observe_lock_end]);
    }
    wanted
        .into_iter()
        .map(|p| {
            p.attach_trace()
                .with_context(|| format!("can't attach {}", p.name().to_string_lossy()))
        })
        .collect()
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|w| u64::from_ne_bytes(*w))
}

/// The CPUs of a bit mask of 64-bit words.
fn mask_cpus(bytes: &[u8]) -> BTreeSet<u32> {
    let bits = |(i, w): (usize, u64)| {
        (0..64)
            .filter(move |b| w >> b & 1 == 1)
            .map(move |b| i as u32 * 64 + b)
    };
    words(bytes).enumerate().flat_map(bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_share_the_memory() {
        assert_eq!(ring_size(32 << 20, 8), 4 << 20);
        assert_eq!(ring_size(32 << 20, 128), 256 << 10);
        assert_eq!(ring_size(32 << 20, 12), 2 << 20);
        assert_eq!(ring_size(1 << 20, 1024), 64 << 10);
    }

    #[test]
    fn masks_are_bits() {
        let bytes: Vec<u8> = [0b101u64, 1 << 63]
            .iter()
            .flat_map(|w| w.to_ne_bytes())
            .collect();
        assert_eq!(mask_cpus(&bytes), BTreeSet::from([0, 2, 127]));
    }
}
