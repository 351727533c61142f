//! Service classes as BPF policies see them: a map from cgroup ids to classes (`bpf/lib/classes.bpf.h`).
//!
//! The daemon sizes the map before it loads the object, and hands it over as a [`ClassMap`] once it is attached; from then
//! on it is filled by whoever keeps the policy.

use std::io;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::classes_intf::{
    MAX_CLASSED, class_width_WIDTH_BY_CLASS, class_width_WIDTH_NARROW, class_width_WIDTH_NODE,
    class_width_WIDTH_WIDE, task_class_CLASS_BATCH, task_class_CLASS_LATENCY,
    task_class_CLASS_NORMAL,
};
use crate::options::CommonOpts;
use crate::policy::{Class, ClassChange, ClassEntry, ClassSink, Width};

/// How many entries at once when the map is counted. The kernel wants room for those of a whole bucket at least.
const BATCH: u32 = 1024;

/// For how many cgroups the map is to have room. Without a policy nobody looks into it.
pub fn room(common: &CommonOpts) -> u32 {
    if common.policy.policy.is_some() {
        MAX_CLASSED
    } else {
        1
    }
}

/// The map of a loaded scheduler.
#[derive(Debug)]
pub struct ClassMap(MapHandle);

impl ClassMap {
    /// Takes it from the object: `MapHandle::try_from(&skel.maps.classes)`.
    pub fn new(map: MapHandle) -> Self {
        Self(map)
    }

    /// How many cgroups have a class in it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn count(&self) -> Result<u64> {
        let entries = self.0.lookup_batch(BATCH, MapFlags::ANY, MapFlags::ANY);
        Ok(entries.context("counting classes")?.count() as u64)
    }
}

impl ClassSink for &ClassMap {
    fn change(&mut self, change: &ClassChange) -> io::Result<()> {
        let key = change.cgroup_id.to_ne_bytes();
        let done = match &change.entry {
            Some(entry) => self.0.update(&key, &words(entry), MapFlags::ANY),
            None => self.0.delete(&key),
        };
        match done {
            Err(err) if change.entry.is_some() || err.kind() != libbpf_rs::ErrorKind::NotFound => {
                Err(io::Error::other(err))
            }
            _ => Ok(()),
        }
    }
}

/// An entry as `struct class_entry` has it.
fn words(entry: &ClassEntry) -> Vec<u8> {
    let kind = match entry.class {
        Class::Normal => task_class_CLASS_NORMAL,
        Class::Latency => task_class_CLASS_LATENCY,
        Class::Batch => task_class_CLASS_BATCH,
    };
    let width = match entry.width {
        None => class_width_WIDTH_BY_CLASS,
        Some(Width::Narrow) => class_width_WIDTH_NARROW,
        Some(Width::Node) => class_width_WIDTH_NODE,
        Some(Width::Wide) => class_width_WIDTH_WIDE,
    };
    let words = [kind, width, entry.slice_us.unwrap_or(0), 0];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classes_intf::class_entry;

    #[test]
    fn entries_are_as_the_bpf_side_has_them() {
        let entry = ClassEntry {
            class: Class::Batch,
            slice_us: Some(20_000),
            width: Some(Width::Wide),
        };
        let bytes = words(&entry);
        assert_eq!(bytes.len(), size_of::<class_entry>());
        let kind = std::mem::offset_of!(class_entry, kind);
        let width = std::mem::offset_of!(class_entry, width);
        let slice = std::mem::offset_of!(class_entry, slice_us);
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(
            (word(kind), word(width), word(slice)),
            (task_class_CLASS_BATCH, class_width_WIDTH_WIDE, 20_000)
        );
    }
}
