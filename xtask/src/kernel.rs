//! The guests' kernels: which there are, which of them the cache has, and how to get the others.

mod build;
mod fetch;

use crate::cache::Cache;
use crate::failure::Usage;
use crate::{apt, ui, workspace};
use anyhow::{Context, Result};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What the kernel's build calls the addresses of its functions, and so do we.
const SYMBOLS: &str = "System.map";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the kernels of vm/kernels.toml and what the cache has of each
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch the newest version of a prebuilt kernel
    Fetch {
        /// A kernel of vm/kernels.toml whose source is a package
        name: String,
    },
    /// Build a kernel from Debian's source (about 11 minutes on 2 cores; nothing if the cache has it)
    Build {
        /// A kernel of vm/kernels.toml whose source is a build
        name: String,
    },
}

/// What `vm/kernels.toml` says of a kernel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, tag = "source", rename_all = "lowercase")]
pub enum Source {
    /// Prebuilt packages of Debian, the newest whose name fits.
    Package {
        summary: String,
        prefix: String,
        suffix: String,
        companions: Vec<String>,
        require: Vec<String>,
    },
    /// Built here, from a source package, with configuration fragments of `vm/kconfig/`.
    Build {
        summary: String,
        package: String,
        fragments: Vec<String>,
    },
}

impl Source {
    /// The command that brings this kernel into the cache.
    pub fn how_to_get(&self, name: &str) -> String {
        match self {
            Self::Package { .. } => format!("cargo xtask kernel fetch {name}"),
            Self::Build { .. } => format!("cargo xtask kernel build {name}"),
        }
    }

    fn summary(&self) -> &str {
        match self {
            Self::Package { summary, .. } | Self::Build { summary, .. } => summary,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    pub default: String,
    kernel: BTreeMap<String, Source>,
}

impl Catalogue {
    pub fn load() -> Result<Self> {
        let path = workspace::root().join("vm/kernels.toml");
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Source)> {
        self.kernel.iter()
    }

    pub fn get(&self, name: &str) -> Result<&Source> {
        self.kernel.get(name).ok_or_else(|| {
            let known: Vec<_> = self.kernel.keys().map(String::as_str).collect();
            Usage(format!(
                "no kernel {name:?} in vm/kernels.toml; known: {}",
                known.join(", ")
            ))
            .into()
        })
    }
}

/// A kernel in the cache, ready to boot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    pub name: String,
    /// The version of the package that it came from.
    pub package_version: String,
    /// What `uname -r` prints in the guest.
    pub release: String,
    /// Ticks a second.
    pub hz: u32,
    /// The folder that holds `vmlinuz`, `config` and, for a prebuilt one, `lib/modules`.
    #[serde(skip)]
    pub dir: PathBuf,
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// The addresses of its functions. Not there for a prebuilt one.
    pub fn symbols(&self) -> PathBuf {
        self.dir.join(SYMBOLS)
    }

    /// One line for reports: name, release and tick rate.
    pub fn describe(&self) -> String {
        format!("{} ({}, HZ={})", self.name, self.release, self.hz)
    }

    fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join("kernel.json")).ok()?;
        let kernel: Self = serde_json::from_str(&text).ok()?;
        let kernel = Self {
            dir: dir.to_owned(),
            ..kernel
        };
        (kernel.image().is_file() && kernel.config().is_file()).then_some(kernel)
    }

    /// Writes `kernel.json` into a folder that has `vmlinuz` and `config`.
    fn seal(name: &str, package_version: &str, release: &str, dir: &Path) -> Result<()> {
        let config =
            fs::read_to_string(dir.join("config")).context("reading the kernel's config")?;
        let kernel = Self {
            name: name.into(),
            package_version: package_version.into(),
            release: release.into(),
            hz: hz_of(&config).context("the kernel's config has no CONFIG_HZ")?,
            dir: PathBuf::new(),
        };
        fs::write(
            dir.join("kernel.json"),
            serde_json::to_string_pretty(&kernel)?,
        )
        .context("writing kernel.json")
    }
}

fn hz_of(config: &str) -> Option<u32> {
    config
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_HZ="))
        .and_then(|hz| hz.parse().ok())
}

