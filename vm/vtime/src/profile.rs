//! Where the guest's instructions go: how often each block of guest code was executed, exactly, while counting was on.
//!
//! The guest turns counting on and off by executing [`MARK`], a no-op to any CPU. Time is not affected: it counts the
//! guest's instructions, and these callbacks are the host's.

use libc::{c_uint, c_void};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// `nopl 0x6d616e79(%rax)`, a 7-byte no-op with a displacement that no compiler emits.
pub const MARK: [u8; 7] = [0x0f, 0x1f, 0x80, 0x79, 0x6e, 0x61, 0x6d];

static COUNTING: AtomicBool = AtomicBool::new(false);
static BLOCKS: Mutex<Vec<&'static Block>> = Mutex::new(Vec::new());

/// A translated block of guest code. Never freed: QEMU keeps pointers to it in translated code.
#[derive(Debug)]
struct Block {
    address: u64,
    instructions: u64,
    executed: AtomicU64,
}

/// A block was translated: what to pass to [`on_block`] each time it is executed.
pub(crate) fn add(address: u64, instructions: usize) -> *mut c_void {
    let block: &'static Block = Box::leak(Box::new(Block {
        address,
        instructions: instructions as u64,
        executed: AtomicU64::new(0),
    }));
    BLOCKS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(block);
    std::ptr::from_ref(block).cast_mut().cast()
}

pub(crate) extern "C" fn on_block(_index: c_uint, block: *mut c_void) {
    if COUNTING.load(Relaxed) {
        // SAFETY: only ever registered with pointers from `add`.
        let block = unsafe { &*block.cast::<Block>() };
        block.executed.fetch_add(1, Relaxed);
    }
}

/// Turns counting on, or off; then it writes what was counted.
///
/// # Errors
/// If the file can't be written.
pub(crate) fn mark(path: &Path) -> std::io::Result<()> {
    if COUNTING.fetch_xor(true, Relaxed) {
        write(path)?;
    }
    Ok(())
}

/// Writes `ADDRESS INSTRUCTIONS EXECUTED` for each block that was executed: hexadecimal, how many instructions it has,
/// and how often.
///
/// # Errors
/// If the file can't be written.
fn write(path: &Path) -> std::io::Result<()> {
    let mut out = BufWriter::new(std::fs::File::create(path)?);
    for block in BLOCKS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let executed = block.executed.load(Relaxed);
        if executed > 0 {
            writeln!(out, "{:x} {} {executed}", block.address, block.instructions)?;
        }
    }
    out.flush()
}
