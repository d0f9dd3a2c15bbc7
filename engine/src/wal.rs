//! The one log: ordered, durable, typed records. The embedded database writes its operations to it, replication
//! its entries; a checkpoint will decide how much of it is still needed.
//!
//! **Contract.** [`Wal::append`] puts a record into the filling group and says at which position it will be.
//! [`Wal::pump`] submits a group as soon as one of the slots for groups in flight is free, and everything that
//! happens in the background. Completions of the `Io` go through [`Wal::on_completion`]. A record is durable when
//! its position is below [`Wal::durable_lsn`], which only moves forward and only in order. The loop of the thread
//! that owns the log is: append…, pump, wait, on_completion…, read the durable position, act on it.
//!
//! **Commit index.** A `HardState` record carries the commit index in its meta data (`index`) and the term in
//! `term`; its body is the caller's (the vote). The newest one of each replication group is repeated at the start
//! of every segment, in idle groups and at close. With [`Wal::note_commit`] the caller says how far the group is
//! committed without writing anything; repeats carry that index as far as the entries are durable. A group whose
//! every durable entry is committed (a single node) says so once, with `u64::MAX`.
//!
//! **Invariants.** W1 (the chain) and W4 (promises) are in [`format`], W5 and W6 in `pool`. W2: a group is
//! acknowledged only after a completed sync that began after its last byte was written, and after every group
//! before it. W3: a block that holds acknowledged records is never written again, until its segment is obsolete.
//! W7: the header of segment k+1, its name and the directory are durable before the end of segment k is submitted.
//!
//! **Failure.** After a failed write or sync the log is poisoned: nothing more is written or acknowledged until
//! it is recovered anew; nothing is retried. A full device refuses appends that would need a new segment.
//!
//! **Does not know** the bodies of records, pages, keys, or what a vote or a leader is.
//!
//! **Source.** Two groups in flight, greedy closing of groups and the choice of what a group repeats: the design
//! notes in `docs/durability.md`. Torn tail or damage: `docs/recovery.md`.
//!
//! Reading order: [`format`], `writer`, `group_commit`, `pool`, `reader`, `recovery`, `recovery_scan`, `tail_copy`,
//! `cut_file`, [`calibrate`].
pub mod calibrate;
mod cut_file;
pub mod format;
mod group_commit;
mod pool;
mod reader;
mod recovery;
mod recovery_scan;
mod stall;
mod stats;
mod tail_copy;
mod writer;

pub use crate::base::latency::StageLatency;
pub use format::{RecordKind, RecordMeta};
pub use reader::LogReader;
pub use recovery::{CutReport, LogReport, Record, RecoveryProgress, RecoveryReport, inspect};
pub use stall::StallProbe;
pub use stats::WalStats;

use crate::base::ids::{GroupId, Lsn};
use crate::base::rng::Rng;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Completion, Durability, FileId, Io, IoErrorKind, Open, Operation, Outcome, Token, Wait};
use format::{
    BODY_BYTES_MAX, GROUP_BYTES_MAX, GROUPS_IN_FLIGHT_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
    SEGMENT_HEADER_BYTES, STATE_BODY_BYTES_MAX, SegmentHeader,
};
use group_commit::{Commit, Current};
use pool::{FILL_BYTES, FileName, LiveSegment, Pool};
use std::path::PathBuf;
use std::sync::Arc;
use writer::{Sizes, Tail};

/// Directory of the log, relative to the data directory.
pub const DIRECTORY: &str = "wal";
/// After so long without an append the newest groups are promised by an idle group.
pub const IDLE_US: u64 = 1_000_000;
/// Top byte of every token of the log.
pub const TOKEN_TOP: u8 = 0x57;
/// Most operations the log has under way at once.
pub const IN_FLIGHT_MAX: usize = 2 * GROUPS_IN_FLIGHT_MAX + 8;

/// How a group becomes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncMethod {
    /// Write and sync as one linked unit of the backend.
    Linked,
    /// The write itself is durable (`RWF_DSYNC`); best where the device writes through. Becomes `Linked` where the
    /// backend cannot do it.
    Dsync,
    /// A plain write, and a sync when it completed; a driver with nothing else to do does it itself.
    Separate,
    /// `Dsync` for a group that is alone at the device, `Separate` for one that joins another: alone there is nothing to
    /// overlap, and one call is mostly faster than two. Becomes `Separate` where the backend cannot do the first.
    Mixed,
}

