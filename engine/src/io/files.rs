//! Blocking reads of files that no longer change, from any thread.
//!
//! **Contract.** A file that was completely written through [`super::Io`], and whose writes have completed, is read here
//! byte for byte, synced or not. An open file outlives its name. A read is short only at the end of the file. Nothing is
//! repeated here but a call that a signal interrupted.
//!
//! **Why not through [`super::Io`].** That belongs to one thread, and a read would wait in its loop behind writes and their
//! syncs. Readers are many, each knows what it wants next, and a blocking `pread` of their own costs them one system call.
//!
//! **Direct I/O** where the file system takes it, which the first file that is opened finds out: some file systems refuse
//! when a file is opened, some only when it is read. Nothing is written to find out; the directory may be read-only.
//!
//! **Does not know** what the bytes mean, and caches nothing.
use super::aligned_bytes::AlignedBytes;
use super::directory::{check_directory, read_full, read_options};
use super::disk::{BLOCK_BYTES, IoError, check_path};
use super::removal::mark_as_read;
use crate::error::Error;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// A directory whose files can be read. Paths are relative to it.
pub trait Files: Send + Sync {
    /// Opens a file that exists.
    ///
    /// # Errors
    /// `NotFound` if it does not; else what the system says.
    fn open(&self, path: &Path) -> Result<Arc<dyn ReadFile>, IoError>;
}

/// An open file, under a shared lock that lasts as long (see `removal.rs`). Closed when the last `Arc` is dropped.
pub trait ReadFile: Send + Sync {
    /// `bytes` from `offset`, both multiples of [`BLOCK_BYTES`]; fewer only at the end of the file, none behind it.
    ///
    /// # Errors
    /// What the device says. Nothing was read then.
    ///
    /// # Panics
    /// If `offset` or `bytes` is not a multiple of a block.
    fn read(&self, offset: u64, bytes: usize) -> Result<AlignedBytes, IoError>;

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn length(&self) -> Result<u64, IoError>;

    /// Path relative to the directory, for messages.
    fn path(&self) -> &str;

    /// Hears that a read of `bytes` at `offset` was given up: it failed, or what it gave did not verify, again and again.
    fn given_up(&self, _offset: u64, _bytes: usize, _error: &Error) {}
}

/// A read of more than this asks for the length of the file before it allocates: lengths come from other files and may
/// be damaged.
const BYTES_UNQUESTIONED: usize = 1 << 20;

/// The files of a directory that exists. It is read only: no lock is needed, and none is taken.
///
/// # Errors
/// If there is no such directory.
pub fn open_files(directory: &Path) -> Result<Arc<dyn Files>, IoError> {
    check_directory(directory)?;
    Ok(Arc::new(DirectoryFiles { root: directory.to_path_buf(), direct: OnceLock::new() }))
}

/// Makes a directory with its parents, if it is not there, and makes its name durable.
///
/// # Errors
/// What the system says; `AlreadyExists` if there is a file of that name.
pub fn make_directory(directory: &Path) -> Result<(), IoError> {
    super::dir_lock::make_directory(directory)
        .map_err(|error| IoError::from_system(format!("make directory {}", directory.display()), &error))
}

struct DirectoryFiles {
    root: PathBuf,
    /// Whether O_DIRECT works; unknown before the first file was opened.
    direct: OnceLock<bool>,
}

impl DirectoryFiles {
    fn open_file(&self, path: &Path) -> io::Result<File> {
        let path = self.root.join(path);
        if let Some(direct) = self.direct.get() {
            return match read_options(*direct).open(&path) {
                // A log behind a link may lie on a file system without it.
                Err(error) if *direct && is_refusal(&error) => read_options(false).open(path),
                opened => opened,
            };
        }
        let probed = read_options(true).open(&path).and_then(|file| {
            read_full(&file, &mut AlignedBytes::zeroed(BLOCK_BYTES), 0)?;
            Ok(file)
        });
        match probed {
            Ok(file) => {
                // Threads may find out at the same time; they find the same.
                self.direct.get_or_init(|| true);
                Ok(file)
            }
            Err(error) if is_refusal(&error) => {
                let file = read_options(false).open(path)?;
                self.direct.get_or_init(|| false);
                Ok(file)
            }
            Err(error) => Err(error),
        }
    }
}

/// True if the file system does not do direct I/O.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

