//! Load from outside: what a load balancer or a forecast knows of a service before its tasks do.
//!
//! A stream of lines such as `{"service":"web","load":0.4}`, from a file that grows or from a UNIX socket. `load` is the
//! part of the machine that the service will need, 0 to 1. Its tasks are kept to so many caches, starting from one of its
//! own: a service that needs little stays narrow and warm, and one that is about to need more may use more at once. What
//! was said more than ten seconds ago no longer counts.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;

use super::{Board, MAX_SERVICES, Source};

const LIFETIME: Duration = Duration::from_secs(10);
/// A longer line is malformed.
const MAX_LINE: usize = 4096;
/// The most to read in one go.
const MAX_READ: usize = 64 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    service: String,
    load: f64,
}

/// The stream.
#[derive(Debug)]
pub struct Load {
    path: PathBuf,
    nr_llcs: u32,
    stream: Option<Stream>,
    rest: Vec<u8>,
    /// By service: when it was last heard of.
    heard: Vec<Option<Instant>>,
}

#[derive(Debug)]
enum Stream {
    File(Followed),
    Socket(UnixStream),
}

/// A file that grows, or is written anew each time.
#[derive(Debug)]
struct Followed {
    file: File,
    read: u64,
    /// The last bytes that were read: they are still there if it has only grown.
    last: Vec<u8>,
    changed: Option<SystemTime>,
}

/// As long as any two lines that differ at all.
const LAST: usize = 128;

impl Followed {
    fn new(file: File) -> Self {
        // Before anything is read, so that no change after that is missed.
        let changed = file.metadata().and_then(|metadata| metadata.modified());
        Self {
            file,
            read: 0,
            last: Vec::new(),
            changed: changed.ok(),
        }
    }

    /// Whether what was read is no longer the beginning of it. Asked before each look for more; a pipe never is.
    fn is_anew(&mut self) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        let changed = metadata.modified().ok();
        if !metadata.is_file() || changed == self.changed {
            return Ok(false);
        }
        self.changed = changed;
        if metadata.len() <= self.read {
            return Ok(self.read > 0);
        }
        let mut now = vec![0; self.last.len()];
        let from = self.read - now.len() as u64;
        self.file.read_exact_at(&mut now, from)?;
        Ok(now != self.last)
    }

    /// Whether another file has its name by now, as whoever replaces a file at one stroke does. Not while none has.
    fn is_replaced(&self, path: &Path) -> io::Result<bool> {
        let Ok(named) = std::fs::metadata(path) else {
            return Ok(false);
        };
        let own = self.file.metadata()?;
        Ok((named.dev(), named.ino()) != (own.dev(), own.ino()))
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(bytes)?;
        self.read += count as u64;
        self.last.extend_from_slice(&bytes[..count]);
        let surplus = self.last.len().saturating_sub(LAST);
        self.last.drain(..surplus);
        Ok(count)
    }
}

impl Load {
    /// `nr_llcs`: how many caches the machine has.
    pub fn new(path: &Path, nr_llcs: u32) -> Self {
        Self {
            path: path.to_path_buf(),
            nr_llcs,
            stream: None,
            rest: Vec::new(),
            heard: Vec::new(),
        }
    }

    fn open(&self) -> io::Result<Stream> {
        if std::fs::metadata(&self.path)?.file_type().is_socket() {
            let socket = UnixStream::connect(&self.path)?;
            socket.set_nonblocking(true)?;
            return Ok(Stream::Socket(socket));
        }
        // A FIFO that nobody writes must not hold anybody up.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path)?;
        Ok(Stream::File(Followed::new(file)))
    }

    /// Reads what is new into `rest`.
    fn read(&mut self) -> io::Result<()> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open()?,
        };
        if let Stream::File(followed) = &mut stream
            && (followed.is_anew()? || followed.is_replaced(&self.path)?)
        {
            stream = self.open()?;
            self.rest.clear();
        }
        let mut bytes = [0; 4096];
        let mut taken = 0;
        while taken < MAX_READ {
            let read = match &mut stream {
                Stream::File(followed) => followed.read(&mut bytes),
                Stream::Socket(socket) => match socket.read(&mut bytes) {
                    Ok(0) => return Err(io::Error::other("the other side has closed it")),
                    read => read,
                },
            };
            match read {
                Ok(0) => break,
                Ok(count) => {
                    self.rest.extend_from_slice(&bytes[..count]);
                    taken += count;
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) => return Err(err),
            }
        }
        self.stream = Some(stream);
        Ok(())
    }

    /// Takes in all whole lines. One that is wrong doesn't spoil the others.
    fn take_lines(&mut self, now: Instant, board: &Board) -> Result<(), String> {
        let mut result = Ok(());
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if line.trim_ascii().is_empty() {
                continue;
            }
            if let Err(wrong) = self.take(&line, now, board) {
                result = Err(wrong);
            }
        }
        if self.rest.len() > MAX_LINE {
            self.rest.clear();
            result = Err(format!("a line of more than {MAX_LINE} bytes"));
        }
        result
    }

    fn take(&mut self, line: &[u8], now: Instant, board: &Board) -> Result<(), String> {
        let line: Line =
            serde_json::from_slice(line).map_err(|err| format!("a line is malformed: {err}"))?;
        if !(0.0..=1.0).contains(&line.load) {
            return Err(format!("a load of {}, not 0 to 1", line.load));
        }
        let index = board
            .number_of(&line.service)
            .ok_or_else(|| format!("no service is called {}", line.service))?;
        self.heard[index] = Some(now);
        board.set_reach(index, reach(line.load, self.nr_llcs));
        Ok(())
    }

    /// Forgets what was said too long ago.
    fn expire(&mut self, now: Instant, board: &Board) -> Result<(), String> {
        let mut result = Ok(());
        for (index, heard) in self.heard.iter().enumerate() {
            if heard.is_some_and(|then| now.duration_since(then) > LIFETIME) {
                board.set_reach(index, u32::MAX);
                let name = board.name_of(index).unwrap_or_default();
                result = Err(format!(
                    "nothing was said of {name} for {} s",
                    LIFETIME.as_secs()
                ));
            }
        }
        result
    }
}