impl SyncMethod {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Linked, Self::Dsync, Self::Separate, Self::Mixed];

    /// The method with this name, as `Display` writes it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.to_string() == name)
    }

    /// Its number in the superblock: from 1, so that 0 says none.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Linked => 1,
            Self::Dsync => 2,
            Self::Separate => 3,
            Self::Mixed => 4,
        }
    }

    /// The method with this number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.number() == number)
    }

    /// What this becomes on a backend with (`dsync`) or without durable writes.
    pub fn on(self, dsync: bool) -> Self {
        match self {
            Self::Dsync if !dsync => Self::Linked,
            Self::Mixed if !dsync => Self::Separate,
            method => method,
        }
    }

    /// How one group is written, and whether a sync follows the write. `alone`: no other group is at the device.
    pub(crate) fn write(self, alone: bool) -> (Durability, bool) {
        match self {
            Self::Linked => (Durability::Synced, false),
            Self::Dsync => (Durability::Dsync, false),
            Self::Mixed if alone => (Durability::Dsync, false),
            Self::Separate | Self::Mixed => (Durability::None, true),
        }
    }
}

impl std::fmt::Display for SyncMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Linked => "linked",
            Self::Dsync => "dsync",
            Self::Separate => "separate",
            Self::Mixed => "mixed",
        })
    }
}

/// Which bug is planted. The crash tests must find each one; see `tests/crash.rs`.
#[cfg(feature = "planted-bugs")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlantedBug {
    /// Groups are acknowledged without a sync.
    SkipSync,
    /// A group is acknowledged before the one in front of it.
    AcknowledgeEarly,
    /// Groups promise nothing.
    ForgetDurableLsn,
    /// A segment is put back to use while the replay position is still in it.
    ReuseSegmentEarly,
    /// Recovery takes a group whose predecessor it never saw.
    IgnoreChain,
    /// Recovery delivers groups that nothing proves durable, and leaves them as they are.
    TrustUnprovenTail,
    /// Recovery writes over the groups that nothing proves durable without a copy of them.
    RewriteWithoutCopy,
}

/// Options of the log.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Bytes of a segment: 64 KiB to 64 MiB, a multiple of 4 KiB. Fixed when the log is created.
    pub segment_bytes: u64,
    /// Groups at the device at once: 1 to 4. Two overlap one group's sync with the next one's write; more helps only
    /// on devices with forced unit access. One that is done and waits for an earlier one is not counted.
    pub groups_in_flight_max: usize,
    /// Longest group: 16 KiB to 1 MiB, so that one slow group does not hold everybody.
    pub group_bytes_max: usize,
    /// Most records in a group: 1 to 65,000.
    pub group_records_max: usize,
    /// How a group becomes durable.
    pub sync: SyncMethod,
    /// Zero-filled spares kept ahead: at least 1.
    pub spares_min: usize,
    /// Recovery keeps and delivers so many bytes before the replay position, as far as they are there.
    pub retain_bytes: u64,
    /// A bug on purpose.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<PlantedBug>,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self {
            // Small against what a checkpoint leaves of the log, so that a database at rest keeps little of it; large against a group.
            segment_bytes: 16 << 20,
            groups_in_flight_max: 2,
            group_bytes_max: GROUP_BYTES_MAX,
            group_records_max: 4096,
            sync: SyncMethod::Linked,
            spares_min: 2,
            retain_bytes: 0,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

