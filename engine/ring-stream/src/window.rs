//! The engine's files over the ring: what is read front to back is asked for before it is wanted.
//!
//! **States of a file**: *idle* → *ahead* (pieces of one size are under way, the first is the one that will be wanted next).
//! A read that continues takes the first and asks for one more; any other read drops the window.
//!
//! **Access.** One lock for each file, held while its reader waits for a piece: two threads that read one file wait for each
//! other, and lose the window by turns.
//!
//! **Does not know** what the bytes mean.
use crate::ring::{OpenFile, RingThread};
use crate::{AHEAD_FROM_BYTES, WINDOW};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use sternpost_engine::io::{AlignedBytes, Files, IoError, ReadFile};

pub(crate) struct RingFiles {
    root: PathBuf,
    thread: RingThread,
}

impl RingFiles {
    pub(crate) fn new(root: PathBuf, thread: RingThread) -> Self {
        Self { root, thread }
    }
}

impl Files for RingFiles {
    fn open(&self, path: &Path) -> Result<Arc<dyn ReadFile>, IoError> {
        let open = || {
            let file = File::open(self.root.join(path))?;
            let bytes = file.metadata()?.len();
            let ring = self.thread.open(file.try_clone()?)?;
            Ok(RingFile { file, ring, bytes, path: path.display().to_string(), window: Mutex::default() })
        };
        match open() {
            Ok(file) => Ok(Arc::new(file)),
            Err(error) => Err(IoError::from_system(format!("open {}", path.display()), &error)),
        }
    }
}

/// A piece that is under way.
type Piece = mpsc::Receiver<io::Result<Vec<u8>>>;

#[derive(Default)]
struct Window {
    /// Where the first of `pieces` starts, or the one that would follow.
    next: u64,
    /// Bytes of each.
    piece_bytes: usize,
    pieces: VecDeque<Piece>,
}

struct RingFile {
    /// For advice alone.
    file: File,
    ring: OpenFile,
    /// Length when it was opened: it does not change.
    bytes: u64,
    path: String,
    window: Mutex<Window>,
}

impl RingFile {
    /// The bytes at `offset`, out of the window if they are the next of it.
    fn piece(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.next != offset || window.piece_bytes != bytes {
            *window = Window { next: offset, piece_bytes: bytes, pieces: VecDeque::new() };
        }
        let ahead = if bytes >= AHEAD_FROM_BYTES { WINDOW } else { 1 };
        while window.pieces.len() < ahead {
            let start = window.next + (window.pieces.len() * bytes) as u64;
            if start > self.bytes && !window.pieces.is_empty() {
                break;
            }
            let piece = self.ring.read(start, bytes)?;
            window.pieces.push_back(piece);
        }
        let piece = window.pieces.pop_front().ok_or_else(|| io::Error::other("nothing was asked for"))?;
        window.next += bytes as u64;
        let piece =
            piece.recv().unwrap_or_else(|_| Err(io::Error::other("the thread of the ring has ended")));
        if piece.is_err() {
            *window = Window::default();
        }
        piece
    }
}

impl ReadFile for RingFile {
    fn read(&self, offset: u64, bytes: usize) -> Result<AlignedBytes, IoError> {
        const BLOCK_BYTES: usize = sternpost_engine::io::disk::BLOCK_BYTES;
        assert_eq!(offset % BLOCK_BYTES as u64, 0, "an offset is a multiple of {BLOCK_BYTES}");
        assert_eq!(bytes % BLOCK_BYTES, 0, "a length is a multiple of {BLOCK_BYTES}");
        // Lengths come from other files and may be damaged: no more is allocated than there is.
        let there = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX - BLOCK_BYTES);
        let wanted = if bytes > 1 << 20 { bytes.min(there.next_multiple_of(BLOCK_BYTES)) } else { bytes };
        if wanted == 0 || there == 0 {
            return Ok(AlignedBytes::zeroed(0));
        }
        let piece = self.piece(offset, wanted).map_err(|error| {
            IoError::from_system(format!("read {bytes} bytes at {offset} of {}", self.path), &error)
        })?;
        // What a backup reads once would push out what servers beside it need. Advice may be ignored.
        if let Some(read) = NonZero::new(piece.len() as u64) {
            let _ = rustix::fs::fadvise(&self.file, offset, Some(read), rustix::fs::Advice::DontNeed);
        }
        let mut aligned = AlignedBytes::zeroed(piece.len().next_multiple_of(BLOCK_BYTES));
        aligned[..piece.len()].copy_from_slice(&piece);
        aligned.truncate(piece.len());
        Ok(aligned)
    }

    fn length(&self) -> Result<u64, IoError> {
        Ok(self.bytes)
    }

    fn path(&self) -> &str {
        &self.path
    }
}
