//! What was there before, on disk before the first write.
//!
//! The journal is one small file that is replaced as a whole (written beside, synced, renamed, folder synced), so that
//! whoever reads it after a `kill -9` or a power cut finds the old or the new one. It lies in a folder of root's that
//! nobody else can write to, and no link is followed on the way, as root acts on what it says.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Error, Target};

/// Where the journal is unless told.
pub const DEFAULT_JOURNAL: &str = "/run/manycore/policy.journal";

const VERSION: u32 = 1;
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A value that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub target: Target,
    /// The id of its cgroup: another cgroup of that path is none of ours.
    pub cgroup_id: Option<u64>,
    /// What was there before the first change, without the last newline.
    pub before: String,
    /// What was written.
    pub wrote: String,
    /// What was written before that, until it is sure that `wrote` has been.
    #[serde(
        default,
        deserialize_with = "one_or_more",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub earlier: Vec<String>,
}

/// Once there could be one only, and a journal may be of then.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Texts {
        One(String),
        More(Vec<String>),
    }
    Ok(match Texts::deserialize(from)? {
        Texts::One(text) => vec![text],
        Texts::More(texts) => texts,
    })
}

impl Entry {
    /// Whether a value is one that was written here.
    pub(super) fn is_ours(&self, now: &str) -> bool {
        let mut wrote = std::iter::once(&self.wrote).chain(&self.earlier);
        wrote.any(|value| self.target.same(value, now))
    }
}

#[derive(Serialize, Deserialize)]
struct Contents {
    version: u32,
    boot_id: String,
    entries: Vec<Entry>,
}

/// The journal, held by one process at a time.
pub struct Journal {
    path: PathBuf,
    name: String,
    boot_id: String,
    dir: OwnedFd,
    /// Holds the lock, which the kernel releases when the process ends, however it ends. `None`: for looking only.
    lock: Option<OwnedFd>,
    /// In the order in which they were written; undone from the last to the first.
    pub(super) entries: Vec<Entry>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("path", &self.path)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal and locks it, and makes its folder if only that is missing. What an earlier boot left in it
    /// is forgotten: cgroups and sysctls don't outlive one.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process holds it; [`Error::Journal`] if it or its folder is not safe to use (a link,
    /// someone else's, writable by others) or can't be read.
    pub fn open(path: &Path, machine: &super::Machine) -> Result<Self, Error> {
        let mut journal = Self::prepare(path, machine, true)?
            .ok_or_else(|| failed(path, "its folder can't be made"))?;
        journal.lock()?;
        journal.entries = journal.load()?;
        Ok(journal)
    }

    /// Reads the journal for looking at it, whoever holds it. Without one, it is empty.
    ///
    /// # Errors
    /// As [`Journal::open`], but for the lock.
    pub fn look(path: &Path, machine: &super::Machine) -> Result<Vec<Entry>, Error> {
        match Self::prepare(path, machine, false)? {
            Some(journal) => journal.load(),
            None => Ok(Vec::new()),
        }
    }

    /// The values that were changed, in the order in which they were.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// `None` if there is no folder and none is to be made.
    fn prepare(path: &Path, machine: &super::Machine, make: bool) -> Result<Option<Self>, Error> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| failed(path, "that is no name of a file"))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if make {
            match rustix::fs::mkdir(parent, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(err) => return Err(failed(path, format!("cannot make its folder: {err}"))),
            }
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let dir = match rustix::fs::open(parent, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) if !make => return Ok(None),
            Err(err) => return Err(failed(path, format!("cannot open its folder: {err}"))),
        };
        let about = rustix::fs::fstat(&dir).map_err(|err| failed(path, err.to_string()))?;
        check_owner(&about, "its folder").map_err(|reason| failed(path, reason))?;
        Ok(Some(Self {
            path: path.to_owned(),
            name: name.to_owned(),
            boot_id: machine.boot_id(),
            dir,
            lock: None,
            entries: Vec::new(),
        }))
    }

    fn lock(&mut self) -> Result<(), Error> {
        let name = format!("{}.lock", self.name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&self.dir, &name, flags, PRIVATE)
            .map_err(|err| self.failed(format!("cannot open its lock: {err}")))?;
        let mut file = File::from(lock);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Only for the message.
                let _ = file.read_to_string(&mut pid);
                return Err(Error::Busy {
                    pid: pid.trim().to_owned(),
                });
            }
            Err(err) => return Err(self.failed(format!("cannot lock it: {err}"))),
        }
        file.set_len(0)
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(|err| self.failed(format!("cannot write its lock: {err}")))?;
        self.lock = Some(file.into());
        Ok(())
    }

    fn load(&self) -> Result<Vec<Entry>, Error> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(err) => return Err(self.failed(format!("cannot be opened: {err}"))),
        };
        let about = rustix::fs::fstat(&file).map_err(|err| self.failed(err.to_string()))?;
        if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
            return Err(self.failed("it is not a regular file"));
        }
        check_owner(&about, "it").map_err(|reason| self.failed(reason))?;
        let mut text = String::new();
        File::from(file)
            .read_to_string(&mut text)
            .map_err(|err| self.failed(format!("cannot be read: {err}")))?;
        let contents: Contents = serde_json::from_str(&text)
            .map_err(|err| self.failed(format!("it makes no sense: {err}")))?;
        if contents.version != VERSION {
            return Err(self.failed(format!(
                "it is of version {}, not {VERSION}",
                contents.version
            )));
        }
        if contents.boot_id != self.boot_id {
            return Ok(Vec::new());
        }
        Ok(contents.entries)
    }

    /// Puts the entries on disk; an empty journal is removed.
    ///
    /// # Errors
    /// [`Error::Journal`]; the one before is then still there.
    pub(super) fn save(&self) -> Result<(), Error> {
        debug_assert!(self.lock.is_some(), "only who holds the lock may write");
        self.write()
            .map_err(|err| self.failed(format!("cannot be written: {err}")))
    }

    fn write(&self) -> io::Result<()> {
        if self.entries.is_empty() {
            match rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty()) {
                Ok(()) => rustix::fs::fsync(&self.dir)?,
                Err(Errno::NOENT) => {}
                Err(err) => return Err(err.into()),
            }
            return Ok(());
        }
        let contents = Contents {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            entries: self.entries.clone(),
        };
        let new = format!("{}.new", self.name);
        match rustix::fs::unlinkat(&self.dir, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(err) => return Err(err.into()),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&self.dir, &new, flags, PRIVATE)?);
        file.write_all(&serde_json::to_vec(&contents)?)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.dir, &new, &self.dir, &self.name)?;
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    fn failed(&self, reason: impl Into<String>) -> Error {
        failed(&self.path, reason)
    }
}

