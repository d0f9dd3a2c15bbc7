//! How the files of a backup are read.
//!
//! **Contract.** A [`Reading`] opens the files of a directory, whichever way: the engine's plain reads, unless the caller has
//! something that reads ahead. What it gives is compared with checksums wherever there are any.
//!
//! **Does not know** what is read.
use crate::io::IoError;
use crate::io::files::{Files, open_files};
use std::path::Path;
use std::sync::Arc;

/// Opens the files of a directory.
type Open = dyn Fn(&Path) -> Result<Arc<dyn Files>, IoError> + Send + Sync;

/// See the module.
#[derive(Clone)]
pub struct Reading(Arc<Open>);

impl Reading {
    /// Reads what `open` opens.
    pub fn with(open: impl Fn(&Path) -> Result<Arc<dyn Files>, IoError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(open))
    }

    pub(crate) fn open(&self, directory: &Path) -> Result<Arc<dyn Files>, IoError> {
        (self.0)(directory)
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self::with(open_files)
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reading")
    }
}
