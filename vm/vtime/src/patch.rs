//! Replacing functions of the running program.
//!
//! The loop that gives vCPUs their turns calls two functions directly, so there is no pointer to exchange; their first
//! bytes are overwritten instead. Neither is ever executed again in its old form, so no instruction has to be moved.
//! It happens once, before the guest's first instruction, on the only thread that calls them.

use crate::Refusal;
use libc::c_void;

/// `mov r11, imm64; jmp r11`. r11 is a scratch register in the calling convention.
const JUMP_BYTES: usize = 13;

/// Makes every call of the function at `from` end up in `to`.
///
/// # Safety
/// `from` is the start of a function of at least [`JUMP_BYTES`] bytes that no thread is in; `to` has its signature.
pub(crate) unsafe fn redirect(from: *mut c_void, to: *const c_void) -> Result<(), Refusal> {
    let mut code = [0u8; JUMP_BYTES];
    code[..2].copy_from_slice(&[0x49, 0xbb]);
    code[2..10].copy_from_slice(&(to as u64).to_le_bytes());
    code[10..].copy_from_slice(&[0x41, 0xff, 0xe3]);
    // SAFETY: as the caller promises.
    unsafe { write_code(from, &code) }
}

/// Makes the function at `from` return at once.
///
/// # Safety
/// `from` is the start of a function that returns nothing and that no thread is in.
pub(crate) unsafe fn disable(from: *mut c_void) -> Result<(), Refusal> {
    // SAFETY: as the caller promises.
    unsafe { write_code(from, &[0xc3]) }
}

/// # Safety
/// `at` points to code that may be overwritten by `code` and that no thread is executing.
unsafe fn write_code(at: *mut c_void, code: &[u8]) -> Result<(), Refusal> {
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let start = at as usize / page * page;
    let length = (at as usize + code.len()).div_ceil(page) * page - start;
    let protect = |protection| {
        // SAFETY: the pages are mapped, as code; no other thread depends on their protection.
        match unsafe { libc::mprotect(start as *mut c_void, length, protection) } {
            0 => Ok(()),
            _ => Err(Refusal::Patch(std::io::Error::last_os_error())),
        }
    };
    protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC)?;
    // SAFETY: the pages are writable now.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at.cast::<u8>(), code.len()) };
    protect(libc::PROT_READ | libc::PROT_EXEC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[inline(never)]
    extern "C" fn original(x: u32) -> u32 {
        // Long enough to be overwritten, and nothing that the compiler could know the result of.
        std::hint::black_box(x)
            .wrapping_mul(std::hint::black_box(3))
            .wrapping_add(std::hint::black_box(1))
    }

    extern "C" fn replacement(x: u32) -> u32 {
        x + 1000
    }

    static CALLS: AtomicU32 = AtomicU32::new(0);

    #[inline(never)]
    extern "C" fn effect() {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn calls_are_redirected_and_disabled() {
        let call: extern "C" fn(u32) -> u32 = std::hint::black_box(original);
        assert_eq!(call(5), 16);
        // SAFETY: only this test uses these functions.
        unsafe { redirect(original as *mut c_void, replacement as *const c_void) }.unwrap();
        assert_eq!(call(5), 1005);

        let call: extern "C" fn() = std::hint::black_box(effect);
        call();
        // SAFETY: as above.
        unsafe { disable(effect as *mut c_void) }.unwrap();
        call();
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    }
}
