//! Compiles the BPF side, which `scx_rustland_core` brings along, and generates its Rust counterpart.
//!
//! Its builder writes into the current folder, which for a build script is the crate's own. So it is run in a process
//! of its own, inside `OUT_DIR`: the sources stay as they are, and may be read-only.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

/// Set for the process that runs the builder.
const INSIDE: &str = "SCX_PILOT_BUILD_INSIDE";

fn main() -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        return scx_rustland_core::RustLandBuilder::new()?.build();
    }
    let dir = PathBuf::from(env::var_os("OUT_DIR").context("no OUT_DIR")?).join("rustland");
    fs::create_dir_all(dir.join("src")).context("making a folder for what is generated")?;
    let built = Command::new(env::current_exe().context("finding the build script")?)
        .env(INSIDE, "1")
        .current_dir(&dir)
        .output()
        .context("running the builder of scx_rustland_core")?;
    ensure!(
        built.status.success(),
        "building the BPF side (clang 18 or later is needed: set BPF_CLANG): {}",
        String::from_utf8_lossy(&built.stderr)
    );
    // The builder names files of its folder as inputs, which would be looked for in this one.
    println!("cargo::rerun-if-changed=build.rs");
    for variable in ["BPF_CLANG", "BPF_CFLAGS", "BPF_BASE_CFLAGS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    Ok(())
}
