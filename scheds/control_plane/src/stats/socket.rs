//! A UNIX socket of a daemon's in the file system: for its owner and group only, and gone with the daemon.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// To connect is to write, so the group needs that to read.
const MODE: u32 = 0o660;

#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode: what is at the path may be somebody else's by now.
    id: (u64, u64),
}

impl Socket {
    /// The one that was just bound at this path. Lets its group connect.
    ///
    /// # Errors
    /// If something else has taken its place, or its mode can't be set.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        // By a descriptor: who may write to its directory could put a link to another file there meanwhile.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let found = file.metadata()?;
        if !found.file_type().is_socket() {
            return Err(io::Error::other("something else is there now"));
        }
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::set_permissions(link, Permissions::from_mode(MODE))?;
        Ok(Self {
            path: path.to_owned(),
            id: id(&found),
        })
    }

    /// Removes it. `false` if another is at its path by now, which is left there.
    pub(super) fn remove(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(found) if id(&found) != self.id => return false,
            Ok(_) => {
                if let Err(err) = fs::remove_file(&self.path) {
                    log::warn!("cannot remove {}: {err}", self.path.display());
                }
            }
            // Somebody has removed it.
            Err(_) => {}
        }
        true
    }
}

fn id(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn nothing_else_is_taken_for_it() {
        let temp = tempfile::tempdir().unwrap();
        let (victim, path) = (temp.path().join("victim"), temp.path().join("socket"));
        fs::write(&victim, "").unwrap();
        fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(Socket::of(&path).is_err());
        let mode = fs::metadata(&victim).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn it_is_removed_but_not_another() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("socket");
        let _first = UnixListener::bind(&path).unwrap();
        let first = Socket::of(&path).unwrap();
        fs::rename(&path, temp.path().join("first")).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        assert!(!first.remove() && path.exists());
        assert!(Socket::of(&path).unwrap().remove() && !path.exists());
    }
}