impl WalOptions {
    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::Refused(format!("option of the log out of range: {what}")));
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes)
            || !self.segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
        {
            return refuse("segment_bytes is 64 KiB to 64 MiB, in blocks of 4 KiB");
        }
        if !(1..=GROUPS_IN_FLIGHT_MAX).contains(&self.groups_in_flight_max) {
            return refuse("groups_in_flight_max is 1 to 4");
        }
        if !(16 << 10..=GROUP_BYTES_MAX).contains(&self.group_bytes_max) {
            return refuse("group_bytes_max is 16 KiB to 1 MiB");
        }
        if !(1..=65_000).contains(&self.group_records_max) {
            return refuse("group_records_max is 1 to 65,000");
        }
        if !(1..=64).contains(&self.spares_min) {
            return refuse("spares_min is 1 to 64");
        }
        Ok(())
    }

    fn sizes(&self) -> Sizes {
        Sizes::new(self.segment_bytes, self.group_bytes_max, self.group_records_max)
    }

    #[cfg(feature = "planted-bugs")]
    fn is_planted(&self, bug: PlantedBug) -> bool {
        self.planted == Some(bug)
    }
}

/// True if `bug` is planted; constant false in a product build.
macro_rules! planted {
    ($options:expr, $bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let planted = $options.is_planted($crate::wal::PlantedBug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let planted = false;
        planted
    }};
}
use planted;

/// Who may use the last spare when the device is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserve {
    /// Refused when a new segment is needed and only the last spare is left.
    Ordinary,
    /// May use the last spare: what frees space or ends an alarm.
    Privileged,
}

/// What a completion of the log belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TokenKind {
    Group = 1,
    GroupSync = 2,
    Next = 3,
    Fill = 4,
    Remove = 5,
    Close = 6,
}

fn token(kind: TokenKind, number: u64) -> Token {
    Token(u64::from(TOKEN_TOP) << 56 | (kind as u64) << 48 | number & 0xFFFF_FFFF_FFFF)
}

/// A part of the log that is durable and whole: for who copies it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogExtent {
    /// Recovery of the copy starts here.
    pub replay_lsn: Lsn,
    /// The end of a group. What lies behind is not part of it.
    pub end_lsn: Lsn,
    /// The segment in which the next group follows. It starts at `end_lsn` or before it, or, if the last group ends its
    /// segment, behind it: then its header belongs to the extent.
    pub last_seq: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
}

impl LogExtent {
    /// The segments that it lies in, and how many bytes from the start of each.
    pub fn segments(&self) -> impl Iterator<Item = (u64, u64)> {
        let Self { end_lsn, last_seq, segment_bytes, .. } = *self;
        let first = (self.replay_lsn.0 / segment_bytes).max(1);
        (first..=last_seq).map(move |seq| {
            let bytes = end_lsn.0.saturating_sub(seq * segment_bytes);
            (seq, bytes.clamp(SEGMENT_HEADER_BYTES as u64, segment_bytes))
        })
    }
}

impl LogExtent {
    /// Where a recovery of a copy finds the end: behind the header of the next segment if the last group ends its own.
    pub fn recovered_end(&self) -> Lsn {
        self.end_lsn.max(Lsn(self.last_seq * self.segment_bytes + SEGMENT_HEADER_BYTES as u64))
    }
}

/// Path of a segment of the log, relative to the data directory.
pub fn segment_path(seq: u64) -> PathBuf {
    pool::path(&pool::segment_name(seq))
}

/// Makes what [`Wal::create`] makes, and leaves it to be opened: an empty log in the place of whatever log of `database` is there,
/// durable when it returns.
///
/// # Errors
/// [`Error::Refused`] if the directory holds segments of another database.
pub(crate) fn make_empty(
    io: &mut dyn Io,
    database: [u8; 16],
    segment_bytes: u64,
    rng_seed: u64,
) -> Result<()> {
    WalOptions { segment_bytes, ..WalOptions::default() }.check()?;
    let (file, _) = make_first_segment(io, database, segment_bytes, Rng::new(rng_seed).next_u64())?;
    run(io, Operation::Close { file })?;
    Ok(())
}

/// Removes all files of a log, whoever's it is; durable when it returns.
pub(crate) fn remove_all(io: &mut dyn Io) -> Result<()> {
    let names = match recovery::list(io) {
        Err(Error::Io(error)) if error.kind == IoErrorKind::NotFound => return Ok(()),
        names => names?,
    };
    for name in names.iter().filter(|name| pool::classify(name) != FileName::Other) {
        run(io, Operation::Retire { path: pool::path(name) })?;
    }
    run(io, Operation::SyncDirectory { path: PathBuf::from(DIRECTORY) })?;
    Ok(())
}

