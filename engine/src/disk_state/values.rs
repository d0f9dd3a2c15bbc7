//! Values of one answer, read by many threads at once.
//!
//! Whoever answers a range has its keys, and of each the revision whose record holds the value. Read one after the other each waits for
//! the device; so they are cut into pieces, neighbours in one, and whoever is free takes the next piece: the caller, and the threads
//! that read ahead.
//!
//! **Bounds.** The caller holds the answer anyway. On top come the bytes of the file around a piece's records, 256 KiB for each of at most
//! [`THREADS`](super::read_ahead::THREADS) + 1 that work at it.
//!
//! **Failure.** A piece that cannot be read is an error of the whole, the first in the order of the pieces, whoever read it.
use super::DiskState;
use crate::base::ids::Revision;
use crate::error::{Error, Result};
use crate::revision_log::OwnedRecord;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Records of one piece: with neighbours in a file some of them share a read, and a range of a hundred keys still keeps several threads busy.
pub(super) const PIECE_RECORDS: usize = 16;

/// Records of one segment, in the order of their revisions.
pub(super) struct Piece {
    /// Number of the segment in the state.
    pub(super) segment: usize,
    /// Each with its place in the answer.
    pub(super) wanted: Vec<(Revision, usize)>,
}

impl Piece {
    /// Cuts what is wanted of one segment.
    pub(super) fn cut(segment: usize, wanted: &[(Revision, usize)]) -> impl Iterator<Item = Self> {
        wanted.chunks(PIECE_RECORDS).map(move |wanted| Self { segment, wanted: wanted.to_vec() })
    }
}

/// The records of a piece in its order, or why not all can be read. One that is not there is none.
pub(super) type PieceRead = Result<Vec<Option<OwnedRecord>>>;

/// See the module.
pub(super) struct ValueBatch {
    state: Arc<DiskState>,
    pieces: Vec<Piece>,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    done: Mutex<Vec<Option<PieceRead>>>,
    changed: Condvar,
}

impl ValueBatch {
    pub(super) fn new(state: Arc<DiskState>, pieces: Vec<Piece>) -> Arc<Self> {
        let done = pieces.iter().map(|_| None).collect();
        let (next, changed) = (AtomicUsize::new(0), Condvar::new());
        Arc::new(Self { state, pieces, next, done: Mutex::new(done), changed })
    }

    fn done(&self) -> MutexGuard<'_, Vec<Option<PieceRead>>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads pieces until none is left to be taken.
    pub(super) fn work(&self) {
        while self.work_at_one() {}
    }

    /// Reads the next piece that nobody has taken; false if there is none.
    pub(super) fn work_at_one(&self) -> bool {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(piece) = self.pieces.get(number) else { return false };
        let mut taken = Taken { batch: self, number, read: None };
        taken.read = Some(self.state.read_piece(piece));
        true
    }

    /// Works, and waits for what others have taken.
    pub(super) fn finish(&self) -> Vec<(&Piece, PieceRead)> {
        self.work();
        let is_open = |done: &mut Vec<Option<PieceRead>>| done.iter().any(Option::is_none);
        let waited = self.changed.wait_while(self.done(), is_open);
        let mut done = waited.unwrap_or_else(PoisonError::into_inner);
        let read = done.iter_mut().map(|read| read.take().expect("all of them are done"));
        self.pieces.iter().zip(read).collect()
    }
}

/// A piece that somebody reads: it comes to an end also if that panics, or the caller would wait for ever.
struct Taken<'a> {
    batch: &'a ValueBatch,
    number: usize,
    read: Option<PieceRead>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let ended = || Err(Error::Refused("a broken invariant ended the read of a value".into()));
        let read = self.read.take().unwrap_or_else(ended);
        self.batch.done()[self.number] = Some(read);
        self.batch.changed.notify_all();
    }
}
