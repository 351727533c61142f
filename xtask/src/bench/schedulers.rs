//! The schedulers that can be measured.

use super::peers::{self, PEERS, Peer};
use super::plan::{Daemon, Scheduler};
use crate::cache::Cache;
use crate::failure::Usage;
use crate::workspace;
use anyhow::Result;
use std::collections::BTreeMap;
use std::fs;

/// The name of the kernel's own scheduler, which all others are compared with.
pub const BASELINE: &str = "eevdf";
/// The name of the one before it, and of the kernel that has it.
const CFS: &str = "cfs";
pub const CFS_KERNEL: &str = "cfs";

pub fn kernels_own() -> Scheduler {
    Scheduler {
        name: BASELINE.into(),
        title: "EEVDF".into(),
        daemon: None,
    }
}

/// A scheduler of this checkout, built if its sources changed.
pub fn of_checkout(name: &str) -> Result<Scheduler> {
    let package = format!("scx_{name}");
    workspace::build(&package, &["--bins"])?;
    Ok(Scheduler {
        name: name.into(),
        title: package.clone(),
        daemon: Some(Daemon {
            // From the guest's PATH.
            command: vec![package],
            ops: format!("{name}_"),
        }),
    })
}

/// The names of the schedulers of this checkout.
fn in_checkout() -> Vec<String> {
    let entries = fs::read_dir(workspace::root().join("scheds"));
    let mut names: Vec<_> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_prefix("scx_").map(String::from)
        })
        .collect();
    names.sort();
    names
}

/// What the user asked for, with no name in it that doesn't exist.
#[derive(Debug, Default)]
pub struct Selection {
    own: Vec<String>,
    peers: Vec<&'static Peer>,
    cfs: bool,
}

/// The schedulers, built.
#[derive(Debug)]
pub struct Chosen {
    /// In the order in which reports show them.
    pub all: Vec<Scheduler>,
    /// Those that run on the kernel that was asked for, the baseline first.
    pub main: Vec<Scheduler>,
    pub cfs: Option<Scheduler>,
    /// Why some could not be built.
    pub unbuilt: BTreeMap<String, String>,
}

impl Selection {
    pub fn new(names: &[String], all_peers: bool) -> Result<Self> {
        let checkout = in_checkout();
        let mut selection = Self::default();
        for name in names {
            let short = name.strip_prefix("scx_").unwrap_or(name);
            if short == CFS {
                selection.cfs = true;
            } else if checkout.iter().any(|own| own == short) {
                selection.own.push(short.into());
            } else if let Some(peer) = peers::find(short) {
                selection.peers.push(peer);
            } else if short != BASELINE {
                let peers: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
                return Err(Usage(format!(
                    "no scheduler {name:?}; known: {BASELINE}, {CFS}, {} of this checkout, {} of upstream",
                    checkout.join(", "),
                    peers.join(", ")
                ))
                .into());
            }
        }
        if all_peers {
            let named = std::mem::take(&mut selection.peers);
            let rest = PEERS
                .iter()
                .filter(|peer| !named.iter().any(|other| other.name == peer.name));
            selection.peers = named.iter().copied().chain(rest).collect();
        }
        Ok(selection)
    }

    pub fn ensure(&self, cache: &Cache) -> Result<Chosen> {
        let mut all = vec![kernels_own()];
        for name in &self.own {
            all.push(of_checkout(name)?);
        }
        let mut main = all.clone();
        let mut unbuilt = BTreeMap::new();
        for peer in &self.peers {
            match peer.ensure(cache) {
                Ok(scheduler) => {
                    main.push(scheduler.clone());
                    all.push(scheduler);
                }
                Err(error) => {
                    unbuilt.insert(peer.name.into(), format!("failed to build: {error:#}"));
                    all.push(Scheduler {
                        name: peer.name.into(),
                        title: peer.title(),
                        daemon: None,
                    });
                }
            }
        }
        let cfs = self.cfs.then(|| Scheduler {
            name: CFS.into(),
            title: "CFS (another kernel)".into(),
            daemon: None,
        });
        all.extend(cfs.clone());
        Ok(Chosen {
            all,
            main,
            cfs,
            unbuilt,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(names: &[&str], all_peers: bool) -> Result<Selection> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Selection::new(&names, all_peers)
    }

    #[test]
    fn names_are_found_where_they_belong() {
        let found = selected(&["eevdf", "rr", "scx_bpfland", "cfs"], false).unwrap();
        assert_eq!(found.own, ["rr"]);
        assert_eq!(found.peers[0].name, "bpfland");
        assert!(found.cfs);
    }

    #[test]
    fn all_peers_are_all_of_them_once() {
        let found = selected(&["lavd"], true).unwrap();
        assert_eq!(found.peers.len(), PEERS.len());
        assert_eq!(found.peers[0].name, "lavd");
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = selected(&["rrr"], false).unwrap_err();
        assert!(error.is::<Usage>());
        for known in ["eevdf, cfs", "rr, steal of this checkout", "lavd"] {
            assert!(error.to_string().contains(known), "{error}");
        }
    }
}
