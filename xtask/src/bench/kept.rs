//! What a guest reported, kept in the bench's folder until all guests have ended: each takes up to hours, and if one fails,
//! the same command goes on with that one.

use super::plan::Plan;
use super::session::Record;
use crate::cache::remove_all;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// All that a record depends on: that of another bench is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    pub commit: String,
    /// The folder of the programs, which tells how they were built.
    pub built: PathBuf,
    pub qemu: String,
    pub clock: String,
    pub kernel: String,
    pub topology: String,
    pub plan: Plan,
}

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    basis: Basis,
    record: Record,
}

/// The place of one guest's record.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    basis: Basis,
}

impl Kept {
    /// None if the commit doesn't tell what is measured.
    pub fn new(out: &Path, guest: usize, basis: Basis) -> Option<Self> {
        let told = basis.commit.chars().all(|c| c.is_ascii_hexdigit());
        told.then(|| Self {
            path: path(out, guest),
            basis,
        })
    }

    /// The file, if it has that record.
    pub fn there(&self) -> Option<&Path> {
        self.read().map(|_| self.path.as_path())
    }

    /// The record, if it was kept by a bench that measured the same.
    pub fn read(&self) -> Option<Record> {
        let text = fs::read(&self.path).ok()?;
        let contents: Contents = serde_json::from_slice(&text).ok()?;
        (contents.basis == self.basis).then_some(contents.record)
    }

    pub fn write(&self, record: &Record) -> Result<()> {
        let contents = Contents {
            basis: self.basis.clone(),
            record: record.clone(),
        };
        let text = serde_json::to_string(&contents).context("writing a guest's record")?;
        let dir = self.path.parent().unwrap_or(&self.path);
        fs::create_dir_all(dir)
            .and_then(|()| fs::write(&self.path, text))
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

fn path(out: &Path, guest: usize) -> PathBuf {
    out.join(format!("guest-{guest}.json"))
}

/// Forgets the records of the first so many guests.
pub fn clear(out: &Path, guests: usize) -> Result<()> {
    (1..=guests).try_for_each(|guest| remove_all(&path(out, guest)))
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::sample;
    use super::*;

    fn basis() -> Basis {
        Basis {
            commit: "0123456789ab".into(),
            built: "/target/debug".into(),
            qemu: "10".into(),
            clock: "virtual".into(),
            kernel: "6.12".into(),
            topology: "t8".into(),
            plan: Plan::default(),
        }
    }

    #[test]
    fn a_record_is_taken_by_the_same_guest_of_the_same_bench_only() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new");
        let kept = |guest, basis| Kept::new(&out, guest, basis).unwrap();
        let record = Record {
            samples: vec![sample("eevdf", 1, 0.1 + 0.2)],
            complete: true,
            ..Record::default()
        };
        let second = kept(2, basis());
        assert_eq!(second.read(), None);
        second.write(&record).unwrap();
        assert_eq!(kept(2, basis()).read(), Some(record));
        assert_eq!(kept(1, basis()).read(), None);
        let other = Basis {
            kernel: "7.3".into(),
            ..basis()
        };
        let other = kept(2, other);
        assert_eq!((other.read(), other.there()), (None, None));
        // As a full disk leaves it.
        fs::write(&second.path, "{").unwrap();
        assert_eq!(second.read(), None);
        clear(&out, 3).unwrap();
        assert_eq!(second.there(), None);
    }

    #[test]
    fn a_changed_checkout_keeps_nothing() {
        for commit in ["0123456789ab-dirty", "unknown"] {
            let basis = Basis {
                commit: commit.into(),
                ..basis()
            };
            assert!(Kept::new(Path::new("/nonexistent"), 1, basis).is_none());
        }
    }
}
