//! A backup that was made: itself, and the older ones that it leaves files to.
//!
//! **Contract.** [`Backup::open`] reads the manifests of the whole chain and proves that each is the one that the newer one was
//! made on. A file is where the manifests say, and is what they say only after its checksums were compared: what reads it does
//! that.
//!
//! **Why the name of a file is not enough.** A restored directory goes on with the identity and the numbers of its backup, so
//! two directories may have another segment each under one number. Manifests tell them apart by length and checksums.
//!
//! **Does not know** what is in the files.
use super::manifest::{BaseBackup, FileEntry, Location, MANIFEST_FILE, Manifest};
use super::marker;
use super::{BackupProgress, Reading};
use crate::error::{Error, Result};
use crate::io::files::{Files, open_files};
use crate::io::{IoErrorKind, ReadFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longer chains are refused: each restore reads all of their manifests.
const CHAIN_MAX: usize = 1_000;

/// See the module.
pub struct Backup {
    /// The newest first; each is the base of the one before.
    links: Vec<Link>,
}

struct Link {
    directory: PathBuf,
    files: Arc<dyn Files>,
    manifest: Manifest,
    checksum: u32,
}

/// What a verification of a backup read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifiedBackup {
    /// Files of the manifest, all of them.
    pub files_count: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Backups that they are in.
    pub backups_count: u64,
    /// Newest revision, if the manifest has it.
    pub revision: Option<i64>,
}

impl Link {
    fn open(directory: &Path, reading: &Reading) -> Result<Self> {
        Self::read(directory, reading.open(directory)?)
    }

