//! A data directory and the right to be the only one in it: what parts of the engine share that open it side by side.
//!
//! **Contract.** A [`Place`] keeps the directory locked while it or a clone of it lives, and every device that it has opened until the
//! last operation of that has ended.
//!
//! **Does not know** what is in the directory.
use super::WriteAge;
use super::yielding::YieldingDevice;
use crate::error::{Error, Result};
use crate::io::dir_lock::DirLock;
use crate::io::files::{Files, open_files};
#[cfg(feature = "sim")]
use crate::io::sim_disk::SimDisk;
use crate::io::{BackendChoice, Io};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// See the module.
#[derive(Clone)]
pub struct Place {
    pub(super) kind: Kind,
    io_backend: BackendChoice,
    /// Of the log that is open there: its writes go first.
    age: Option<WriteAge>,
}

#[derive(Clone)]
pub(super) enum Kind {
    Directory {
        path: PathBuf,
        /// Released last: the backends' rings hold the same file.
        lock: Arc<DirLock>,
    },
    #[cfg(feature = "sim")]
    Simulated(SimDisk),
}

impl Place {
    /// Takes the lock of `directory`, which is made if it is missing; waits for it for at most `wait`. `waiting` hears once, in a sentence, by
    /// whom the directory is in use.
    ///
    /// # Errors
    /// [`Error::Locked`] if it is not free in time.
    pub fn in_directory(
        directory: &Path,
        io_backend: BackendChoice,
        wait: Duration,
        waiting: impl FnOnce(&str),
    ) -> Result<Self> {
        let lock = Arc::new(DirLock::acquire(directory, wait, waiting)?);
        Ok(Self { kind: Kind::Directory { path: directory.to_path_buf(), lock }, io_backend, age: None })
    }

    /// The root of a simulated disk, without a lock.
    #[cfg(feature = "sim")]
    pub fn on_simulated_disk(disk: &SimDisk) -> Self {
        Self { kind: Kind::Simulated(disk.clone()), io_backend: BackendChoice::Auto, age: None }
    }

    /// The same for somebody who writes much beside a log.
    pub(super) fn beside(&self, age: WriteAge) -> Self {
        Self { age: Some(age), ..self.clone() }
    }

    /// False on a simulated disk.
    pub(super) fn is_on_device(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }

    /// For salts: random, and on a simulated disk of its seed.
    pub(crate) fn salt_seed(&self) -> u64 {
        match &self.kind {
            Kind::Directory { .. } => super::random_seed(),
            #[cfg(feature = "sim")]
            Kind::Simulated(disk) => disk.draw(),
        }
    }

    /// A device for the directory, of the caller's own.
    pub(crate) fn open_io(&self) -> Result<Box<dyn Io>> {
        let io = match &self.kind {
            Kind::Directory { path, lock } => crate::io::open_backend(path, Some(lock), self.io_backend)?,
            #[cfg(feature = "sim")]
            Kind::Simulated(disk) => Box::new(disk.handle()) as Box<dyn Io>,
        };
        match (&self.age, &self.kind) {
            (Some(age), Kind::Directory { .. }) => Ok(Box::new(YieldingDevice::new(io, age.clone()))),
            _ => Ok(io),
        }
    }

    /// Its files, for blocking reads.
    pub(crate) fn files(&self) -> Result<Arc<dyn Files>> {
        match &self.kind {
            Kind::Directory { path, .. } => open_files(path).map_err(Error::from),
            #[cfg(feature = "sim")]
            Kind::Simulated(disk) => Ok(Arc::new(disk.clone())),
        }
    }
}
