//! Checkpoints from the side of whoever applies the log: when to cut, when to hand over, what to do with the result.
//!
//! **Contract.** The thread that owns a [`StoreWriter`] and its log holds one [`Checkpointer`] and calls, in this order:
//! [`Checkpointer::attach`] before the log is replayed; [`Checkpointer::after_entry`] behind every applied entry, replayed
//! ones too; [`Checkpointer::start`] when the log is open; [`Checkpointer::poll`] now and then, which says from where on
//! the log is still needed; [`Checkpointer::finish`] when nothing more will be applied. While [`Checkpointer::is_full`] the
//! owner applies nothing more: memory is bounded by that.
//!
//! **When to cut.** When the memtable is full, when the log has grown by [`CheckpointOptions::wal_bytes_max`], when the owner is at rest
//! (see `rest`), at the end: so that the next start has little to replay; and when somebody asks ([`Checkpointer::ask`]).
//!
//! **States of a run**: *cut* (its memtables are frozen) → *waiting* (until the log is durable up to the cut: a checkpoint
//! never holds what a crash could take from the log) → *under way* → *durable*, installed.
//!
//! **Does not know** what an entry is.
use super::pacing::{Intake, Pacer};
use super::planted::{Planted, PlantedBug};
use super::push_policy::PENDING_PERCENT_MAX;
use super::rest::Rest;
use super::worker::{Done, Maker, OpenDevice, Worker};
use super::{CheckpointReport, Checkpoints, SegmentIds, SupersededPages, remove_orphans};
use crate::base::ids::Lsn;
use crate::base::latency::StageLatency;
use crate::cache::CacheStats;
use crate::disk_state::{DiskState, NamesKept, Positions, Shelf, ShelfOptions};
use crate::error::{Error, Result};
use crate::io::files::Files;
use crate::io::{Io, Waker};
use crate::mvcc::{CutPosition, ReplayPriors, Run, StoreWriter};
use crate::space::{Reserve, ReserveSize, ReserveStats, Sizing, Space, segment_bytes_on, step_bytes};
use crate::superblock::SharedSuperblock;
use crate::transfer::StateHolder;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// So many runs may be cut and not durable.
const RUNS_MAX: usize = 3;
/// The end does not wait for checkpoints that would take longer than so many microseconds together, as the last ones did: what
/// stops a process kills it some time later. What they would have held is in the log.
const FINISH_US_MAX: u64 = 10_000_000;