/// The first segment of an empty log, open, and durable with its name. Other files of a log of `database` are removed.
fn make_first_segment(
    io: &mut dyn Io,
    database: [u8; 16],
    segment_bytes: u64,
    salt: u64,
) -> Result<(FileId, SegmentHeader)> {
    run(io, Operation::CreateDirectory { path: PathBuf::from(DIRECTORY) })?;
    run(io, Operation::SyncDirectory { path: PathBuf::new() })?;
    for name in recovery::list(io)? {
        if pool::classify(&name) == FileName::Other {
            continue;
        }
        recovery::refuse_foreign(io, &name, &database)?;
        run(io, Operation::Unlink { path: pool::path(&name) })?;
    }
    let path = segment_path(1);
    let (outcome, _) = run(io, Operation::Open { path, open: Open::CreateNew })?;
    let Outcome::Opened(file) = outcome else { unreachable!("opening a file gives a file") };
    let mut buffer = io.buffer((segment_bytes as usize).min(FILL_BYTES));
    let mut offset = 0;
    while offset < segment_bytes {
        buffer.set_len(buffer.capacity().min((segment_bytes - offset) as usize));
        let bytes = buffer.len() as u64;
        let write = Operation::Write { file, offset, buffer, durability: Durability::None };
        buffer = run(io, write)?.1.expect("a write gives its buffer back");
        offset += bytes;
    }
    let header =
        SegmentHeader { segment_bytes: segment_bytes as u32, database, seq: 1, salt, durable_lsn: Lsn(0) };
    buffer.set_len(SEGMENT_HEADER_BYTES);
    header.encode(&mut buffer);
    let write = Operation::Write { file, offset: 0, buffer, durability: Durability::Synced };
    if let Some(buffer) = run(io, write)?.1 {
        io.recycle(buffer);
    }
    run(io, Operation::SyncDirectory { path: PathBuf::from(DIRECTORY) })?;
    Ok((file, header))
}

/// The log, owned and driven by one thread. See the module documentation.
pub struct Wal {
    options: WalOptions,
    tail: Tail,
    commit: Commit,
    pool: Pool,
    replay_lsn: Lsn,
    poisoned: Option<String>,
    /// Files being closed.
    closing_count: usize,
    probe: Arc<StallProbe>,
    stats: WalStats,
}

impl Wal {
    /// Makes an empty log for `database` in the directory `wal`. `rng_seed` is fresh entropy: the salts come from
    /// it.
    ///
    /// Leftovers of an unfinished creation are removed; the caller knows that nothing was acknowledged yet (the
    /// superblock still says "creating").
    ///
    /// # Errors
    /// [`Error::Refused`] if the directory holds segments of another database or an option is out of range.
    pub fn create(io: &mut dyn Io, database: [u8; 16], options: WalOptions, rng_seed: u64) -> Result<Self> {
        options.check()?;
        let mut pool = Pool::new(options.segment_bytes, database, options.spares_min, Rng::new(rng_seed));
        let (file, header) = make_first_segment(io, database, options.segment_bytes, pool.draw_salt())?;
        pool.live.push_back(LiveSegment { seq: 1, name: pool::segment_name(1) });
        let current = Current { seq: 1, file, salt_lo: header.salt_lo() };
        let tail = Tail::new(options.sizes(), 1, SEGMENT_HEADER_BYTES as u64);
        Ok(Self::assemble(io, options, tail, pool, current, 0, Lsn(0)))
    }

    /// Opens the log and delivers every record from `replay_lsn` on, in order, fragments put together, while
    /// reading; hard states and snapshot marks also from before, as far as their segment goes back.
    ///
    /// Either the log ends where a crash may have ended it, and what was not acknowledged is cut off (and copied
    /// aside), or acknowledged data is damaged and nothing on disk is changed. The cases are in
    /// `docs/recovery.md`.
    ///
    /// # Errors
    /// [`Error::Corruption`] for damage, [`Error::Refused`] for a log of another database, format or segment
    /// size, [`Error::Io`] if something cannot be read, and whatever `visit` returns.
    pub fn recover(
        io: &mut dyn Io,
        database: [u8; 16],
        options: WalOptions,
        rng_seed: u64,
        replay_lsn: Lsn,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<()>,
        progress: &mut dyn FnMut(RecoveryProgress),
    ) -> Result<(Self, RecoveryReport)> {
        options.check()?;
        recovery::recover(io, database, options, rng_seed, replay_lsn, visit, progress)
    }

