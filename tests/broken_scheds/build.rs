//! Compiles the faulty scheduler and generates its skeleton.

/// The BPF sources of the real schedulers, from the package's folder, where cargo runs this.
const BPF: &str = "../../bpf";

fn main() {
    // BpfBuilder watches the folder of the source.
    println!("cargo::rerun-if-changed={BPF}/lib");
    scx_cargo::BpfBuilder::new()
        .expect("no clang fit to compile BPF: install clang 19 and set BPF_CLANG=clang-19")
        .add_include_path(BPF)
        .enable_skel("src/bpf/broken.bpf.c", "bpf")
        .compile_link_gen()
        .expect("src/bpf/broken.bpf.c doesn't compile");
}
