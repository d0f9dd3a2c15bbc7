//! Room on the device: what is kept back, and what follows when there is little.
//!
//! **Why.** Nothing on a full disk frees itself. What a deletion or a compaction makes dead is given back by checkpoints, and a checkpoint
//! writes before it removes. So some room is taken beforehand and given up when a checkpoint finds none: the *reserve*.
//!
//! **Data.** Two files in the root of the directory, `reserve-1` and `reserve-2`, each half of the reserve, which have their blocks
//! and hold nothing; and [`Space`], what everybody who writes has to know.
//!
//! **Rules.** S1: while the reserve is not whole, what could make the data larger is refused ([`Space::refusal`]); what makes it
//! smaller is taken. S2: it is put together again before anything else takes room: meanwhile the log makes no file but one that it needs to go
//! on, and gives back those that it has beyond that. S3: `reserve-1` goes first, and only when a checkpoint would fail; `reserve-2` only when one
//! would fail without `reserve-1`, and is the first that is made again.
//!
//! **States**: *whole* → (a checkpoint finds no room) *short* → (room for both files) *whole*. A directory that never had a reserve
//! counts as whole until the first try to make one has failed.
//!
//! **Does not know** what a checkpoint writes, or who is refused.
use crate::error::{Error, Result};
use crate::io::disk::run;
use crate::io::{DeviceSpace, FileId, Io, IoErrorKind, Open, Operation, Outcome};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The files, in the order in which they are given up.
const FILES: [&str; 2] = ["reserve-1", "reserve-2"];
/// One that is being made.
const PART: &str = "reserve.part";
/// Both files are a multiple of this.
const UNIT_BYTES: u64 = 64 << 10;
/// The reserve takes no more than one part in so many of a file system.
const SHARE_MAX: u64 = 16;
/// A segment takes no more than one part in so many: what is left of one has to be copied before it can go.
const SEGMENT_SHARE_MAX: u64 = 64;
/// Segments are not made smaller than this for the sake of a small file system.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// Segments that the reserve has room for: a full memtable of the default size, a segment to be cleaned and the pages of both, and as much again.
const SEGMENTS: u64 = 4;

/// The size of segments on this file system, of at most `segment_bytes`.
pub(crate) fn segment_bytes_on(device: Option<DeviceSpace>, segment_bytes: u64) -> u64 {
    let Some(device) = device else { return segment_bytes };
    let share = device.total_bytes / SEGMENT_SHARE_MAX / UNIT_BYTES * UNIT_BYTES;
    segment_bytes.min(share.max(SEGMENT_BYTES_MIN))
}

/// The size of the reserve where nobody has said one.
pub(crate) fn reserve_bytes_on(device: Option<DeviceSpace>, segment_bytes: u64) -> u64 {
    let share = device.map_or(u64::MAX, |device| device.total_bytes / SHARE_MAX);
    (SEGMENTS * segment_bytes).min(share)
}

/// What everybody who writes to a directory has to know of the room there. Shared by the log, the checkpoints and whoever applies.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// Why the reserve is not whole, while it is not.
    short: Mutex<Option<String>>,
    /// The same for who only wants to know whether.
    is_short: AtomicBool,
    /// A checkpoint would give the log files that it cannot make.
    is_log_waiting: AtomicBool,
    /// As of the last look, one more than that; 0 where it is not known.
    free_bytes: AtomicU64,
}

impl Space {
    /// Why a write that could make the data larger is refused, if so (S1).
    pub(crate) fn refusal(&self) -> Option<Error> {
        if !self.is_short() {
            return None;
        }
        let short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        short.as_ref().map(|why| Error::NoSpace(format!("the reserve on the disk is not whole ({why})")))
    }

    /// True while the reserve is not whole.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Acquire)
    }

    fn set_short(&self, why: Option<String>) {
        let mut short = self.short.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_short.store(why.is_some(), Ordering::Release);
        *short = why;
    }

    /// Says whether the log waits for files that a checkpoint would give it.
    pub(crate) fn note_log_waiting(&self, is_waiting: bool) {
        self.is_log_waiting.store(is_waiting, Ordering::Release);
    }

    /// True while a checkpoint would give the log files that it cannot make.
    pub(crate) fn is_log_waiting(&self) -> bool {
        self.is_log_waiting.load(Ordering::Acquire)
    }

    fn note_free(&self, device: Option<DeviceSpace>) {
        let noted = device.map_or(0, |device| device.free_bytes.saturating_add(1));
        self.free_bytes.store(noted, Ordering::Release);
    }

    /// True if less than this is known to be free.
    pub(crate) fn has_less_than(&self, bytes: u64) -> bool {
        let noted = self.free_bytes.load(Ordering::Acquire);
        noted > 0 && noted <= bytes
    }
}

