//! Has latency tasks that wake up interrupt batch: the other end of `bpf/pilot.bpf.c`.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, OpenObject, ProgramInput};
use scx_pilot::policy::Class;

use crate::hasten_skel::{
    BpfSkel, BpfSkelBuilder, PILOT_PIDS, pilot_class_PILOT_BATCH, pilot_class_PILOT_LATENCY,
    pilot_class_PILOT_OTHER,
};

/// The program while it is attached.
pub(crate) struct Hasten<'o> {
    skel: BpfSkel<'o>,
    _link: Link,
}

impl<'o> Hasten<'o> {
    /// Loads and attaches it, on a machine whose CPU ids are below `nr_cpu_ids`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn attach(object: &'o mut MaybeUninit<OpenObject>, nr_cpu_ids: u32) -> Result<Self> {
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
        let link = skel
            .progs
            .pilot_woken
            .attach()
            .context("attaching to wakeups")?;
        Ok(Self { skel, _link: link })
    }

    /// A task of this class was decided on. One write to memory, and only if it was of another.
    pub(crate) fn note(&mut self, pid: i32, class: Class) {
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
