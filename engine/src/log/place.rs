//! A data directory and the right to be the only one in it: what parts of the engine share that open it side by side.
//!
//! **Contract.** A [`Place`] keeps the directory locked while it or a clone of it lives, and every device that it has opened until the
//! last operation of that has ended; a [`PlaceRef`] does not.
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
use std::sync::{Arc, Weak};
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

/// A place that does not keep its directory locked: of use as long as somebody else does.
#[derive(Clone)]
pub struct PlaceRef {
    kind: KindRef,
    io_backend: BackendChoice,
    age: Option<WriteAge>,
}

#[derive(Clone)]
enum KindRef {
    Directory {
        path: PathBuf,
        lock: Weak<DirLock>,
    },
    #[cfg(feature = "sim")]
    Simulated(SimDisk),
}

impl PlaceRef {
    /// The place; none once nobody has it any more.
    pub(crate) fn place(&self) -> Option<Place> {
        let kind = match &self.kind {
            KindRef::Directory { path, lock } => {
                Kind::Directory { path: path.clone(), lock: lock.upgrade()? }
            }
            #[cfg(feature = "sim")]
            KindRef::Simulated(disk) => Kind::Simulated(disk.clone()),
        };
        Some(Place { kind, io_backend: self.io_backend, age: self.age.clone() })
    }
}

impl Place {
    /// The same without the right to keep others out.
    pub fn downgrade(&self) -> PlaceRef {
        let kind = match &self.kind {
            Kind::Directory { path, lock } => {
                KindRef::Directory { path: path.clone(), lock: Arc::downgrade(lock) }
            }
            #[cfg(feature = "sim")]
            Kind::Simulated(disk) => KindRef::Simulated(disk.clone()),
        };
        PlaceRef { kind, io_backend: self.io_backend, age: self.age.clone() }
    }

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
