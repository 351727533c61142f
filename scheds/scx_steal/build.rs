//! Compiles `bpf/steal.bpf.c` and generates its skeleton and the Rust side of its shared header.

use std::path::Path;

use anyhow::{Context, Result};

/// The BPF sources of all schedulers, from the package's folder, where cargo runs this.
const BPF: &str = "../../bpf";

fn main() -> Result<()> {
    // BpfBuilder watches the folder of the source, not what is below it.
    for dir in [Path::new(BPF), &Path::new(BPF).join("lib")] {
        println!("cargo::rerun-if-changed={}", dir.display());
    }
    scx_cargo::BpfBuilder::new()?
        .add_include_path(BPF)
        .enable_intf(&format!("{BPF}/steal.h"), "bpf_intf.rs")
        .enable_skel(&format!("{BPF}/steal.bpf.c"), "bpf")
        .compile_link_gen()
        .context("building bpf/steal.bpf.c (clang 18 or later is needed: set BPF_CLANG)")
}