/// The kernel of that name that the cache has, the newest if several.
pub fn cached(cache: &Cache, name: &str, source: &Source) -> Option<Kernel> {
    let wanted = match source {
        Source::Build { fragments, .. } => Some(build::config_key(fragments).ok()?),
        Source::Package { .. } => None,
    };
    let entries = fs::read_dir(cache.path("kernels").join(name)).ok()?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|dir| {
            let key = dir.file_name().unwrap_or_default().to_string_lossy();
            wanted.as_ref().is_none_or(|w| key.ends_with(w.as_str()))
        })
        .filter_map(|dir| Kernel::read(&dir))
        .reduce(|a, b| {
            if apt::version_is_newer(&b.package_version, &a.package_version) {
                b
            } else {
                a
            }
        })
}

/// The kernel of that name: from the cache, else fetched or built.
pub fn ensure(cache: &Cache, name: &str) -> Result<Kernel> {
    let catalogue = Catalogue::load()?;
    let source = catalogue.get(name)?;
    if let Some(kernel) = cached(cache, name, source) {
        return Ok(kernel);
    }
    match source {
        Source::Package { .. } => fetch::fetch(cache, name, source),
        Source::Build { .. } => build::build(cache, name, source),
    }
}

pub fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    let catalogue = Catalogue::load()?;
    match &args.command {
        Action::List { json } => list(&cache, &catalogue, *json),
        Action::Fetch { name } => {
            let source = catalogue.get(name)?;
            if matches!(source, Source::Build { .. }) {
                return Err(Usage(format!(
                    "{name} is built, not fetched: {}",
                    source.how_to_get(name)
                ))
                .into());
            }
            let kernel = fetch::fetch(&cache, name, source)?;
            println!("{} in {}", kernel.describe(), kernel.dir.display());
            Ok(())
        }
        Action::Build { name } => {
            let source = catalogue.get(name)?;
            if matches!(source, Source::Package { .. }) {
                return Err(
                    Usage(format!("{name} is prebuilt: {}", source.how_to_get(name))).into(),
                );
            }
            let kernel = build::build(&cache, name, source)?;
            println!("{} in {}", kernel.describe(), kernel.dir.display());
            Ok(())
        }
    }
}

fn list(cache: &Cache, catalogue: &Catalogue, json: bool) -> Result<()> {
    let rows: Vec<_> = catalogue
        .kernel
        .iter()
        .map(|(name, source)| (name, source, cached(cache, name, source)))
        .collect();
    if json {
        let list: Vec<_> = rows
            .iter()
            .map(|(name, source, kernel)| {
                serde_json::json!({
                    "name": name,
                    "summary": source.summary(),
                    "default": **name == catalogue.default,
                    "cached": kernel,
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    let mut table = ui::table(["kernel", "in the cache", "what it is"]);
    for (name, source, kernel) in rows {
        let mark = if *name == catalogue.default {
            " (default)"
        } else {
            ""
        };
        let cached = kernel.map_or_else(|| "-".into(), |k| format!("{}, HZ={}", k.release, k.hz));
        table.add_row([format!("{name}{mark}"), cached, source.summary().to_owned()]);
    }
    println!("{table}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_valid_and_has_its_default() {
        let catalogue = Catalogue::load().unwrap();
        catalogue.get(&catalogue.default).unwrap();
        for source in catalogue.kernel.values() {
            if let Source::Build { fragments, .. } = source {
                build::config_key(fragments).unwrap();
            }
        }
    }

    #[test]
    fn an_unknown_kernel_lists_the_known_ones() {
        let error = Catalogue::load().unwrap().get("5.4").unwrap_err();
        assert!(error.is::<Usage>());
        assert!(error.to_string().contains("6.12") && error.to_string().contains("debian"));
    }

    #[test]
    fn the_newest_whole_kernel_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned()).unwrap();
        let source = Source::Package {
            summary: String::new(),
            prefix: String::new(),
            suffix: String::new(),
            companions: vec![],
            require: vec![],
        };
        for version in ["7.2.9-1", "7.10.1-1", "7.3.4-1"] {
            let dir = cache.dir(format!("kernels/debian/{version}")).unwrap();
            fs::write(dir.join("config"), "CONFIG_HZ=250\n").unwrap();
            Kernel::seal("debian", version, version, &dir).unwrap();
            fs::write(dir.join("vmlinuz"), "").unwrap();
        }
        let newest = cached(&cache, "debian", &source).unwrap();
        assert_eq!(
            (newest.package_version.as_str(), newest.hz),
            ("7.10.1-1", 250)
        );
        fs::remove_file(newest.image()).unwrap();
        assert_eq!(
            cached(&cache, "debian", &source).unwrap().package_version,
            "7.3.4-1"
        );
    }
}