    fn assemble(
        io: &mut dyn Io,
        mut options: WalOptions,
        mut tail: Tail,
        pool: Pool,
        current: Current,
        chain: u32,
        replay_lsn: Lsn,
    ) -> Self {
        options.sync = options.sync.on(io.backend().dsync);
        for _ in 0..=options.groups_in_flight_max {
            tail.slabs.push(io.buffer(tail.sizes.group_bytes_max));
        }
        let commit = Commit::new(current, chain, tail.next_lsn(), io.now_us());
        Self {
            options,
            tail,
            commit,
            pool,
            replay_lsn,
            poisoned: None,
            closing_count: 0,
            probe: Arc::default(),
            stats: WalStats::default(),
        }
    }

    /// Puts a record into the filling group and returns its position. Nothing is submitted before the next
    /// [`Wal::pump`].
    ///
    /// # Errors
    /// [`Error::LogPoisoned`] after a failure, [`Error::NoSpace`] when the device is full (see [`Reserve`]),
    /// [`Error::Refused`] for a body or a number of replication groups beyond the limits of [`format`]. The log
    /// is unchanged then.
    pub fn append(&mut self, meta: RecordMeta, body: &[u8], reserve: Reserve) -> Result<Lsn> {
        if let Some(what) = &self.poisoned {
            return Err(Error::LogPoisoned(what.clone()));
        }
        let body_bytes_max = if meta.kind.is_state() { STATE_BODY_BYTES_MAX } else { BODY_BYTES_MAX };
        if body.len() > body_bytes_max {
            return Err(Error::Refused(format!(
                "a record of kind {:?} has at most {body_bytes_max} bytes, this one {}",
                meta.kind,
                body.len()
            )));
        }
        if meta.kind.is_state() {
            self.tail.check_state_room(&meta, body)?;
        }
        self.check_room(body.len(), reserve)?;
        self.tail.state(meta.group)?;
        self.stats.records_count += 1;
        self.stats.body_bytes += body.len() as u64;
        Ok(self.tail.append(&meta, body))
    }

    /// Whether a record of `body_bytes` would be taken now.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the device is full, see [`Reserve`].
    pub fn check_room(&self, body_bytes: usize, reserve: Reserve) -> Result<()> {
        let Some(full) = self.pool.full() else { return Ok(()) };
        let claimed = self.tail.seq - self.commit.current.seq;
        let left = self.pool.available().saturating_sub(claimed);
        let usable = match reserve {
            Reserve::Ordinary => left.saturating_sub(1),
            Reserve::Privileged => left,
        };
        let in_the_last = reserve == Reserve::Ordinary && left == 0;
        if in_the_last || self.tail.rotations_for(body_bytes) > usable {
            return Err(Error::NoSpace(format!("no new segment of the log can be made ({full})")));
        }
        Ok(())
    }

    /// Start of the oldest segment that is kept.
    pub fn begin_lsn(&self) -> Lsn {
        self.pool.live.front().map_or(Lsn(0), |segment| Lsn(segment.seq * self.options.segment_bytes))
    }

    /// Says that the entries of a replication group are committed up to `index`; see the module documentation.
    ///
    /// # Errors
    /// [`Error::Refused`] if the group is one too many.
    pub fn note_commit(&mut self, group: GroupId, index: u64) -> Result<()> {
        let state = self.tail.state(group)?;
        state.commit_noted = state.commit_noted.max(index);
        Ok(())
    }

