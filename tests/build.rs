//! Compiles the checker's BPF object and generates its skeleton.

fn main() {
    scx_cargo::BpfBuilder::new()
        .expect("no clang fit to compile BPF: install clang 19 and set BPF_CLANG=clang-19")
        .add_source("../bpf/check.bpf.c")
        .enable_skel("../bpf/check.bpf.c", "bpf")
        .compile_link_gen()
        .expect("bpf/check.bpf.c doesn't compile");
    println!("cargo::rerun-if-changed=../bpf/check.h");
}
