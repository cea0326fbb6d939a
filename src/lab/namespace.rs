//! One entity's network namespace.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::{LabError, netns};

/// The network namespace of one entity. It lives as long as this value, a
/// process inside it, or (root's labs) its file under `/run/netns`, which
/// goes when this value is dropped.
#[derive(Debug)]
pub struct Namespace {
    entity: String,
    fd: Arc<OwnedFd>,
    inode: u64,
    bound: Option<PathBuf>,
}

impl Namespace {
    /// Moves the calling thread into a fresh network namespace and, where
    /// `bound` is given, makes that visible to `ip netns`.
    pub(super) fn make_here(entity: &str, bound: Option<PathBuf>) -> Result<Self, LabError> {
        let failed = |operation: &str, error| LabError::entity(entity, operation, error);
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| failed("make a network namespace", errno.into()))?;
        let file = File::open("/proc/thread-self/ns/net")
            .map_err(|error| failed("open the network namespace", error))?;
        let inode = file
            .metadata()
            .map_err(|error| failed("look at the network namespace", error))?
            .ino();
        if let Some(path) = &bound {
            netns::bind(path)?;
        }
        Ok(Self {
            entity: entity.to_owned(),
            fd: Arc::new(file.into()),
            inode,
            bound,
        })
    }

    /// The entity's name.
    pub fn entity(&self) -> &str {
        &self.entity
    }

    /// The file that `ip netns` knows it by, in root's labs.
    pub fn path(&self) -> Option<&Path> {
        self.bound.as_deref()
    }

    /// The namespace's number, as in `net:[4026531840]`.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn enter_thread(&self) -> Result<(), LabError> {
        setns(&*self.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| LabError::entity(&self.entity, "enter the network namespace", errno))
    }

    /// Runs `work` on a thread of its own inside the namespace: sockets that
    /// it opens belong there and can be used from anywhere afterwards.
    ///
    /// # Errors
    /// The kernel's refusal, or that `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        thread::scope(|scope| {
            thread::Builder::new()
                .name("sgwall-ns".into())
                .spawn_scoped(scope, || self.enter_thread().map(|()| work()))
                .map_err(|error| LabError::entity(&self.entity, "start a thread", error))?
                .join()
                .unwrap_or_else(|_| {
                    let entity = self.entity.clone();
                    Err(LabError::Panicked { entity })
                })
        })
    }

    /// A share in the descriptor that keeps the namespace alive.
    pub(super) fn share(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(path) = &self.bound {
            netns::unbind(path);
        }
    }
}
