//! The control socket: one JSON object a line each way over a Unix stream;
//! descriptors travel beside an answer (`SCM_RIGHTS`).

use std::io::{self, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::session::is_shared;
use super::{LabError, RunningLab};

mod server;

pub use server::{Server, Serving};

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that a client takes.
const MAX_ANSWER: usize = 64 << 20;
/// Most descriptors in one answer.
const MAX_FDS: usize = 4;

/// What a client asks of a running lab.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The operation: `status`, `enter`, …
    pub op: String,
    /// For `enter`: the entity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    /// Whatever else an operation takes.
    #[serde(flatten)]
    pub arguments: serde_json::Map<String, Value>,
}

/// What the lab answers.
#[derive(Debug, Default)]
pub struct Response {
    /// A JSON object; one with `error` says why the request was refused.
    pub body: Value,
    /// Descriptors for the client.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a running lab.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lab: String,
    buffer: Vec<u8>,
}

impl Request {
    /// A request for `op` without arguments.
    pub fn new(op: &str) -> Self {
        Self {
            op: op.to_owned(),
            ..Self::default()
        }
    }

    /// A request to enter `entity`.
    pub fn enter(entity: &str) -> Self {
        Self {
            entity: Some(entity.to_owned()),
            ..Self::new("enter")
        }
    }
}

impl Response {
    /// A refusal.
    pub fn error(why: impl Into<String>) -> Self {
        json!({ "error": why.into() }).into()
    }
}

impl From<Value> for Response {
    fn from(body: Value) -> Self {
        let fds = Vec::new();
        Self { body, fds }
    }
}

impl Client {
    /// Connects to `lab`.
    ///
    /// # Errors
    /// Its socket can't be reached, as when it is just starting or ending.
    pub fn connect(lab: &RunningLab) -> Result<Self, LabError> {
        let path = lab.control_path();
        let failed = |error| {
            LabError::system(
                format!("reach lab '{}' at {}", lab.name, path.display()),
                error,
            )
        };
        let stream = with_short_path(&path, |path| UnixStream::connect(path)).map_err(failed)?;
        let peer = getsockopt(&stream, PeerCredentials).map_err(|errno| failed(errno.into()))?;
        if is_from_elsewhere(peer, &path) {
            return Err(LabError::Refused(format!(
                "whoever answers at {} is not in this container: \
                 keep state where only this container can (a tmpfs at /run, or {})",
                path.display(),
                super::STATE_DIR_VARIABLE
            )));
        }
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok(Self {
            stream,
            lab: lab.name.clone(),
            buffer: Vec::new(),
        })
    }

    /// Asks and waits for the answer: its body and the descriptors with it.
    ///
    /// # Errors
    /// The lab refused the request, did not answer in time, or not sensibly.
    pub fn call(&mut self, request: &Request) -> Result<(Value, Vec<OwnedFd>), LabError> {
        let failed = |error| LabError::system(format!("ask lab '{}'", self.lab), error);
        let mut line = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        if let Err(error) = (&self.stream).write_all(&line)
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(failed(error));
        }
        // A server that closed the connection may have sent the reason before.
        let (line, fds) = self.receive()?;
        let body: Value =
            serde_json::from_slice(&line).map_err(|error| LabError::Protocol(error.to_string()))?;
        match body.get("error") {
            None => Ok((body, fds)),
            Some(error) => Err(self.refusal(&body, error)),
        }
    }

    fn receive(&mut self) -> Result<(Vec<u8>, Vec<OwnedFd>), LabError> {
        let mut fds = Vec::new();
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|&b| b == b'\n') {
                let rest = self.buffer.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok((line, fds));
            }
            searched = self.buffer.len();
            if searched > MAX_ANSWER {
                return Err(LabError::Protocol("it has no end".into()));
            }
            let mut chunk = [0; 16 << 10];
            let count = receive_with_fds(&self.stream, &mut chunk, &mut fds).map_err(|error| {
                let what = format!("lab '{}'", self.lab);
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        let text = format!("it does not answer within {PATIENCE:?}");
                        LabError::system(what, io::Error::new(io::ErrorKind::TimedOut, text))
                    }
                    _ => LabError::system(what, error),
                }
            })?;
            if count == 0 {
                return Err(LabError::Protocol("it ended the connection".into()));
            }
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }

    fn refusal(&self, body: &Value, error: &Value) -> LabError {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match body.get("unknown_entity").and_then(text) {
            Some(name) => LabError::UnknownEntity {
                lab: self.lab.clone(),
                name,
                near: body.get("near").and_then(text),
                known: body
                    .get("entities")
                    .and_then(Value::as_array)
                    .map(|names| names.iter().filter_map(text).collect())
                    .unwrap_or_default(),
            },
            None => LabError::Refused(text(error).unwrap_or_else(|| error.to_string())),
        }
    }
}

#[expect(unsafe_code, reason = "takes ownership of received descriptors")]
fn receive_with_fds(
    stream: &UnixStream,
    chunk: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(chunk)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            answer => break answer?,
        }
    };
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            for fd in received {
                // SAFETY: the kernel has just installed this descriptor for
                // this call; nothing else knows of it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok(message.bytes)
}

/// Whether `peer`, at the other end of a socket at `path`, is of another container that
/// reaches that path as the same user: the kernel gives 0 for the number of a process
/// that this one's PID namespace doesn't show.
fn is_from_elsewhere(peer: UnixCredentials, path: &Path) -> bool {
    is_shared(path) && peer.pid() == 0
}

/// Calls `use_path` with a path short enough for a socket address: the kernel
/// takes 107 bytes, and a state directory may be deeper.
fn with_short_path<T>(path: &Path, use_path: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    if SocketAddr::from_pathname(path).is_ok() {
        return use_path(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(parent)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd())).join(name);
    use_path(&short)
}

#[cfg(test)]
mod tests;
