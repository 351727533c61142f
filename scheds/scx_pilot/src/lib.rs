//! What scx_pilot decides, and from what: plain Rust with no BPF in sight, so that a policy can be read, changed,
//! debugged and tested like any other code.
//!
//! A policy implements [`policy::Policy`]; [`cycle::Cycle`] feeds it with the tasks that want to run and hands on what
//! it decides; [`inputs`] are what it may know beyond that.

// A policy's file reads the same inside this crate and outside it.
extern crate self as scx_pilot;

pub mod cycle;
pub mod inputs;
pub mod layout;
pub mod policy;
