//! virtme-ng, in a private Python environment, and virtiofsd, which gives a guest the host's files.

use crate::apt::PrivateApt;
use crate::cache::Cache;
use crate::cmd;
use crate::interrupt;
use crate::ui::step;
use crate::workspace;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const VENV: &str = "tools/venv";
const VIRTIOFSD: &str = "tools/virtiofsd";

pub fn virtme_run(cache: &Cache) -> PathBuf {
    cache.path(VENV).join("bin/virtme-run")
}

/// The Python that has what `vm/requirements.txt` lists.
pub fn python(cache: &Cache) -> PathBuf {
    cache.path(VENV).join("bin/python")
}

/// The folder to put on `$PATH` so that virtme-ng finds virtiofsd.
pub fn virtiofsd_dir(cache: &Cache) -> PathBuf {
    cache.path(VIRTIOFSD).join("bin")
}

fn requirements() -> PathBuf {
    workspace::root().join("vm/requirements.txt")
}

fn requirements_hash() -> Result<String> {
    let text = fs::read(requirements()).context("reading vm/requirements.txt")?;
    Ok(hex(&Sha256::digest(text))[..16].to_owned())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The venv is there, starts, and was made from the requirements as they are now.
pub fn virtme_is_ready(cache: &Cache) -> bool {
    let made_from = fs::read_to_string(cache.path(VENV).join("requirements.hash"));
    let now = requirements_hash();
    matches!((made_from, now), (Ok(a), Ok(b)) if a == b)
        && cmd::output(Command::new(virtme_run(cache)).arg("--help")).is_ok()
}

pub fn ensure_virtme(cache: &Cache) -> Result<()> {
    let _lock = cache.lock("venv")?;
    if virtme_is_ready(cache) {
        return Ok(());
    }
    // A venv holds its own path, so it is made in place; the hash, written last, says that it is whole.
    let venv = cache.path(VENV);
    let _held = interrupt::hold()?;
    make_venv(&venv).inspect_err(|_| {
        // The first error is what the user needs; a failed clean-up is redone by the next attempt.
        let _ = crate::cache::remove_all(&venv);
    })
}

fn make_venv(venv: &Path) -> Result<()> {
    crate::cache::remove_all(venv)?;
    fs::create_dir_all(venv).with_context(|| format!("creating {}", venv.display()))?;
    step(
        "installing virtme-ng and a reader of metrics into a private venv",
        |s| {
            // The system's Python, whatever a version manager puts first on $PATH: the venv outlives its shims.
            cmd::run(
                s,
                Command::new("/usr/bin/python3")
                    .args(["-m", "venv"])
                    .arg(venv),
            )?;
            let installed = cmd::run(
                s,
                Command::new(venv.join("bin/pip"))
                    .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
                    .arg(requirements()),
            );
            cmd::over_network(
                installed,
                "pip could not install what vm/requirements.txt lists",
            )
        },
    )?;
    fs::write(venv.join("requirements.hash"), requirements_hash()?)
        .context("marking the venv as whole")
}

pub fn virtiofsd_is_ready(cache: &Cache) -> bool {
    let program = virtiofsd_dir(cache).join("virtiofsd");
    cmd::output(Command::new(program).arg("--version")).is_ok()
}

/// virtiofsd from the host's own suites; Debian 12 has none that runs without root, so there it is built.
pub fn ensure_virtiofsd(cache: &Cache) -> Result<()> {
    let _lock = cache.lock("virtiofsd")?;
    if virtiofsd_is_ready(cache) {
        return Ok(());
    }
    let apt = PrivateApt::open(cache)?;
    let own_suite = apt.versions("virtiofsd")?.iter().any(|(_, suite)| {
        *suite == crate::host::Distro::read().map_or(String::new(), |d| d.codename)
    });
    cache.need_space(1024, "virtiofsd")?;
    if own_suite {
        return step("fetching virtiofsd", |s| {
            cache.publish(VIRTIOFSD, |stage| {
                let root = stage.join("root");
                apt.unpack(s, &["virtiofsd".into()], &root)?;
                fs::create_dir(stage.join("bin")).context("creating a folder")?;
                fs::copy(
                    root.join("usr/libexec/virtiofsd"),
                    stage.join("bin/virtiofsd"),
                )
                .context("the package virtiofsd has no usr/libexec/virtiofsd")?;
                Ok(())
            })
        })
        .map(drop);
    }
    step("building virtiofsd (about a minute)", |s| {
        cache.publish(VIRTIOFSD, |stage| {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
            cmd::run(
                s,
                cargo
                    .args(["install", "--locked", "virtiofsd", "--root"])
                    .arg(stage)
                    .current_dir(stage)
                    .env("CARGO_TARGET_DIR", stage.join("target")),
            )?;
            crate::cache::remove_all(&stage.join("target"))
        })
    })
    .map(drop)
}
