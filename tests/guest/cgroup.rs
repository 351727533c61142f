//! Cgroups to put load into, gone at the end with all that is in them.

use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";

/// Controllers that are on below the root for as long as this lives.
#[derive(Debug)]
pub(crate) struct Controllers(Vec<String>);

impl Controllers {
    pub(crate) fn enable(names: &[&str]) -> Result<Self> {
        let path = format!("{ROOT}/cgroup.subtree_control");
        let now = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let mut enabled = Self(Vec::new());
        for name in names {
            if now.split_whitespace().any(|on| on == *name) {
                continue;
            }
            fs::write(&path, format!("+{name}"))
                .with_context(|| format!("enabling the controller {name}"))?;
            enabled.0.push((*name).to_owned());
        }
        Ok(enabled)
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        for name in &self.0 {
            if let Err(error) =
                fs::write(format!("{ROOT}/cgroup.subtree_control"), format!("-{name}"))
            {
                eprintln!("disabling the controller {name}: {error}");
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let dir = PathBuf::from(format!("{ROOT}/{name}"));
        fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { dir })
    }

    pub(crate) fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
    }

    pub(crate) fn get(&self, file: &str) -> Result<String> {
        crate::cpus::read(&self.dir.join(file).to_string_lossy())
    }

    pub(crate) fn add(&self, pid: u32) -> Result<()> {
        self.set("cgroup.procs", &pid.to_string())
    }

    /// A command that moves itself into it before it becomes another.
    pub(crate) fn entering(&self, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new("sh");
        let script = format!(
            "echo $$ >{}/cgroup.procs && exec \"$0\" \"$@\"",
            self.dir.display()
        );
        command.args(["-c", &script, program]).current_dir("/tmp");
        command
    }

    /// Kills all in it and waits until they are gone.
    pub(crate) fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.get("cgroup.events")?.contains("populated 1") && Instant::now() < deadline {
            self.set("cgroup.kill", "1")?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.kill();
        let deadline = Instant::now() + Duration::from_secs(10);
        // The last task leaves it a moment after its end.
        while let Err(error) = fs::remove_dir(&self.dir) {
            if Instant::now() > deadline {
                eprintln!("removing {}: {error}", self.dir.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
