//! What other threads have for the thread of the log.
//!
//! **Access.** One lock, held to push or to take everything. Whoever pushes wakes the thread afterwards.
//!
//! **Bounds.** Frames of the log lane: [`LOG_BYTES_MAX`], and then the lane's thread waits, which makes the sender wait; of the control lane
//! [`CONTROL_COUNT_MAX`], and then they are dropped, as a network may. Proposals: the caller checks; see [`Inbox::propose`].
use super::barrier::Slot;
use super::frame::{Body, Frame, FrameError, Lane};
use super::input::Proposal;
use super::proposals::{OPEN_BYTES_MAX, OPEN_COUNT_MAX};
use crate::replicator::{MemberChange, ProposeError, ReadError};
use bytes::Bytes;
use raft::eraftpb::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use sternpost_engine::io::Waker;

/// Bytes of frames of the log lane that wait.
const LOG_BYTES_MAX: usize = 32 << 20;
/// Frames of the control lane that wait.
const CONTROL_COUNT_MAX: usize = 8192;
/// Round trips that wait to be noticed.
const ROUND_TRIPS_MAX: usize = 256;
/// Changes of the members that wait to be noticed.
const CHANGES_MAX: usize = 64;
/// Readers that wait to be noticed.
const READERS_MAX: usize = 65_536;

/// Who waits for a read index.
pub(super) type Reader = Slot<std::result::Result<u64, ReadError>>;

/// Hears what the servers of members say to each other. Called from the transport's threads; must not block.
pub(super) trait Questions: Send + Sync {
    fn question(&self, from: u64, boot: u64, number: u64, bytes: Bytes);
    fn answer(&self, boot: u64, number: u64, bytes: Bytes);
}

/// A change of the members that somebody wants.
pub(super) struct ArrivedChange {
    pub(super) id: u64,
    pub(super) change: MemberChange,
    pub(super) command: Bytes,
}

/// Everything that waited.
#[derive(Default)]
pub(super) struct Arrived {
    pub(super) control: VecDeque<Frame>,
    pub(super) log: VecDeque<Frame>,
    log_bytes: usize,
    pub(super) unreachable: Vec<u64>,
    pub(super) connected: Vec<u64>,
    pub(super) absent: Vec<u64>,
    /// Microseconds each.
    pub(super) round_trips: Vec<u64>,
    pub(super) proposals: Vec<Proposal>,
    proposals_bytes: usize,
    pub(super) readers: Vec<Reader>,
    pub(super) changes: Vec<ArrivedChange>,
    pub(super) transfers: Vec<u64>,
    /// What others know that we have promised: who, term, index. As many as there are members.
    pub(super) promised: BTreeMap<u64, (u64, u64)>,
    pub(super) loaded: Vec<(u64, Vec<Entry>)>,
    /// The server has found that this member's state differs from that of most.
    pub(super) differs: bool,
}

impl Arrived {
    pub(super) fn is_empty(&self) -> bool {
        self.control.is_empty()
            && self.log.is_empty()
            && self.unreachable.is_empty()
            && self.connected.is_empty()
            && self.absent.is_empty()
            && self.proposals.is_empty()
            && self.readers.is_empty()
            && self.changes.is_empty()
            && self.transfers.is_empty()
            && self.promised.is_empty()
            && self.loaded.is_empty()
            && !self.differs
    }
}

#[derive(Default)]
struct State {
    arrived: Arrived,
    /// Why nothing more is taken, if so.
    stopped: Option<String>,
    is_closing: bool,
}

