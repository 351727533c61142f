//! Generates the Rust side of the tables shared by all policies, `bpf/lib/*.h`.

use anyhow::{Context, Result};

/// From the package's folder, where cargo runs this.
const LIB: &str = "../../bpf/lib";

fn main() -> Result<()> {
    bind("intf.h", "bpf_intf.rs")?;
    bind("classes.h", "classes_intf.rs")?;
    bind("shards.h", "shards_intf.rs")?;
    bind("cgroup_shares.h", "cgroup_shares_intf.rs")
}

fn bind(header: &str, to: &str) -> Result<()> {
    let header = format!("{LIB}/{header}");
    println!("cargo::rerun-if-changed={header}");
    scx_cargo::BpfBuilder::new()?
        .enable_intf(&header, to)
        .build()
        .with_context(|| format!("binding {header} (clang 18 or later is needed: set BPF_CLANG)"))
}
