//! The skeleton of `bpf/check.bpf.c` that build.rs generates.
#![allow(
    clippy::all,
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    missing_debug_implementations,
    unreachable_pub,
    dead_code
)]

include!(concat!(env!("OUT_DIR"), "/bpf_skel.rs"));