    /// Does what can be done now: closes the filling group if a slot is free, submits, goes to the next segment,
    /// makes spares, writes the idle group. To be called after appends and after completions.
    pub fn pump(&mut self, io: &mut dyn Io) {
        let now_us = io.now_us();
        if self.poisoned.is_some() {
            return;
        }
        self.idle(now_us);
        self.submit_groups(io, now_us);
        self.recycle();
        // The header of a segment is also evidence that everything before its predecessor's end was durable.
        let settled = self.commit.durable.0 / self.options.segment_bytes >= self.commit.current.seq;
        let next_seq = settled.then_some(self.commit.current.seq + 1);
        self.pool.pump(io, now_us, next_seq);
    }

    fn recycle(&mut self) {
        let segment_bytes = self.options.segment_bytes;
        let seq = self.replay_lsn.0 / segment_bytes;
        // W6: the states that the obsolete segments held are repeated in the first group of this one.
        let first_group = seq * segment_bytes + SEGMENT_HEADER_BYTES as u64;
        if self.commit.durable.0 <= first_group {
            return;
        }
        let below = if planted!(self.options, ReuseSegmentEarly) { seq + 1 } else { seq };
        self.pool.recycle_below(below);
    }

    /// Handles a completion of the log's own operations; gives back any other.
    pub fn on_completion(&mut self, io: &mut dyn Io, completion: Completion) -> Option<Completion> {
        let Token(bits) = completion.token;
        if bits >> 56 != u64::from(TOKEN_TOP) {
            return Some(completion);
        }
        let Completion { result, buffer, .. } = completion;
        let number = bits & 0xFFFF_FFFF_FFFF;
        let step = match bits >> 48 & 0xFF {
            kind if kind == TokenKind::Group as u64 => {
                self.on_group_written(io, number, result, buffer);
                Ok(())
            }
            kind if kind == TokenKind::GroupSync as u64 => {
                self.on_group_synced(io, number, result);
                Ok(())
            }
            kind if kind == TokenKind::Close as u64 => {
                self.closing_count -= 1;
                result.map(|_| ())
            }
            // Nothing more is written after a failure, in the background neither.
            _ if self.poisoned.is_some() => {
                if let Some(buffer) = buffer {
                    io.recycle(buffer);
                }
                Ok(())
            }
            kind if kind == TokenKind::Next as u64 => {
                let promise = self.promise();
                self.pool.on_next(io, promise, result, buffer)
            }
            kind if kind == TokenKind::Fill as u64 => {
                let now_us = io.now_us();
                self.pool.on_fill(io, now_us, result, buffer)
            }
            _ => self.pool.on_remove(result),
        };
        if let Err(error) = step {
            self.poison(&error.to_string());
        }
        None
    }

    /// The first position not known to be durable: a record is durable when its position is below. A record in
    /// several fragments keeps it at its own position until its last fragment is durable.
    pub fn durable_lsn(&self) -> Lsn {
        match self.tail.split.front() {
            Some(&(first, _)) => self.commit.durable.min(first),
            None => self.commit.durable,
        }
    }

    /// What is durable, from `replay_lsn` on; the caller keeps its segments from being used again.
    pub fn extent(&self, replay_lsn: Lsn) -> LogExtent {
        LogExtent {
            replay_lsn,
            end_lsn: self.commit.durable,
            last_seq: self.commit.next_seq(),
            segment_bytes: self.options.segment_bytes,
        }
    }

    /// Bytes appended and not yet durable, queued or in flight. The caller holds back before this grows large.
    pub fn pending_bytes(&self) -> usize {
        self.tail.queued_bytes() + self.commit.in_flight_bytes()
    }

    /// When [`Wal::pump`] wants to be called though nothing completes, in the time of the `Io`.
    pub fn next_deadline_us(&self) -> Option<u64> {
        if self.poisoned.is_some() {
            return None;
        }
        [self.idle_deadline_us(), self.pool.deadline_us()].into_iter().flatten().min()
    }

