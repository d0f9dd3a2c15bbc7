//! Reading files that no longer change, ahead of who reads them, through tokio-uring on a thread of its own.
//!
//! **Contract.** [`open_files`] gives the engine's [`Files`] for a directory. A file that is read front to back in pieces of
//! [`AHEAD_FROM_BYTES`] or more is read ahead: up to [`WINDOW`] pieces are under way or waiting, so that the device is busy while a
//! piece is summed and written elsewhere. Anything else is one read. What is read is byte for byte what the file holds; who
//! asked compares checksums while it goes by.
//!
//! ```text
//! who reads ── open, read, close (channel, bounded) ──▶ ring thread: one task for each read
//!           ◀── pieces, in order (one channel a read) ──
//! ```
//!
//! **Bounds.** [`WINDOW`] pieces for each file that is read front to back; [`REQUESTS_MAX`] requests under way to the thread.
//!
//! **Failure.** Where the ring cannot be had (containers forbid it, kernels lack it) the engine's plain reads take its place;
//! [`Reader`] says which it is and why, and one line of the log does. A failed read is the error of this piece; reading goes on
//! with single reads. Dropping a file drops what is under way for it.
//!
//! **Why a crate of its own.** The engine has no runtime, and tokio-uring is one. It reads files for backups and nothing else: never the
//! log, never what a database has open for writing.
//!
//! **Does not know** what the bytes mean.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod ring;
#[cfg(target_os = "linux")]
mod window;

use std::path::Path;
use std::sync::Arc;
use sternpost_engine::io::{Files, IoError};

/// Reads of at least so many bytes, one behind the other, are read ahead.
pub const AHEAD_FROM_BYTES: usize = 256 << 10;
/// Pieces of one file under way or waiting.
pub const WINDOW: usize = 4;
/// Requests that wait for the ring's thread.
pub const REQUESTS_MAX: usize = 64;

/// How files are read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reader {
    /// Through the ring, ahead.
    Ring,
    /// Plain reads, and why.
    Plain(String),
}

impl std::fmt::Display for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ring => f.write_str("io_uring"),
            Self::Plain(why) => write!(f, "plain reads ({why})"),
        }
    }
}

/// The files of a directory that exists, for reading, and how they are read.
///
/// # Errors
/// If there is no such directory.
pub fn open_files(directory: &Path) -> Result<(Arc<dyn Files>, Reader), IoError> {
    choose(directory, with_ring)
}

/// The ring's files, or plain ones with what `with_ring` says against it.
fn choose(
    directory: &Path,
    with_ring: impl FnOnce(&Path) -> Result<Arc<dyn Files>, String>,
) -> Result<(Arc<dyn Files>, Reader), IoError> {
    // It is asked in any case: the errors are the same ones then.
    let plain = sternpost_engine::io::open_files(directory)?;
    let (files, reader) = match with_ring(directory) {
        Ok(files) => (files, Reader::Ring),
        Err(why) => (plain, Reader::Plain(why)),
    };
    tracing::info!(directory = %directory.display(), reader = %reader, "files are read");
    Ok((files, reader))
}

#[cfg(target_os = "linux")]
fn with_ring(directory: &Path) -> Result<Arc<dyn Files>, String> {
    match ring::RingThread::start() {
        Ok(thread) => Ok(Arc::new(window::RingFiles::new(directory.to_path_buf(), thread))),
        Err(error) => Err(format!("no io_uring: {error}")),
    }
}

#[cfg(not(target_os = "linux"))]
fn with_ring(_: &Path) -> Result<Arc<dyn Files>, String> {
    Err("this system has no io_uring".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_no_ring_plain_reads_take_its_place_and_say_why() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("file"), vec![3; 5_000]).expect("a file");
        let forbidden = |_: &Path| Err("no io_uring: Operation not permitted".to_string());
        let (files, reader) = choose(root.path(), forbidden).expect("a directory");
        assert_eq!(reader.to_string(), "plain reads (no io_uring: Operation not permitted)");
        let file = files.open(Path::new("file")).expect("the file");
        assert_eq!(file.read(0, 8_192).expect("a read")[..], [3; 5_000]);
    }
}
