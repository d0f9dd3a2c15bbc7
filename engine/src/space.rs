//! Room on the device: what is kept back, and what follows when there is little.
//!
//! **Why.** Nothing on a full disk frees itself. What a deletion or a compaction makes dead is given back by checkpoints, and a checkpoint
//! writes before it removes. So some room is taken beforehand and given up when a checkpoint finds none: the *reserve*.
//!
//! **Data.** Three files in the root of the directory: `reserve-1` and `reserve-2`, each half of the reserve, which have their blocks
//! and hold nothing; and `reserve`, which is empty and says that there was a whole one. In memory [`Space`], what everybody who writes has to know.
//!
//! **Rules.** S1: while one of the two is missing that was there, what could make the data larger is refused ([`Space::refusal`]); what makes it
//! smaller is taken. S2: it is put together again before anything else takes room: meanwhile the log makes no file but one that it needs to go
//! on, and gives back those that it has beyond that. S3: `reserve-1` goes first, and only when a checkpoint would fail; `reserve-2` only when one
//! would fail without `reserve-1`, and is the first that is made again. S4: a reserve grows only where there is much room ([`FREE_MIN_FACTOR`]), and one
//! that could not be made or made larger keeps nobody from writing.
//!
//! **States**: *none* (never had one) → (much room) *whole* → (a checkpoint finds no room) *short* → (room for both files) *whole*. In *whole* the size follows
//! the data.
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
/// There was a whole reserve here.
const MARKER: &str = "reserve";
/// Both files are a multiple of this.
const UNIT_BYTES: u64 = 64 << 10;
/// The reserve takes no more than one part in so many of a file system.
const SHARE_MAX: u64 = 16;
/// A segment takes no more than one part in so many: what is left of one has to be copied before it can go.
const SEGMENT_SHARE_MAX: u64 = 64;
/// Segments are not made smaller than this for the sake of a small file system.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;
/// The least size that follows the data.
const RESERVE_BYTES_MIN: u64 = 2 << 20;
/// The greatest, in segments: a full memtable of the default size, a segment to be cleaned and the pages of both, and as much again.
const SEGMENTS_MAX: u64 = 4;
/// One part in so many of what is on disk.
const DATA_SHARE: u64 = 8;
/// The reserve for so many steps as the active memtable is one: three runs and it may wait for the disk. Twice that, so that it has grown
/// before a memtable is cut for being a quarter of it.
const STEPS: u64 = 8;
/// A reserve is first made, or made larger, only if so many times its size is free.
const FREE_MIN_FACTOR: u64 = 4;

/// So many checkpoints in a row have to need much less before the reserve gets smaller.
const SMALLER_COUNT: u32 = 8;

/// The size of segments on this file system, of at most `segment_bytes`.
pub(crate) fn segment_bytes_on(device: Option<DeviceSpace>, segment_bytes: u64) -> u64 {
    let Some(device) = device else { return segment_bytes };
    let share = device.total_bytes / SEGMENT_SHARE_MAX / UNIT_BYTES * UNIT_BYTES;
    segment_bytes.min(share.max(SEGMENT_BYTES_MIN))
}

/// What a checkpoint may write of so many records with so many bytes, in the worst case: them, and for each its leaf and what is left of the page
/// of the pending tree that it waited in, but no more than there are.
pub(crate) fn step_bytes(records: u64, bytes: u64, page_bytes: u64, pages_bytes: u64) -> u64 {
    bytes.saturating_add(records.saturating_mul(page_bytes).saturating_mul(2).min(pages_bytes))
}

/// How large a reserve is, both files together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReserveSize {
    /// So many bytes, rounded down to 128 KiB; 0 for none. Made as soon as there is room.
    Bytes(u64),
    /// An eighth of what is on disk, or eight times what a checkpoint of the active memtable may write if that is more; at least 2 MiB, at most four
    /// segments and a sixteenth of the file system. A power of two below its greatest, so that it is seldom made anew.
    ByData,
}

/// The rule of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sizing {
    Fixed { bytes: u64 },
    ByData { bytes_max: u64 },
}

