//! What has to be known of QEMU's inside beyond its functions, found by experiment rather than assumed.
//!
//! Two things: where the accelerator's table of operations holds the functions to be replaced, and where a `CPUState`
//! holds the budget of instructions. Each is found through its effect, must be found exactly once, and is checked
//! against a second known answer; otherwise the plugin refuses.

use crate::Refusal;
use crate::symbols::{CLOCK_VIRTUAL, CpuState, Symbols};
use libc::{c_int, c_void};
use std::sync::atomic::{AtomicI64, Ordering};

/// Byte offsets in `CPUState` of what instruction counting keeps there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    /// `neg.icount_decr.u16.low`: instructions left in the current stretch, at most 65535.
    decrementer: usize,
    /// `icount_extra`: instructions left after the current stretch, i64.
    extra: usize,
    /// `icount_budget`: instructions of the turn that are not accounted for yet, i64.
    budget: usize,
}

/// Instructions in one stretch of the decrementer, at most.
const STRETCH: i64 = 0xffff;

/// Instructions of the turn that the probe prepares: more than a stretch, and a number not met by chance.
const TURN: i64 = 0x2_3456;

impl Budget {
    /// Lets QEMU prepare a blank `CPUState` for a turn of a known length, and looks at what has changed.
    ///
    /// `offset` is what the virtual clock adds to QEMU's: moved far into the past, no timer limits the turn.
    pub(crate) fn probe(symbols: &Symbols, offset: &AtomicI64) -> Result<Self, Refusal> {
        // QEMU also cuts a turn at the next timer of the host's clock: try until there was none so near.
        let mut result = Err(Refusal::Layout("CPUState: nothing tried".into()));
        for _ in 0..1000 {
            // A CPUState is some 11 KiB in QEMU 10.
            let mut blank = vec![0u64; 8192];
            offset.store(-(1 << 40), Ordering::Relaxed);
            // SAFETY: of a CPUState, the function touches just the three members in question, which are 0 as between
            // turns; the block is larger than any CPUState, and aligned.
            unsafe {
                (symbols.icount_prepare_for_run)(blank.as_mut_ptr().cast::<CpuState>(), TURN)
            };
            offset.store(0, Ordering::Relaxed);
            result = Self::locate(&blank);
            if result.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        result
    }

    /// Finds the members in a `CPUState` that was blank before a turn of [`TURN`] instructions was prepared.
    fn locate(blank: &[u64]) -> Result<Self, Refusal> {
        let find = |what: &str, wanted: u64| {
            let mut at = blank
                .iter()
                .enumerate()
                .filter(|&(_, &word)| word == wanted)
                .map(|(index, _)| index * 8);
            match (at.next(), at.next()) {
                (Some(offset), None) => Ok(offset),
                _ => Err(Refusal::Layout(format!("CPUState: {what} was not found"))),
            }
        };
        if blank.iter().filter(|&&word| word != 0).count() != 3 {
            return Err(Refusal::Layout(
                "CPUState: a turn's budget is not kept in three members".into(),
            ));
        }
        let budget = find("icount_budget", TURN as u64)?;
        let extra = find("icount_extra", (TURN - STRETCH) as u64)?;
        // 16 bits in the lower half of a 32-bit word, which may be either half of an aligned 64-bit one.
        let decrementer = find("icount_decr", STRETCH as u64)
            .or_else(|_| find("icount_decr", (STRETCH as u64) << 32).map(|at| at + 4))?;
        Ok(Self {
            decrementer,
            extra,
            budget,
        })
    }

    /// Sets the number of instructions that the next `cpu_exec()` of `cpu` may execute.
    ///
    /// # Safety
    /// `cpu` is a live vCPU, not running, and the caller is the vCPU thread.
    pub(crate) unsafe fn set(&self, cpu: *mut CpuState, instructions: i64) {
        let stretch = instructions.min(STRETCH);
        // SAFETY: the offsets were verified; other threads write only the upper half of the decrementer's word.
        unsafe {
            cpu.byte_add(self.budget).cast::<i64>().write(instructions);
            cpu.byte_add(self.extra)
                .cast::<i64>()
                .write(instructions - stretch);
            cpu.byte_add(self.decrementer)
                .cast::<u16>()
                .write_volatile(stretch as u16);
        }
    }
}

/// The functions that replace those of the accelerator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operations {
    pub(crate) clock: extern "C" fn() -> i64,
    pub(crate) handle_interrupt: extern "C" fn(*mut CpuState, c_int),
    pub(crate) kick: extern "C" fn(*mut CpuState),
}

