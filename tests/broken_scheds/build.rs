//! Compiles the faulty scheduler and generates its skeleton.

fn main() {
    scx_cargo::BpfBuilder::new()
        .expect("no clang fit to compile BPF: install clang 19 and set BPF_CLANG=clang-19")
        .enable_skel("src/bpf/broken.bpf.c", "bpf")
        .compile_link_gen()
        .expect("src/bpf/broken.bpf.c doesn't compile");
}
