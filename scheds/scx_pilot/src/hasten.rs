//! Has latency tasks that wake up interrupt batch, who waits for too long go first, and who is stuck be decided on anew: the
//! other end of `bpf/pilot.bpf.c`.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use control_plane::stuck::Freer;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject, ProgramInput};
use scx_pilot::policy::Class;

use crate::hasten_skel::{
    BpfSkel, BpfSkelBuilder, PILOT_PIDS, pilot_class_PILOT_BATCH, pilot_class_PILOT_LATENCY,
    pilot_class_PILOT_OTHER,
};

/// So often is looked for who waits for too long, in nanoseconds. Who was there the last time waits for less than twice as
/// long; with `scx_rustland_core`, the kernel throws the scheduler out when one has waited for 5 s.
const LATE_NS: u64 = 1_500_000_000;
/// And so often if one was found: others want to run, too.
const LATE_AGAIN_NS: u64 = 20_000_000;

/// The programs while they are loaded.
pub(crate) struct Hasten<'o> {
    skel: BpfSkel<'o>,
    /// If latency tasks interrupt batch.
    wakeups: Option<Link>,
    late_next_ns: u64,
    /// Kept for its life.
    _freer: Freer,
}

impl<'o> Hasten<'o> {
    /// Loads them, on a machine whose CPU ids are below `nr_cpu_ids`, and attaches to wakeups if `classes` come first.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn attach(
        object: &'o mut MaybeUninit<OpenObject>,
        nr_cpu_ids: u32,
        classes: bool,
    ) -> Result<Self> {
        let mut open = BpfSkelBuilder::default()
            .open(object)
            .context("opening bpf/pilot.bpf.c")?;
        // The kernel's flags, which differ from one to the next, are 0 until somebody looks.
        scx_utils::import_enums!(open);
        let rodata = open.maps.rodata_data.as_deref_mut();
        rodata
            .context("the object has no read-only data")?
            .nr_cpu_ids = nr_cpu_ids;
        open.maps
            .interrupted_at
            .set_max_entries(nr_cpu_ids)
            .context("sizing a map")?;
        let skel = open.load().context("loading bpf/pilot.bpf.c")?;
        let wakeups = classes.then(|| skel.progs.pilot_woken.attach());
        Ok(Self {
            wakeups: wakeups.transpose().context("attaching to wakeups")?,
            _freer: Freer::start(&skel.progs.find_stuck)?,
            skel,
            late_next_ns: 0,
        })
    }

    /// Whether latency tasks interrupt batch.
    pub(crate) fn by_class(&self) -> bool {
        self.wakeups.is_some()
    }

    /// To be called often, with any clock that never goes back: who waits for too long for any CPU goes first.
    pub(crate) fn look_for_late(&mut self, now_ns: u64) {
        if now_ns < self.late_next_ns {
            return;
        }
        let found = self.skel.progs.pilot_late.test_run(ProgramInput::default());
        // If it can't be asked now, it can later.
        let found = found.is_ok_and(|output| output.return_value == 1);
        self.late_next_ns = now_ns + if found { LATE_AGAIN_NS } else { LATE_NS };
    }

    /// A task of this class was decided on. One write to memory, and only if it was of another.
    pub(crate) fn note(&mut self, pid: i32, class: Class) {
        if !self.by_class() {
            return;
        }
        let class = match class {
            Class::Normal => pilot_class_PILOT_OTHER,
            Class::Latency => pilot_class_PILOT_LATENCY,
            Class::Batch => pilot_class_PILOT_BATCH,
        } as u8;
        let data = self.skel.maps.bss_data.as_deref_mut();
        let place = data.and_then(|data| {
            data.class_of_pid
                .get_mut(pid as u32 as usize % PILOT_PIDS as usize)
        });
        if let Some(place) = place
            && *place != class
        {
            *place = class;
        }
    }

    /// A task is next wherever it may run, and this thread's CPU is not where: has another one take it.
    pub(crate) fn decided(&mut self, pid: i32) {
        let mut pid = pid.to_ne_bytes();
        let input = ProgramInput {
            context_in: Some(&mut pid),
            ..ProgramInput::default()
        };
        // It only saves time.
        let _ = self.skel.progs.pilot_decided.test_run(input);
    }
}
