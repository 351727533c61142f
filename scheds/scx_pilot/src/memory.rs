//! Memory that nobody else can make this process wait for.
//!
//! Locked memory stays in memory, but not in its place: when a cpuset gets other nodes, the kernel moves the pages of the
//! processes in it, those of libc among them, and whoever touches a page on its way waits until it has arrived. It is moved
//! by a kernel thread, which waits to be scheduled here. So a scheduler must share no pages: what is mapped from files
//! (its program and libraries) is replaced by copies.

use std::ffi::c_void;
use std::io;
use std::ptr::{copy_nonoverlapping, null_mut};

use anyhow::{Context, Result};
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};
use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap_fixed, munmap,
};

/// Gives this process pages of its own for all that it has mapped from files. To be called while it has one thread.
///
/// # Errors
/// If the kernel refuses, for want of memory or because its rules forbid programs in memory that is no file. What was not
/// replaced by then stays shared, and works.
pub(crate) fn share_nothing() -> Result<()> {
    let own = Process::myself().context("finding this process in /proc")?;
    for map in own.maps().context("reading what is mapped")? {
        let from_file = matches!(map.pathname, MMapPath::Path(_));
        let is = |permission| map.perms.contains(permission);
        if !from_file || !is(MMPermissions::READ) || is(MMPermissions::SHARED) {
            continue;
        }
        if is(MMPermissions::WRITE) {
            write_to_each_page(&map);
        } else {
            replace(&map).with_context(|| format!("copying {:x?}", map.address))?;
        }
    }
    Ok(())
}

/// The kernel makes a copy of a private page when it is written.
fn write_to_each_page(map: &MemoryMap) {
    let (start, end) = map.address;
    for address in (start..end).step_by(rustix::param::page_size()) {
        let byte = address as *mut u8;
        // SAFETY: the page is mapped and may be written, and there is no other thread that could write between the two.
        unsafe { byte.write_volatile(byte.read_volatile()) };
    }
}

fn replace(map: &MemoryMap) -> io::Result<()> {
    let (start, end) = map.address;
    let (old, size) = (start as *mut c_void, (end - start) as usize);
    let mut kind = MprotectFlags::READ;
    if map.perms.contains(MMPermissions::EXECUTE) {
        kind |= MprotectFlags::EXEC;
    }
    // SAFETY: a new mapping overlaps nothing.
    let new = unsafe {
        mmap_anonymous(
            null_mut(),
            size,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }?;
    // SAFETY: both are mapped in this size, the old one may be read, the new one written.
    unsafe { copy_nonoverlapping(old.cast::<u8>(), new.cast::<u8>(), size) };
    // SAFETY: it is in nobody's use yet. Then it takes the place of the old one in a single call, with the same bytes, so
    // that not even the code of these lines, which may lie there, sees a difference.
    let moved = unsafe {
        mprotect(new, size, kind)
            .and_then(|()| mremap_fixed(new, size, size, MremapFlags::MAYMOVE, old))
    };
    if let Err(err) = moved {
        // SAFETY: it is in nobody's use.
        let _ = unsafe { munmap(new, size) };
        return Err(err.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// In a process of its own, with one thread: this test's own has several.
    #[test]
    fn nothing_is_shared_afterwards_and_all_still_works() {
        const INSIDE: &str = "SCX_PILOT_TEST_SHARES_NOTHING";
        if std::env::var_os(INSIDE).is_none() {
            let own = std::env::current_exe().unwrap();
            let status = Command::new(own)
                .args(["--exact", "--test-threads=1", "--nocapture"])
                .arg("memory::tests::nothing_is_shared_afterwards_and_all_still_works")
                .env(INSIDE, "1")
                // This program's allocator has no room for all that is known of its code.
                .env("RUST_BACKTRACE", "0")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        share_nothing().unwrap();
        let own = Process::myself().unwrap();
        for map in own.smaps().unwrap() {
            let sizes = &map.extension.map;
            let of_file = sizes["Rss"] - sizes["Anonymous"];
            let readable = map.perms.contains(MMPermissions::READ);
            if matches!(map.pathname, MMapPath::Path(_)) && readable {
                assert_eq!(of_file, 0, "{map:?}");
            }
        }
        // Code and data are where they were: formatting, allocation, threads, another process.
        let text = std::thread::spawn(|| format!("{:?}", vec![1, 2, 3])).join();
        assert_eq!(text.unwrap(), "[1, 2, 3]");
        assert!(Command::new("true").status().unwrap().success());
        assert!(std::panic::catch_unwind(|| panic!("on purpose")).is_err());
    }
}
