//! Workloads that no packaged tool provides. They run in the guest and print `NAME VALUE` lines.

mod burst;
mod cost;
mod fair;
mod imbalance;
mod jobs;
mod latency;
mod mark;
mod rtapp;
mod service;
mod shares;
mod speed;
mod spin;

use anyhow::Result;
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Work {
    /// Tasks that are released by one barrier: how long until the last is done?
    Burst(burst::Args),
    /// A command's instructions for an operation
    Cost(cost::Args),
    /// Equal threads that never sleep: what does each get?
    Fair(fair::Args),
    /// Tasks that start on one node and then may run anywhere
    Imbalance(imbalance::Args),
    /// Jobs with dependencies, as make runs them
    Jobs(jobs::Args),
    /// A command beside threads that keep all CPUs busy by a share of the time
    Loaded(latency::Args),
    /// Turns the counting of instructions on or off, in a guest with a virtual clock and a profile (docs/method.md)
    Mark,
    /// rt-app's periodic threads
    RtApp(rtapp::Args),
    /// Requests beside batch work
    Service(service::Args),
    /// Threads of different weight: what does each class get?
    Shares(shares::Args),
    /// Are threads on different CPUs as fast together as alone?
    Speed(speed::Args),
}

pub fn run(work: &Work) -> Result<()> {
    match work {
        Work::Burst(args) => burst::run(args),
        Work::Cost(args) => cost::run(args),
        Work::Fair(args) => fair::run(args),
        Work::Imbalance(args) => imbalance::run(args),
        Work::Jobs(args) => jobs::run(args),
        Work::Loaded(args) => latency::run(args),
        Work::Mark => {
            mark::mark();
            Ok(())
        }
        Work::RtApp(args) => rtapp::run(args),
        Work::Service(args) => service::run(args),
        Work::Shares(args) => shares::run(args),
        Work::Speed(args) => speed::run(args),
    }
}
