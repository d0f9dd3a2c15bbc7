//! Space of large files that lost their names, given back in pieces.
//!
//! A file system that tells the device what is free (ext4 mounted with `discard`) does so for all of a removed file at once, and every
//! write behind that waits: 20 ms for 64 MiB where this was measured, 55 ms of silence for writers when a checkpoint removed several
//! segments; 6 to 8 ms when pieces of 8 MiB were cut off one by one. So the name goes at once, and a thread shortens the
//! file that is left over.
//!
//! **Invariants.**
//! - *Nobody else reads what is shortened.* A file is touched only if it has no name left, which excludes every hard link (a backup), and
//!   only under an exclusive lock on it: whoever opens a file to read ([`super::files`]) holds a shared one until the file is closed.
//! - *Nothing depends on it.* Where locks are not supported, where the queue is full, when the directory is closed or the process
//!   dies, the file is closed as it is, and the system frees it all at once.
//!
//! **Does not know** what the files were.
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Files that wait: what comes beyond is freed at once.
const FILES_MAX: usize = 64;
/// What is cut off at a time.
const PIECE_BYTES: u64 = 8 << 20;
/// Between two pieces: the device has other things to do.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks whether the last reader has gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The files of one directory. The thread starts with the first of them and ends when this is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Removals {
    queue: Arc<Mutex<Option<SyncSender<File>>>>,
}

impl Removals {
    /// Takes a file's name, and gives its space back soon.
    ///
    /// # Errors
    /// What the system says about taking the name. The rest does not fail, it is only less gentle.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let opened = OpenOptions::new().write(true).open(path);
        std::fs::remove_file(path)?;
        if let Ok(file) = opened
            && file.metadata().is_ok_and(|metadata| metadata.len() > PIECE_BYTES)
        {
            self.hand_over(file);
        }
        Ok(())
    }

    fn hand_over(&self, file: File) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.is_none() {
            let (sender, receiver) = sync_channel(FILES_MAX);
            let started =
                std::thread::Builder::new().name("removal".into()).spawn(move || give_back_all(&receiver));
            if started.is_ok() {
                *queue = Some(sender);
            }
        }
        if let Some(sender) = &*queue {
            // A full queue drops the file.
            let _ = sender.try_send(file);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the thread of the removals has nothing else to do meanwhile")]
fn give_back_all(arriving: &Receiver<File>) {
    let mut waiting: VecDeque<File> = VecDeque::new();
    loop {
        let arrived = match waiting.is_empty() {
            true => arriving.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => arriving.recv_timeout(PAUSE),
        };
        match arrived {
            Ok(file) => {
                if waiting.len() == FILES_MAX {
                    waiting.pop_front();
                }
                waiting.push_back(file);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let Some(file) = waiting.pop_front() else { continue };
        match shorten(&file) {
            Ok(Shortened::Some) => waiting.push_front(file),
            Ok(Shortened::All) => {}
            Ok(Shortened::InUse) => {
                waiting.push_back(file);
                std::thread::sleep(LOOK_INTERVAL);
            }
            // Closed as it is.
            Err(_) => {}
        }
    }
}

#[derive(Debug, PartialEq)]
enum Shortened {
    /// A piece is gone, and more is left.
    Some,
    /// The rest is small enough to go with the file.
    All,
    /// Somebody reads it.
    InUse,
}

/// Cuts a piece off the end of a file that has no name and no reader.
fn shorten(file: &File) -> io::Result<Shortened> {
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Ok(Shortened::InUse),
        Err(std::fs::TryLockError::Error(error)) => return Err(error),
    }
    let metadata = file.metadata()?;
    if metadata.nlink() != 0 {
        return Err(io::Error::other("the file has another name"));
    }
    let left = metadata.len().saturating_sub(PIECE_BYTES);
    if left == 0 {
        return Ok(Shortened::All);
    }
    file.set_len(left)?;
    // Without it the file system would free all pieces together, at its next commit.
    file.sync_all()?;
    Ok(if left > PIECE_BYTES { Shortened::Some } else { Shortened::All })
}

/// Says that somebody reads a file, until it is closed. `NotFound` if it lost its name meanwhile and is being shortened.
pub(super) fn mark_as_read(file: &File) -> io::Result<()> {
    match file.try_lock_shared() {
        Err(std::fs::TryLockError::WouldBlock) => Err(io::ErrorKind::NotFound.into()),
        // Where there are no locks nothing is shortened either.
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::files::open_files;

    fn make(path: &Path) -> File {
        let file = OpenOptions::new().write(true).create_new(true).open(path).expect("makes a file");
        file.set_len(3 * PIECE_BYTES).expect("has a length");
        file
    }

    #[test]
    fn a_file_without_a_name_is_shortened_piece_by_piece() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a");
        let file = make(&path);
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(shorten(&file).expect("shortens"), Shortened::Some);
        assert_eq!(file.metadata().expect("is open").len(), 2 * PIECE_BYTES);
        assert_eq!(shorten(&file).expect("shortens"), Shortened::All);
    }

    #[test]
    fn a_file_with_another_name_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a");
        let file = make(&path);
        let backup = directory.path().join("b");
        std::fs::hard_link(&path, &backup).expect("links");
        std::fs::remove_file(&path).expect("removes");
        shorten(&file).expect_err("has a name");
        assert_eq!(backup.metadata().expect("is there").len(), 3 * PIECE_BYTES);
    }

    #[test]
    fn a_file_that_somebody_reads_is_left_alone_until_it_is_closed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a");
        let file = make(&path);
        let reader = open_files(directory.path()).expect("opens").open(Path::new("a")).expect("opens");
        let late = File::open(&path).expect("opens");
        std::fs::remove_file(&path).expect("removes");
        assert_eq!(shorten(&file).expect("looks"), Shortened::InUse);
        assert_eq!(reader.read(2 * PIECE_BYTES, 4096).expect("reads").len(), 4096);
        drop(reader);
        assert_eq!(shorten(&file).expect("shortens"), Shortened::Some);
        // And one that comes too late hears that there is no such file.
        assert_eq!(mark_as_read(&late).expect_err("is gone").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_name_is_gone_at_once_and_the_space_soon() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a");
        let file = make(&path);
        let removals = Removals::default();
        removals.remove(&path).expect("removes");
        assert!(!path.exists());
        while file.metadata().expect("is open").len() > PIECE_BYTES {
            std::thread::yield_now();
        }
        removals.remove(&path).expect_err("is not there");
    }
}
