//! The control plane that every scheduler daemon shares.
//!
//! A daemon describes its policy by implementing [`lifecycle::Daemon`]; this library does the rest: it reads the
//! machine's topology, checks that the kernel can load a scheduler at all, loads it, serves its statistics, waits,
//! says why it ended, and starts it again when CPUs came or went.
//!
//! Nothing in here knows of any one policy.

pub mod cgroup_shares;
pub mod classes;
pub mod domains;
pub mod fair;
mod helper;
pub mod lifecycle;
pub mod logging;
pub mod options;
pub mod policy;
pub mod shards;
pub mod stats;
pub mod stuck;
pub mod topology;

pub use lifecycle::{Daemon, Instance, start};
pub use options::CommonOpts;
pub use topology::Topology;

/// The Rust side of `bpf/lib/intf.h`.
#[allow(
    dead_code,
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub
)]
mod bpf_intf {
    include!(concat!(env!("OUT_DIR"), "/bpf_intf.rs"));
}

/// The Rust side of `bpf/lib/classes.h`.
#[allow(
    dead_code,
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub
)]
mod classes_intf {
    include!(concat!(env!("OUT_DIR"), "/classes_intf.rs"));
}

/// The Rust side of `bpf/lib/shards.h`.
#[allow(
    dead_code,
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub
)]
mod shards_intf {
    include!(concat!(env!("OUT_DIR"), "/shards_intf.rs"));
}

/// The Rust side of `bpf/lib/cgroup_shares.h`.
#[allow(
    dead_code,
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub
)]
mod cgroup_shares_intf {
    include!(concat!(env!("OUT_DIR"), "/cgroup_shares_intf.rs"));
}
