//! Prebuilt kernels: Debian's packages, unpacked into the cache, never installed.

use super::{Kernel, Source, cached};
use crate::apt::{self, PrivateApt};
use crate::cache::Cache;
use crate::cmd;
use crate::ui::step;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Fetches the newest version of a prebuilt kernel; what the cache has already is not fetched again.
pub fn fetch(cache: &Cache, name: &str, source: &Source) -> Result<Kernel> {
    let Source::Package {
        prefix,
        suffix,
        companions,
        require,
        ..
    } = source
    else {
        bail!("{name} is not a prebuilt kernel");
    };
    let _lock = cache.lock(&format!("kernel-{name}"))?;
    let apt = PrivateApt::open(cache)?;
    let variant = newest(prefix, apt.names(prefix, suffix)?)
        .with_context(|| format!("Debian's suites have no package {prefix}*{suffix}"))?;
    let package = format!("{prefix}{variant}");
    let version = apt
        .candidate(&package)?
        .with_context(|| format!("the package {package} has no version to download"))?;
    if let Some(kernel) = cached(cache, name, source)
        && kernel.package_version == version
    {
        return Ok(kernel);
    }
    cache.need_space(600, "a prebuilt kernel")?;
    let mut packages: Vec<_> = companions
        .iter()
        .map(|companion| format!("{companion}{variant}={version}"))
        .collect();
    packages.push(format!("{package}={version}"));
    let dir = step(format!("fetching the kernel {package}"), |s| {
        cache.publish(format!("kernels/{name}/{version}"), |stage| {
            let root = stage.join("root");
            apt.unpack(s, &packages, &root)?;
            arrange(name, &version, &root, stage, require)?;
            crate::cache::remove_all(&root)
        })
    })?;
    Kernel::read(&dir).with_context(|| format!("{} is not a whole kernel", dir.display()))
}

/// The newest of the packages that a prefix names, without it. Names that go on with a word (`unsigned-`) are others.
fn newest(prefix: &str, names: Vec<String>) -> Option<String> {
    names
        .iter()
        .filter_map(|name| name.strip_prefix(prefix))
        .filter(|variant| variant.starts_with(|c: char| c.is_ascii_digit()))
        .reduce(|a, b| if apt::version_is_newer(b, a) { b } else { a })
        .map(String::from)
}

/// Puts image, configuration and modules where every kernel of the cache has them, whatever the package's layout.
fn arrange(name: &str, version: &str, root: &Path, dest: &Path, require: &[String]) -> Result<()> {
    let modules = ["usr/lib/modules", "lib/modules"]
        .iter()
        .map(|sub| root.join(sub))
        .find(|dir| dir.is_dir())
        .context("the packages hold no lib/modules")?;
    let release = fs::read_dir(&modules)?
        .next()
        .context("lib/modules is empty")??
        .file_name()
        .into_string()
        .map_err(|name| anyhow::anyhow!("odd kernel release {name:?}"))?;
    let find = |file: &str| -> Result<PathBuf> {
        [
            modules.join(&release).join(file),
            root.join(format!("boot/{file}-{release}")),
        ]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("the packages hold no {file} for {release}"))
    };
    let config = fs::read_to_string(find("config")?)?;
    for line in require {
        if !config.lines().any(|l| l == line) {
            bail!("{release} is built without {line}");
        }
    }
    fs::rename(find("vmlinuz")?, dest.join("vmlinuz")).context("placing vmlinuz")?;
    fs::rename(find("config")?, dest.join("config")).context("placing the config")?;
    fs::create_dir_all(dest.join("lib/modules"))?;
    fs::rename(
        modules.join(&release),
        dest.join("lib/modules").join(&release),
    )
    .context("placing the modules")?;
    cmd::output(Command::new("depmod").arg("-b").arg(dest).arg(&release))
        .context("indexing the modules")?;
    Kernel::seal(name, version, &release, dest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_by_version_not_by_letter() {
        let mut names =
            ["7.2.9", "7.2.12", "7.2.6"].map(|v| format!("linux-binary-{v}+deb13-cloud-amd64"));
        names[2] = "linux-binary-unsigned-7.3.4+deb13-cloud-amd64".into();
        assert_eq!(
            newest("linux-binary-", names.to_vec()).unwrap(),
            "7.2.12+deb13-cloud-amd64"
        );
    }

    #[test]
    fn a_kernel_without_sched_ext_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let modules = root.join("usr/lib/modules/7.0.1");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("vmlinuz"), "").unwrap();
        fs::write(modules.join("config"), "CONFIG_HZ=250\n").unwrap();
        let require = vec!["CONFIG_SCHED_CLASS_EXT=y".to_owned()];
        let error = arrange("debian", "7.0.1-1", &root, dir.path(), &require).unwrap_err();
        assert!(error.to_string().contains("without CONFIG_SCHED_CLASS_EXT"));
    }
}