/// To how many caches a service is kept that needs this part of the machine.
fn reach(load: f64, nr_llcs: u32) -> u32 {
    ((load * f64::from(nr_llcs)).ceil() as u32).clamp(1, nr_llcs)
}

impl Source for Load {
    fn name(&self) -> String {
        format!("the load stream {}", self.path.display())
    }

    fn poll(&mut self, now: Instant, board: &Board) -> Result<(), String> {
        self.heard.resize(MAX_SERVICES, None);
        let read = self.read().map_err(|err| err.to_string());
        let lines = self.take_lines(now, board);
        let expired = self.expire(now, board);
        read.and(lines).and(expired)
    }
}

#[cfg(test)]
mod tests {
    use super::super::services;
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    fn board() -> Board {
        Board::new(vec![
            services::parse("web=/web:latency").unwrap(),
            services::parse("logs=/logs:batch").unwrap(),
        ])
    }

    #[test]
    fn a_file_is_followed_as_it_grows_and_when_it_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("load");
        let board = board();
        let mut load = Load::new(&path, 8);
        let now = Instant::now();
        assert!(load.poll(now, &board).is_err());
        let mut file = File::create(&path).unwrap();
        file.write_all(b"{\"service\":\"web\",\"load\":0.5}\n{\"serv")
            .unwrap();
        load.poll(now, &board).unwrap();
        assert_eq!((board.reach(0), board.reach(1)), (4, u32::MAX));
        file.write_all(b"ice\":\"logs\",\"load\":0}\n").unwrap();
        load.poll(now, &board).unwrap();
        assert_eq!((board.reach(0), board.reach(1)), (4, 1));
        // Written anew: shorter, as long, and longer than before.
        let mut last = std::fs::metadata(&path).unwrap().modified().unwrap();
        for (text, reach) in [("1", 8), ("0", 1), ("0.75", 6), ("0.5", 4)] {
            let text = format!("{{\"service\":\"web\",\"load\":{text}}}\n");
            // A file's time has steps of up to 10 ms.
            while std::fs::metadata(&path).unwrap().modified().unwrap() == last {
                std::fs::write(&path, &text).unwrap();
            }
            last = std::fs::metadata(&path).unwrap().modified().unwrap();
            load.poll(now, &board).unwrap();
            assert_eq!(board.reach(0), reach, "{text}");
        }
        // Replaced at one stroke, by one that is older.
        for (text, reach) in [("0.25", 2), ("1", 8)] {
            let next = dir.path().join("next");
            std::fs::write(&next, format!("{{\"service\":\"web\",\"load\":{text}}}\n")).unwrap();
            File::options()
                .append(true)
                .open(&next)
                .unwrap()
                .set_modified(last)
                .unwrap();
            std::fs::rename(&next, &path).unwrap();
            load.poll(now, &board).unwrap();
            assert_eq!(board.reach(0), reach, "{text}");
        }
        // Stale: taken back.
        assert!(load.poll(now + LIFETIME * 2, &board).is_err());
        assert_eq!((board.reach(0), board.reach(1)), (u32::MAX, u32::MAX));
    }

    #[test]
    fn a_wrong_line_is_said_and_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("load");
        let board = board();
        for wrong in [
            "garbage",
            "{}",
            "{\"service\":\"web\",\"load\":2}",
            "{\"service\":\"web\",\"load\":-0.1}",
            "{\"service\":\"nobody\",\"load\":0.1}",
            "{\"service\":\"web\",\"load\":0.1,\"more\":1}",
        ] {
            board.set_reach(0, u32::MAX);
            std::fs::write(
                &path,
                format!("{wrong}\n\n{{\"service\":\"web\",\"load\":0.3}}\n"),
            )
            .unwrap();
            let mut load = Load::new(&path, 8);
            assert!(load.poll(Instant::now(), &board).is_err(), "{wrong}");
            assert_eq!(board.reach(0), 3, "{wrong}");
        }
        std::fs::write(&path, vec![b'x'; 3 * MAX_LINE]).unwrap();
        let mut load = Load::new(&path, 8);
        let said = load.poll(Instant::now(), &board).unwrap_err();
        assert!(said.contains("more than"), "{said}");
    }

    #[test]
    fn a_socket_is_read_and_connected_to_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let board = board();
        let listener = UnixListener::bind(&path).unwrap();
        let mut load = Load::new(&path, 8);
        let now = Instant::now();
        load.poll(now, &board).unwrap();
        for wanted in [2, 6] {
            let (mut peer, _) = listener.accept().unwrap();
            let part = f64::from(wanted) / 8.0;
            peer.write_all(format!("{{\"service\":\"web\",\"load\":{part}}}\n").as_bytes())
                .unwrap();
            load.poll(now, &board).unwrap();
            assert_eq!(board.reach(0), wanted);
            drop(peer);
            assert!(load.poll(now, &board).is_err());
            load.poll(now, &board).unwrap();
        }
    }
}
