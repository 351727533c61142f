//! Shares of cgroups by `cpu.weight`, for policies that queue tasks and know no groups (`bpf/lib/cgroup_shares.bpf.h`): from who
//! runs or waits, and from the tree of cgroups, to a factor for each cgroup.

mod factors;
mod follower;
mod tree;

use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use libbpf_rs::{
    ErrorKind, Iter, IterOpts, Link, MapCore, MapFlags, MapHandle, ProgramMut, RingBuffer,
    RingBufferBuilder,
};
use log::{debug, warn};
use rustix::process::setpriority_process;

use crate::cgroup_shares_intf::MAX_SHARES;
use crate::helper::Helper;
use follower::{EVERY, Follower, Pause};

const ROOT: &str = "/sys/fs/cgroup";
/// Of the thread that does all this.
const NICE: i32 = -20;

/// The options of a daemon whose policy shares by cgroups.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ShareOpts {
    /// Share CPU time among threads alone, by their nice levels, and ignore the cpu.weight of cgroups
    #[arg(long)]
    pub no_cgroup_weight: bool,
}

impl ShareOpts {
    /// Whether there are shares to follow: they are wanted, and this is cgroup v2 with the cpu controller.
    pub fn enabled(self) -> bool {
        !self.no_cgroup_weight
            && std::fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))
                .is_ok_and(|list| list.split_whitespace().any(|name| name == "cpu"))
    }

    /// For how many cgroups the map is to have room.
    pub fn room(self) -> u32 {
        if self.enabled() { MAX_SHARES } else { 1 }
    }
}

/// Keeps the map of shares of a loaded scheduler, in a thread of its own.
#[derive(Debug)]
pub struct Shares(#[expect(dead_code, reason = "kept for its life")] Helper);

impl Shares {
    /// With what the scheduler's object has of `bpf/lib/cgroup_shares.bpf.h`: the iterator that tells which tasks run or
    /// wait, where it calls, and the map.
    ///
    /// If later the kernel refuses something, that is logged, and shares stay as they are from then on.
    ///
    /// # Errors
    /// If the kernel refuses to attach the iterator, or has no thread to spare.
    pub fn start(
        read_loads: &ProgramMut<'_>,
        calls: &impl MapCore,
        map: MapHandle,
    ) -> Result<Self> {
        let tasks = read_loads
            .attach_iter_with_opts(IterOpts::None)
            .context("attaching the iterator of tasks")?;
        let mut builder = RingBufferBuilder::new();
        let calls = builder.add(calls, |_| 0).map(|_| ());
        let calls = calls.and_then(|()| builder.build());
        let mut keeper = Keeper {
            tasks,
            calls: calls.context("mapping the calls for shares")?,
            map,
            follower: Follower::below(Path::new(ROOT)),
        };
        Helper::start("shares", move |stop| {
            // Or it would wait its turn among those whose shares are wrong.
            if let Err(err) = setpriority_process(None, NICE) {
                debug!("shares are worked out at the nice level of others: {err}");
            }
            if let Err(err) = keeper.run(stop) {
                warn!("shares of cgroups stay as they are: {err:#}");
            }
        })
        .map(Self)
        .context("starting a thread for the shares of cgroups")
    }
}

/// What the thread has.
struct Keeper {
    tasks: Link,
    calls: RingBuffer<'static>,
    map: MapHandle,
    follower: Follower,
}

impl Keeper {
    /// Looks at the tasks and brings the map up to date, ten times a second, and when it is called.
    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            self.update(now)?;
            let Pause { wait, listens } = self.follower.pause(now);
            if !listens {
                std::thread::sleep(wait);
                continue;
            }
            match self.calls.poll(wait) {
                Err(err) if err.kind() != ErrorKind::Interrupted => {
                    return Err(err).context("waiting for calls");
                }
                _ if now.elapsed() < EVERY => self.follower.looked_early(Instant::now()),
                _ => {}
            }
        }
        Ok(())
    }

    fn update(&mut self, now: Instant) -> Result<()> {
        let mut bytes = Vec::new();
        Iter::new(&self.tasks)
            .context("starting the iterator of tasks")?
            .read_to_end(&mut bytes)
            .context("reading the iterator of tasks")?;
        for (id, share) in self.follower.observe(&bytes, now)? {
            let key = id.to_ne_bytes();
            match share {
                Some(share) => self.map.update(&key, &share.to_ne_bytes(), MapFlags::ANY),
                None => self.map.delete(&key),
            }
            .context("writing a share")?;
        }
        Ok(())
    }
}
