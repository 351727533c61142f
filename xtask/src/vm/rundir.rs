//! The folder of one run, mostly of a guest: its scripts, its console log, virtme-ng's sockets. It is removed when the run
//! ends; what a killed xtask left behind, processes included, is cleared by the next one.

use super::processes;
use crate::kernel::Kernel;
use crate::workspace;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held for as long as this process lives: a folder whose lock is free is nobody's.
    _lock: File,
}

/// Runs of all invocations of one user. A short path, because sockets lie in it and their paths are limited.
fn base() -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("manycore-{uid}"))
}

impl RunDir {
    pub fn create() -> Result<Self> {
        let base = base();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&base)
            .with_context(|| format!("creating {}", base.display()))?;
        // In a folder that everybody can write to, somebody else may have been first.
        let meta = fs::symlink_metadata(&base).context("looking at the runs' folder")?;
        if !meta.is_dir() || meta.uid() != rustix::process::getuid().as_raw() {
            bail!(
                "{} is not a folder of yours: remove it, or set TMPDIR",
                base.display()
            );
        }
        clear_abandoned(&base);
        let path = tempfile::Builder::new()
            .prefix("vm-")
            .tempdir_in(&base)
            .with_context(|| format!("creating a folder in {}", base.display()))?
            .keep();
        let lock = File::create(path.join("lock")).context("creating the run's lock")?;
        flock(&lock, FlockOperation::LockExclusive).context("locking the run's folder")?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The lines that the guest sends through its status port: `start`, then `exit CODE`.
    pub fn status(&self) -> PathBuf {
        self.path.join("status")
    }

    /// Written by the virtual clock when QEMU ends.
    pub fn clock_stats(&self) -> PathBuf {
        self.path.join("clock.json")
    }

    /// QEMU's control socket.
    pub fn control(&self) -> PathBuf {
        self.path.join("control")
    }

    pub fn qemu(&self) -> PathBuf {
        self.path.join("qemu")
    }

    /// The program that an interactive guest starts on its terminal; virtme-ng takes no arguments for it.
    pub fn shell(&self) -> Result<String> {
        let path = self.path.join("shell.sh");
        let run = self.path.display();
        fs::write(
            &path,
            format!("#!/bin/sh\nexec sh '{run}/guest.sh' '{run}'\n"),
        )
        .context("writing the shell's script")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .context("making the shell's script executable")?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Writes what the guest and virtme-ng need.
    pub fn prepare(&self, qemu: &Path, kernel: &Kernel, command: &str) -> Result<()> {
        fs::copy(kernel.config(), self.path.join("config"))
            .context("copying the kernel's config")?;
        fs::copy(
            workspace::root().join("vm/guest.sh"),
            self.path.join("guest.sh"),
        )
        .context("copying vm/guest.sh")?;
        fs::write(self.path.join("command.sh"), command).context("writing the guest's command")?;
        fs::write(self.qemu(), self.qemu_wrapper(qemu)).context("writing QEMU's wrapper")?;
        fs::set_permissions(self.qemu(), fs::Permissions::from_mode(0o755))
            .context("making QEMU's wrapper executable")
    }

    /// virtme-ng throws a script's console away; this wrapper keeps it in a file, for when something goes wrong.
    fn qemu_wrapper(&self, qemu: &Path) -> String {
        format!(
            "#!/bin/sh\n\
             for arg do\n\
             \tshift\n\
             \t[ \"$arg\" = file,id=console,path=/dev/null ] && arg='file,id=console,path={}'\n\
             \tset -- \"$@\" \"$arg\"\n\
             done\n\
             exec '{}' \"$@\"\n",
            self.console().display(),
            qemu.display()
        )
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        processes::end_run(&self.path, Duration::from_secs(2));
        // Left behind at worst, and then cleared by the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn clear_abandoned(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for dir in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Ok(lock) = File::open(dir.join("lock")) else {
            continue;
        };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            processes::end_run(&dir, Duration::from_secs(2));
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_run_is_kept_and_an_abandoned_one_is_cleared() {
        let live = RunDir::create().unwrap();
        let dead = RunDir::create().unwrap();
        let dead_path = dead.path().to_owned();
        // As after `kill -9`: the lock is gone with its process, the folder stays.
        drop(dead._lock.try_clone().unwrap());
        flock(&dead._lock, FlockOperation::Unlock).unwrap();
        std::mem::forget(dead);
        let _new = RunDir::create().unwrap();
        assert!(live.path().exists());
        assert!(!dead_path.exists());
        let live_path = live.path().to_owned();
        drop(live);
        assert!(!live_path.exists());
    }
}
