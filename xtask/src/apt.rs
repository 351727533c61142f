//! Debian packages: those installed on the host, and those that are only unpacked into the cache.
//!
//! What the host's own suites lack (newer kernels, QEMU 10 on Debian 12) is read through a second, private set of apt
//! sources whose lists and downloads lie in the cache. The host's sources stay as they are, and apt verifies the
//! signatures of what it downloads as it always does.

use crate::cache::Cache;
use crate::cmd;
use crate::host::{self, Distro};
use crate::ui::{Step, step};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

/// Suites of Debian that have what older ones lack, with the lowest priority: nothing comes from them unless asked for.
const NEWER_SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const NEWER_SECURITY: &str = "trixie-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Room for the package lists, in MiB.
const LISTS_MIB: u64 = 400;
/// Package lists older than this are read anew before something is fetched.
const LISTS_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Which of these packages are not installed on the host.
pub fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect()
}

fn is_installed(package: &str) -> bool {
    cmd::output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Installs packages on the host, as root or through sudo.
pub fn install(packages: &[&str]) -> Result<()> {
    let apt = |args: &[&str]| {
        let mut command = if host::is_root() {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg("apt-get");
            sudo
        };
        command
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C");
        command
    };
    let updated = step("reading the package lists", |s| {
        cmd::run(s, &mut apt(&["update", "-q"]))
    });
    cmd::over_network(updated, "apt-get update failed")?;
    step(format!("installing {} packages", packages.len()), |s| {
        let mut command = apt(&["install", "-y", "-q", "--no-install-recommends"]);
        cmd::run(s, command.args(packages))
    })
    .context("apt-get install failed")
}

/// The private apt configuration.
#[derive(Debug)]
pub struct PrivateApt {
    dir: PathBuf,
    distro: Distro,
}

impl PrivateApt {
    /// Opens it, and reads the package lists if they are missing or a day old. The caller needs no lock.
    pub fn open(cache: &Cache) -> Result<Self> {
        let _lock = cache.lock("apt")?;
        let apt = Self {
            dir: cache.dir("apt")?,
            distro: Distro::read()?,
        };
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(apt.dir.join(sub)).context("creating apt's folders")?;
        }
        let sources = apt.sources()?;
        let changed =
            fs::read_to_string(apt.dir.join("sources.list")).is_ok_and(|old| old != sources);
        fs::write(apt.dir.join("sources.list"), sources).context("writing apt's sources")?;
        fs::write(apt.dir.join("preferences"), preferences(&apt.distro))
            .context("writing apt's preferences")?;
        fs::write(apt.dir.join("apt.conf"), apt.configuration())
            .context("writing apt's configuration")?;
        if changed || !apt.lists_are_fresh() {
            // On a full disk apt-get update does not fail, it hangs.
            cache.need_space(LISTS_MIB, "reading Debian's package lists")?;
            apt.update()?;
        }
        Ok(apt)
    }

    fn lists_are_fresh(&self) -> bool {
        fs::metadata(self.dir.join("updated"))
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| {
                SystemTime::now()
                    .duration_since(time)
                    .is_ok_and(|age| age < LISTS_MAX_AGE)
            })
    }

    fn update(&self) -> Result<()> {
        let read = step("reading Debian's package lists (private sources)", |s| {
            // An unreachable mirror is only a warning to apt-get update unless told otherwise.
            cmd::run(
                s,
                self.command("apt-get")
                    .args(["update", "-q", "--error-on=any"]),
            )
        });
        if read.is_err() {
            // The first error is what the user needs; apt would only resume these.
            let _ = crate::cache::remove_all(&self.dir.join("lists/partial"));
        }
        cmd::over_network(read, "Debian's package lists could not be read")?;
        fs::write(self.dir.join("updated"), "").context("marking the package lists as read")
    }

    /// An apt command that sees the private sources only. Proxies and certificates of the host still apply, since this
    /// configuration is read after the host's.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(self.dir.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }

    fn configuration(&self) -> String {
        let dir = self.dir.display();
        // apt's own download user can't write into root's cache folder.
        let sandbox = if host::is_root() { "root" } else { "" };
        format!(
            "Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
             Dir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferences \"{dir}/preferences\";\n\
             Dir::Etc::preferencesparts \"/dev/null\";\n\
             Dir::State::lists \"{dir}/lists\";\n\
             Dir::State::extended_states \"{dir}/extended_states\";\n\
             Dir::Cache \"{dir}\";\n\
             Dir::Cache::archives \"{dir}/archives\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n\
             APT::Sandbox::User \"{sandbox}\";\n"
        )
    }

    fn sources(&self) -> Result<String> {
        let (main, security) = self.mirrors()?;
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: install the package debian-archive-keyring");
        }
        let mut suites = Vec::new();
        let mut security_suites = Vec::new();
        if self.distro.is_debian() {
            let own = &self.distro.codename;
            suites.extend([
                own.clone(),
                format!("{own}-updates"),
                format!("{own}-backports"),
            ]);
            security_suites.push(format!("{own}-security"));
        }
        suites.extend(NEWER_SUITES.map(String::from));
        security_suites.push(NEWER_SECURITY.into());
        Ok([(main, suites), (security, security_suites)]
            .into_iter()
            .flat_map(|(site, mut suites)| {
                suites.dedup();
                suites.sort();
                suites.dedup();
                suites
                    .into_iter()
                    .map(move |suite| format!("deb [signed-by={KEYRING}] {site} {suite} main\n"))
            })
            .collect())
    }

    /// Debian's mirror and its security mirror, from the host's own sources; `$MANYCORE_DEBIAN_MIRROR` overrides both.
    fn mirrors(&self) -> Result<(String, String)> {
        if let Ok(site) = std::env::var("MANYCORE_DEBIAN_MIRROR") {
            let site = site.trim_end_matches('/').to_owned();
            let security = format!("{site}-security");
            return Ok((site, security));
        }
        if !self.distro.is_debian() {
            bail!(
                "the guests' kernels come from Debian, and {} has no Debian mirror configured: set \
                 MANYCORE_DEBIAN_MIRROR to the address of one (its -security twin is expected beside it)",
                self.distro.name
            );
        }
        let targets = cmd::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(SITE) $(RELEASE)",
            "Created-By: Packages",
        ]))?;
        pick_mirrors(&targets, &self.distro.codename).with_context(|| {
            format!(
                "apt's sources name no mirror for the suite {}: set MANYCORE_DEBIAN_MIRROR",
                self.distro.codename
            )
        })
    }

    /// The version that apt would take for this package.
    pub fn candidate(&self, package: &str) -> Result<Option<String>> {
        let text = cmd::output(self.command("apt-cache").args(["policy", package]))?;
        Ok(text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .filter(|version| *version != "(none)")
            .map(String::from))
    }

    /// All versions of a package with the suite that has each, newest first.
    pub fn versions(&self, package: &str) -> Result<Vec<(String, String)>> {
        let text = cmd::output(self.command("apt-cache").args(["madison", package]))?;
        Ok(parse_madison(&text))
    }

    /// Names of packages that start with `prefix` and end with `suffix`.
    pub fn names(&self, prefix: &str, suffix: &str) -> Result<Vec<String>> {
        let text = cmd::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text
            .lines()
            .filter(|name| name.ends_with(suffix))
            .map(String::from)
            .collect())
    }

    /// Downloads packages (`name`, `name=version` or `name/suite`) and unpacks them into `dest`.
    pub fn unpack(&self, step: &Step, packages: &[String], dest: &Path) -> Result<()> {
        let downloads = download_folder(dest)?;
        let done = cmd::run(
            step,
            self.command("apt-get")
                .arg("download")
                .args(packages)
                .current_dir(downloads.path()),
        );
        cmd::over_network(done, "the download failed")?;
        unpack_all(step, downloads.path(), dest)
    }

    /// The same, with every package that these depend on and the host doesn't have.
    pub fn unpack_with_dependencies(
        &self,
        step: &Step,
        packages: &[String],
        dest: &Path,
    ) -> Result<()> {
        let downloads = download_folder(dest)?;
        fs::create_dir(downloads.path().join("partial")).context("making a download folder")?;
        let done = cmd::run(
            step,
            self.command("apt-get")
                .arg("-o")
                .arg(format!(
                    "Dir::Cache::archives={}",
                    downloads.path().display()
                ))
                .args([
                    "install",
                    "-y",
                    "-q",
                    "--download-only",
                    "--reinstall",
                    "--no-install-recommends",
                ])
                .args(packages),
        );
        cmd::over_network(done, "the download failed")?;
        unpack_all(step, downloads.path(), dest)
    }
}