impl Files for DirectoryFiles {
    fn open(&self, path: &Path) -> Result<Arc<dyn ReadFile>, IoError> {
        check_path(path);
        match self.open_file(path).and_then(|file| mark_as_read(&file).map(|()| file)) {
            Ok(file) => Ok(Arc::new(SystemFile { file, path: path.display().to_string() })),
            Err(error) => Err(IoError::from_system(open_phrase(path), &error)),
        }
    }
}

struct SystemFile {
    file: File,
    path: String,
}

impl ReadFile for SystemFile {
    fn read(&self, offset: u64, bytes: usize) -> Result<AlignedBytes, IoError> {
        check_read(offset, bytes);
        let read = || {
            let bytes = match bytes > BYTES_UNQUESTIONED {
                true => bytes.min(bytes_behind(self.file.metadata()?.len(), offset)),
                false => bytes,
            };
            let mut buffer = AlignedBytes::zeroed(bytes);
            let count = read_full(&self.file, &mut buffer, offset)?;
            buffer.truncate(count);
            Ok(buffer)
        };
        read().map_err(|error| IoError::from_system(read_phrase(offset, bytes, &self.path), &error))
    }

    fn length(&self) -> Result<u64, IoError> {
        let length = self.file.metadata().map(|metadata| metadata.len());
        length.map_err(|error| IoError::from_system(length_phrase(&self.path), &error))
    }

    fn path(&self) -> &str {
        &self.path
    }
}

/// How much of a file of `length` lies behind `offset`, in whole blocks.
pub(super) fn bytes_behind(length: u64, offset: u64) -> usize {
    let bytes = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX - BLOCK_BYTES);
    bytes.next_multiple_of(BLOCK_BYTES)
}

pub(super) fn check_read(offset: u64, bytes: usize) {
    assert_eq!(offset % BLOCK_BYTES as u64, 0, "an offset is a multiple of {BLOCK_BYTES}");
    assert_eq!(bytes % BLOCK_BYTES, 0, "a length is a multiple of {BLOCK_BYTES}");
}

/// The words of [`super::Operation::describe`].
pub(super) fn open_phrase(path: &Path) -> String {
    format!("open {}", path.display())
}

pub(super) fn read_phrase(offset: u64, bytes: usize, path: &str) -> String {
    format!("read {bytes} bytes at {offset} of {path}")
}

pub(super) fn length_phrase(path: &str) -> String {
    format!("ask for the length of {path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_direct_io_files_are_read_all_the_same() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("file"), vec![3; 5000]).expect("a file");
        for direct in [None, Some(true), Some(false)] {
            let files = DirectoryFiles {
                root: root.path().to_path_buf(),
                direct: direct.map_or_else(OnceLock::new, OnceLock::from),
            };
            let file = match files.open(Path::new("file")) {
                Ok(file) => file,
                Err(error) => {
                    println!("NOT CHECKED with direct {direct:?}: {error}");
                    continue;
                }
            };
            println!("direct {:?}", files.direct.get());
            assert_eq!(file.read(0, 2 * BLOCK_BYTES).expect("a read")[..], [3; 5000]);
        }
    }

    #[test]
    fn a_length_that_is_out_of_all_proportion_allocates_no_more_than_the_file_has() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("file"), vec![3; 3 * BLOCK_BYTES]).expect("a file");
        let file = open_files(root.path()).and_then(|files| files.open(Path::new("file"))).expect("the file");
        let bytes = usize::MAX - (BLOCK_BYTES - 1);
        assert_eq!(file.read(BLOCK_BYTES as u64, bytes).expect("a read")[..], [3; 2 * BLOCK_BYTES]);
        assert_eq!(file.read(1 << 62, bytes).expect("a read").len(), 0);
    }

    #[test]
    fn what_a_damaged_offset_gives_is_an_error_or_nothing_and_no_panic() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("file"), vec![3; BLOCK_BYTES]).expect("a file");
        let file = open_files(root.path()).and_then(|files| files.open(Path::new("file"))).expect("the file");
        for offset in [1 << 44, (1 << 63) - 4096, 1 << 63, u64::MAX - 4095] {
            match file.read(offset, BLOCK_BYTES) {
                Ok(bytes) => assert!(bytes.is_empty()),
                Err(error) => assert!(error.what.starts_with("read 4096 bytes at "), "{error}"),
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_found() {
        let root = tempfile::tempdir().expect("a directory");
        let error = open_files(&root.path().join("none")).err().expect("no directory");
        assert_eq!(error.kind, crate::io::IoErrorKind::NotFound);
    }
}
