//! The socket of `scx_stats`, for root and the group of its directory only.
//!
//! To connect to a socket is to write to it, as far as its permissions go, so the group needs write permission there
//! for reading statistics. There is nothing that a client could change: the protocol has requests only.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use crossbeam::channel::{Receiver, Sender};
use rustix::fs::Mode;
use scx_stats::{StatsServer, StatsServerData, ToJson};

use super::Record;
use super::print::SOCKET;
use super::socket::Socket;

const DIR_MODE: u32 = 0o750;

/// Serves the statistics until dropped. It asks for them through a channel, so that only the thread that runs the
/// scheduler ever touches it.
pub struct Server<S: Record> {
    server: Option<StatsServer<(), S>>,
    socket: Socket,
    dir: Dir,
}

impl<S: Record> std::fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl<S: Record> Server<S> {
    /// Starts to serve on the usual socket.
    ///
    /// # Errors
    /// If the socket can't be made.
    pub fn launch() -> Result<Self> {
        Self::launch_at(Path::new(SOCKET))
    }

    fn launch_at(socket: &Path) -> Result<Self> {
        let data = StatsServerData::<(), S>::new()
            .add_meta(S::meta())
            .add_stats(
                "top",
                Box::new(|_args, (request, reply)| {
                    request.send(())?;
                    reply.recv()?.to_json()
                }),
            );
        let dir = Dir::prepare(socket.parent().context("a socket needs a directory")?)?;
        // From the first moment: the mode of a socket is what the umask leaves. (Not the exact mode: another thread that
        // makes a directory just now could not enter it.)
        let before = rustix::process::umask(Mode::from_raw_mode(0o007));
        let server = StatsServer::new(data).set_path(socket).launch();
        rustix::process::umask(before);
        let server = server.context("serving statistics")?;
        Ok(Self {
            server: Some(server),
            socket: Socket::of(socket)
                .with_context(|| format!("setting the mode of {}", socket.display()))?,
            dir,
        })
    }

    /// Where requests come in and replies go out; `None` never.
    pub fn channels(&self) -> Option<(Sender<S>, Receiver<()>)> {
        self.server.as_ref().map(StatsServer::channels)
    }
}

impl<S: Record> Drop for Server<S> {
    fn drop(&mut self) {
        // It connects to its own socket to be woken, so the socket has to be there.
        self.server = None;
        // A socket left behind would make clients believe that somebody is there.
        if self.socket.remove() {
            self.dir.put_back();
        }
    }
}

/// The directory of the socket.
#[derive(Debug)]
struct Dir {
    path: PathBuf,
    /// Its mode before; `None` if it was not there.
    before: Option<u32>,
}

impl Dir {
    fn prepare(path: &Path) -> Result<Self> {
        let context = || format!("preparing {}", path.display());
        let before = match fs::metadata(path) {
            Ok(found) => {
                fs::set_permissions(path, Permissions::from_mode(DIR_MODE))
                    .with_context(context)?;
                Some(found.permissions().mode() & 0o7777)
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).with_context(context)?;
                }
                DirBuilder::new()
                    .mode(DIR_MODE)
                    .create(path)
                    .with_context(context)?;
                None
            }
            Err(err) => return Err(err).with_context(context),
        };
        Ok(Self {
            path: path.to_path_buf(),
            before,
        })
    }

    fn put_back(&self) {
        let done = match self.before {
            Some(mode) => fs::set_permissions(&self.path, Permissions::from_mode(mode)),
            // Stays if somebody else uses it.
            None => match fs::remove_dir(&self.path) {
                Err(err) if err.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                done => done,
            },
        };
        if let Err(err) = done
            && err.kind() != io::ErrorKind::NotFound
        {
            log::warn!("cannot put back {}: {err}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::tests::Sample;
    use super::*;
    use scx_stats::StatsClient;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn nobody_but_owner_and_group_may_connect() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("scx/root");
        let socket = dir.join("stats");
        let server = Server::<Sample>::launch_at(&socket).unwrap();
        assert_eq!((mode(&dir), mode(&socket)), (0o750, 0o660));
        let (replies, requests) = server.channels().unwrap();
        let answer = std::thread::spawn(move || {
            requests.recv().unwrap();
            replies.send(Sample::default()).unwrap();
        });
        let mut client = StatsClient::new()
            .set_path(&socket)
            .connect(Some(5000))
            .unwrap();
        let sample: serde_json::Value = client.request("stats", Vec::new()).unwrap();
        assert_eq!(sample["enqueues"], 0);
        answer.join().unwrap();
        drop(server);
        assert!(!socket.exists() && !dir.exists());
        assert!(dir.parent().unwrap().exists());
    }

    /// One that is loaded while another is on its way out.
    #[test]
    fn a_successor_keeps_its_socket() {
        let temp = tempfile::tempdir().unwrap();
        let socket = temp.path().join("root/stats");
        let first = Server::<Sample>::launch_at(&socket).unwrap();
        let second = Server::<Sample>::launch_at(&socket).unwrap();
        drop(first);
        assert_eq!(
            (mode(&temp.path().join("root")), mode(&socket)),
            (0o750, 0o660)
        );
        drop(second);
        assert!(!socket.exists());
    }

    #[test]
    fn a_directory_that_was_there_gets_its_mode_back() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("root");
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        let server = Server::<Sample>::launch_at(&dir.join("stats")).unwrap();
        assert_eq!(mode(&dir), 0o750);
        drop(server);
        assert_eq!(mode(&dir), 0o755);
    }
}
