//! The cache folder: kernels, tools and package lists. Whatever is in it is whole: things are made in a staging
//! folder beside it and moved into place when they are done, so an interrupted download or build leaves nothing.

use crate::host;
use crate::interrupt;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// Held while one process makes or changes a thing in the cache; others wait for it.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Cache {
    /// The cache of this user: `$MANYCORE_CACHE`, `$XDG_CACHE_HOME/manycore` or `~/.cache/manycore`.
    pub fn open() -> Result<Self> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        let root = if let Some(dir) = var("MANYCORE_CACHE") {
            PathBuf::from(dir)
        } else if let Some(dir) = var("XDG_CACHE_HOME") {
            Path::new(&dir).join("manycore")
        } else if let Some(home) = var("HOME") {
            Path::new(&home).join(".cache/manycore")
        } else {
            bail!("no cache folder: set MANYCORE_CACHE (neither XDG_CACHE_HOME nor HOME is set)");
        };
        Self::at(root)
    }

    pub fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| {
            format!(
                "creating the cache folder {} (set MANYCORE_CACHE to a folder that you may write)",
                root.display()
            )
        })?;
        let root = root
            .canonicalize()
            .with_context(|| format!("resolving {}", root.display()))?;
        Ok(Self { root })
    }

    pub fn path(&self, sub: impl AsRef<Path>) -> PathBuf {
        self.root.join(sub)
    }

    /// A folder of the cache, made if it isn't there.
    pub fn dir(&self, sub: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.path(sub);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    /// Waits until no other process holds the lock of that name, and says so if that takes a while: most only look
    /// whether what they need is there.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        const WHILE: Duration = Duration::from_secs(2);
        let path = self.dir("locks")?.join(format!("{}.lock", flat_name(name)));
        let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let started = Instant::now();
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if started.elapsed() >= WHILE {
                eprintln!("waiting for another xtask that works on {name} ...");
                flock(&file, FlockOperation::LockExclusive)
                    .with_context(|| format!("locking {}", path.display()))?;
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Lock { _file: file })
    }

    /// Makes `dest` (relative to the cache) by `make`, which fills an empty folder. On success it is moved into place
    /// as a whole, in place of an older one; on failure nothing of it stays. The caller holds the lock.
    pub fn publish(
        &self,
        dest: impl AsRef<Path>,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let _held = interrupt::hold()?;
        let dest = self.path(dest);
        let relative = dest.strip_prefix(&self.root).unwrap_or(&dest);
        let stage = self
            .dir("stage")?
            .join(flat_name(&relative.to_string_lossy()));
        remove_all(&stage)?;
        fs::create_dir_all(&stage).with_context(|| format!("creating {}", stage.display()))?;
        if let Err(error) = make(&stage) {
            // The first error is what the user needs; a failed clean-up is redone by the next attempt.
            let _ = remove_all(&stage);
            return Err(error);
        }
        remove_all(&dest)?;
        if let Some(parent) = dest.parent() {
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        fs::rename(&stage, &dest)
            .with_context(|| format!("moving {} to {}", stage.display(), dest.display()))?;
        Ok(dest)
    }

    /// Keeps the output of something that failed where the user can read it; the oldest ones are forgotten.
    pub fn keep_log(&self, what: &str, text: &str) -> Result<PathBuf> {
        let dir = self.dir("logs")?;
        let file = tempfile::Builder::new()
            .prefix(&format!("{what}-"))
            .suffix(".log")
            .tempfile_in(&dir)
            .context("creating a log file")?;
        fs::write(file.path(), text)
            .with_context(|| format!("writing {}", file.path().display()))?;
        let (_, path) = file.keep().context("keeping a log file")?;
        forget_old_logs(&dir);
        Ok(path)
    }

    /// Refuses to start what won't fit in the cache.
    pub fn need_space(&self, mib: u64, what: &str) -> Result<()> {
        host::need_space(&self.root, mib, what, "MANYCORE_CACHE")
    }
}

/// Removes all but the newest logs.
fn forget_old_logs(dir: &Path) {
    const KEPT: usize = 20;
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let mut logs: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    logs.sort();
    for (_, path) in logs.iter().rev().skip(KEPT) {
        // Another xtask may have removed it first.
        let _ = fs::remove_file(path);
    }
}

fn flat_name(name: &str) -> String {
    name.replace('/', "_")
}

/// Removes a file or a folder with all that is in it; it is fine if there is none.
pub fn remove_all(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    result.with_context(|| format!("removing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();
        (dir, cache)
    }

    #[test]
    fn what_fails_leaves_nothing() {
        let (_dir, cache) = cache();
        let made = cache.publish("kernels/a", |stage| {
            fs::write(stage.join("half"), "x")?;
            bail!("interrupted")
        });
        assert!(made.is_err());
        assert!(!cache.path("kernels/a").exists());
        assert_eq!(fs::read_dir(cache.path("stage")).unwrap().count(), 0);
    }

    #[test]
    fn what_was_left_by_a_killed_process_is_not_used() {
        let (_dir, cache) = cache();
        fs::create_dir_all(cache.path("stage/kernels_a")).unwrap();
        fs::write(cache.path("stage/kernels_a/old"), "x").unwrap();
        let made = cache
            .publish("kernels/a", |stage| Ok(fs::write(stage.join("new"), "y")?))
            .unwrap();
        assert!(made.join("new").exists());
        assert!(!made.join("old").exists());
    }

    #[test]
    fn a_new_one_replaces_the_old_as_a_whole() {
        let (_dir, cache) = cache();
        for name in ["one", "two"] {
            cache
                .publish("t", |stage| Ok(fs::write(stage.join(name), "")?))
                .unwrap();
        }
        assert!(!cache.path("t/one").exists());
        assert!(cache.path("t/two").exists());
    }

    #[test]
    fn too_little_space_is_said_with_the_folder() {
        let (_dir, cache) = cache();
        let error = cache
            .need_space(u64::MAX, "a kernel build")
            .unwrap_err()
            .to_string();
        assert!(error.contains("a kernel build needs") && error.contains("MANYCORE_CACHE"));
    }
}
