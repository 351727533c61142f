//! `cargo xtask doctor`: what is there, what is missing, how to get it.

use crate::cache::Cache;
use crate::host::{self, Distro, Kvm};
use crate::{apt, kernel, qemu, setup, tools, ui};
use anyhow::Result;
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    state: State,
    detail: String,
    /// What to do about it; empty if nothing needs doing.
    remedy: String,
}

#[derive(Debug, Serialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Missing,
    /// Not needed; it would make things faster or possible on the host itself.
    Optional,
}

impl Finding {
    fn new(what: impl Into<String>, ok: bool, detail: impl Into<String>, remedy: &str) -> Self {
        Self {
            what: what.into(),
            state: if ok { State::Ok } else { State::Missing },
            detail: detail.into(),
            remedy: if ok { String::new() } else { remedy.into() },
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    let findings = findings(&cache)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
        return Ok(());
    }
    let mut table = ui::table(["", "what", "found", "to do"]);
    for finding in &findings {
        let mark = match finding.state {
            State::Ok => "ok",
            State::Missing => "--",
            State::Optional => "  ",
        };
        table.add_row([mark, &finding.what, &finding.detail, &finding.remedy]);
    }
    println!("{table}");
    Ok(())
}

fn findings(cache: &Cache) -> Result<Vec<Finding>> {
    const SETUP: &str = "cargo xtask setup";
    let distro = Distro::read()?;
    let mut list = vec![Finding::new(
        "distribution",
        distro.has_apt(),
        &distro.name,
        "see `cargo xtask setup` for the packages that are needed",
    )];
    for group in setup::PACKAGES {
        let missing = apt::missing(group.packages);
        let detail = if missing.is_empty() {
            format!("{} packages", group.packages.len())
        } else {
            format!("missing: {}", missing.join(" "))
        };
        list.push(Finding::new(
            format!("to {}", group.purpose),
            missing.is_empty(),
            detail,
            SETUP,
        ));
    }
    let ready = |ok: bool| if ok { "ready" } else { "not there" };
    let virtme = tools::virtme_is_ready(cache);
    list.push(Finding::new("virtme-ng", virtme, ready(virtme), SETUP));
    let virtiofsd = tools::virtiofsd_is_ready(cache);
    list.push(Finding::new(
        "virtiofsd",
        virtiofsd,
        ready(virtiofsd),
        SETUP,
    ));
    let version = qemu::version(cache);
    let found = version.clone().unwrap_or_else(|| "not there".into());
    list.push(Finding::new("QEMU 10", version.is_some(), found, SETUP));
    let default_image = kernels(cache, &mut list)?;
    list.push(kvm(cache, default_image.as_ref()));
    list.push(own_kernel());
    Ok(list)
}

/// A row for each kernel; returns the default one if the cache has it.
fn kernels(cache: &Cache, list: &mut Vec<Finding>) -> Result<Option<kernel::Kernel>> {
    let catalogue = kernel::Catalogue::load()?;
    let mut default = None;
    for (name, source) in catalogue.iter() {
        let cached = kernel::cached(cache, name, source);
        let detail = cached
            .as_ref()
            .map_or_else(|| "not in the cache".into(), |k| k.release.clone());
        let mut finding = Finding::new(
            format!("kernel {name}"),
            cached.is_some(),
            detail,
            &source.how_to_get(name),
        );
        if *name == catalogue.default {
            default = cached;
        } else if cached.is_none() {
            finding.state = State::Optional;
        }
        list.push(finding);
    }
    Ok(default)
}

fn kvm(cache: &Cache, image: Option<&kernel::Kernel>) -> Finding {
    let what = "KVM (guests at full speed)";
    let verdict = match image {
        Some(kernel) => qemu::kvm(cache, &kernel.image()),
        None => host::kvm(|| anyhow::bail!("there is no kernel yet to probe with")),
    };
    match verdict {
        Kvm::Usable => Finding::new(what, true, "usable", ""),
        Kvm::No(why) => Finding {
            what: what.into(),
            state: State::Optional,
            detail: format!("not usable: {why}"),
            remedy: "guests run under TCG (emulated): slower, all features work".into(),
        },
    }
}

fn own_kernel() -> Finding {
    let ok = host::running_kernel_has_sched_ext();
    let mut finding = Finding::new(
        "this machine's own kernel",
        ok,
        format!(
            "{}, sched_ext {}",
            host::kernel_release(),
            if ok { "available" } else { "not available" }
        ),
        "schedulers run in a VM: cargo xtask vm run -- scx_rr",
    );
    if !ok {
        finding.state = State::Optional;
    }
    finding
}