/// Beside what is being made: in a staging folder of the cache, which the next attempt clears if this one is killed.
fn download_folder(dest: &Path) -> Result<TempDir> {
    let beside = dest
        .parent()
        .context("a folder to unpack into has a parent")?;
    tempfile::tempdir_in(beside).context("making a download folder")
}

fn unpack_all(step: &Step, downloads: &Path, dest: &Path) -> Result<()> {
    let mut count = 0;
    for entry in
        fs::read_dir(downloads).with_context(|| format!("reading {}", downloads.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            cmd::run(
                step,
                Command::new("dpkg-deb").arg("-x").arg(&path).arg(dest),
            )?;
            count += 1;
        }
    }
    if count == 0 {
        bail!("apt downloaded no package");
    }
    Ok(())
}

fn preferences(distro: &Distro) -> String {
    let mut text = String::new();
    for suite in NEWER_SUITES.iter().chain([&NEWER_SECURITY]) {
        if *suite != distro.codename
            && suite.strip_suffix("-security") != Some(distro.codename.as_str())
        {
            text += &format!("Package: *\nPin: release n={suite}\nPin-Priority: 1\n\n");
        }
    }
    text
}

fn pick_mirrors(targets: &str, codename: &str) -> Option<(String, String)> {
    let site_of = |wanted: &str| {
        targets
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, suite)| suite.trim() == wanted)
            .map(|(site, _)| site.trim_end_matches('/').to_owned())
    };
    let main = site_of(codename)?;
    let security =
        site_of(&format!("{codename}-security")).unwrap_or_else(|| format!("{main}-security"));
    Some((main, security))
}

