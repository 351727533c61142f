//! `cargo xtask setup`: everything that is missing, and nothing twice.

use crate::bench::peers::PEERS;
use crate::cache::Cache;
use crate::failure::{Exit, Usage};
use crate::host::{self, Distro};
use crate::{apt, kernel, qemu, tools, ui};
use anyhow::Result;

#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// Install what is missing without asking
    #[arg(long, short)]
    pub yes: bool,
    /// Kernels to have ready [default: the default one of vm/kernels.toml]
    #[arg(long = "kernel", value_name = "NAME")]
    pub kernels: Vec<String>,
    /// Build the published upstream schedulers too, which `cargo xtask bench --peers` compares with (15 minutes)
    #[arg(long)]
    pub peers: bool,
}

/// A group of Debian packages that are installed on the host, and what they are for.
#[derive(Debug)]
pub struct Group {
    pub purpose: &'static str,
    pub packages: &'static [&'static str],
}

/// Ordered by purpose; the names are the same on Debian 12, Debian 13 and Ubuntu.
pub const PACKAGES: [Group; 4] = [
    Group {
        purpose: "compile BPF schedulers and their daemons",
        packages: &[
            "clang-19",
            "gcc",
            "libc6-dev",
            "libelf-dev",
            "make",
            "pkg-config",
            "zlib1g-dev",
        ],
    },
    Group {
        purpose: "boot virtual machines",
        packages: &[
            "binutils",
            "busybox-static",
            "cpio",
            "file",
            "kmod",
            "libcap-ng-dev",
            "libseccomp-dev",
            "python3-venv",
            "udev",
            "zstd",
        ],
    },
    Group {
        purpose: "build kernels",
        packages: &[
            "bc",
            "bison",
            "dwarves",
            "flex",
            "libssl-dev",
            "rsync",
            "xz-utils",
        ],
    },
    Group {
        purpose: "run workloads in the guests",
        packages: &[
            "linux-perf",
            "numactl",
            "procps",
            "rt-app",
            "rt-tests",
            "stress-ng",
            "sysbench",
            "util-linux",
        ],
    },
];

pub fn missing_packages() -> Vec<&'static str> {
    let all: Vec<_> = PACKAGES
        .iter()
        .flat_map(|group| group.packages)
        .copied()
        .collect();
    apt::missing(&all)
}

pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    let catalogue = kernel::Catalogue::load()?;
    let kernels = if args.kernels.is_empty() {
        vec![catalogue.default.clone()]
    } else {
        args.kernels.clone()
    };
    for name in &kernels {
        catalogue.get(name)?;
    }
    ensure(&cache, &kernels, args.yes)?;
    if args.peers {
        for peer in PEERS {
            peer.ensure(&cache)?;
        }
    }
    eprintln!("ready: `cargo xtask doctor` shows what there is");
    Ok(())
}

/// Makes sure that everything is there which building, guests and these kernels need.
pub fn ensure(cache: &Cache, kernels: &[String], yes: bool) -> Result<()> {
    system_packages(yes)?;
    tools::ensure_virtme(cache)?;
    qemu::ensure(cache)?;
    tools::ensure_virtiofsd(cache)?;
    for name in kernels {
        kernel::ensure(cache, name)?;
    }
    Ok(())
}

fn system_packages(yes: bool) -> Result<()> {
    let distro = Distro::read()?;
    if !distro.has_apt() {
        return other_distribution(&distro);
    }
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("these packages are missing: {}", missing.join(" "));
    if !yes && !host::is_root() {
        let question = "install them with `sudo apt-get install`?";
        if !ui::confirm(question)? {
            return Err(Exit::with(
                1,
                format!(
                    "not installed; do it by hand, or pass --yes: sudo apt-get install --no-install-recommends {}",
                    missing.join(" ")
                ),
            )
            .into());
        }
    }
    apt::install(&missing)
}

/// Nothing is installed on a distribution whose package names we can't know; what is needed is listed by purpose.
fn other_distribution(distro: &Distro) -> Result<()> {
    let list: String = PACKAGES
        .iter()
        .map(|group| format!("\n  {}: {}", group.purpose, group.packages.join(" ")))
        .collect();
    Err(Usage(format!(
        "{} is not Debian or Ubuntu, and setup installs packages on those only. What is needed, by Debian's names:{list}\n\
         and, to boot guests: virtme-ng 1.42, virtiofsd, QEMU 10 and a kernel with CONFIG_SCHED_CLASS_EXT. A Debian \
         container with /dev/kvm passed in works as well",
        distro.name
    ))
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_distribution_gets_the_exact_list_and_exit_code_two() {
        let distro = Distro {
            id: "fedora".into(),
            codename: String::new(),
            name: "Fedora".into(),
        };
        let error = other_distribution(&distro).unwrap_err();
        assert!(error.is::<Usage>());
        let text = error.to_string();
        assert!(text.contains("Fedora") && text.contains("clang-19") && text.contains("virtme-ng"));
    }

    #[test]
    fn no_package_is_listed_twice() {
        let mut all: Vec<_> = PACKAGES.iter().flat_map(|g| g.packages).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