fn failed(path: &Path, reason: impl Into<String>) -> Error {
    Error::Journal {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// Who acts on a journal must be the only one who can have written it.
fn check_owner(about: &Stat, what: &str) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    if about.st_uid != own {
        return Err(format!(
            "{what} belongs to user {}, not to {own}",
            about.st_uid
        ));
    }
    if about.st_mode & 0o022 != 0 {
        return Err(format!(
            "{what} can be written to by others: mode {:o}",
            about.st_mode & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{CgroupFile, Machine};
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use tempfile::TempDir;

    struct Place {
        dir: TempDir,
        machine: Machine,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let random = dir.path().join("proc/sys/kernel/random");
            fs::create_dir_all(&random).unwrap();
            fs::write(random.join("boot_id"), "one\n").unwrap();
            let machine = Machine::at(dir.path().join("cgroup"), dir.path().join("proc"));
            Self { dir, machine }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("run/policy.journal")
        }

        fn open(&self) -> Result<Journal, Error> {
            Journal::open(&self.path(), &self.machine)
        }
    }

    fn entry() -> Entry {
        Entry {
            target: Target::file("/a", CgroupFile::Cpus),
            cgroup_id: Some(7),
            before: String::new(),
            wrote: "0-3".into(),
            earlier: Vec::new(),
        }
    }

    #[test]
    fn what_is_saved_is_read_and_private() {
        let place = Place::new();
        let mut journal = place.open().unwrap();
        journal.entries.push(entry());
        journal.save().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&place.path()), 0o600);
        assert_eq!(mode(place.path().parent().unwrap()), 0o700);
        drop(journal);
        let mut journal = place.open().unwrap();
        assert_eq!(journal.entries(), [entry()]);
        assert_eq!(
            Journal::look(&place.path(), &place.machine).unwrap(),
            [entry()]
        );
        journal.entries.clear();
        journal.save().unwrap();
        assert!(!place.path().exists());
    }

    #[test]
    fn only_one_holds_it() {
        let place = Place::new();
        let _held = place.open().unwrap();
        let own = std::process::id().to_string();
        assert!(matches!(place.open(), Err(Error::Busy { pid }) if pid == own));
        assert!(
            Journal::look(&place.path(), &place.machine)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn one_earlier_value_is_read_as_it_used_to_be_written() {
        let text = |earlier: &str| {
            format!(
                "{{\"target\":\"numa_balancing\",\"cgroup_id\":null,\"before\":\"1\",\"wrote\":\"0\"{earlier}}}"
            )
        };
        for (json, earlier) in [
            ("", vec![]),
            (",\"earlier\":\"2\"", vec!["2"]),
            (",\"earlier\":[\"2\",\"3\"]", vec!["2", "3"]),
        ] {
            let entry: Entry = serde_json::from_str(&text(json)).unwrap();
            assert_eq!(entry.earlier, earlier, "{json}");
        }
    }

    #[test]
    fn an_earlier_boots_is_forgotten() {
        let place = Place::new();
        let mut journal = place.open().unwrap();
        journal.entries.push(entry());
        journal.save().unwrap();
        drop(journal);
        let boot_id = place.dir.path().join("proc/sys/kernel/random/boot_id");
        fs::write(boot_id, "two\n").unwrap();
        assert!(place.open().unwrap().entries().is_empty());
    }

    #[test]
    fn links_and_others_folders_are_refused() {
        let place = Place::new();
        let elsewhere = place.dir.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, place.path().parent().unwrap()).unwrap();
        assert!(matches!(place.open(), Err(Error::Journal { .. })));
        fs::remove_file(place.path().parent().unwrap()).unwrap();

        drop(place.open().unwrap());
        fs::write(elsewhere.join("forged"), "{}").unwrap();
        symlink(elsewhere.join("forged"), place.path()).unwrap();
        assert!(matches!(place.open(), Err(Error::Journal { .. })));
        fs::remove_file(place.path()).unwrap();

        let folder = place.path().parent().unwrap().to_owned();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        let err = place.open().unwrap_err().to_string();
        assert!(err.contains("can be written to by others"), "{err}");
    }

    #[test]
    fn nonsense_is_not_taken_for_an_empty_journal() {
        let place = Place::new();
        drop(place.open().unwrap());
        for text in ["", "{", r#"{"version":9,"boot_id":"one","entries":[]}"#] {
            fs::write(place.path(), text).unwrap();
            assert!(matches!(place.open(), Err(Error::Journal { .. })), "{text}");
        }
    }
}