fn parse_madison(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split('|').map(str::trim);
            let version = fields.nth(1)?;
            let source = fields.next()?;
            let suite = source.split_whitespace().nth(1)?.split('/').next()?;
            source
                .ends_with("Packages")
                .then(|| (version.to_owned(), suite.to_owned()))
        })
        .collect()
}

/// Compares two Debian versions as dpkg does.
pub fn version_is_newer(a: &str, b: &str) -> bool {
    Command::new("dpkg")
        .args(["--compare-versions", a, "gt", b])
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distro(codename: &str) -> Distro {
        Distro {
            id: "debian".into(),
            codename: codename.into(),
            name: "Debian".into(),
        }
    }

    #[test]
    fn mirrors_are_the_hosts_own() {
        let targets = "http://other.test/apt nodistro\nhttp://a.test/debian bookworm\n\
                       http://a.test/debian bookworm-updates\nhttp://b.test/sec bookworm-security\n";
        assert_eq!(
            pick_mirrors(targets, "bookworm"),
            Some(("http://a.test/debian".into(), "http://b.test/sec".into()))
        );
        assert_eq!(pick_mirrors(targets, "trixie"), None);
    }

    #[test]
    fn newer_suites_have_the_lowest_priority_except_the_hosts_own() {
        let text = preferences(&distro("bookworm"));
        assert!(text.contains("Pin: release n=trixie\nPin-Priority: 1"));
        assert!(text.contains("n=trixie-security"));
        let own = preferences(&distro("trixie"));
        assert!(!own.contains("n=trixie\n") && !own.contains("n=trixie-security"));
        assert!(own.contains("n=trixie-backports"));
    }

    #[test]
    fn reads_versions_with_their_suite() {
        let text = "qemu-system-x86 | 1:10.0.2~bpo12+1 | http://a.test/debian bookworm-backports/main amd64 Packages\n\
                    qemu-system-x86 | 1:7.2 | http://a.test/debian bookworm/main amd64 Packages\n\
                    qemu | 1:7.2 | http://a.test/debian bookworm/main Sources\n";
        assert_eq!(
            parse_madison(text),
            [
                (
                    "1:10.0.2~bpo12+1".to_owned(),
                    "bookworm-backports".to_owned()
                ),
                ("1:7.2".to_owned(), "bookworm".to_owned())
            ]
        );
    }
}
