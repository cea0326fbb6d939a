//! The serving end: one thread that accepts, one for each of a bounded number
//! of connections, and a deadline on everything a client does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt::PeerCredentials};
use nix::unistd::geteuid;

use super::{PATIENCE, Request, Response, is_from_elsewhere, with_short_path};
use crate::lab::{LabError, Session};

/// Longest request line.
const MAX_REQUEST: usize = 64 << 10;
/// Maximum number of connections; a new one replaces the oldest idle one.
const MAX_CONNECTIONS: usize = 32;
/// How long ending waits for connections to notice.
const LEAVE: Duration = Duration::from_secs(2);

/// The control socket of a session, bound and not yet served.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
}

/// The control socket while it is served; dropping it ends that.
#[derive(Debug)]
pub struct Serving {
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
    connections: Arc<Connections>,
}

/// The open connections, oldest first, so that shutdown can close them and a new client can
/// replace an idle one.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<BTreeMap<u64, Connection>>,
    closed: Condvar,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// True while a request is being answered.
    busy: bool,
}

/// Strikes a connection off when its thread ends, however it ends.
struct Entry {
    connections: Arc<Connections>,
    number: u64,
}

impl Server {
    /// Binds the control socket of `session`, for its user alone.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn bind(session: &Session) -> Result<Self, LabError> {
        let path = session.control_path();
        let failed = |error| LabError::system(format!("bind {}", path.display()), error);
        let _ = fs::remove_file(&path);
        let listener = with_short_path(&path, |path| UnixListener::bind(path)).map_err(failed)?;
        // The directory is closed to others already; this is the second door.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener })
    }

    /// Answers requests by `handler`, which may be called from several
    /// threads at once, until the value given back is dropped.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn serve(
        self,
        handler: impl Fn(Request) -> Response + Send + Sync + 'static,
    ) -> Result<Serving, LabError> {
        let failed = |error| LabError::system("serve the control socket", error);
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let connections = Arc::new(Connections::default());
        let theirs = Arc::clone(&connections);
        let thread = thread::Builder::new()
            .name("sgwall-control".into())
            .spawn(move || accept_all(&self.listener, &woken, &theirs, &Arc::new(handler)))
            .map_err(failed)?;
        Ok(Serving {
            wake,
            thread: Some(thread),
            connections,
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.wake.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let mut open = self.connections.lock();
        for connection in open.values() {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        let until = Instant::now() + LEAVE;
        while !open.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            open = self
                .connections
                .closed
                .wait_timeout(open, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. At the maximum, closes the oldest connection without a request in
    /// progress, and returns `false` if there is none.
    fn admit(&self, number: u64, stream: UnixStream) -> bool {
        let mut open = self.lock();
        if open.len() >= MAX_CONNECTIONS {
            let idle = open.iter().find(|(_, connection)| !connection.busy);
            let Some(idle) = idle.map(|(&number, _)| number) else {
                return false;
            };
            if let Some(idle) = open.remove(&idle) {
                let _ = idle.stream.shutdown(Shutdown::Both);
            }
        }
        let busy = false;
        open.insert(number, Connection { stream, busy });
        true
    }
}

impl Entry {
    /// Records whether a request is being answered. Returns `false` if the connection has been
    /// closed meanwhile.
    fn set_busy(&self, busy: bool) -> bool {
        let mut open = self.connections.lock();
        let connection = open.get_mut(&self.number);
        connection
            .map(|connection| connection.busy = busy)
            .is_some()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.lock().remove(&self.number);
        self.connections.closed.notify_all();
    }
}

fn accept_all<H>(
    listener: &UnixListener,
    woken: &UnixStream,
    connections: &Arc<Connections>,
    handler: &Arc<H>,
) where
    H: Fn(Request) -> Response + Send + Sync + 'static,
{
    for number in 0.. {
        let Some(stream) = accept(listener, woken) else {
            return;
        };
        if let Err(error) = start(stream, number, connections, handler) {
            tracing::debug!(%error, "a control connection could not be served");
        }
    }
}

/// The next connection, or `None` when serving is over.
fn accept(listener: &UnixListener, woken: &UnixStream) -> Option<UnixStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors, most likely; it would fail again at once.
                tracing::debug!(%error, "can't accept a control connection");
                thread::sleep(Duration::from_millis(50));
            }
        }
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut fds, PollTimeout::NONE);
        if fds[1].any().unwrap_or(true) {
            return None;
        }
    }
}

