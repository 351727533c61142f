//! The instruction that the virtual clock's plugin takes for "start counting" and "stop counting".

/// `nopl 0x6d616e79(%rax)`: a no-op to any CPU, and to the plugin a sign (`vm/vtime/src/profile.rs`).
pub fn mark() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a no-op; it reads and writes nothing.
    unsafe {
        std::arch::asm!(
            ".byte 0x0f, 0x1f, 0x80, 0x79, 0x6e, 0x61, 0x6d",
            options(nomem, nostack, preserves_flags)
        );
    }
}
