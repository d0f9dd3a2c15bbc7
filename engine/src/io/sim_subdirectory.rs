//! A directory of the simulated disk as a device of its own. Feature `sim`.
//!
//! **Contract.** Every path that goes in is below the directory, which must exist; steps, faults and power cuts are those of
//! the disk, so what somebody writes here is cut at the same moments as what others write elsewhere on it. `from` of a
//! [`Operation::Link`] is a path of the whole disk, as an absolute path is on a real one. Messages name paths of the disk.
//!
//! **Does not know** who else uses the disk.
use super::IoBuffer;
use super::disk::{Backend, Completion, DeviceSpace, Io, IoError, Operation, Token, Wait, Waker};
use super::files::{Files, ReadFile};
use super::sim_disk::SimDisk;
use crate::base::clock::Clock;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// See the module.
#[derive(Clone)]
pub struct SimSubdirectory {
    disk: SimDisk,
    directory: PathBuf,
}

impl SimSubdirectory {
    /// `disk` is a handle that nobody else waits on.
    pub fn new(disk: SimDisk, directory: impl Into<PathBuf>) -> Self {
        Self { disk, directory: directory.into() }
    }

    fn place(&self, operation: Operation) -> Operation {
        let inside = |path: PathBuf| match path.as_os_str().is_empty() {
            true => self.directory.clone(),
            false => self.directory.join(path),
        };
        match operation {
            Operation::Open { path, open } => Operation::Open { path: inside(path), open },
            Operation::SyncDirectory { path } => Operation::SyncDirectory { path: inside(path) },
            Operation::Link { from, to } => Operation::Link { from, to: inside(to) },
            Operation::Rename { from, to } => Operation::Rename { from: inside(from), to: inside(to) },
            Operation::Unlink { path } => Operation::Unlink { path: inside(path) },
            Operation::Retire { path } => Operation::Retire { path: inside(path) },
            Operation::List { path } => Operation::List { path: inside(path) },
            Operation::CreateDirectory { path } => Operation::CreateDirectory { path: inside(path) },
            of_an_open_file => of_an_open_file,
        }
    }
}

impl Io for SimSubdirectory {
    fn submit(&mut self, token: Token, operation: Operation) {
        let operation = self.place(operation);
        self.disk.submit(token, operation);
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) {
        self.disk.wait(wait, completions);
    }

    fn waker(&self) -> Waker {
        self.disk.waker()
    }

    fn buffer(&mut self, bytes: usize) -> IoBuffer {
        self.disk.buffer(bytes)
    }

    fn recycle(&mut self, buffer: IoBuffer) {
        self.disk.recycle(buffer);
    }

    fn now_us(&self) -> u64 {
        Io::now_us(&self.disk)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.disk.clock()
    }

    fn backend(&self) -> Backend {
        self.disk.backend()
    }

    fn is_stopped(&self) -> bool {
        self.disk.is_stopped()
    }

    fn space(&self) -> Option<DeviceSpace> {
        self.disk.space()
    }
}

impl Files for SimSubdirectory {
    fn open(&self, path: &Path) -> Result<Arc<dyn ReadFile>, IoError> {
        self.disk.open(&self.directory.join(path))
    }
}