fn start<H>(
    stream: UnixStream,
    number: u64,
    connections: &Arc<Connections>,
    handler: &Arc<H>,
) -> io::Result<()>
where
    H: Fn(Request) -> Response + Send + Sync + 'static,
{
    stream.set_nonblocking(false)?;
    let peer = getsockopt(&stream, PeerCredentials)?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return refuse(&stream, "this lab is another user's");
    }
    let own = stream.local_addr()?;
    if is_from_elsewhere(peer, own.as_pathname().unwrap_or(Path::new(""))) {
        return refuse(&stream, "this is another container's");
    }
    if !connections.admit(number, stream.try_clone()?) {
        return refuse(&stream, "too many requests at a time; try again");
    }
    let entry = Entry {
        connections: Arc::clone(connections),
        number,
    };
    let handler = Arc::clone(handler);
    thread::Builder::new()
        .name("sgwall-client".into())
        .spawn(move || {
            if let Err(error) = converse(&stream, &entry, &*handler) {
                tracing::debug!(%error, "a control connection ended");
            }
            drop(handler);
            drop(entry);
        })?;
    Ok(())
}

/// Tells a client no without waiting for it.
fn refuse(stream: &UnixStream, why: &str) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    answer(stream, &Response::error(why))
}

fn converse(
    stream: &UnixStream,
    entry: &Entry,
    handler: &dyn Fn(Request) -> Response,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(line) = read_line(stream, &mut buffer)? {
        if !entry.set_busy(true) {
            return Ok(());
        }
        let Some(line) = line else {
            let why = format!("a request has at most {MAX_REQUEST} bytes");
            return answer(stream, &Response::error(why));
        };
        let response = match serde_json::from_slice(&line) {
            Ok(request) => handler(request),
            Err(error) => Response::error(format!("not a request: {error}")),
        };
        answer(stream, &response)?;
        entry.set_busy(false);
    }
    Ok(())
}

/// The next line, `None` at the end of the stream, `Some(None)` for one that
/// is too long. Its deadline counts from now, whatever trickles in meanwhile.
fn read_line(stream: &UnixStream, buffer: &mut Vec<u8>) -> io::Result<Option<Option<Vec<u8>>>> {
    let deadline = Instant::now() + PATIENCE;
    let mut searched = 0;
    loop {
        if let Some(end) = buffer[searched..].iter().position(|&byte| byte == b'\n') {
            let rest = buffer.split_off(searched + end + 1);
            let mut line = std::mem::replace(buffer, rest);
            line.pop();
            return Ok(Some(Some(line)));
        }
        searched = buffer.len();
        if searched >= MAX_REQUEST {
            return Ok(Some(None));
        }
        stream.set_read_timeout(Some(time_left(deadline)?))?;
        let mut chunk = [0; 4096];
        match (&*stream).read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn answer(stream: &UnixStream, response: &Response) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut line = serde_json::to_vec(&response.body)?;
    line.push(b'\n');
    let mut rest = line.as_slice();
    if !response.fds.is_empty() {
        stream.set_write_timeout(Some(time_left(deadline)?))?;
        let fds: Vec<RawFd> = response.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let parts = [IoSlice::new(rest)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, flags, None)?;
        rest = &rest[sent..];
    }
    while !rest.is_empty() {
        stream.set_write_timeout(Some(time_left(deadline)?))?;
        match (&*stream).write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}
