//! Kernels built here, from Debian's source package and the fragments of `vm/kconfig/`.

use super::{Kernel, SYMBOLS, Source, cached};
use crate::apt::PrivateApt;
use crate::cache::Cache;
use crate::tools::hex;
use crate::ui::{Step, step};
use crate::{cmd, host, workspace};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room for the unpacked source and the objects, in MiB.
const NEEDED_MIB: u64 = 5000;

fn fragment_path(name: &str) -> PathBuf {
    workspace::root().join(format!("vm/kconfig/{name}.config"))
}

fn read_fragment(name: &str) -> Result<String> {
    let path = fragment_path(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// The configuration's part of the cache key: the same fragments give the same kernel.
pub fn config_key(fragments: &[String]) -> Result<String> {
    let mut hash = Sha256::new();
    for name in fragments {
        hash.update(name);
        hash.update([0]);
        hash.update(read_fragment(name)?);
        hash.update([0]);
    }
    Ok(hex(&hash.finalize())[..12].to_owned())
}

/// Builds a kernel; one of the newest source and the present configuration is not built again.
pub fn build(cache: &Cache, name: &str, source: &Source) -> Result<Kernel> {
    let Source::Build {
        package, fragments, ..
    } = source
    else {
        bail!("{name} is not built here");
    };
    let _lock = cache.lock(&format!("kernel-{name}"))?;
    let apt = PrivateApt::open(cache)?;
    let version = apt
        .candidate(package)?
        .with_context(|| format!("no suite has the package {package}"))?;
    if let Some(kernel) = cached(cache, name, source)
        && kernel.package_version == version
    {
        return Ok(kernel);
    }
    cache.need_space(NEEDED_MIB, "building a kernel")?;
    let key = format!("{version}-{}", config_key(fragments)?);
    let dir = cache.publish(format!("kernels/{name}/{key}"), |stage| {
        let tree = stage.join("tree");
        step(format!("fetching {package} {version}"), |s| {
            apt.unpack(s, &[format!("{package}={version}")], &tree)?;
            unpack_source(s, &tree)
        })?;
        let source = source_dir(&tree)?;
        step("configuring", |s| configure(s, &source, fragments))?;
        let label = format!("building {name} (about 11 minutes on 2 cores)");
        step(label, |s| make(s, &source, &["bzImage"]))?;
        let copy = |from: &str, to: &str| {
            fs::copy(source.join(from), stage.join(to)).with_context(|| format!("copying {from}"))
        };
        copy("arch/x86/boot/bzImage", "vmlinuz")?;
        copy(".config", "config")?;
        copy(SYMBOLS, SYMBOLS)?;
        let release = fs::read_to_string(source.join("include/config/kernel.release"))?;
        Kernel::seal(name, &version, release.trim(), stage)?;
        crate::cache::remove_all(&tree)
    })?;
    Kernel::read(&dir).with_context(|| format!("{} is not a whole kernel", dir.display()))
}

fn unpack_source(step: &Step, tree: &Path) -> Result<()> {
    let archive = fs::read_dir(tree.join("usr/src"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().ends_with(".tar.xz"))
        .context("the source package holds no .tar.xz")?;
    cmd::run(
        step,
        Command::new("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(tree),
    )?;
    fs::remove_file(&archive).context("removing the archive")
}

fn source_dir(tree: &Path) -> Result<PathBuf> {
    fs::read_dir(tree)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.join("Kconfig").is_file())
        .context("the archive holds no kernel source")
}

fn make(step: &Step, source: &Path, targets: &[&str]) -> Result<()> {
    cmd::run(
        step,
        Command::new("make")
            .current_dir(source)
            .arg(format!("-j{}", host::cpus()))
            .args(["KBUILD_BUILD_USER=manycore", "KBUILD_BUILD_HOST=manycore"])
            .args(targets),
    )
}

fn configure(step: &Step, source: &Path, fragments: &[String]) -> Result<()> {
    make(step, source, &["x86_64_defconfig"])?;
    cmd::run(
        step,
        Command::new("scripts/kconfig/merge_config.sh")
            .current_dir(source)
            .args(["-m", ".config"])
            .args(fragments.iter().map(|name| fragment_path(name))),
    )?;
    make(step, source, &["olddefconfig"])?;
    let config = fs::read_to_string(source.join(".config")).context("reading .config")?;
    for name in fragments {
        let refused = not_in_force(&read_fragment(name)?, &config);
        if !refused.is_empty() {
            bail!(
                "this kernel source does not take these lines of vm/kconfig/{name}.config: {}",
                refused.join(", ")
            );
        }
    }
    Ok(())
}

/// The lines of a fragment that the finished configuration does not follow. Kconfig drops what lacks a dependency
/// without a word.
fn not_in_force(fragment: &str, config: &str) -> Vec<String> {
    fragment
        .lines()
        .filter(|line| {
            if let Some(off) = line
                .strip_prefix("# ")
                .and_then(|l| l.strip_suffix(" is not set"))
            {
                config.lines().any(|l| {
                    l.split_once('=')
                        .is_some_and(|(key, value)| key == off && value != "n")
                })
            } else {
                line.starts_with("CONFIG_") && !config.lines().any(|l| l == *line)
            }
        })
        .map(String::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_options_are_found() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\nCONFIG_HZ_250=y\n";
        assert!(not_in_force("# why\nCONFIG_A=y\n# CONFIG_B is not set\n", config).is_empty());
        assert!(not_in_force("# CONFIG_GONE is not set\n", config).is_empty());
        assert_eq!(
            not_in_force(
                "CONFIG_B=y\n# CONFIG_C is not set\nCONFIG_HZ_100=y\n",
                config
            ),
            ["CONFIG_B=y", "# CONFIG_C is not set", "CONFIG_HZ_100=y"]
        );
    }

    #[test]
    fn the_key_depends_on_the_fragments() {
        let key = |names: &[&str]| {
            config_key(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(key(&["guest", "hz-250"]), key(&["guest", "hz-250"]));
        assert_ne!(key(&["guest", "hz-250"]), key(&["guest", "hz-100"]));
    }
}
