//! What the engine's thread does, one round at a time, without the thread.
//!
//! **States of a write**: queued → appended (has a log position) → durable → applied → answered. At level `Group` the
//! answer is the last step. At the other levels a write is applied and answered when it is appended, and the log is
//! pushed to the device when the interval has passed, enough bytes have gathered, or somebody asks.
//!
//! **Invariant D1**: at level `Group` a write is applied only when its position is below the durable position.
//! **Invariant D2**: the durable revision never exceeds the revision of the last write below the durable position.
mod load;

use super::reply::{Reply, WriteFuture, pair};
use crate::base::ids::{GroupId, Lsn};
use crate::checkpoint::{CheckpointOptions, CheckpointStats, Checkpointer};
use crate::disk_state::NamesKept;
use crate::error::{Error, Result};
use crate::io::Waker;
use crate::log::calibration::CalibrationJob;
use crate::log::{Log, LogHold, PlaceRef, PreparedLog};
use crate::mvcc::Store;
use crate::mvcc::encoding::{LogOperation, decode, encode, put_key};
use crate::mvcc::{AnyLease, CutPosition, DeleteRangeOutcome, PutOutcome, StoreWriter, TxnOutcome};
use crate::options::{DurabilityLevel, UNSYNCED_BYTES_MAX};
use crate::superblock::{SharedSuperblock, Superblock};
use crate::wal::{LogExtent, Record, RecordKind, RecordMeta, Reserve, WalStats};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Writers wait once this many bytes of operations are queued.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Only one log group exists in an embedded database.
const GROUP: GroupId = GroupId(0);

/// The answer to one write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To a put.
    Put(PutOutcome),
    /// To a delete.
    DeleteRange(DeleteRangeOutcome),
    /// To a transaction.
    Txn(TxnOutcome),
    /// To a compaction or a system record: the current revision.
    Done(i64),
    /// To a sync: the durable revision.
    Synced(i64),
}

impl Answer {
    /// The store's revision after the write.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(outcome) => outcome.revision,
            Self::DeleteRange(outcome) => outcome.revision,
            Self::Txn(outcome) => outcome.revision,
            Self::Done(revision) | Self::Synced(revision) => *revision,
        }
    }
}

/// What callers and the engine's thread share. `queue` is the only lock that both hold, for a few instructions.
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when the queue was taken, so that writers that wait for room go on, and when counters were given.
    taken: Condvar,
    level: DurabilityLevel,
    durable_revision: AtomicI64,
    waker: OnceLock<Waker>,
    /// Changes of the durable revision and the end of the database, for watchers.
    progress: Mutex<Progress>,
    progressed: Condvar,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Request>,
    bytes: usize,
    closing: bool,
    closed: bool,
    stats: Option<(WalStats, CheckpointStats)>,
    stats_wanted: bool,
}

#[derive(Default)]
struct Progress {
    closed: bool,
    wakers: Vec<std::task::Waker>,
}

enum Request {
    Write { body: Vec<u8>, reserve: Reserve, reply: Reply },
    Sync { reply: Reply },
    Hold { reply: SyncSender<Result<Held>> },
}

/// A durable state that is kept as it is: what [`Log::hold`] gives, with the names of its segments.
pub(crate) struct Held {
    pub(crate) names: NamesKept,
    pub(crate) superblock: Superblock,
    pub(crate) extent: LogExtent,
    pub(crate) log: LogHold,
    /// The newest revision in it.
    pub(crate) revision: i64,
}

/// Somebody who waits for a [`Held`]: until what was appended before is durable.
struct Holder {
    /// The newest record then.
    lsn: Option<Lsn>,
    reply: SyncSender<Result<Held>>,
}

impl Request {
    /// What it counts in the queue.
    fn bytes(&self) -> usize {
        match self {
            Self::Write { body, .. } => body.len(),
            Self::Sync { .. } | Self::Hold { .. } => 0,
        }
    }
}