/// Puts `new` into the table of operations of QEMU's TCG accelerator in place of the functions for instruction
/// counting, and checks that all readers of the clock see it.
pub(crate) fn replace_operations(
    symbols: &Symbols,
    new: Operations,
    offset: &AtomicI64,
) -> Result<(), Refusal> {
    let table = operations_table(symbols)?;
    replace(
        table,
        "the clock",
        symbols.icount_get as usize,
        new.clock as usize,
        2,
    )?;
    replace(
        table,
        "interrupts",
        symbols.icount_handle_interrupt as usize,
        new.handle_interrupt as usize,
        1,
    )?;
    replace(
        table,
        "kicks",
        symbols.rr_kick_vcpu_thread as usize,
        new.kick as usize,
        1,
    )?;
    for known in [0, 123_456_789, -987_654_321, 1 << 50, 0] {
        offset.store(known, Ordering::Relaxed);
        // SAFETY: no guest code is running, so that QEMU's count may be read.
        let [base, clock, virt, ticks] = unsafe {
            [
                (symbols.icount_get)(),
                (symbols.qemu_clock_get_ns)(CLOCK_VIRTUAL),
                (symbols.cpus_get_virtual_clock)(),
                (symbols.cpus_get_elapsed_ticks)(),
            ]
        };
        if [clock, virt, ticks]
            .iter()
            .any(|reading| reading - base != known)
        {
            offset.store(0, Ordering::Relaxed);
            return Err(Refusal::Layout(format!(
                "a clock moved by {known} ns reads {base} as {clock}, {virt}, {ticks}"
            )));
        }
    }
    Ok(())
}

/// The words of the class `tcg-accel-ops`.
fn operations_table(symbols: &Symbols) -> Result<&'static mut [usize], Refusal> {
    // SAFETY: the name is a C string; classes are allocated by malloc and live as long as the program.
    unsafe {
        let class = (symbols.object_class_by_name)(c"tcg-accel-ops".as_ptr());
        if class.is_null() {
            return Err(Refusal::Layout("there is no class tcg-accel-ops".into()));
        }
        let words = libc::malloc_usable_size(class) / size_of::<usize>();
        Ok(std::slice::from_raw_parts_mut(
            class.cast::<usize>(),
            words.min(64),
        ))
    }
}

fn replace(
    table: &mut [usize],
    what: &str,
    old: usize,
    new: usize,
    times: usize,
) -> Result<(), Refusal> {
    let mut found: Vec<&mut usize> = table.iter_mut().filter(|word| **word == old).collect();
    if found.len() != times {
        let message = format!(
            "tcg-accel-ops: {} entries for {what} instead of {times}",
            found.len()
        );
        return Err(Refusal::Layout(message));
    }
    for word in &mut found {
        **word = new;
    }
    Ok(())
}

/// The start of a function as an address to patch.
pub(crate) fn code(function: usize) -> *mut c_void {
    function as *mut c_void
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_located_in_either_half_of_a_word() {
        for half in [0, 4] {
            let mut blank = vec![0u64; 64];
            blank[7] = TURN as u64;
            blank[8] = (TURN - STRETCH) as u64;
            blank[40] = (STRETCH as u64) << (half * 8);
            let budget = Budget::locate(&blank).unwrap();
            assert_eq!(
                budget,
                Budget {
                    budget: 56,
                    extra: 64,
                    decrementer: 320 + half
                }
            );
        }
    }

    #[test]
    fn an_ambiguous_or_different_layout_is_refused() {
        let mut blank = vec![0u64; 64];
        assert!(Budget::locate(&blank).is_err());
        blank[7] = TURN as u64;
        blank[8] = (TURN - STRETCH) as u64;
        assert!(Budget::locate(&blank).is_err());
        blank[9] = STRETCH as u64;
        assert!(Budget::locate(&blank).is_ok());
        blank[10] = 1;
        assert!(Budget::locate(&blank).is_err());
        blank[10] = 0;
        blank[7] = 1000;
        assert!(Budget::locate(&blank).is_err());
    }

    #[test]
    fn operations_are_replaced_only_if_all_are_found() {
        let mut table = [1, 7, 3, 7];
        assert!(replace(&mut table, "x", 7, 9, 1).is_err());
        assert!(replace(&mut table, "x", 4, 9, 1).is_err());
        assert_eq!(table, [1, 7, 3, 7]);
        replace(&mut table, "x", 7, 9, 2).unwrap();
        assert_eq!(table, [1, 9, 3, 9]);
    }
}
