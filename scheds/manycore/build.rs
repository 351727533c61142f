//! Compiles the meter's BPF object and generates its skeleton.

fn main() {
    scx_cargo::BpfBuilder::new()
        .expect("no clang fit to compile BPF: install clang 19 and set BPF_CLANG=clang-19")
        .add_include_path("../../bpf")
        .add_source("../../bpf/observe.bpf.c")
        .enable_skel("../../bpf/observe.bpf.c", "bpf")
        .compile_link_gen()
        .expect("bpf/observe.bpf.c doesn't compile");
    for path in ["../../bpf/observe.h", "../../bpf/observe"] {
        println!("cargo::rerun-if-changed={path}");
    }
}