/// The files. Belongs to whoever makes checkpoints, and does its I/O through the device of that, which has nothing in flight.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// Of each file; 0 for no reserve.
    half_bytes: u64,
    held: [bool; 2],
}

impl Reserve {
    /// None, and none was asked for.
    pub(crate) fn none() -> Self {
        Self { half_bytes: 0, held: [true; 2] }
    }

    /// What there is of a reserve of `bytes`, which is rounded down; files of another size are removed.
    pub(crate) fn open(io: &mut dyn Io, bytes: u64) -> Result<Self> {
        let half_bytes = bytes / 2 / UNIT_BYTES * UNIT_BYTES;
        let names = match run(io, Operation::List { path: PathBuf::new() })? {
            (Outcome::Names(names), _) => names,
            (other, _) => unreachable!("a listing gave {other:?}"),
        };
        let is_there = |name: &str| names.iter().any(|other| other == name);
        if is_there(PART) {
            run(io, Operation::Unlink { path: PART.into() })?;
        }
        let mut held = [half_bytes == 0; 2];
        for (held, name) in held.iter_mut().zip(FILES) {
            if is_there(name) {
                match half_bytes > 0 && length(io, Path::new(name))? == half_bytes {
                    true => *held = true,
                    false => drop(run(io, Operation::Unlink { path: name.into() })?),
                }
            }
        }
        Ok(Self { half_bytes, held })
    }

    /// Bytes of both files.
    pub(crate) fn bytes(&self) -> u64 {
        2 * self.half_bytes
    }

    /// True if both files are there.
    pub(crate) fn is_whole(&self) -> bool {
        self.held == [true; 2]
    }

    /// Gives up one file for a checkpoint that has failed with `error`; false if there is none (S3).
    pub(crate) fn give_up_one(&mut self, io: &mut dyn Io, space: &Space, error: &Error) -> bool {
        if self.half_bytes == 0 {
            return false;
        }
        // First, so that nobody takes what becomes free (S2).
        space.set_short(Some(error.to_string()));
        let Some(at) = self.held.iter().position(|held| *held) else { return false };
        self.held[at] = false;
        // One that cannot be removed gives no room, which shows at the next try.
        run(io, Operation::Unlink { path: FILES[at].into() }).is_ok()
    }

    /// Makes what is missing, if there is room; says how it is.
    ///
    /// # Errors
    /// Of the device, but for a full one.
    pub(crate) fn put_together(&mut self, io: &mut dyn Io, space: &Space) -> Result<()> {
        for at in [1, 0] {
            if self.held[at] {
                continue;
            }
            let device = io.space();
            if let Some(device) = device
                && device.free_bytes < self.half_bytes
            {
                let (free, wanted) = (device.free_bytes, self.half_bytes);
                space.note_free(Some(device));
                space.set_short(Some(format!("{free} bytes are free, and {wanted} are missing from it")));
                return Ok(());
            }
            match make(io, FILES[at], self.half_bytes) {
                Ok(()) => self.held[at] = true,
                Err(error) => {
                    // Also what a full disk has left of it.
                    let _ = run(io, Operation::Unlink { path: PART.into() });
                    space.note_free(io.space());
                    space.set_short(Some(error.to_string()));
                    return if matches!(error, Error::NoSpace(_)) { Ok(()) } else { Err(error) };
                }
            }
        }
        space.note_free(io.space());
        space.set_short(None);
        Ok(())
    }
}

fn open(io: &mut dyn Io, path: &Path, open: Open) -> Result<FileId> {
    match run(io, Operation::Open { path: path.into(), open })? {
        (Outcome::Opened(file), _) => Ok(file),
        (other, _) => unreachable!("an open gave {other:?}"),
    }
}

fn length(io: &mut dyn Io, path: &Path) -> Result<u64> {
    let file = open(io, path, Open::Existing)?;
    let length = run(io, Operation::Length { file });
    run(io, Operation::Close { file })?;
    match length? {
        (Outcome::Length(bytes), _) => Ok(bytes),
        (other, _) => unreachable!("a length was asked for, and there is {other:?}"),
    }
}

/// Makes one file. It has its name only when it has its blocks.
fn make(io: &mut dyn Io, name: &str, bytes: u64) -> Result<()> {
    let file = match open(io, Path::new(PART), Open::CreateNew) {
        // Left by a try that could not remove it.
        Err(Error::Io(error)) if error.kind == IoErrorKind::AlreadyExists => {
            run(io, Operation::Unlink { path: PART.into() })?;
            open(io, Path::new(PART), Open::CreateNew)?
        }
        opened => opened?,
    };
    let allocated = run(io, Operation::Allocate { file, bytes });
    let synced = allocated.and_then(|_| run(io, Operation::Sync { file }));
    run(io, Operation::Close { file })?;
    synced?;
    run(io, Operation::Rename { from: PART.into(), to: name.into() })?;
    run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
    Ok(())
}
