//! What all threads of a transport share. Order of locks: none is held while another is taken, nor while [`Inbound`] is called.
use super::handshake::{Lane, MemberHello};
use super::notice::{Notice, Said};
use super::queue::SendQueue;
use super::receiver::Receivers;
use super::state::Pace;
use super::stats::LaneCounters;
use super::stream::Address;
use super::throttle::Throttle;
use super::{Inbound, TransportConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use sternpost_engine::base::clock::MonotonicClock;

/// The queues to one peer, by lane, and the threads that empty them.
pub(super) struct Peer {
    pub(super) addresses: Vec<Address>,
    pub(super) queues: [Arc<SendQueue>; 2],
    pub(super) counters: Arc<[LaneCounters; 2]>,
    pub(super) threads: Vec<JoinHandle<()>>,
}

/// Of more peers than this, those that come later are not counted: ids that nobody set come from outside.
const COUNTED_PEERS_MAX: usize = 1_024;

/// See the module.
pub(super) struct Shared {
    pub(super) config: TransportConfig,
    pub(super) inbound: Arc<dyn Inbound>,
    pub(super) clock: MonotonicClock,
    pub(super) stopping: AtomicBool,
    pub(super) peers: RwLock<BTreeMap<u64, Peer>>,
    pub(super) receivers: Receivers,
    /// Connections that we refused.
    pub(super) refused: AtomicU64,
    /// Connections that were closed before they said who they are.
    pub(super) strangers: AtomicU64,
    /// Of everybody who fetches state.
    pub(super) pace: Pace,
    pub(super) throttle: Mutex<Throttle>,
    counters: Mutex<BTreeMap<u64, Arc<[LaneCounters; 2]>>>,
    /// Peers at whose addresses nobody listened when they were tried last.
    refused_at: Mutex<BTreeSet<u64>>,
    said: Mutex<Said>,
}

/// Plain data behind a lock stays usable when somebody else panicked.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(config: TransportConfig, inbound: Arc<dyn Inbound>) -> Self {
        let limits = &config.limits;
        let throttle = Throttle::new(limits.state_bytes_per_second_min, limits.state_bytes_per_second);
        let pace = Pace::new(throttle.rate());
        Self {
            config,
            inbound,
            clock: MonotonicClock::default(),
            stopping: AtomicBool::new(false),
            peers: RwLock::default(),
            receivers: Receivers::default(),
            refused: AtomicU64::new(0),
            strangers: AtomicU64::new(0),
            pace,
            throttle: Mutex::new(throttle),
            counters: Mutex::default(),
            refused_at: Mutex::default(),
            said: Mutex::default(),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// What this member says of itself on a connection with `to`.
    pub(super) fn hello(&self, lane: u8, epoch: u32, to: u64) -> MemberHello {
        self.config.hello(lane, epoch, to, self.inbound.position())
    }

    /// Hands a notice on if it is new.
    pub(super) fn say(&self, notice: Notice) {
        if !self.is_stopping() && lock(&self.said).is_new(&notice) {
            self.inbound.notice(&notice);
        }
    }

    /// A connection with `peer` stands.
    pub(super) fn forget(&self, peer: u64) {
        lock(&self.said).forget(peer);
    }

    pub(super) fn compare_timers(&self, theirs: &MemberHello, ours: &MemberHello) {
        if theirs.timers_differ(ours) {
            self.say(Notice::TimersDiffer {
                peer: theirs.from,
                ours: (ours.heartbeat_ms, ours.election_ms),
                theirs: (theirs.heartbeat_ms, theirs.election_ms),
            });
        }
    }

    /// The counters of a peer's lanes, both directions; made when they are first asked for.
    pub(super) fn counters(&self, peer: u64) -> Arc<[LaneCounters; 2]> {
        let mut counters = lock(&self.counters);
        if counters.len() >= COUNTED_PEERS_MAX && !counters.contains_key(&peer) {
            return Arc::default();
        }
        Arc::clone(counters.entry(peer).or_default())
    }

    /// Drops the counters of a peer.
    pub(super) fn drop_counters(&self, peer: u64) {
        lock(&self.counters).remove(&peer);
    }

    /// The counters of all peers, by id.
    pub(super) fn all_counters(&self) -> Vec<(u64, Arc<[LaneCounters; 2]>)> {
        lock(&self.counters).iter().map(|(peer, counters)| (*peer, Arc::clone(counters))).collect()
    }

    /// Has the connection to `peer` on `lane` made anew.
    pub(super) fn reset(&self, peer: u64, lane: Lane) {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&peer) {
            peer.queues[lane.index()].order_reset();
        }
    }

    /// Whether the last attempt to reach `peer` found nobody.
    pub(super) fn note_refused(&self, peer: u64, is_refused: bool) {
        let mut refused_at = lock(&self.refused_at);
        if is_refused {
            refused_at.insert(peer);
        } else {
            refused_at.remove(&peer);
        }
    }

    /// Tells that `peer` is gone, if that is what both sides of its control lane look like; to be asked whenever one of them has changed.
    pub(super) fn tell_if_absent(&self, peer: u64) {
        let is_refused = lock(&self.refused_at).contains(&peer);
        if is_refused && !self.receivers.is_connected(peer, Lane::Control) && !self.is_stopping() {
            self.inbound.absent(peer);
        }
    }

    /// `peer` was heard of: whoever waits before the next attempt to reach it need not.
    pub(super) fn hurry(&self, peer: u64) {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&peer) {
            peer.queues.iter().for_each(|queue| queue.order_retry());
        }
    }
}