/// When checkpoints are made, and sizes on disk.
#[derive(Clone, Debug)]
pub struct CheckpointOptions {
    /// Sizes of pages, segments and of the cache.
    pub shelf: ShelfOptions,
    /// A checkpoint is made when the log has grown by so many bytes since the last one, however little is in memory: it
    /// bounds the next start.
    pub wal_bytes_max: u64,
    /// Nothing was applied for so many microseconds: the owner is at rest. 5 s by default.
    pub rest_us: u64,
    /// At rest, and when it is closed, a checkpoint is made if the log has grown by more than this since the last one: 1 MiB by
    /// default, which is replayed in some milliseconds.
    pub rest_wal_bytes_max: u64,
    /// Changes on disk that one checkpoint looks at for what a compaction made dead, 262,144 by default (some tenths of a second); the
    /// next checkpoint goes on there. At least 1.
    pub sweep_changes_max: usize,
    /// A run of fewer records is compressed without a dictionary, which costs up to 16 KiB of a segment and up to 100 ms to make.
    /// 4096 by default.
    pub dictionary_records_min: usize,
    /// What may wait for a leaf of the key tree before that is written, in percent of a page: 25 by default. With 0 each checkpoint
    /// writes all leaves in which it changes something; what waits from before then goes as its leaf is written.
    pub pending_percent_max: u32,
    /// What is kept back on disk, so that a full disk can be made less full (`docs/full_disk.md`). `None`: [`ReserveSize::ByData`], and none on a simulated disk.
    pub reserve: Option<ReserveSize>,
    /// A bug on purpose.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<PlantedBug>,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            shelf: ShelfOptions::default(),
            wal_bytes_max: 128 << 20,
            rest_us: 5_000_000,
            rest_wal_bytes_max: 1 << 20,
            sweep_changes_max: 1 << 18,
            dictionary_records_min: 4096,
            pending_percent_max: PENDING_PERCENT_MAX,
            reserve: None,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

impl CheckpointOptions {
    fn planted(&self) -> Planted {
        #[cfg(feature = "planted-bugs")]
        let planted = Planted::new(self.planted);
        #[cfg(not(feature = "planted-bugs"))]
        let planted = Planted::default();
        planted
    }
}

/// Counters since the start.
#[derive(Clone, Debug, Default)]
pub struct CheckpointStats {
    /// Checkpoints made of what was in memory.
    pub checkpoints_count: u64,
    /// Those made in between to sweep and clean only.
    pub upkeeps_count: u64,
    /// Sums over all of them.
    pub totals: CheckpointReport,
    /// How long writing the superblock took, each time.
    pub commits: StageLatency,
    /// Why they fail at the moment, if they do.
    pub failing: Option<String>,
    /// Runs cut and not durable yet.
    pub runs_count: usize,
    /// Reads of the disk that the last start did without, because the log has noted what they would have found.
    pub reads_spared: u64,
    /// Records that reads of older revisions have read on their way to the version that they wanted, that one included.
    pub versions_read: u64,
    /// Leaves that ranges asked for before they came to them.
    pub leaves_read_ahead: u64,
    /// Pieces of answers whose values were read by many threads at once.
    pub pieces_read_at_once: u64,
    /// What is kept in memory of what was read.
    pub cache: CacheStats,
    /// The room that is kept back.
    pub reserve: ReserveStats,
}

/// What is worth a line in a log.
#[derive(Clone, Copy, Debug)]
pub enum CheckpointEvent<'a> {
    /// A checkpoint is durable.
    Made(&'a CheckpointReport),
    /// One that holds nothing new: a part of a compaction was swept, or space was won back.
    Upkeep(&'a CheckpointReport),
    /// Checkpoints fail; they are tried again. Told once until one is made.
    Failing(&'a Error),
    /// There will be no further checkpoint: a broken invariant ended their thread. Writes are refused from now on.
    Broken(&'a Error),
}

/// Hears of events on the thread that owns the [`Checkpointer`].
pub type OnCheckpoint = Box<dyn FnMut(CheckpointEvent<'_>) + Send>;

/// See the module.
pub struct Checkpointer {
    options: CheckpointOptions,
    /// Until [`Self::start`].
    maker: Option<Maker>,
    worker: Option<Worker>,
    state: Arc<DiskState>,
    shelf: Arc<Shelf>,
    holder: StateHolder,
    waiting: VecDeque<Run>,
    under_way_count: usize,
    /// Position of the last cut, or where the log began.
    last_cut: Option<Lsn>,
    /// Index of the last cut, or of the state that was opened.
    cut_index: u64,
    /// The last entry applied.
    last_entry: Option<CutPosition>,
    /// A cut is wanted as soon as one can be made.
    is_asked: bool,
    stats: CheckpointStats,
    on_event: Option<OnCheckpoint>,
    /// The newest event was a failure.
    told_failing: bool,
    pacer: Pacer,
    /// How much of the owner's queue may be taken, as of the last look.
    intake: Intake,
    /// Something was left in that queue.
    is_left: bool,
    rest: Rest,
    /// As of the last poll.
    durable: Lsn,
    /// What [`Self::take_rested`] takes.
    has_rested: bool,
    /// What the log that is being replayed has noted.
    priors: Arc<ReplayPriors>,
    /// The room on the device.
    space: Arc<Space>,
    sizing: Sizing,
    /// Of the newest state.
    pages_bytes: u64,
}

impl Checkpointer {
    /// From now on hints about what will be read are followed, by threads.
    pub(crate) fn start_read_ahead(&self) {
        self.shelf.start_read_ahead();
    }

    /// Opens the newest checkpoint of a directory, and removes what an interrupted one has left. `io` has nothing in
    /// flight.
    ///
    /// # Errors
    /// [`Error::Corruption`] if the segment table or a segment that it names does not verify.
    pub(crate) fn open(
        io: &mut dyn Io,
        files: Arc<dyn Files>,
        superblock: Arc<SharedSuperblock>,
        options: &CheckpointOptions,
        (space, is_on_device): (Arc<Space>, bool),
    ) -> Result<Self> {
        let known = superblock.read();
        let device = io.space().filter(|_| is_on_device);
        let mut options = options.clone();
        options.shelf.segment_bytes = segment_bytes_on(device, options.shelf.segment_bytes);
        let size = options.reserve.or(is_on_device.then_some(ReserveSize::ByData));
        let device = device.or_else(|| io.space());
        let sizing = size.map(|size| Sizing::on(device, size, options.shelf.segment_bytes));
        let shelf = Shelf::new(files.clone(), known.database, options.shelf.clone());
        let holder = StateHolder::new(shelf.clone(), superblock.clone(), files);
        let state = if known.has_checkpoint() {
            let positions = Positions {
                applied: (known.applied_index, known.applied_term),
                revision: known.revision,
                compact_revision: known.compact_revision,
                swept_revision: known.swept_revision,
            };
            DiskState::open(shelf.clone(), known.roots, positions)?
        } else {
            DiskState::empty()
        };
        let free = remove_orphans(io, &state)?;
        let reserve = match sizing {
            Some(sizing) => Reserve::open(io, sizing, state.live_bytes(), &space)?,
            None => Reserve::none(),
        };
        let pages_bytes = state.pages_bytes();
        let state = Arc::new(state);
        let ids = SegmentIds::from(known.next_segment.max(free));
        let checkpoints = Checkpoints {
            shelf: shelf.clone(),
            superblock,
            ids,
            sweep_changes_max: options.sweep_changes_max,
            dictionary_records_min: options.dictionary_records_min,
            pending_percent_max: options.pending_percent_max,
            planted: options.planted(),
            clean_bytes_max: options.shelf.segment_bytes,
            space: space.clone(),
            reserve,
            superseded: SupersededPages::default(),
        };
        Ok(Self {
            options,
            maker: Some(Maker::new(checkpoints, state.clone())),
            worker: None,
            cut_index: state.applied().0,
            state,
            shelf,
            holder,
            waiting: VecDeque::new(),
            under_way_count: 0,
            last_cut: None,
            last_entry: None,
            is_asked: false,
            stats: CheckpointStats::default(),
            on_event: None,
            told_failing: false,
            pacer: Pacer::new(RUNS_MAX),
            intake: Intake::All,
            is_left: false,
            rest: Rest::new(),
            durable: Lsn(0),
            has_rested: false,
            priors: Arc::default(),
            space,
            sizing: sizing.unwrap_or(Sizing::Fixed { bytes: 0 }),
            pages_bytes,
        })
    }

    /// Where the notes of a replayed log go.
    pub fn priors(&self) -> Arc<ReplayPriors> {
        self.priors.clone()
    }

    /// Sets who hears of events.
    pub fn set_on_event(&mut self, on_event: OnCheckpoint) {
        self.on_event = Some(on_event);
    }

    /// Puts the checkpoint under a fresh writer.
    ///
    /// # Errors
    /// If the system tree cannot be read.
    pub fn attach(&self, writer: &mut StoreWriter) -> Result<()> {
        let wrong = self.options.planted().has(PlantedBug::NoteOneMore);
        writer.begin_notes(&self.shelf.database, self.priors.clone(), wrong);
        if self.state.is_empty() { Ok(()) } else { writer.attach(self.state.clone()) }
    }

    /// Makes checkpoints on a thread from now on.
    pub(crate) fn start(&mut self, open_device: OpenDevice, wake: Waker) -> Result<()> {
        if let Some(maker) = self.maker.take() {
            self.worker = Some(Worker::thread(maker, open_device, wake)?);
        }
        Ok(())
    }

    /// Makes checkpoints within [`Self::poll`] from now on, through a device of their own.
    #[cfg(feature = "sim")]
    pub(crate) fn start_here(&mut self, io: Box<dyn Io>) {
        if let Some(maker) = self.maker.take() {
            self.worker = Some(Worker::here(maker, io));
        }
    }

    /// Behind an applied entry: cuts if it is time.
    pub fn after_entry(&mut self, writer: &mut StoreWriter, position: CutPosition) {
        self.last_entry = Some(position);
        let last_cut = *self.last_cut.get_or_insert(position.lsn);
        let idle = self.runs_count() == 0;
        let step_bytes = self.step_bytes(writer);
        if self.space.want(self.sizing, step_bytes)
            && let Some(worker) = &mut self.worker
        {
            worker.look_at_reserve();
        }
        let log_is_long = position.lsn.0.saturating_sub(last_cut.0) >= self.options.wal_bytes_max;
        if writer.is_full()
            || log_is_long
            || (idle && writer.wants_sweep())
            || self.is_tight(writer, step_bytes)
        {
            self.cut(writer, position);
        }
    }

    /// What a checkpoint of the active memtable may write.
    fn step_bytes(&self, writer: &StoreWriter) -> u64 {
        let (records, bytes) = writer.active_size();
        step_bytes(records, bytes, self.options.shelf.page_bytes as u64, self.pages_bytes)
    }

    /// True where little is free and what the active memtable holds could take a good part of the reserve: of what a checkpoint does not
    /// find, it may need so much.
    fn is_tight(&self, writer: &StoreWriter, step_bytes: u64) -> bool {
        let reserve_bytes = self.space.whole_bytes();
        if reserve_bytes == 0 || step_bytes < reserve_bytes / 4 || self.runs_count() + 1 >= RUNS_MAX {
            return false;
        }
        let memtables = (RUNS_MAX as u64 + 1) * writer.memtable_bytes() as u64;
        // The log has them too.
        self.space.is_short() || self.space.has_less_than(reserve_bytes + 2 * memtables)
    }

    /// On a device without room: cuts what would give some back, without waiting for more.
    fn cut_for_room(&mut self, writer: &mut StoreWriter, durable: Lsn) {
        let is_short = self.space.is_short();
        if !is_short && !self.space.is_log_waiting() || self.runs_count() > 0 {
            return;
        }
        let Some(last_entry) = self.last_entry.filter(|entry| entry.index > self.cut_index) else { return };
        let last_cut = self.last_cut.unwrap_or(last_entry.lsn);
        let is_worth_it = self.space.is_log_waiting()
            || last_entry.lsn.0.saturating_sub(last_cut.0) > self.options.rest_wal_bytes_max;
        if is_worth_it
            && last_entry.lsn < durable
            && writer.store().applied().0 == last_entry.index
            && self.worker.is_some()
            && !self.told_failing
        {
            self.cut(writer, last_entry);
        }
    }

    /// Cuts behind the entry at `position`, the last one applied.
    pub(crate) fn cut(&mut self, writer: &mut StoreWriter, position: CutPosition) {
        self.last_cut = Some(position.lsn);
        self.cut_index = position.index;
        self.pacer.cut(writer.is_full());
        self.waiting.push_back(writer.cut(position));
    }

    /// A compaction that was applied while a run was open: its space is given back now, without waiting for the next
    /// entry.
    fn cut_for_sweep(&mut self, writer: &mut StoreWriter) {
        if let Some(last_entry) = self.last_entry
            && self.worker.is_some()
            && self.runs_count() == 0
            && writer.wants_sweep()
            && writer.store().applied().0 == last_entry.index
        {
            self.cut(writer, last_entry);
        }
    }

    /// Asks for a checkpoint of everything that is applied now, however little it is. The calls of [`Self::poll`] that follow cut as soon
    /// as a run may be opened and checkpoints do not fail; it is there when [`Self::checkpointed`], and the superblock, have come to what
    /// was applied. Nothing is done where nothing was applied since the last cut.
    pub fn ask(&mut self) {
        self.is_asked = self.last_entry.is_some_and(|entry| entry.index > self.cut_index);
    }

    /// Index and term of the last entry that the newest durable state holds; zeros before the first.
    pub fn checkpointed(&self) -> (u64, u64) {
        self.state.applied()
    }

    /// Holds the newest state for others, from any thread.
    pub fn state_holder(&self) -> StateHolder {
        self.holder.clone()
    }

    fn cut_as_asked(&mut self, writer: &mut StoreWriter) {
        if !self.is_asked {
            return;
        }
        let applied = writer.store().applied().0;
        if applied <= self.cut_index {
            // The state holds it, or a run that is open.
            self.is_asked = false;
        } else if let Some(last_entry) = self.last_entry
            && last_entry.index == applied
            && self.worker.is_some()
            && !self.is_full()
            && !self.told_failing
        {
            self.is_asked = false;
            self.cut(writer, last_entry);
        }
    }

    /// Keeps the names of all segments that a superblock names from now on, until the guard is dropped.
    pub(crate) fn keep_names(&self) -> NamesKept {
        self.shelf.names.keep()
    }

    /// The newest durable state.
    #[cfg(feature = "sim")]
    pub(crate) fn state(&self) -> &Arc<DiskState> {
        &self.state
    }

    /// Cuts when the owner is at rest, if there is anything worth it.
    fn cut_at_rest(&mut self, writer: &mut StoreWriter, durable: Lsn) {
        if !self.rest.is_due() {
            return;
        }
        self.rest.taken();
        self.has_rested = !self.cut_last(writer, durable);
    }

    /// Cuts behind the last entry, if it is durable and the log has grown enough for it; true if so.
    fn cut_last(&mut self, writer: &mut StoreWriter, durable: Lsn) -> bool {
        let Some(last_entry) = self.last_entry else { return false };
        let last_cut = self.last_cut.unwrap_or(last_entry.lsn);
        let bytes_max = if self.space.is_short() { 0 } else { self.options.rest_wal_bytes_max };
        let is_worth_it = last_entry.lsn.0.saturating_sub(last_cut.0) > bytes_max
            && last_entry.lsn < durable
            && writer.store().applied().0 == last_entry.index
            && self.worker.is_some()
            && !self.told_failing;
        if is_worth_it {
            self.cut(writer, last_entry);
        }
        is_worth_it
    }

    /// True once for each rest, when there is nothing left that would make the log shorter.
    pub fn take_rested(&mut self) -> bool {
        std::mem::take(&mut self.has_rested)
    }

    /// Hands over what the log has made durable, and installs what is done. Returns the position from which on the log
    /// is needed, if that has changed.
    pub fn poll(&mut self, writer: &mut StoreWriter, durable: Lsn) -> Option<Lsn> {
        self.durable = durable;
        self.cut_for_sweep(writer);
        self.cut_as_asked(writer);
        self.cut_for_room(writer, durable);
        self.cut_at_rest(writer, durable);
        self.hand_over(writer, durable);
        self.install(writer)
    }

    /// When nothing more will be applied: makes a checkpoint of what is in memory and durable in the log, and blocks until it is
    /// durable too. Left to the log are what a disk that fails does not take, what would take too long, and the last
    /// [`CheckpointOptions::rest_wal_bytes_max`]. Returns what [`Self::poll`] does.
    pub fn finish(&mut self, writer: &mut StoreWriter, durable: Lsn) -> Option<Lsn> {
        let runs = self.runs_count() as u64 + 1;
        if self.pacer.run_us().is_some_and(|run_us| runs.saturating_mul(run_us) > FINISH_US_MAX) {
            return None;
        }
        self.cut_last(writer, durable);
        self.hand_over(writer, durable);
        let mut replay = None;
        loop {
            replay = self.install(writer).or(replay);
            let is_over = self.under_way_count == 0 || self.told_failing;
            match &mut self.worker {
                Some(worker) if !is_over => worker.wait_done(),
                _ => return replay,
            }
        }
    }

    fn hand_over(&mut self, writer: &StoreWriter, durable: Lsn) {
        let Some(worker) = &mut self.worker else { return };
        if self.shelf.names.is_due() {
            worker.remove_kept();
        }
        let planted = self.options.planted();
        let is_ready = |run: &mut Run| run.position.lsn < durable || planted.has(PlantedBug::HandOverEarly);
        while let Some(mut run) = self.waiting.pop_front_if(is_ready) {
            self.under_way_count += 1;
            if planted.has(PlantedBug::YoungerCompaction) {
                run.compact_revision = writer.store().compact_revision();
            }
            if planted.has(PlantedBug::ReplayBehindCut) {
                run.position.lsn = durable;
            }
            worker.submit(run);
        }
    }

    fn install(&mut self, writer: &mut StoreWriter) -> Option<Lsn> {
        let worker = self.worker.as_mut()?;
        let mut replay = None;
        while let Some(Done { run, state, report }) = worker.take_done() {
            self.state = state.clone();
            self.pages_bytes = state.pages_bytes();
            self.stats.totals.add(&report);
            self.stats.commits.record(report.commit_us);
            self.told_failing = false;
            let event = match &run {
                Some(run) => {
                    writer.install(run, state);
                    self.under_way_count -= 1;
                    self.stats.checkpoints_count += 1;
                    self.pacer.done(report.duration_us);
                    replay = Some(run.position.lsn);
                    CheckpointEvent::Made(&report)
                }
                None => {
                    writer.replace(state);
                    self.stats.upkeeps_count += 1;
                    CheckpointEvent::Upkeep(&report)
                }
            };
            if let Some(on_event) = &mut self.on_event {
                on_event(event);
            }
        }
        if let Some(error) = worker.failing().filter(|_| !self.told_failing) {
            self.told_failing = true;
            let event = match worker.broken() {
                Some(error) => CheckpointEvent::Broken(error),
                None => CheckpointEvent::Failing(&error),
            };
            if let Some(on_event) = &mut self.on_event {
                on_event(event);
            }
        }
        replay
    }

    fn runs_count(&self) -> usize {
        self.waiting.len() + self.under_way_count
    }

    /// True while so much is in memory and not on disk that nothing more may be applied.
    pub fn is_full(&self) -> bool {
        self.runs_count() >= RUNS_MAX
    }

    /// Looks at how much may be taken in now, so that [`Self::is_full`] is not reached at full speed; true if that is limited.
    /// While checkpoints fail there is no speed to keep to.
    pub fn look(&mut self, writer: &StoreWriter, now_us: u64) -> bool {
        let (runs, under_way) = (self.runs_count(), self.under_way_count > 0);
        let last_index = self.last_entry.map_or(0, |entry| entry.index);
        self.rest.look((last_index, self.durable), runs > 0, now_us, self.options.rest_us);
        self.intake = match self.worker.is_none() || self.told_failing {
            true => Intake::All,
            false => self.pacer.intake(runs, under_way, writer.filled(), now_us),
        };
        self.intake != Intake::All
    }

    /// Takes what may be taken from the front of the queue of writes, as of the last look. At the `end` that is everything, whatever
    /// the disk's speed: nobody would take the rest.
    pub fn take<T>(
        &mut self,
        queue: &mut VecDeque<T>,
        bytes_of: impl Fn(&T) -> usize,
        end: bool,
    ) -> VecDeque<T> {
        let intake = if end { Intake::All } else { self.intake };
        let taken = intake.take(queue, &bytes_of);
        self.pacer.took(taken.iter().map(|item| bytes_of(item) as u64).sum());
        self.is_left = !queue.is_empty();
        taken
    }

    /// How long the owner may sleep because of what it left in the queue, as of the last look, and until it is at rest. A checkpoint
    /// that is done wakes it when nothing may be taken at all.
    pub fn sleep_us_max(&self) -> u64 {
        let rest_us = self.rest.sleep_us_max(self.options.rest_us);
        self.intake.sleep_us_max(self.is_left && !self.is_full()).min(rest_us)
    }

    /// Why the owner shall refuse what it is asked to write, instead of applying it or letting it wait: memory is full and
    /// the disk does not take what is in it, or there will be no further checkpoint. What was appended before is applied and
    /// answered.
    pub fn refusal(&self) -> Option<Error> {
        let worker = self.worker.as_ref()?;
        let is_full_for_long = || self.is_full().then(|| worker.failing()).flatten();
        worker.broken().cloned().or_else(is_full_for_long)
    }

    /// Why checkpoints fail at the moment, if they do.
    pub fn failing(&self) -> Option<Error> {
        self.worker.as_ref().and_then(Worker::failing)
    }

    /// Counters.
    pub fn stats(&self) -> CheckpointStats {
        CheckpointStats {
            failing: self.failing().map(|error| error.to_string()),
            runs_count: self.runs_count(),
            reads_spared: self.priors.answered_count(),
            versions_read: self.shelf.versions_read.load(Ordering::Relaxed),
            leaves_read_ahead: self.shelf.leaves_read_ahead.load(Ordering::Relaxed),
            pieces_read_at_once: self.shelf.pieces_read_at_once.load(Ordering::Relaxed),
            cache: self.shelf.cache_stats(),
            reserve: self.space.stats(),
            ..self.stats.clone()
        }
    }

    /// Ends after the checkpoint that is under way.
    pub fn close(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.close();
        }
    }
}
