//! What must be so before a scheduler can be loaded. Each failure is one line that says what is wrong and what to do;
//! left to itself, libbpf answers most of them with a bare `Invalid argument`.

use std::fs;
use std::path::{Path, PathBuf};

/// Why no scheduler can be loaded here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "kernel {release} has no sched_ext: it takes Linux 6.12 or later, built with CONFIG_SCHED_CLASS_EXT=y; \
         to try it in a VM: cargo xtask vm run -- {name}"
    )]
    NoSchedExt { release: String, name: String },
    #[error("not root: only root may load a scheduler; try: sudo {name}")]
    NotRoot { name: String },
    #[error(
        "another scheduler is loaded: {ops}; stop it first (end its process, or press Alt-SysRq-S) and start {name} again"
    )]
    Occupied { ops: String, name: String },
    #[error(
        "kernel {release} has no BTF (/sys/kernel/btf/vmlinux is missing), which describes its types to BPF programs; \
         boot one built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf { release: String },
    #[error(
        "the configuration of kernel {release} is neither in /proc/config.gz nor in /boot/config-{release}, and libbpf \
         needs it; copy it to the latter, or boot a kernel built with CONFIG_IKCONFIG_PROC=y"
    )]
    NoKconfig { release: String },
    #[error(
        "kernel {release} has no function tracer (/proc/sys/kernel/ftrace_enabled is missing); \
         boot one built with CONFIG_FUNCTION_TRACER=y"
    )]
    NoFtrace { release: String },
}

/// The machine to be checked.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    root_user: bool,
    release: String,
}

impl Host {
    /// This machine, as this process sees it.
    pub fn this() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_else(|_| "(unknown)".to_string());
        Self {
            root: PathBuf::from("/"),
            root_user: rustix::process::geteuid().is_root(),
            release: release.trim().to_string(),
        }
    }

    /// Checks all that a scheduler needs, in the order in which a user can do something about it: there is no point
    /// in asking for root on a kernel that can't do it.
    ///
    /// `own_kconfig`: whether the user gives libbpf a kernel configuration.
    ///
    /// # Errors
    /// The first thing that is missing.
    pub fn check(&self, name: &str, own_kconfig: bool) -> Result<(), Error> {
        let release = || self.release.clone();
        if !self.has("sys/kernel/sched_ext") {
            return Err(Error::NoSchedExt {
                release: release(),
                name: name.to_string(),
            });
        }
        if !self.root_user {
            return Err(Error::NotRoot {
                name: name.to_string(),
            });
        }
        if let Some(ops) = self.loaded() {
            return Err(Error::Occupied {
                ops,
                name: name.to_string(),
            });
        }
        if !self.has("sys/kernel/btf/vmlinux") {
            return Err(Error::NoBtf { release: release() });
        }
        if !own_kconfig
            && !self.has("proc/config.gz")
            && !self.has(&format!("boot/config-{}", self.release))
        {
            return Err(Error::NoKconfig { release: release() });
        }
        if !self.has("proc/sys/kernel/ftrace_enabled") {
            return Err(Error::NoFtrace { release: release() });
        }
        Ok(())
    }

    fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The name of the scheduler that is loaded, or on its way in or out.
    fn loaded(&self) -> Option<String> {
        let read = |path: &Path| {
            fs::read_to_string(self.root.join("sys/kernel/sched_ext").join(path)).ok()
        };
        let state = read(Path::new("state"))?;
        if state.trim() == "disabled" {
            return None;
        }
        let ops = read(Path::new("root/ops"))
            .map(|ops| ops.trim().to_string())
            .filter(|ops| !ops.is_empty());
        Some(ops.unwrap_or_else(|| format!("unnamed, {}", state.trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which everything is as it should be.
    fn host() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host {
            root: dir.path().to_path_buf(),
            root_user: true,
            release: "6.12.5".to_string(),
        };
        write(&host, "sys/kernel/sched_ext/state", "disabled\n");
        write(&host, "sys/kernel/btf/vmlinux", "");
        write(&host, "proc/config.gz", "");
        write(&host, "proc/sys/kernel/ftrace_enabled", "1\n");
        (dir, host)
    }

    fn write(host: &Host, path: &str, content: &str) {
        let path = host.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn remove(host: &Host, path: &str) {
        let path = host.root.join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }

    #[test]
    fn nothing_is_missing() {
        assert_eq!(host().1.check("scx_x", false), Ok(()));
    }

    #[test]
    fn kernel_without_sched_ext_comes_before_root() {
        let (_dir, mut host) = host();
        host.root_user = false;
        assert!(matches!(
            host.check("scx_x", false),
            Err(Error::NotRoot { .. })
        ));
        remove(&host, "sys/kernel/sched_ext");
        let error = host.check("scx_x", false).unwrap_err().to_string();
        assert!(
            error.contains("kernel 6.12.5") && error.contains("CONFIG_SCHED_CLASS_EXT"),
            "{error}"
        );
        assert!(error.contains("cargo xtask vm run -- scx_x"), "{error}");
    }

    #[test]
    fn another_scheduler_is_named() {
        let (_dir, host) = host();
        write(&host, "sys/kernel/sched_ext/state", "enabled\n");
        write(&host, "sys/kernel/sched_ext/root/ops", "bpfland_1.1.4\n");
        let error = host.check("scx_x", false).unwrap_err().to_string();
        assert!(error.contains("bpfland_1.1.4"), "{error}");
        // on its way out: no ops any more, but not disabled yet
        write(&host, "sys/kernel/sched_ext/state", "disabling\n");
        remove(&host, "sys/kernel/sched_ext/root");
        assert_eq!(
            host.check("scx_x", false),
            Err(Error::Occupied {
                ops: "unnamed, disabling".to_string(),
                name: "scx_x".to_string()
            })
        );
    }

    #[test]
    fn missing_parts_of_the_kernel() {
        let (_dir, host) = host();
        remove(&host, "proc/sys/kernel/ftrace_enabled");
        assert!(matches!(
            host.check("scx_x", false),
            Err(Error::NoFtrace { .. })
        ));
        remove(&host, "proc/config.gz");
        assert!(matches!(
            host.check("scx_x", false),
            Err(Error::NoKconfig { .. })
        ));
        assert!(matches!(
            host.check("scx_x", true),
            Err(Error::NoFtrace { .. })
        ));
        write(&host, "boot/config-6.12.5", "");
        assert!(matches!(
            host.check("scx_x", false),
            Err(Error::NoFtrace { .. })
        ));
        remove(&host, "sys/kernel/btf/vmlinux");
        assert!(matches!(
            host.check("scx_x", false),
            Err(Error::NoBtf { .. })
        ));
    }

    #[test]
    fn each_message_is_one_line() {
        let (release, name, ops) = ("6.1.0".to_string(), "scx_x".to_string(), "y".to_string());
        for error in [
            Error::NoSchedExt {
                release: release.clone(),
                name: name.clone(),
            },
            Error::NotRoot { name: name.clone() },
            Error::Occupied { ops, name },
            Error::NoBtf {
                release: release.clone(),
            },
            Error::NoKconfig {
                release: release.clone(),
            },
            Error::NoFtrace { release },
        ] {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