/// See the module. The transport holds it too: frames and news of peers come in here.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
    has_room: Condvar,
    waker: OnceLock<Waker>,
    pub(super) questions: OnceLock<Box<dyn Questions>>,
    /// Proposals that the core holds, as of its last round.
    pub(super) open_count: AtomicU64,
    dropped_count: AtomicU64,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_waker(&self, waker: Waker) {
        let _ = self.waker.set(waker);
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    /// A frame that arrived from `from`. May block while too much of the log lane waits.
    ///
    /// # Errors
    /// If the bytes are no frame of this build, or say that they are from somebody else: nothing was taken.
    pub fn frame(&self, from: u64, bytes: Bytes) -> Result<(), FrameError> {
        let length = bytes.len();
        let frame = Frame::decode(bytes)?;
        if frame.from != from {
            return Err(FrameError::Length);
        }
        let frame = match frame.body {
            Body::Question { boot, number, bytes } => {
                if let Some(questions) = self.questions.get() {
                    questions.question(from, boot, number, bytes);
                }
                return Ok(());
            }
            Body::Answer { boot, number, bytes } => {
                if let Some(questions) = self.questions.get() {
                    questions.answer(boot, number, bytes);
                }
                return Ok(());
            }
            _ => frame,
        };
        {
            let mut state = self.state();
            match frame.lane() {
                Lane::Control if state.arrived.control.len() >= CONTROL_COUNT_MAX => {
                    self.dropped_count.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Lane::Control => state.arrived.control.push_back(frame),
                Lane::Log => {
                    while state.arrived.log_bytes > LOG_BYTES_MAX
                        && !state.is_closing
                        && state.stopped.is_none()
                    {
                        state = self.has_room.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                    if state.is_closing || state.stopped.is_some() {
                        return Ok(());
                    }
                    state.arrived.log_bytes += length;
                    state.arrived.log.push_back(frame);
                }
            }
        }
        self.wake();
        Ok(())
    }

    /// Frames to this peer were lost, or its connection.
    pub fn unreachable(&self, peer: u64) {
        self.push(|arrived| {
            if !arrived.unreachable.contains(&peer) {
                arrived.unreachable.push(peer);
            }
        });
    }

    /// A connection to this peer stands.
    pub fn connected(&self, peer: u64) {
        self.push(|arrived| {
            if !arrived.connected.contains(&peer) {
                arrived.connected.push(peer);
            }
        });
    }

    /// Nobody answers where this peer was, and its own connections have ended.
    pub fn absent(&self, peer: u64) {
        self.push(|arrived| {
            if !arrived.absent.contains(&peer) {
                arrived.absent.push(peer);
            }
        });
    }

    /// A round trip to some member took so long. More than there can be members are not kept.
    pub fn round_trip(&self, us: u64) {
        let round_trips = &mut self.state().arrived.round_trips;
        if round_trips.len() < ROUND_TRIPS_MAX {
            round_trips.push(us);
        }
    }

    /// This peer knows that we have promised so much: a term, and a committed entry.
    pub fn promised(&self, by: u64, term: u64, index: u64) {
        self.push(|arrived| {
            arrived.promised.insert(by, (term, index));
        });
    }

    fn push(&self, push: impl FnOnce(&mut Arrived)) {
        push(&mut self.state().arrived);
        self.wake();
    }

    pub(super) fn propose(&self, proposal: Proposal) -> Result<(), ProposeError> {
        {
            let mut state = self.state();
            if let Some(reason) = &state.stopped {
                return Err(ProposeError::Stopped(reason.clone()));
            }
            if state.is_closing {
                return Err(ProposeError::Stopped("the server is stopping".into()));
            }
            let factor = if proposal.is_privileged { 2 } else { 1 };
            let open = usize::try_from(self.open_count.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
            let bytes = state.arrived.proposals_bytes + proposal.command.len();
            if open + state.arrived.proposals.len() >= factor * OPEN_COUNT_MAX
                || bytes > factor * OPEN_BYTES_MAX
            {
                return Err(ProposeError::TooManyRequests);
            }
            state.arrived.proposals_bytes = bytes;
            state.arrived.proposals.push(proposal);
        }
        self.wake();
        Ok(())
    }

    /// False if the reader is not taken: too many wait, or the node is stopping.
    pub(super) fn read(&self, reader: Reader) -> bool {
        {
            let mut state = self.state();
            if state.stopped.is_some() || state.is_closing || state.arrived.readers.len() >= READERS_MAX {
                return false;
            }
            state.arrived.readers.push(reader);
        }
        self.wake();
        true
    }

    pub(super) fn propose_change(&self, change: ArrivedChange) -> Result<(), ProposeError> {
        {
            let mut state = self.state();
            if let Some(reason) = &state.stopped {
                return Err(ProposeError::Stopped(reason.clone()));
            }
            // The core takes one at a time.
            if state.is_closing || state.arrived.changes.len() >= CHANGES_MAX {
                return Err(ProposeError::TooManyRequests);
            }
            state.arrived.changes.push(change);
        }
        self.wake();
        Ok(())
    }

    pub(super) fn note_difference(&self) {
        self.push(|arrived| arrived.differs = true);
    }

    pub(super) fn transfer(&self, to: u64) {
        self.push(|arrived| arrived.transfers.push(to));
    }

    pub(super) fn loaded(&self, low: u64, entries: Vec<Entry>) {
        self.push(|arrived| arrived.loaded.push((low, entries)));
    }

    /// Everything, and whether the node shall end.
    pub(super) fn take(&self) -> (Arrived, bool) {
        let mut state = self.state();
        let arrived = std::mem::take(&mut state.arrived);
        let is_closing = state.is_closing;
        drop(state);
        if arrived.log_bytes > 0 {
            self.has_room.notify_all();
        }
        (arrived, is_closing)
    }

    pub(super) fn close(&self) {
        self.state().is_closing = true;
        self.has_room.notify_all();
        self.wake();
    }

    /// Nothing more is taken; what waited is given back.
    pub(super) fn stop(&self, reason: &str) -> Arrived {
        let mut state = self.state();
        state.stopped.get_or_insert_with(|| reason.to_owned());
        let arrived = std::mem::take(&mut state.arrived);
        drop(state);
        self.has_room.notify_all();
        arrived
    }

    pub(super) fn stop_reason(&self) -> Option<String> {
        self.state().stopped.clone()
    }

    /// Frames of the control lane that were dropped because too many waited.
    pub fn dropped_count(&self) -> u64 {
        self.dropped_count.load(Ordering::Relaxed)
    }
}
