//! The programs of this checkout that a bench runs, as they were when it began: a build that comes meanwhile must neither
//! change what is measured nor take away what a later guest is about to start.

use super::plan::Scheduler;
use crate::vm::clock::PLUGIN;
use crate::vm::rundir::RunDir;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// This very tool, in the guest.
pub const XTASK: &str = "xtask";
/// This very tool, even if a build has put another one in its place.
const THIS: &str = "/proc/self/exe";
/// Observes, and reads meters.
const MANYCORE: &str = "manycore";

/// Copies what is there of them into a folder that goes when the result does.
pub fn set_aside(built: &Path, schedulers: &[Scheduler]) -> Result<RunDir> {
    let dir = RunDir::create()?;
    let daemons = schedulers
        .iter()
        .filter_map(|scheduler| Some(scheduler.daemon.as_ref()?.command.first()?.as_str()))
        // Others, with a path, are published ones that nobody builds anew.
        .filter(|program| !program.contains('/'));
    let wanted = daemons.chain([MANYCORE, PLUGIN]);
    let built = wanted
        .map(|name| (built.join(name), name))
        .filter(|(path, _)| path.is_file());
    for (from, name) in built.chain([(THIS.into(), XTASK)]) {
        fs::copy(&from, dir.path().join(name))
            .with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::super::plan::Daemon;
    use super::super::schedulers::kernels_own;
    use super::*;

    #[test]
    fn what_is_set_aside_outlives_a_build() {
        let built = tempfile::tempdir().unwrap();
        let daemon = |command: &str| Scheduler {
            daemon: Some(Daemon {
                command: vec![command.into(), "-v".into()],
                ops: String::new(),
            }),
            ..kernels_own()
        };
        for name in ["scx_mine", MANYCORE] {
            fs::write(built.path().join(name), "first").unwrap();
        }
        let published = daemon("/somewhere/scx_theirs");
        let dir = set_aside(
            built.path(),
            &[kernels_own(), daemon("scx_mine"), published],
        )
        .unwrap();
        fs::write(built.path().join("scx_mine"), "second").unwrap();
        let text = fs::read_to_string(dir.path().join("scx_mine")).unwrap();
        assert_eq!(text, "first");
        let has = |name: &str| dir.path().join(name).exists();
        assert!(has(MANYCORE) && has(XTASK) && !has("scx_theirs") && !has(PLUGIN));
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }
}
