//! Answers `GET /metrics`, and nothing else, over HTTP/1.1 on a loopback address or a UNIX socket.
//!
//! A client can change nothing, may send [`MAX_REQUEST`] bytes within [`PATIENCE`], and gets one answer per connection;
//! no more than [`MAX_CLIENTS`] are served at once.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Mode;

use super::socket::Socket;

const MAX_REQUEST: usize = 8192;
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_CLIENTS: usize = 8;
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let path = word.strip_prefix("unix:").unwrap_or(word);
        if path.starts_with('/') {
            return Ok(Self::Unix(path.into()));
        }
        let word = match word.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => word.to_string(),
        };
        word.parse().map(Self::Tcp).map_err(|_| {
            "neither an address and port like 127.0.0.1:9464 or [::1]:9464, nor the absolute path of a socket".to_string()
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What is served: `None` if there is nothing to say at the moment.
type Source = dyn Fn() -> Option<String> + Send + Sync;

/// Answers until the process ends; a UNIX socket is removed when this is dropped.
#[derive(Debug)]
pub struct Responder {
    socket: Option<Socket>,
    /// Where it really serves: with port 0, the kernel chose one.
    pub address: Address,
}

impl Responder {
    /// Starts to answer with what `source` says.
    ///
    /// # Errors
    /// If the address is taken or can't be bound.
    pub fn launch(
        address: &Address,
        source: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let source: Arc<Source> = Arc::new(source);
        match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                let address = Address::Tcp(listener.local_addr()?);
                thread::spawn(move || accept(|| Ok(listener.accept()?.0), &source));
                Ok(Self {
                    socket: None,
                    address,
                })
            }
            Address::Unix(path) => {
                let (listener, socket) = bind(path)?;
                thread::spawn(move || accept(|| Ok(listener.accept()?.0), &source));
                Ok(Self {
                    socket: Some(socket),
                    address: address.clone(),
                })
            }
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            socket.remove();
        }
    }
}

/// Binds a socket that only owner and group can connect to. One that nobody serves any more is replaced.
fn bind(path: &PathBuf) -> io::Result<(UnixListener, Socket)> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o007));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    Ok((listener?, Socket::of(path)?))
}

/// A connection, of either kind.
trait Stream: Read + Write + Send + 'static {
    fn limit(&self, time: Duration) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Stream for UnixStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

fn accept<S: Stream>(next: impl Fn() -> io::Result<S>, source: &Arc<Source>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match next() {
            Ok(stream) => stream,
            Err(err) => {
                // Out of file descriptors, for example: it may get better.
                log::debug!("metrics: {err}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if clients.load(Ordering::Relaxed) >= MAX_CLIENTS {
            continue; // closes it
        }
        clients.fetch_add(1, Ordering::Relaxed);
        let (clients, source) = (Arc::clone(&clients), Arc::clone(source));
        thread::spawn(move || {
            if let Err(err) = answer(stream, source.as_ref()) {
                log::debug!("metrics: {err}");
            }
            clients.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn answer(mut stream: impl Stream, source: &Source) -> io::Result<()> {
    stream.limit(PATIENCE)?;
    let head = read_head(&mut stream)?;
    let response = respond(head.as_deref(), source);
    stream.write_all(response.as_bytes())?;
    stream.flush()
}

/// The request up to its empty line; `None` if it is too long.
fn read_head(stream: &mut impl Stream) -> io::Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.limit(left)?;
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            len => head.extend_from_slice(&part[..len]),
        }
        if head.len() > MAX_REQUEST {
            return Ok(None);
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

fn respond(head: Option<&str>, source: &Source) -> String {
    let plain =
        |status: &str, body: &str| response(status, "text/plain; charset=utf-8", body, true);
    let Some(head) = head else {
        return plain("431 Request Header Fields Too Large", "too long\n");
    };
    let words: Vec<&str> = head.lines().next().unwrap_or_default().split(' ').collect();
    let [method, target, version] = words[..] else {
        return plain("400 Bad Request", "not HTTP\n");
    };
    if !version.starts_with("HTTP/1.") {
        return plain("505 HTTP Version Not Supported", "HTTP/1.1 only\n");
    }
    if method != "GET" && method != "HEAD" {
        return plain("405 Method Not Allowed", "GET only\n");
    }
    if target.split('?').next() != Some("/metrics") {
        return plain("404 Not Found", "there is only /metrics\n");
    }
    match source() {
        Some(body) => response("200 OK", CONTENT_TYPE, &body, method == "GET"),
        None => plain("503 Service Unavailable", "the scheduler is being loaded\n"),
    }
}

fn response(status: &str, content_type: &str, body: &str, with_body: bool) -> String {
    let allow = if status.starts_with("405") {
        "Allow: GET, HEAD\r\n"
    } else {
        ""
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n{}",
        body.len(),
        if with_body { body } else { "" }
    )
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
