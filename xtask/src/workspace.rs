//! Where the checkout and its build products are.

use crate::cmd;
use crate::host;
use crate::ui::step;
use anyhow::{Context, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The top of the checkout, known since this tool was built in it.
pub fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

/// The text of a file that may not be there yet, which is empty then.
pub fn read_if_there(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("reading {}", path.display())),
    }
}

/// The folder of the daemons' binaries: that of this very tool, so that both are of one profile.
pub fn bin_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this program's own path")?;
    let dir = exe.parent().context("this program's path has no parent")?;
    // Unit tests run from `deps/`.
    Ok(if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir).to_owned()
    } else {
        dir.to_owned()
    })
}

/// Refuses to start a first build of everything that would end in a full disk. `built` is a program that comes last: with
/// it there, what is built again replaces what is there.
pub fn need_space(mib: u64, built: &str, what: &str) -> Result<()> {
    let dir = bin_dir()?;
    if dir.join(built).exists() {
        return Ok(());
    }
    host::need_space(&dir, mib, what, "CARGO_TARGET_DIR")
}

/// Builds a package's targets (cargo's options that name them) into that folder.
pub fn build(package: &str, targets: &[&str]) -> Result<()> {
    let dir = bin_dir()?;
    let profile = match dir.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(name) => name,
    };
    let target_dir = dir.parent().context("the build folder has no parent")?;
    step(format!("building {package}"), |s| {
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        cmd::run(
            s,
            Command::new(cargo)
                .args(["build", "--profile", profile, "--package", package])
                .args(targets)
                .arg("--target-dir")
                .arg(target_dir)
                .current_dir(root()),
        )
    })
}
