//! The published upstream schedulers, at pinned versions, built once into the cache.

use super::plan::{Daemon, Scheduler};
use crate::cache::Cache;
use crate::cmd;
use crate::ui::step;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// A crate of the registry, and what its scheduler's name in the kernel starts with.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    version: &'static str,
    ops: &'static str,
    args: &'static [&'static str],
}

const fn peer(name: &'static str, version: &'static str) -> Peer {
    Peer {
        name,
        version,
        ops: name,
        args: &[],
    }
}

pub const PEERS: &[Peer] = &[
    peer("bpfland", "1.1.4"),
    peer("rusty", "1.1.4"),
    peer("cosmos", "1.1.7"),
    peer("p2dq", "1.1.4"),
    peer("flash", "1.1.4"),
    peer("beerland", "1.1.4"),
    peer("lavd", "1.1.4"),
    Peer {
        // It has no defaults: without a specification of layers, there is only its own example.
        args: &["--run-example"],
        ..peer("layered", "1.1.4")
    },
    peer("rustland", "1.1.4"),
];

/// Upstream's build needs clang by this name, as does this project's.
const CLANG: &str = "clang-19";

impl Peer {
    pub fn title(&self) -> String {
        format!("scx_{} {}", self.name, self.version)
    }

    fn program(&self, cache: &Cache) -> PathBuf {
        cache
            .path(self.folder())
            .join(format!("bin/scx_{}", self.name))
    }

    fn folder(&self) -> String {
        format!("peers/scx_{}-{}", self.name, self.version)
    }

    /// The scheduler, built if the cache doesn't have it. The error is why it can't be built.
    pub fn ensure(&self, cache: &Cache) -> Result<Scheduler> {
        let _lock = cache.lock("peers")?;
        if !self.program(cache).is_file() {
            self.build(cache)?;
        }
        let program = self.program(cache).to_string_lossy().into_owned();
        let args = self.args.iter().map(|arg| (*arg).to_owned());
        Ok(Scheduler {
            name: self.name.into(),
            title: self.title(),
            daemon: Some(Daemon {
                command: [program].into_iter().chain(args).collect(),
                ops: self.ops.into(),
            }),
        })
    }

    fn build(&self, cache: &Cache) -> Result<()> {
        cache.need_space(4096, "the upstream schedulers' build")?;
        // Shared by all of them, as they share most of their dependencies.
        let target = cache.dir("peers/target")?;
        let title = self.title();
        step(format!("building {title} (minutes, once)"), |s| {
            cache.publish(self.folder(), |stage| {
                let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
                cmd::run(
                    s,
                    Command::new(cargo)
                        .args([
                            "install",
                            "--locked",
                            "--no-track",
                            "--version",
                            self.version,
                        ])
                        .arg(format!("scx_{}", self.name))
                        .arg("--root")
                        .arg(stage)
                        .env("CARGO_TARGET_DIR", &target)
                        .env("BPF_CLANG", CLANG)
                        // Out of this checkout, whose cargo configuration is not for others.
                        .current_dir(stage),
                )
            })
        })
        .with_context(|| format!("building {title}"))
        .map(drop)
    }
}

pub fn find(name: &str) -> Option<&'static Peer> {
    PEERS.iter().find(|peer| peer.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_in_the_cache_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        let peer = find("bpfland").unwrap();
        let program = peer.program(&cache);
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::write(&program, "").unwrap();
        let scheduler = peer.ensure(&cache).unwrap();
        assert_eq!(scheduler.title, "scx_bpfland 1.1.4");
        let daemon = scheduler.daemon.unwrap();
        assert!(daemon.command[0].ends_with("peers/scx_bpfland-1.1.4/bin/scx_bpfland"));
        assert_eq!(daemon.ops, "bpfland");
    }
}