impl Sizing {
    pub(crate) fn on(device: Option<DeviceSpace>, size: ReserveSize, segment_bytes: u64) -> Self {
        match size {
            ReserveSize::Bytes(bytes) => Self::Fixed { bytes },
            ReserveSize::ByData => {
                let share = device.map_or(u64::MAX, |device| device.total_bytes / SHARE_MAX);
                Self::ByData { bytes_max: (SEGMENTS_MAX.saturating_mul(segment_bytes)).min(share) }
            }
        }
    }

    /// The size for so much on disk and a step of so much.
    fn bytes(self, data_bytes: u64, step_bytes: u64) -> u64 {
        match self {
            Self::Fixed { bytes } => bytes,
            Self::ByData { bytes_max } => {
                let wanted = (data_bytes / DATA_SHARE).max(step_bytes.saturating_mul(STEPS));
                // A power beyond the greatest is none that can be counted.
                let rounded = wanted.max(RESERVE_BYTES_MIN).checked_next_power_of_two();
                rounded.unwrap_or(bytes_max).min(bytes_max)
            }
        }
    }
}

/// How the reserve is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReserveStats {
    /// The size that it shall have; 0 where none was asked for.
    pub wanted_bytes: u64,
    /// What is kept back now. Less than wanted: there is not enough room to make it, or some was given up.
    pub held_bytes: u64,
    /// Why puts are refused, while some is given up.
    pub short: Option<String>,
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
    /// The size that the reserve shall have: what whoever applies asks for, and [`Reserve`] takes up.
    wanted_bytes: AtomicU64,
    /// The size of both files, as far as they are there.
    held_bytes: AtomicU64,
    /// The size at which it is whole.
    whole_bytes: AtomicU64,
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

    /// Asks for a reserve for steps of so much, where it follows the data; true if that is more than before.
    pub(crate) fn want(&self, sizing: Sizing, step_bytes: u64) -> bool {
        let Sizing::ByData { .. } = sizing else { return false };
        // Often, and hardly ever more: without the arithmetic.
        if step_bytes.saturating_mul(STEPS) <= self.wanted_bytes.load(Ordering::Acquire) {
            return false;
        }
        let wanted = sizing.bytes(0, step_bytes);
        self.wanted_bytes.fetch_max(wanted, Ordering::AcqRel) < wanted
    }

    /// The size of the reserve when it is whole; 0 while there never was one.
    pub(crate) fn whole_bytes(&self) -> u64 {
        self.whole_bytes.load(Ordering::Acquire)
    }

    /// How the reserve is.
    pub(crate) fn stats(&self) -> ReserveStats {
        ReserveStats {
            wanted_bytes: self.wanted_bytes.load(Ordering::Acquire),
            held_bytes: self.held_bytes.load(Ordering::Acquire),
            short: self.short.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
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
    sizing: Sizing,
    /// Of each file when it is whole.
    half_bytes: u64,
    /// Of each file as it is; 0 if it is not there.
    held: [u64; 2],
    /// There was a whole one: S1 holds.
    is_marked: bool,
    /// So many checkpoints in a row needed a quarter at most; the most that one did.
    smaller: (u32, u64),
}

impl Reserve {
    /// None, and none was asked for.
    pub(crate) fn none() -> Self {
        Self {
            sizing: Sizing::Fixed { bytes: 0 },
            half_bytes: 0,
            held: [0; 2],
            is_marked: false,
            smaller: (0, 0),
        }
    }

    /// What there is of a reserve in a directory with so much data. One that was given up is made again if there is room, so that nobody is refused for what
    /// is over.
    pub(crate) fn open(io: &mut dyn Io, sizing: Sizing, data_bytes: u64, space: &Space) -> Result<Self> {
        let names = match run(io, Operation::List { path: PathBuf::new() })? {
            (Outcome::Names(names), _) => names,
            (other, _) => unreachable!("a listing gave {other:?}"),
        };
        let is_there = |name: &str| names.iter().any(|other| other == name);
        if is_there(PART) {
            run(io, Operation::Unlink { path: PART.into() })?;
        }
        let mut reserve = Self { sizing, ..Self::none() };
        for (held, name) in reserve.held.iter_mut().zip(FILES) {
            if is_there(name) {
                *held = length(io, Path::new(name))?;
            }
        }
        reserve.is_marked = is_there(MARKER);
        let held_bytes: u64 = reserve.held.iter().sum();
        let needed_bytes = sizing.bytes(data_bytes, 0);
        let fits = matches!(sizing, Sizing::ByData { bytes_max } if held_bytes <= bytes_max);
        // Until checkpoints show that less will do ([`Self::want_less`]).
        let keeps = fits && held_bytes > needed_bytes && reserve.held[0] == reserve.held[1];
        reserve.half_bytes = half(if keeps { held_bytes } else { needed_bytes });
        if reserve.half_bytes == 0 {
            for (at, name) in FILES.into_iter().enumerate() {
                if std::mem::take(&mut reserve.held[at]) > 0 || is_there(name) {
                    run(io, Operation::Unlink { path: name.into() })?;
                }
            }
            if std::mem::take(&mut reserve.is_marked) {
                run(io, Operation::Unlink { path: MARKER.into() })?;
            }
        }
        space.wanted_bytes.store(2 * reserve.half_bytes, Ordering::Release);
        reserve.note(space);
        if reserve.is_marked && !reserve.is_whole() {
            reserve.put_together(io, space)?;
        }
        Ok(reserve)
    }

    /// True if none was asked for.
    pub(crate) fn is_none(&self) -> bool {
        self.half_bytes == 0
    }

    /// True if a file that was there is missing.
    pub(crate) fn is_short(&self) -> bool {
        self.is_marked && !self.is_whole()
    }

    /// True if both files are there, of whatever size.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_none() || (self.held[0] > 0 && self.held[1] > 0)
    }

    /// True if the files have another size than is wanted.
    pub(crate) fn wants_other_size(&self, space: &Space) -> bool {
        let half_bytes = half(space.wanted_bytes.load(Ordering::Acquire));
        self.held.iter().any(|held| *held != half_bytes)
    }

    fn note(&self, space: &Space) {
        space.held_bytes.store(self.held.iter().sum(), Ordering::Release);
        let is_kept = self.is_marked || self.held != [0; 2];
        let whole_bytes = if is_kept { 2 * self.half_bytes } else { 0 };
        space.whole_bytes.store(whole_bytes, Ordering::Release);
    }

    /// Gives up one file for a checkpoint that has failed with `error`; false if there is none (S3).
    pub(crate) fn give_up_one(&mut self, io: &mut dyn Io, space: &Space, error: &Error) -> bool {
        if self.is_none() {
            return false;
        }
        if self.is_marked {
            // First, so that nobody takes what becomes free (S2).
            space.set_short(Some(error.to_string()));
        }
        let Some(at) = self.held.iter().position(|held| *held > 0) else { return false };
        self.held[at] = 0;
        self.note(space);
        // One that cannot be removed gives no room, which shows at the next try.
        run(io, Operation::Unlink { path: FILES[at].into() }).is_ok()
    }

    /// Behind a checkpoint that left so much on disk and was of a run that was such a step: less may be wanted, once several in a row say so.
    pub(crate) fn follow_run(&mut self, space: &Space, data_bytes: u64, step_bytes: u64) {
        let needed = self.sizing.bytes(data_bytes, step_bytes);
        let wanted = space.wanted_bytes.fetch_max(needed, Ordering::AcqRel);
        // By half would come back with the next run that is a little larger.
        if needed > wanted / 4 {
            self.smaller = (0, 0);
            return;
        }
        self.smaller = (self.smaller.0 + 1, self.smaller.1.max(needed));
        if self.smaller.0 >= SMALLER_COUNT {
            space.wanted_bytes.store(self.smaller.1, Ordering::Release);
            self.smaller = (0, 0);
        }
    }

    /// Makes what is missing, and gives it another size, if there is room; says how it is.
    ///
    /// # Errors
    /// Of the device, but for a full one.
    pub(crate) fn put_together(&mut self, io: &mut dyn Io, space: &Space) -> Result<()> {
        if self.is_none() {
            return Ok(());
        }
        let made = self.make_missing(io, space);
        self.note(space);
        space.note_free(io.space());
        match made {
            Ok(None) => space.set_short(None),
            // S4.
            Ok(Some(_)) if !self.is_marked => {}
            Ok(Some(why)) => space.set_short(Some(why)),
            Err(Error::NoSpace(_)) if !self.is_marked => {}
            Err(Error::NoSpace(why)) => space.set_short(Some(why)),
            Err(error) => {
                if self.is_short() {
                    space.set_short(Some(error.to_string()));
                }
                return Err(error);
            }
        }
        if self.is_whole() {
            let followed = self.follow(io, space);
            self.note(space);
            return followed;
        }
        Ok(())
    }

    /// Why not both are there.
    fn make_missing(&mut self, io: &mut dyn Io, space: &Space) -> Result<Option<String>> {
        if !self.is_marked {
            self.half_bytes = half(space.wanted_bytes.load(Ordering::Acquire));
            let missing = 2 * self.half_bytes - self.held.iter().sum::<u64>().min(2 * self.half_bytes);
            if missing > 0 && !self.may_grow(io, missing) {
                return Ok(Some("there is not much room".into()));
            }
        }
        for at in [1, 0] {
            if self.held[at] > 0 {
                continue;
            }
            let (free, wanted) = (io.space().map(|device| device.free_bytes), self.half_bytes);
            if let Some(free) = free.filter(|free| *free < wanted) {
                return Ok(Some(format!("{free} bytes are free, and {wanted} are missing from it")));
            }
            make(io, FILES[at], self.half_bytes, None)?;
            self.held[at] = self.half_bytes;
        }
        if !self.is_marked {
            let file = open(io, Path::new(MARKER), Open::CreateNew)?;
            run(io, Operation::Close { file })?;
            run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
            self.is_marked = true;
        }
        Ok(None)
    }

    fn may_grow(&self, io: &dyn Io, bytes: u64) -> bool {
        match self.sizing {
            Sizing::Fixed { .. } => true,
            Sizing::ByData { .. } => {
                io.space().is_none_or(|device| device.free_bytes >= bytes.saturating_mul(FREE_MIN_FACTOR))
            }
        }
    }

    /// Gives both files the size that is wanted. A larger one is there before the smaller one goes (S4).
    fn follow(&mut self, io: &mut dyn Io, space: &Space) -> Result<()> {
        let half_bytes = half(space.wanted_bytes.load(Ordering::Acquire));
        for at in [1, 0] {
            if self.held[at] == half_bytes
                || (self.held[at] < half_bytes && !self.may_grow(io, 2 * half_bytes))
            {
                continue;
            }
            match make(io, FILES[at], half_bytes, Some(&mut self.held[at])) {
                Ok(()) => self.held[at] = half_bytes,
                Err(Error::NoSpace(_)) => break,
                Err(error) => return Err(error),
            }
        }
        // What has to be there again once it was given up.
        if self.is_whole() {
            self.half_bytes = self.held[1].min(self.held[0]);
        }
        Ok(())
    }
}

/// The size of one file of a reserve of so many bytes.
fn half(bytes: u64) -> u64 {
    bytes / 2 / UNIT_BYTES * UNIT_BYTES
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

/// Makes one file, in the place of one that there may be. It has its name only when it has its blocks; without room for it all is as before.
/// `replaced`: the size of that one, which is 0 from when it has gone.
fn make(io: &mut dyn Io, name: &str, bytes: u64, replaced: Option<&mut u64>) -> Result<()> {
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
    if let Err(error) = synced {
        // Also what a full disk has left of it.
        let _ = run(io, Operation::Unlink { path: PART.into() });
        return Err(error.into());
    }
    if let Some(replaced) = replaced {
        *replaced = 0;
        // In pieces; a rename over it would free all of it at once.
        run(io, Operation::Retire { path: name.into() })?;
    }
    run(io, Operation::Rename { from: PART.into(), to: name.into() })?;
    run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
    Ok(())
}