    fn read(directory: &Path, files: Arc<dyn Files>) -> Result<Self> {
        match Manifest::read(&*files, Path::new(MANIFEST_FILE)) {
            Ok((manifest, checksum)) => {
                Ok(Self { directory: directory.to_path_buf(), files, manifest, checksum })
            }
            Err(Error::Io(error)) if error.kind == IoErrorKind::NotFound => {
                Err(marker::no_manifest(&names(directory), directory))
            }
            Err(error) => Err(in_directory(directory, error)),
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Names the directory too: a chain has several.
fn in_directory(directory: &Path, error: Error) -> Error {
    match error {
        Error::Corruption { file, offset, what } => {
            Error::Corruption { file: directory.join(file).display().to_string(), offset, what }
        }
        error => error,
    }
}

/// The manifest of a base: of a backup, or the file alone.
pub(super) fn open_base(path: &Path) -> Result<(BaseBackup, Manifest)> {
    let (directory, manifest, manifest_checksum) = if path.is_dir() {
        let Link { manifest, checksum, .. } = Link::open(path, &Reading::default())?;
        (path, manifest, checksum)
    } else {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or_else(|| {
            Error::Refused(format!("{} is neither a backup nor a manifest", path.display()))
        })?;
        let (manifest, checksum) = Manifest::read(&*open_files(directory)?, Path::new(name))
            .map_err(|error| in_directory(directory, error))?;
        (directory, manifest, checksum)
    };
    // Where the caller stands is not where a restore will.
    let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
    Ok((BaseBackup { directory, manifest_checksum }, manifest))
}

impl Backup {
    /// Opens the backup in `directory` with its bases: each is looked for in `bases`, then where it was when it was used.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is no backup, not finished, was opened as a database since, or a base cannot be found;
    /// [`Error::Corruption`] if a manifest does not verify.
    pub fn open(directory: impl AsRef<Path>, bases: &[PathBuf]) -> Result<Self> {
        Self::open_reading(directory, bases, &Reading::default())
    }

    /// The same, with files read in another way.
    ///
    /// # Errors
    /// Those of [`Backup::open`].
    pub fn open_reading(directory: impl AsRef<Path>, bases: &[PathBuf], reading: &Reading) -> Result<Self> {
        let mut links = vec![Link::open(directory.as_ref(), reading)?];
        while let Some(base) = links.last().and_then(|link| link.manifest.base.clone()) {
            if links.len() == CHAIN_MAX {
                return Err(Error::Refused(format!("the chain of bases is longer than {CHAIN_MAX}")));
            }
            links.push(find_base(&base, bases, reading)?);
        }
        Ok(Self { links })
    }

    /// A backup in a directory of a simulated disk, without bases elsewhere.
    #[cfg(feature = "sim")]
    pub fn on_simulated_disk(files: Arc<dyn Files>) -> Result<Self> {
        let (manifest, checksum) = Manifest::read(&*files, Path::new(MANIFEST_FILE))?;
        Ok(Self { links: vec![Link { directory: PathBuf::new(), files, manifest, checksum }] })
    }

    /// What the newest one holds.
    pub fn manifest(&self) -> &Manifest {
        &self.links[0].manifest
    }

    /// Opens a file of the newest one, wherever it is. Names its directory in errors of `read`.
    pub(super) fn with_file<T>(
        &self,
        entry: &FileEntry,
        read: impl FnOnce(&dyn ReadFile) -> Result<T>,
    ) -> Result<T> {
        for link in &self.links {
            let known = link.manifest.file(&entry.path).filter(|known| known.sums == entry.sums);
            let Some(known) = known else { break };
            if known.location == Location::Base {
                continue;
            }
            let opened = link.files.open(&entry.path).map_err(|error| match error.kind {
                IoErrorKind::NotFound => Error::Corruption {
                    file: entry.path.display().to_string(),
                    offset: 0,
                    what: format!("a file of {} bytes expected, none found", entry.bytes()),
                },
                _ => error.into(),
            });
            return opened
                .and_then(|file| read(&*file))
                .map_err(|error| self.explain(in_directory(&link.directory, error), &link.directory));
        }
        Err(Error::Refused(format!(
            "{} is in none of the backups that this one builds on: their manifests do not fit together",
            entry.path.display()
        )))
    }

    /// A file that differs because somebody has used the directory is no rot.
    fn explain(&self, error: Error, directory: &Path) -> Error {
        let has_no_manifest = !directory.as_os_str().is_empty() && !directory.join(MANIFEST_FILE).exists();
        match matches!(error, Error::Corruption { .. }) && has_no_manifest {
            true => marker::no_manifest(&names(directory), directory),
            false => error,
        }
    }

    /// Reads every file of it, those of its bases included, and compares all checksums.
    ///
    /// # Errors
    /// [`Error::Corruption`] with the first file and chunk that differs or is missing.
    pub fn verify(&self, progress: &mut dyn FnMut(BackupProgress)) -> Result<VerifiedBackup> {
        let manifest = self.manifest();
        let bytes_total = manifest.bytes();
        let mut bytes_done = 0;
        for entry in &manifest.files {
            self.with_file(entry, |file| {
                entry.sums.verify(file, &mut |_, piece| {
                    bytes_done += piece.len() as u64;
                    progress(BackupProgress { part: "verifying", bytes_done, bytes_total });
                    Ok(())
                })
            })?;
        }
        Ok(VerifiedBackup {
            files_count: manifest.files.len() as u64,
            bytes: bytes_total,
            backups_count: self.links.len() as u64,
            revision: manifest.revision,
        })
    }
}

fn find_base(base: &BaseBackup, given: &[PathBuf], reading: &Reading) -> Result<Link> {
    for directory in given {
        let link = Link::open(directory, reading)?;
        if link.checksum == base.manifest_checksum {
            return Ok(link);
        }
    }
    let expected = base.directory.display();
    match Link::open(&base.directory, reading) {
        Ok(link) if link.checksum == base.manifest_checksum => Ok(link),
        Ok(_) => Err(Error::Refused(format!(
            "{expected} is not the backup that this one builds on, it was made anew: say where that one is"
        ))),
        Err(error) => Err(Error::Refused(format!(
            "the backup that this one builds on was in {expected}, where it is not ({error}): say where it is"
        ))),
    }
}