    /// Why nothing is written any more, if so.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.as_deref()
    }

    fn poison(&mut self, what: &str) {
        self.poisoned.get_or_insert_with(|| what.to_string());
    }

    /// Lets segments that end before `lsn` be used again. To be called when every copy of the superblock that
    /// names this position is durable: recovery will start there.
    ///
    /// # Panics
    /// If the position is not durable.
    pub fn set_replay_lsn(&mut self, lsn: Lsn) {
        assert!(
            lsn <= self.durable_lsn(),
            "W6: the replay position {lsn} is durable, which is known up to {}",
            self.durable_lsn()
        );
        self.replay_lsn = self.replay_lsn.max(lsn);
    }

    /// Removes the spares that are kept because the log was longer: what is left of them serves the start of a burst, and more are
    /// made while it lasts.
    pub fn trim(&mut self) {
        self.pool.trim();
    }

    /// Whether other files need the room on the device more than spares: then no more of them are kept than the log needs to go on.
    pub fn set_sparing(&mut self, sparing: bool) {
        self.pool.set_sparing(sparing);
    }

    /// True if the device has no room for a new segment, and some that are kept could be used again if the replay position moved.
    pub fn waits_for_recycling(&self) -> bool {
        self.pool.full().is_some() && self.pool.available() <= 1 && self.pool.live.len() > 1
    }

    /// Makes everything durable, writes a group that promises everything, and closes the files.
    ///
    /// The caller has nothing else in flight. After an error the log is as after a crash: what was acknowledged
    /// is safe.
    ///
    /// # Errors
    /// [`Error::LogPoisoned`] if a write failed, now or before; [`Error::NoSpace`] if queued records have no
    /// segment to go to.
    pub fn close(&mut self, io: &mut dyn Io) -> Result<()> {
        let mut closing_group = false;
        let mut completions = Vec::new();
        loop {
            if let Some(what) = &self.poisoned {
                return Err(Error::LogPoisoned(what.clone()));
            }
            self.pump(io);
            if self.tail.queued_bytes() + self.commit.in_flight_bytes() == 0 {
                // Opening and closing alone does not make the log longer.
                if closing_group || !self.owes_promise() || !self.can_promise() {
                    break;
                }
                closing_group = true;
                self.queue_promise(format::GROUP_CLOSE);
                continue;
            }
            if let (Some(full), true) = (self.pool.full(), self.pool.is_quiet())
                && self.commit.in_flight_bytes() == 0
                && self.pool.next_ready(self.commit.current.seq + 1).is_none()
            {
                return Err(Error::NoSpace(format!("records are waiting for a segment of the log ({full})")));
            }
            self.wait(io, &mut completions)?;
        }
        self.pool.stop();
        while !self.pool.is_quiet() && self.poisoned.is_none() {
            self.wait(io, &mut completions)?;
        }
        for file in [Some(self.commit.current.file), self.pool.abandon_next()].into_iter().flatten() {
            self.closing_count += 1;
            io.submit(token(TokenKind::Close, 0), Operation::Close { file });
        }
        while self.closing_count > 0 {
            self.wait(io, &mut completions)?;
        }
        self.poison("the log was closed");
        Ok(())
    }

    fn wait(&mut self, io: &mut dyn Io, completions: &mut Vec<Completion>) -> Result<()> {
        if io.is_stopped() {
            return Err(recovery_scan::stopped("close the log"));
        }
        io.wait(Wait::AtMostUs(100_000), completions);
        for completion in completions.drain(..) {
            self.on_completion(io, completion);
        }
        Ok(())
    }

    /// What a watcher samples to see a stalled disk, from any thread.
    pub fn stall_probe(&self) -> Arc<StallProbe> {
        Arc::clone(&self.probe)
    }

    /// Counters and latencies since the log was opened.
    pub fn stats(&self) -> WalStats {
        WalStats {
            segments_filled_count: self.pool.filled_count,
            segments_recycled_count: self.pool.recycled_count,
            segments_removed_count: self.pool.removed_count,
            segments_live_count: self.pool.live.len(),
            spares_count: self.pool.spares_count(),
            ..self.stats.clone()
        }
    }

    /// How groups become durable now.
    pub fn sync_method(&self) -> SyncMethod {
        self.options.sync
    }

    /// Changes how groups become durable, from the next group on, to what the backend can do of it.
    pub fn set_sync_method(&mut self, io: &dyn Io, method: SyncMethod) {
        self.options.sync = method.on(io.backend().dsync);
    }

    fn file_of_current(&self) -> FileId {
        self.commit.current.file
    }
}
