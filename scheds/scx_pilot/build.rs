//! Compiles the BPF side, which `scx_rustland_core` brings along, and `bpf/pilot.bpf.c`, which adds to it, and generates
//! their Rust counterparts.
//!
//! The first one's builder writes into the current folder, which for a build script is the crate's own, and both give
//! what they generate the same names. So each is run in a process of its own, inside a folder of `OUT_DIR`: the sources
//! stay as they are, and may be read-only.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

/// The BPF sources of all schedulers, from the package's folder, where cargo runs this.
const BPF: &str = "../../bpf";

/// Names the builder, for the process that runs it.
const INSIDE: &str = "SCX_PILOT_BUILD_INSIDE";

fn main() -> Result<()> {
    match env::var(INSIDE).as_deref() {
        Ok("rustland") => return build_rustland(),
        Ok("pilot") => {
            let bpf = bpf()?;
            return scx_cargo::BpfBuilder::new()?
                .add_include_path(&bpf)
                .enable_intf(&format!("{bpf}/pilot.h"), "bpf_intf.rs")
                .enable_skel(&format!("{bpf}/pilot.bpf.c"), "bpf")
                .compile_link_gen();
        }
        Ok(other) => bail!("there is no builder {other}"),
        Err(_) => {}
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").context("no OUT_DIR")?);
    // The generated code of the first one is where its builder puts it: half of it in the folder above.
    run("rustland", &out.join("rustland"), &out)?;
    run("pilot", &out.join("pilot"), &out.join("pilot"))?;
    // The builders name files of their folders as inputs, which would be looked for in this one.
    println!("cargo::rerun-if-changed=build.rs");
    for input in ["pilot.bpf.c", "pilot.h", "lib"] {
        println!("cargo::rerun-if-changed={BPF}/{input}");
    }
    for variable in ["BPF_CLANG", "BPF_CFLAGS", "BPF_BASE_CFLAGS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    Ok(())
}

/// The same for a builder, which runs elsewhere.
fn bpf() -> Result<String> {
    let package = env::var("CARGO_MANIFEST_DIR").context("no CARGO_MANIFEST_DIR")?;
    Ok(format!("{package}/{BPF}"))
}

/// What `scx_rustland_core` 2.4.15 has wrong in its BPF side, with what is put in its place.
const BPF_MENDED: [(&str, &str); 4] = [
    // That the callback of `bpf_user_ringbuf_drain()` returns 1 makes it skip the rest, so as long as there was room for more
    // decisions, one was taken in at a time. All others waited for the next time that any CPU had nothing to run, while their
    // tasks' ranks counted for nothing.
    (
        "return !!scx_bpf_dispatch_nr_slots();",
        "return !scx_bpf_dispatch_nr_slots();",
    ),
    // A CPU that is coming up idles before the kernel asks for tasks for it, and one that is going still does after. Those that
    // were sent there waited for it to come or go, and it for them, where one of them was the kernel's thread for expedited
    // grace periods.
    ("static void dispatch_task(", TAKES_TASKS),
    (
        "if (task->cpu == RL_CPU_ANY) {",
        "if (task->cpu == RL_CPU_ANY || !takes_tasks(task->cpu)) {",
    ),
    (
        "return !scx_bpf_dsq_nr_queued(SHARED_DSQ) &&",
        "return takes_tasks(cpu) && !scx_bpf_dsq_nr_queued(SHARED_DSQ) &&",
    ),
];

const TAKES_TASKS: &str = "
/* Its type is in no BTF. */
extern const void __cpu_active_mask __ksym;

static bool takes_tasks(s32 cpu)
{
	const struct rq *rq = bpf_per_cpu_ptr(&runqueues, cpu);
	u64 active = 0;

	/* Comes up: active, then online. Goes: inactive, a grace period, then offline. */
	if (!rq || !rq->online)
		return false;
	bpf_probe_read_kernel(&active, sizeof(active),
			      (const u64 *)&__cpu_active_mask + cpu / 64);
	return active & (1ULL << cpu % 64);
}

static void dispatch_task(";

/// And in what connects the daemon to it: the scheduler is attached first, and then the thread that decides locks its memory
/// and gives up `mmap()`. Meanwhile nobody is scheduled who finds no idle CPU, and the kernel may make that thread wait for
/// one of them. So it is attached last. And a CPU that goes while the topology is read is no reason to panic.
const RUST_MENDED: [(&str, &str); 3] = [
    (
        "let topo = Topology::new().unwrap();",
        "let topo = Topology::new().context(\"reading the topology\")?;",
    ),
    (ATTACHES, ""),
    (
        "        // Make sure to use the SCHED_EXT class at least for the scheduler itself.\n",
        "        let attached = scx_ops_attach!(skel, rustland);
        if attached.is_err() {
            ALLOCATOR.unlock_memory();
        }
        let struct_ops = Some(attached?);

        // Make sure to use the SCHED_EXT class at least for the scheduler itself.\n",
    ),
];

const ATTACHES: &str = "        let struct_ops = Some(scx_ops_attach!(skel, rustland)?);\n";

/// Builds it as it is, which leaves its sources behind, and then its BPF side anew as it is meant.
fn build_rustland() -> Result<()> {
    const SOURCE: &str = "main.bpf.c";
    scx_rustland_core::RustLandBuilder::new()?.build()?;
    mend(SOURCE, &BPF_MENDED)?;
    mend("src/bpf.rs", &RUST_MENDED)?;
    scx_cargo::BpfBuilder::new()?
        .enable_intf("intf.h", "bpf_intf.rs")
        .enable_skel(SOURCE, "bpf")
        .build()
}

/// Replaces what is wrong in one of its sources.
fn mend(path: &str, mended: &[(&str, &str)]) -> Result<()> {
    let mut source = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    for (wrong, right) in mended {
        let found = source.matches(wrong).count();
        ensure!(
            found == 1,
            "{path} of scx_rustland_core has {found} times `{wrong}`, not once: is this still needed?"
        );
        source = source.replace(wrong, right);
    }
    fs::write(path, source).with_context(|| format!("writing {path}"))
}

/// Runs a builder in a folder, with another one for what it generates.
fn run(builder: &str, dir: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("src")).context("making a folder for what is generated")?;
    let built = Command::new(env::current_exe().context("finding the build script")?)
        .env(INSIDE, builder)
        .env("OUT_DIR", out)
        .current_dir(dir)
        .output()
        .with_context(|| format!("running the builder of {builder}"))?;
    ensure!(
        built.status.success(),
        "building the BPF side of {builder} (clang 18 or later is needed: set BPF_CLANG): {}",
        String::from_utf8_lossy(&built.stderr)
    );
    Ok(())
}