impl Shared {
    pub(crate) fn new(level: DurabilityLevel) -> Self {
        Self {
            queue: Mutex::default(),
            taken: Condvar::new(),
            level,
            durable_revision: AtomicI64::new(1),
            waker: OnceLock::new(),
            progress: Mutex::default(),
            progressed: Condvar::new(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    /// Queues a write; blocks while the queue is full.
    pub(crate) fn write(&self, operation: &LogOperation) -> WriteFuture {
        let mut body = Vec::new();
        if let Err(error) = encode(operation, &mut body) {
            return WriteFuture::ready(Err(Error::Refused(error.to_string())));
        }
        let reserve = if operation.can_grow() { Reserve::Ordinary } else { Reserve::Privileged };
        let (reply, future) = pair();
        {
            let mut queue = self.queue();
            while queue.bytes > QUEUE_BYTES_MAX && !queue.closing {
                queue = self.taken.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            if queue.closing || queue.closed {
                return WriteFuture::ready(Err(Error::Closed));
            }
            queue.bytes += body.len();
            queue.requests.push_back(Request::Write { body, reserve, reply });
        }
        self.wake();
        future
    }

    pub(crate) fn sync(&self) -> WriteFuture {
        let (reply, future) = pair();
        {
            let mut queue = self.queue();
            if queue.closing || queue.closed {
                return WriteFuture::ready(Err(Error::Closed));
            }
            queue.requests.push_back(Request::Sync { reply });
        }
        self.wake();
        future
    }

    /// Asks for a state that holds every write answered before, and is kept until it is dropped.
    pub(crate) fn hold(&self) -> Receiver<Result<Held>> {
        let (reply, held) = sync_channel(1);
        let mut queue = self.queue();
        if queue.closing || queue.closed {
            drop(queue);
            // There is room for one.
            let _ = reply.send(Err(Error::Closed));
            return held;
        }
        queue.requests.push_back(Request::Hold { reply });
        drop(queue);
        self.wake();
        held
    }

    pub(crate) fn start_closing(&self) {
        self.queue().closing = true;
        self.taken.notify_all();
        self.wake();
    }

    /// The thread is gone, in order or by a broken invariant: whoever waits hears `Closed`.
    pub(crate) fn end(&self) {
        let requests = {
            let mut queue = self.queue();
            queue.closing = true;
            queue.closed = true;
            std::mem::take(&mut queue.requests)
        };
        drop(requests);
        self.announce(true);
        self.taken.notify_all();
    }

    pub(crate) fn durable_revision(&self) -> i64 {
        self.durable_revision.load(Ordering::Acquire)
    }

    /// The counters of the thread; waits until it gives them. None once it has ended.
    pub(crate) fn stats(&self) -> Option<(WalStats, CheckpointStats)> {
        let mut queue = self.queue();
        queue.stats_wanted = true;
        queue.stats = None;
        drop(queue);
        self.wake();
        let is_waiting = |queue: &mut Queue| queue.stats.is_none() && !queue.closed;
        let queue = self.taken.wait_while(self.queue(), is_waiting).unwrap_or_else(PoisonError::into_inner);
        queue.stats.clone()
    }

    /// Blocks until `ready()` or the database is closed or `timeout` has passed; returns `ready()`.
    pub(crate) fn wait_until(&self, timeout: Option<Duration>, ready: impl Fn() -> bool) -> bool {
        let progress = self.progress();
        let waiting = |progress: &mut Progress| !ready() && !progress.closed;
        match timeout {
            None => drop(self.progressed.wait_while(progress, waiting)),
            Some(timeout) => drop(self.progressed.wait_timeout_while(progress, timeout, waiting)),
        }
        ready()
    }

    /// Registers a waker for the next progress; false when the database is closed.
    pub(crate) fn register(&self, waker: &std::task::Waker) -> bool {
        let mut progress = self.progress();
        if progress.closed {
            return false;
        }
        if !progress.wakers.iter().any(|known| known.will_wake(waker)) {
            progress.wakers.push(waker.clone());
        }
        true
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.progress().closed
    }

    /// Wakes every watcher. A waiter checks its condition under this lock, so none can miss the change.
    fn announce(&self, closed: bool) {
        let wakers = {
            let mut progress = self.progress();
            progress.closed |= closed;
            std::mem::take(&mut progress.wakers)
        };
        self.progressed.notify_all();
        for waker in wakers {
            waker.wake();
        }
    }
}

/// A write that is appended and waits to be durable.
enum Pending {
    /// At level `Group`: applied when durable.
    Unapplied { lsn: Lsn, index: u64, body: Vec<u8>, reply: Reply },
    /// At the other levels: applied already; `revision` is durable with it.
    Applied { lsn: Lsn, revision: i64 },
    /// A sync: answered when everything before it is durable.
    Sync { lsn: Lsn, reply: Reply },
}

impl Pending {
    fn lsn(&self) -> Lsn {
        match self {
            Self::Unapplied { lsn, .. } | Self::Applied { lsn, .. } | Self::Sync { lsn, .. } => *lsn,
        }
    }
}

/// The engine's thread without the thread.
pub(crate) struct Core {
    log: Log,
    writer: StoreWriter,
    checkpointer: Checkpointer,
    /// Something on disk that an operation needs could not be read: nothing is applied after it.
    broken: Option<Error>,
    shared: Arc<Shared>,
    /// In log order. Bounded by what the log lets gather.
    pending: VecDeque<Pending>,
    /// Few: each is a thread that waits.
    holders: Vec<Holder>,
    /// Running index of `Batch` records.
    next_index: u64,
    /// Position of the newest record.
    last_lsn: Option<Lsn>,
    /// When the oldest record that nobody pushed was appended (levels other than `Group`).
    unsynced_since_us: Option<u64>,
    /// Push until this position is durable.
    push_to: Option<Lsn>,
}

impl Core {
    /// Opens the checkpoint of a prepared directory, and replays its log.
    pub(crate) fn open(
        mut prepared: PreparedLog,
        options: &CheckpointOptions,
        mut writer: StoreWriter,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let mut checkpointer = prepared.checkpointer(options)?;
        checkpointer.attach(&mut writer)?;
        let mut last_index = writer.store().applied().0;
        let store = writer.store().clone();
        let priors = checkpointer.priors();
        let apply =
            &mut |record: &Record<'_>| replay(&mut writer, &mut checkpointer, &mut last_index, record);
        let (log, _, _) =
            prepared.recover_ahead(priors, &mut |record| announce(&store, record), apply, &mut |_| {})?;
        log.start_checkpoints(&mut checkpointer)?;
        writer.notify();
        let core = Self {
            log,
            writer,
            checkpointer,
            broken: None,
            shared,
            pending: VecDeque::new(),
            holders: Vec::new(),
            next_index: last_index + 1,
            last_lsn: None,
            unsynced_since_us: None,
            push_to: None,
        };
        core.shared.durable_revision.store(core.writer.store().revision(), Ordering::Release);
        let _ = core.shared.waker.set(core.log.waker());
        Ok(core)
    }

    /// See [`Log::take_calibration`].
    pub(crate) fn take_calibration(&mut self) -> Option<CalibrationJob> {
        self.log.take_calibration()
    }

    /// See [`Log::place`].
    pub(crate) fn place(&self) -> PlaceRef {
        self.log.place().downgrade()
    }

    /// See [`Log::superblock`].
    pub(crate) fn superblock(&self) -> Arc<SharedSuperblock> {
        self.log.superblock()
    }

    /// The store's reading side.
    #[cfg(feature = "sim")]
    pub(crate) fn store(&self) -> &Store {
        self.writer.store()
    }

    /// What checkpoints did.
    #[cfg(feature = "sim")]
    pub(crate) fn checkpoint_stats(&self) -> CheckpointStats {
        self.checkpointer.stats()
    }

    /// What makes checkpoints.
    #[cfg(feature = "sim")]
    pub(crate) fn checkpointer(&mut self) -> &mut Checkpointer {
        &mut self.checkpointer
    }

    /// What the log did.
    #[cfg(feature = "sim")]
    pub(crate) fn wal_stats(&self) -> WalStats {
        self.log.wal_stats()
    }

    /// One round; blocks for at most `wait_us_max` when there is nothing to do. False when it is time to end.
    pub(crate) fn step(&mut self, wait_us_max: u64) -> bool {
        let full = self.checkpointer.is_full();
        let limited = self.checkpointer.look(&self.writer, self.log.now_us());
        if full || limited {
            // A run waits for the log; who would ask for a sync may wait for the run.
            self.push_to = self.push_to.max(self.last_lsn);
        }
        let refusal = self.checkpointer.refusal();
        // While memory waits for the disk nothing more is taken. Once the disk refuses it, writes hear so; and so they do when
        // nothing is written any more, where they would wait for ever.
        let takes = !full || refusal.is_some() || self.stopped().is_some();
        let closing = self.take_queue(takes, refusal.as_ref());
        if let Some(error) = self.stopped() {
            self.answer_all(&error);
            // Reads go on; writes are refused one by one until the database is closed.
            if closing {
                return false;
            }
            self.log.wait(wait_us_max);
            return true;
        }
        if let Some(replay_lsn) = self.checkpointer.poll(&mut self.writer, self.log.durable_lsn()) {
            self.log.set_replay_lsn(replay_lsn);
        }
        if self.checkpointer.take_rested() {
            self.log.trim();
        }
        if self.wants_push(closing) {
            self.log.submit();
        }
        let progressed = self.settle_durable();
        if progressed {
            return true;
        }
        if self.pending.is_empty() {
            if closing {
                return false;
            }
            if self.writer.maintain() {
                self.log.wait(0);
                return true;
            }
        }
        self.checkpointer.look(&self.writer, self.log.now_us());
        let paced_us = self.checkpointer.sleep_us_max();
        self.log.wait(wait_us_max.min(self.push_in_us()).min(paced_us));
        true
    }

    /// Why nothing is written any more, if so.
    fn stopped(&self) -> Option<Error> {
        self.broken
            .clone()
            .or_else(|| self.log.poisoned().map(|reason| Error::LogPoisoned(reason.to_owned())))
    }

    /// Takes what is queued, if `take`; writes are answered with `refusal` if there is one. Returns whether it is time
    /// to end.
    fn take_queue(&mut self, take: bool, refusal: Option<&Error>) -> bool {
        let (requests, closing) = {
            let mut queue = self.shared.queue();
            if std::mem::take(&mut queue.stats_wanted) {
                queue.stats = Some((self.log.wal_stats(), self.checkpointer.stats()));
                self.shared.taken.notify_all();
            }
            if !take {
                return queue.closing;
            }
            let closing = queue.closing;
            let requests = self.checkpointer.take(&mut queue.requests, Request::bytes, closing);
            queue.bytes -= requests.iter().map(Request::bytes).sum::<usize>();
            (requests, closing)
        };
        if !requests.is_empty() {
            self.shared.taken.notify_all();
        }
        let applied_from = self.writer.store().revision();
        for request in requests {
            match request {
                Request::Write { body, reserve, reply } => match refusal {
                    None => self.append(body, reserve, reply),
                    Some(error) => reply.send(Err(error.clone())),
                },
                Request::Sync { reply } => match self.last_lsn {
                    Some(lsn) if lsn >= self.log.durable_lsn() => {
                        self.push_to = Some(lsn);
                        self.pending.push_back(Pending::Sync { lsn, reply });
                    }
                    _ => reply.send(Ok(Answer::Synced(self.shared.durable_revision()))),
                },
                Request::Hold { reply } => {
                    self.push_to = self.push_to.max(self.last_lsn);
                    self.holders.push(Holder { lsn: self.last_lsn, reply });
                }
            }
        }
        if self.writer.store().revision() != applied_from {
            self.writer.notify();
            self.shared.announce(false);
        }
        closing
    }

    fn append(&mut self, body: Vec<u8>, reserve: Reserve, reply: Reply) {
        let meta = RecordMeta {
            kind: RecordKind::Batch,
            entry_type: 0,
            group: GROUP,
            term: 0,
            index: self.next_index,
        };
        if let Some(error) = &self.broken {
            return reply.send(Err(error.clone()));
        }
        self.log.append_notes(GROUP, self.writer.take_notes());
        let lsn = match self.log.append(meta, &body, reserve) {
            Ok(lsn) => lsn,
            Err(error) => return reply.send(Err(error)),
        };
        self.next_index += 1;
        self.last_lsn = Some(lsn);
        if self.shared.level == DurabilityLevel::Group {
            self.pending.push_back(Pending::Unapplied { lsn, index: meta.index, body, reply });
            return;
        }
        let answer = self.apply(&body, meta.index, lsn);
        self.pending.push_back(Pending::Applied { lsn, revision: self.writer.store().revision() });
        self.unsynced_since_us.get_or_insert(self.log.now_us());
        reply.send(answer);
    }

    fn apply(&mut self, body: &[u8], index: u64, lsn: Lsn) -> Result<Answer> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let answer = apply(&mut self.writer, &mut self.checkpointer, body, index, lsn);
        if let Err(error) = &answer
            && !is_refusal(error)
        {
            self.broken = Some(error.clone());
        }
        answer
    }

    /// Whether what is appended goes to the device now.
    fn wants_push(&mut self, closing: bool) -> bool {
        if self.shared.level == DurabilityLevel::Group || closing {
            return true;
        }
        if self.log.pending_bytes() >= UNSYNCED_BYTES_MAX || self.push_in_us() == 0 {
            self.push_to = self.last_lsn;
            self.unsynced_since_us = None;
        }
        // With nothing to push it is the log's own work: promises after a pause, files that are used again.
        self.push_to.is_some_and(|lsn| lsn >= self.log.durable_lsn()) || self.log.pending_bytes() == 0
    }

    /// Microseconds until the interval asks for a push; a very long time when none does.
    fn push_in_us(&self) -> u64 {
        match (self.shared.level, self.unsynced_since_us) {
            (DurabilityLevel::Interval(interval), Some(since)) => {
                let due = since.saturating_add(u64::try_from(interval.as_micros()).unwrap_or(u64::MAX));
                due.saturating_sub(self.log.now_us())
            }
            _ => u64::MAX,
        }
    }

    /// Applies and answers what has become durable; true if there was anything.
    fn settle_durable(&mut self) -> bool {
        let durable = self.log.durable_lsn();
        let mut durable_revision = None;
        let mut answers = Vec::new();
        while self.pending.front().is_some_and(|pending| pending.lsn() < durable) {
            match self.pending.pop_front() {
                Some(Pending::Unapplied { lsn, index, body, reply }) => {
                    // D1.
                    assert!(lsn < durable, "D1: applied at {lsn}, durable up to {durable}");
                    answers.push((reply, self.apply(&body, index, lsn)));
                    durable_revision = Some(self.writer.store().revision());
                }
                Some(Pending::Applied { revision, .. }) => durable_revision = Some(revision),
                Some(Pending::Sync { reply, .. }) => {
                    let revision = durable_revision.unwrap_or_else(|| self.shared.durable_revision());
                    answers.push((reply, Ok(Answer::Synced(revision))));
                }
                None => break,
            }
        }
        if let Some(revision) = durable_revision {
            // D2: only what lies below the durable position was taken from the queue.
            self.shared.durable_revision.store(revision, Ordering::Release);
            self.writer.notify();
            self.shared.announce(false);
        }
        self.answer_holders(durable);
        let progressed = durable_revision.is_some() || !answers.is_empty();
        for (reply, answer) in answers {
            reply.send(answer);
        }
        progressed
    }

    /// Behind everything that is durable: what is held is exactly what is applied of it.
    fn answer_holders(&mut self, durable: Lsn) {
        let ready = |holder: &mut Holder| holder.lsn.is_none_or(|lsn| lsn < durable);
        for holder in self.holders.extract_if(.., ready) {
            // The names before the superblock: see the module of the kept names.
            let names = self.checkpointer.keep_names();
            let (superblock, extent, log) = self.log.hold();
            let revision = self.shared.durable_revision();
            // Who asked may be gone.
            let _ = holder.reply.send(Ok(Held { names, superblock, extent, log, revision }));
        }
    }

    fn answer_all(&mut self, error: &Error) {
        for holder in self.holders.drain(..) {
            let _ = holder.reply.send(Err(error.clone()));
        }
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Unapplied { reply, .. } | Pending::Sync { reply, .. } => {
                    reply.send(Err(error.clone()))
                }
                Pending::Applied { .. } => {}
            }
        }
    }

    /// Makes everything durable, a checkpoint of it if that spares the next opening something, and writes the closing group.
    pub(crate) fn close(mut self) -> Result<()> {
        if self.stopped().is_none()
            && let Some(replay_lsn) = self.checkpointer.finish(&mut self.writer, self.log.durable_lsn())
        {
            self.log.set_replay_lsn(replay_lsn);
        }
        self.checkpointer.close();
        let result = match self.stopped() {
            Some(error) => Err(error),
            None => self.log.close(),
        };
        if result.is_ok() {
            self.shared.durable_revision.store(self.writer.store().revision(), Ordering::Release);
        }
        self.shared.end();
        result
    }
}

/// Applies the operation of the record at `lsn`. The body was encoded by this process or verified by the log.
///
/// # Errors
/// What the operation was refused with; then it counts as applied. Or why something on disk could not be read: then it
/// does not, see [`is_refusal`].
fn apply(
    writer: &mut StoreWriter,
    checkpointer: &mut Checkpointer,
    body: &[u8],
    index: u64,
    lsn: Lsn,
) -> Result<Answer> {
    let operation = decode(body).map_err(|error| Error::Refused(format!("operation {index}: {error}")))?;
    let answer = match &operation {
        LogOperation::Put(put) => writer.put(put, &AnyLease).map(Answer::Put),
        LogOperation::DeleteRange(delete) => writer.delete_range(delete).map(Answer::DeleteRange),
        LogOperation::Txn(txn) => writer.txn(txn, &AnyLease).map(Answer::Txn),
        LogOperation::Compact(revision) => {
            writer.compact(*revision).map(|()| Answer::Done(writer.store().revision()))
        }
        LogOperation::DeleteLeaseKeys(lease) => writer.delete_lease_keys(*lease).map(Answer::DeleteRange),
        LogOperation::SystemPut(key, value) => {
            writer.system_put(key.clone(), value.clone());
            Ok(Answer::Done(writer.store().revision()))
        }
        LogOperation::SystemDelete(key) => {
            writer.system_delete(key);
            Ok(Answer::Done(writer.store().revision()))
        }
    };
    let answer = answer.map_err(Error::from);
    if answer.as_ref().err().is_none_or(is_refusal) {
        // A refused operation is applied too: it changes nothing, on every replay.
        writer.set_applied(index, 0);
        checkpointer.after_entry(writer, CutPosition { index, term: 0, lsn });
    }
    answer
}

/// True if an operation counts as applied: refused by a rule of the data model, the same on every replay, or made and only its answer
/// could not be read; false if this device failed.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Invalid(_) | Error::Compacted(_) | Error::FutureRevision(_) | Error::Unanswered(_))
}

/// Says which keys a record needs, to be read while those before it are applied.
fn announce(store: &Store, record: &Record<'_>) {
    if !store.has_checkpoint() || record.meta.kind != RecordKind::Batch {
        return;
    }
    if let Some(key) = put_key(record.body) {
        store.read_ahead(key);
    } else if let Ok(LogOperation::Txn(txn)) = decode(record.body) {
        txn.single_keys().for_each(|key| store.read_ahead(key));
    }
}

fn replay(
    writer: &mut StoreWriter,
    checkpointer: &mut Checkpointer,
    last_index: &mut u64,
    record: &Record<'_>,
) -> Result<()> {
    let index = record.meta.index;
    // What the checkpoint holds is there already (I4); recovery starts with the last of it.
    if record.meta.kind != RecordKind::Batch || index <= writer.store().applied().0 {
        return Ok(());
    }
    if index != *last_index + 1 {
        return Err(Error::Refused(format!(
            "the log goes from operation {last_index} to {index} at position {}",
            record.lsn
        )));
    }
    *last_index = index;
    match apply(writer, checkpointer, record.body, index, record.lsn) {
        Err(error) if !is_refusal(&error) => Err(error),
        _ => Ok(()),
    }
}
