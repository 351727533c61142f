//! QEMU 10, unpacked into the cache with the libraries that the host lacks. Nothing is installed on the host, and the
//! version is the same for everybody on one Debian release, which measurements need.

use crate::apt::PrivateApt;
use crate::cache::Cache;
use crate::cmd;
use crate::host::{self, Kvm};
use crate::ui::step;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PACKAGES: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];
const MAJOR: &str = "10.";
const DIR: &str = "tools/qemu";
const PROBE_SECONDS: u64 = 15;

/// The program to start: a wrapper that finds its libraries and firmware in the cache.
pub fn path(cache: &Cache) -> PathBuf {
    cache.path(DIR).join("qemu-system-x86_64")
}

/// The version that runs, if one does.
pub fn version(cache: &Cache) -> Option<String> {
    let text = cmd::output(Command::new(path(cache)).arg("--version")).ok()?;
    parse_version(&text)
}

fn parse_version(text: &str) -> Option<String> {
    let version = text.split_whitespace().nth(3)?;
    version
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| version.trim_end_matches(',').to_owned())
}

pub fn ensure(cache: &Cache) -> Result<()> {
    let _lock = cache.lock("qemu")?;
    if version(cache).is_some() {
        return Ok(());
    }
    cache.need_space(400, "QEMU")?;
    let apt = PrivateApt::open(cache)?;
    let packages = choose_packages(&apt)?;
    step("fetching QEMU", |s| {
        cache.publish(DIR, |stage| {
            apt.unpack_with_dependencies(s, &packages, &stage.join("root"))?;
            write_wrapper(
                &stage.join("qemu-system-x86_64"),
                &cache.path(DIR).join("root"),
            )
        })
    })?;
    if version(cache).is_none() {
        bail!(
            "{} was unpacked but does not start: run it by hand to see why",
            path(cache).display()
        );
    }
    Ok(())
}

/// QEMU 10 from the host's own suites; where those are older, from its backports.
fn choose_packages(apt: &PrivateApt) -> Result<Vec<String>> {
    let is_ten = |version: &str| {
        let upstream = version.split_once(':').map_or(version, |(_, v)| v);
        upstream.starts_with(MAJOR)
    };
    if apt.candidate(PACKAGES[0])?.is_some_and(|v| is_ten(&v)) {
        return Ok(PACKAGES.map(String::from).to_vec());
    }
    let versions = apt.versions(PACKAGES[0])?;
    let (_, suite) = versions
        .iter()
        .find(|(version, suite)| is_ten(version) && suite.ends_with("-backports"))
        .context(
            "no suite of this host has QEMU 10 (Debian 12 has it in backports, Debian 13 in main)",
        )?;
    Ok(PACKAGES.iter().map(|p| format!("{p}/{suite}")).collect())
}

fn write_wrapper(wrapper: &Path, root: &Path) -> Result<()> {
    let root = root.display();
    let text = format!(
        "#!/bin/sh\n\
         R='{root}'\n\
         LD_LIBRARY_PATH=\"$R/usr/lib/x86_64-linux-gnu:$R/lib/x86_64-linux-gnu\" \\\n\
         QEMU_MODULE_DIR=\"$R/usr/lib/x86_64-linux-gnu/qemu\" \\\n\
         exec \"$R/usr/bin/qemu-system-x86_64\" -L \"$R/usr/share/qemu\" -L \"$R/usr/share/seabios\" \\\n    \
         -L \"$R/usr/lib/ipxe/qemu\" \"$@\"\n"
    );
    fs::write(wrapper, text).context("writing QEMU's wrapper")?;
    fs::set_permissions(wrapper, fs::Permissions::from_mode(0o755))
        .context("making QEMU's wrapper executable")
}

/// Whether KVM works here with this kernel image, asked once a boot of the host.
pub fn kvm(cache: &Cache, image: &Path) -> Kvm {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let memo = cache.path("kvm-probe");
    host::kvm(|| {
        if let Ok(known) = fs::read_to_string(&memo)
            && let Some((boot, verdict)) = known.split_once(' ')
            && boot == boot_id.trim()
        {
            return Ok(verdict == "usable");
        }
        let usable = boots_under_kvm(cache, image)?;
        let verdict = if usable { "usable" } else { "unusable" };
        fs::write(&memo, format!("{} {verdict}", boot_id.trim()))
            .context("noting the KVM probe")?;
        Ok(usable)
    })
}

/// Boots the kernel with no root: it is through its boot when it panics for want of one, and QEMU ends.
fn boots_under_kvm(cache: &Cache, image: &Path) -> Result<bool> {
    let mut child = Command::new(path(cache))
        .args(["-accel", "kvm", "-cpu", "host", "-m", "512M", "-smp", "2"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-append", "panic=-1 quiet", "-kernel"])
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting QEMU")?;
    let deadline = Instant::now() + Duration::from_secs(PROBE_SECONDS);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().context("waiting for QEMU")? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().context("ending QEMU")?;
    child.wait().context("waiting for QEMU")?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_qemus_version() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(parse_version(text).as_deref(), Some("10.0.2"));
        assert_eq!(parse_version("error while loading shared libraries"), None);
    }
}
