//! Frames between members: connections, lanes, bounds. Bytes in, bytes out.
//!
//! **Contract.** [`Transport::send`] never blocks: it queues a frame for one peer and lane, or says why it did not. What arrives is handed
//! to an [`Inbound`]. Frames of one lane arrive in the order in which they were sent, each at most once, with gaps where a connection
//! was lost or a queue was full; between lanes there is no order. That is what Raft asks for, and nothing is sent again here: Raft does it.
//!
//! **Shape.** Every member connects to every peer, once for each lane, and sends on the connections that it made; it receives on those
//! that the peer made. So no two connections compete for one task, a member that hears but is not heard is seen by
//! both, and a duplicate is only ever an older connection of the same member (`slot.rs`).
//!
//! ```text
//! send → queue (bytes bounded) → thread of (peer, lane): connect, write    ──TCP──▶    thread: read, check → Inbound
//! ```
//!
//! **Why threads and `poll`**, and no runtime: a cluster has at most a dozen peers, so there are a few dozen threads that mostly wait, and a
//! blocked reader *is* the back-pressure. Heartbeats need a thread that wakes within a millisecond and waits for nothing but its socket
//! and its queue; on a shared executor they would queue behind whatever else is ready. The crate has no runtime
//! for the same reason (`docs/decisions/0002-own-transport.md`). Sockets and waits that std does not offer (interruptible connect, user
//! timeout) come from rustix, without unsafe code.
//!
//! **Lanes** (`handshake::Lane`): *control* for what is small and urgent, *log* for what is large. Each has its own connection, thread and bound, so
//! a log lane that is full, or whose peer does not read, never holds up a heartbeat. A member that needs another's whole state fetches it on a
//! connection of its own ([`state`]).
//!
//! **Bounds** ([`Limits`]): bytes queued for each lane of a peer (at the bound the frame is dropped and the caller told: it reports the peer
//! to Raft as unreachable), bytes of one frame, unauthenticated connections and the time of each.
//!
//! **Failure.** A lost connection is made again, at once if it had stood, else after a short pause with jitter; a refused one too, since what is wrong may
//! be put right. A name is resolved at every attempt. Whatever a peer or a stranger sends, the worst is a closed connection and one [`Notice`].
//!
//! **Security.** Whoever reaches a plain peer port and knows the ids can speak for a member. [`TransportConfig::secure`] puts TLS, or whatever it makes,
//! between socket and frames ([`stream`]), for listeners and addresses that ask for it.
//!
//! **Does not know** what a frame says, who may be a member ([`Inbound::admit`] does), who leads, or what a stream does to bytes.
//!
//! **Reading order**: [`frame`], [`handshake`], [`stream`], `queue`, `lane`, `dial`, `slot`, `receiver`, [`state`], here.
mod dial;
pub mod frame;
pub mod handshake;
mod lane;
mod notice;
mod queue;
mod receiver;
mod shared;
mod slot;
pub mod state;
mod stats;
pub mod stream;
pub mod throttle;
mod wake;

pub use dial::discover;
pub use frame::{Frame, Received};
pub use handshake::{Discovery, HandshakeError, Lane, MemberHello, Position, Promised, RefusalCode};
pub use notice::Notice;
pub use queue::Dropped;
pub use state::{StateClient, StateError, StateSource};
pub use stats::{LaneStats, ROUND_TRIP_BOUNDS, round_trip_bound_us};
pub use stream::{Address, Secure, Stream};
pub use throttle::{Throttle, WriteWindow};

use bytes::Bytes;
use lane::Sender;
use queue::SendQueue;
use receiver::Door;
use shared::{Peer, Shared, lock};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use sternpost_engine::base::clock::Clock;
use sternpost_engine::base::rng::Rng;
use wake::Wake;

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The peer made it; frames of the peer come on it.
    In,
    /// We made it; frames go to the peer on it.
    Out,
}

/// The layer above. Called from the transport's threads, from several at once; never while a lock of the transport is held.
///
/// After [`Transport::shutdown`] returned, nothing is called any more; while it runs, a call must not block for long, since its thread is
/// waited for. None of these may call [`Transport::shutdown`].
pub trait Inbound: Send + Sync + 'static {
    /// A frame came from `from`, in order within its lane. May block: that lane of that peer is then read no further, and nothing else
    /// is held up. A log lane that is not read for 30 s, and a control lane for 3 election timeouts (at least 1 s), is given up by the
    /// sender's kernel and made anew.
    fn frame(&self, from: u64, lane: Lane, frame: Received);

    /// A connection stands; `hello` is what the peer says of itself. For `Out`, frames can be sent from now on. Without `lost` in between, the
    /// connection before was replaced.
    fn connected(&self, peer: u64, lane: Lane, direction: Direction, hello: &MemberHello);

    /// A connection has ended, or is made anew at other addresses; what was queued for `Out` is dropped, and Raft wants to know that the
    /// peer is unreachable. Not told of connections that [`Transport::remove_peer`] or [`Transport::shutdown`] ended; may be told of one that never stood.
    fn lost(&self, peer: u64, lane: Lane, direction: Direction);

    /// Nobody listens at any address of the peer, and its connection for the control lane has ended: its process is gone, or no way leads to it. Told
    /// again at each attempt to reach it. Must not block.
    fn absent(&self, peer: u64) {
        let _ = peer;
    }

    /// Where this member's log and vote stand, for the handshake. Must not block.
    fn position(&self) -> Position;

    /// Whether a peer whose ids and genesis are right may connect, in either direction: not if it was removed
    /// ([`RefusalCode::Removed`]), is unknown, cannot do what the cluster uses, or holds less than it acknowledged: lost or rolled back data. A member that is not a
    /// peer yet may be admitted: somebody who was away while it was added then still hears it. Must not block.
    fn admit(&self, hello: &MemberHello) -> Result<(), RefusalCode>;

    /// What this member knows that `peer` has promised: told to it when it is refused for holding less. Must not block.
    fn promised(&self, peer: u64) -> Promised {
        let _ = peer;
        Promised::default()
    }

    /// The peer that we meant to reach refuses us, every time that it does. What it says that we have promised is true of us; its verdict need not
    /// be: what it judged is where we stood when the connection was begun. Must not block.
    fn refused(&self, peer: u64, code: RefusalCode, promised: Promised) {
        let _ = (peer, code, promised);
    }

    /// The members, for somebody who wants to join: at most 1 MiB. Must not block.
    fn member_table(&self) -> Bytes;

    /// The state of now, for a member that was admitted and fetches it; none if there is none to give. Must not block.
    fn state(&self, peer: u64) -> Option<Box<dyn StateSource>> {
        let _ = peer;
        None
    }

    /// Something for the log; said once for each peer and reason until a connection with it stands.
    fn notice(&self, notice: &Notice);
}

/// What is bounded, and where. [`Limits::default`] is right for all but tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes queued for one peer's control lane.
    pub control_queue_bytes_max: u64,
    /// Bytes queued for one peer's log lane: a window of 32 MiB of appends and as much of forwarded proposals.
    pub log_queue_bytes_max: u64,
    /// Bytes of a frame's body on the control lane.
    pub control_body_bytes_max: usize,
    /// Bytes of a frame's body on the log lane: the largest entry must fit.
    pub log_body_bytes_max: usize,
    /// Connections that have not said who they are.
    pub greetings_max: usize,
    /// How long one may take for that, in all.
    pub handshake_us_max: u64,
    /// Bytes a second of state that others fetch, over all of them; 0 is no limit.
    pub state_bytes_per_second: u64,
    /// As slow as that becomes when this member's own writes take longer for it: see [`throttle`]; not below the other one, it is fixed.
    pub state_bytes_per_second_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            control_queue_bytes_max: 4 << 20,
            log_queue_bytes_max: 64 << 20,
            control_body_bytes_max: 64 << 10,
            log_body_bytes_max: 64 << 20,
            greetings_max: 64,
            handshake_us_max: 5_000_000,
            state_bytes_per_second: 100 << 20,
            state_bytes_per_second_min: 32 << 20,
        }
    }
}

impl Limits {
    fn queue_bytes_max(&self, lane: Lane) -> u64 {
        match lane {
            Lane::Control => self.control_queue_bytes_max,
            Lane::Log => self.log_queue_bytes_max,
        }
    }

    fn body_bytes_max(&self, lane: Lane) -> usize {
        match lane {
            Lane::Control => self.control_body_bytes_max,
            Lane::Log => self.log_body_bytes_max,
        }
    }
}

/// Who this member is and where it listens.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Where peers connect; may be empty. Port 0 takes a free one, see [`Transport::listening`].
    pub listen: Vec<SocketAddr>,
    /// Where peers connect by a stream of `secure`, which then must be there.
    pub listen_secure: Vec<SocketAddr>,
    /// Makes the streams of `listen_secure` and of addresses that ask for it.
    pub secure: Option<Arc<dyn Secure>>,
    /// Identity of the cluster.
    pub cluster_id: u64,
    /// Identity of this member, not 0.
    pub member_id: u64,
    /// How often the data directory was opened; 0 if that is not counted.
    pub boot_count: u64,
    /// Random for each start of the process; also seeds the jitter of pauses.
    pub boot_nonce: u64,
    /// See [`crate::Genesis::hash`].
    pub genesis_hash: u64,
    /// What this build can do.
    pub feature_level: u32,
    /// Heartbeat in milliseconds, told to peers.
    pub heartbeat_ms: u32,
    /// Election timeout in milliseconds, told to peers; the sockets' patience derives from it.
    pub election_ms: u32,
    /// Where this member can be reached, told to peers.
    pub peer_urls: Vec<String>,
    /// See there.
    pub limits: Limits,
}

impl TransportConfig {
    /// What this member says of itself on a connection with `to`.
    fn hello(&self, lane: u8, epoch: u32, to: u64, position: Position) -> MemberHello {
        MemberHello {
            lane,
            epoch,
            cluster_id: self.cluster_id,
            from: self.member_id,
            to,
            boot_count: self.boot_count,
            boot_nonce: self.boot_nonce,
            genesis_hash: self.genesis_hash,
            feature_level: self.feature_level,
            heartbeat_ms: self.heartbeat_ms,
            election_ms: self.election_ms,
            position,
            peer_urls: self.peer_urls.clone(),
        }
    }
}

/// Why a transport did not start.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// The system gives no thread or descriptor.
    System(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, error) => write!(f, "cannot listen for peers on {address}: {error}"),
            Self::System(error) => write!(f, "cannot start the peer transport: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Counters of the transport as a whole, since it started.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TransportStats {
    /// Incoming connections that were refused with an answer.
    pub refused: u64,
    /// Incoming connections that did not say who they are: garbage, another protocol, too slow, pushed out by newer ones.
    pub strangers: u64,
}

/// A running transport.
pub struct Transport {
    shared: Arc<Shared>,
    listening: Vec<SocketAddr>,
    accept_wake: Arc<Wake>,
    accept_thread: Mutex<Option<JoinHandle<()>>>,
    /// Threads of removed peers, until they have ended.
    retired: Mutex<Vec<JoinHandle<()>>>,
}

impl Transport {
    /// Listens, and knows no peer yet. Panics if the member's id is 0, or if it is to listen securely by nothing.
    pub fn start(config: TransportConfig, inbound: Arc<dyn Inbound>) -> Result<Self, StartError> {
        assert_ne!(config.member_id, 0, "a member has an id");
        assert!(
            config.listen_secure.is_empty() || config.secure.is_some(),
            "a secure listener has its streams"
        );
        let mut doors = Vec::new();
        let mut listening = Vec::new();
        let plain = config.listen.iter().map(|address| (address, false));
        for (address, is_secure) in plain.chain(config.listen_secure.iter().map(|address| (address, true))) {
            let listen = || {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let actual = listener.local_addr()?;
                Ok((listener, actual))
            };
            let (listener, actual) = listen().map_err(|error| StartError::Listen(*address, error))?;
            doors.push(Door { listener, is_secure });
            listening.push(actual);
        }
        let accept_wake = Arc::new(Wake::new().map_err(StartError::System)?);
        let shared = Arc::new(Shared::new(config, inbound));
        let (owned, wake) = (Arc::clone(&shared), Arc::clone(&accept_wake));
        let accept_thread = thread::Builder::new()
            .name("peer-accept".into())
            .spawn(move || receiver::accept(&owned, &doors, &wake))
            .map_err(StartError::System)?;
        let accept_thread = Mutex::new(Some(accept_thread));
        Ok(Self { shared, listening, accept_wake, accept_thread, retired: Mutex::default() })
    }

    /// The addresses listened on, in the order of the configuration, secure ones last, with their real ports.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Adds a peer, or gives one other addresses. They are tried in turn. With the same addresses
    /// nothing happens; with others its connections are made anew. Fails only when the system gives no threads.
    pub fn set_peer(&self, id: u64, addresses: Vec<Address>) -> io::Result<()> {
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        if self.shared.is_stopping() || id == self.shared.config.member_id {
            return Ok(());
        }
        if let Some(peer) = peers.get_mut(&id) {
            if peer.addresses != addresses {
                peer.queues.iter().for_each(|queue| queue.order_addresses(addresses.clone()));
                peer.addresses = addresses;
            }
            return Ok(());
        }
        let limits = &self.shared.config.limits;
        let queue =
            |lane| SendQueue::new(limits.queue_bytes_max(lane), limits.body_bytes_max(lane)).map(Arc::new);
        let queues = [queue(Lane::Control)?, queue(Lane::Log)?];
        let counters = self.shared.counters(id);
        let mut threads = Vec::new();
        for lane in Lane::ALL {
            let sender = Sender {
                peer: id,
                lane,
                addresses: addresses.clone(),
                queue: Arc::clone(&queues[lane.index()]),
                counters: Arc::clone(&counters),
                rng: Rng::new(self.shared.config.boot_nonce ^ id.rotate_left(lane as u32)),
                shared: Arc::clone(&self.shared),
            };
            let name = format!("peer-out-{}", lane.name());
            match thread::Builder::new().name(name).spawn(move || sender.run()) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    queues.iter().for_each(|queue| queue.order_stop());
                    lock(&self.retired).extend(threads);
                    return Err(error);
                }
            }
        }
        peers.insert(id, Peer { addresses, queues, counters, threads });
        Ok(())
    }

    /// Ends all connections with a peer; when it returns, nothing more is taken for it, and no frame of it is handed up but one that is
    /// being handed up. Does not wait for threads. Whether it may connect again is up to [`Inbound::admit`].
    pub fn remove_peer(&self, id: u64) {
        let removed = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(peer) = removed {
            peer.queues.iter().for_each(|queue| queue.order_stop());
            let mut retired = lock(&self.retired);
            retired.retain(|thread| !thread.is_finished());
            retired.extend(peer.threads);
        }
        self.shared.receivers.cut(id);
        self.shared.note_refused(id, false);
        self.shared.drop_counters(id);
    }

    /// Queues a frame, or says why not; never blocks. At [`Dropped::QueueFull`] and [`Dropped::NotConnected`] Raft wants to know that the
    /// peer is unreachable. A frame that was queued may still be lost: with its connection, or on the way.
    pub fn send(&self, peer: u64, lane: Lane, frame: Frame) -> Result<(), Dropped> {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let Some(to) = peers.get(&peer) else { return Err(Dropped::UnknownPeer) };
        let bytes = frame.wire_bytes() as u64;
        let sent = to.queues[lane.index()].put(frame);
        if sent.is_err() {
            to.counters[lane.index()].dropped(1, bytes);
        }
        sent
    }

    /// Bytes that wait to be sent to a peer on a lane; 0 for somebody who is none.
    pub fn queued_bytes(&self, peer: u64, lane: Lane) -> u64 {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(&peer).map_or(0, |peer| peer.queues[lane.index()].bytes())
    }

    /// The counters of every peer's lanes, and of members that connected without being one; by id, control before log.
    pub fn lane_stats(&self) -> Vec<(u64, Lane, LaneStats)> {
        let mut stats = Vec::new();
        let counters = self.shared.all_counters();
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        for (id, counters) in counters {
            for lane in Lane::ALL {
                let queue = peers.get(&id).map(|peer| &peer.queues[lane.index()]);
                let (bytes, open) = queue.map_or((0, false), |queue| (queue.bytes(), queue.is_open()));
                stats.push((id, lane, counters[lane.index()].read(bytes, open)));
            }
        }
        stats
    }

    /// Counters of the whole.
    pub fn stats(&self) -> TransportStats {
        TransportStats {
            refused: self.shared.refused.load(Ordering::Relaxed),
            strangers: self.shared.strangers.load(Ordering::Relaxed),
        }
    }

    /// What this member's own writes took since the last time, about once a second: by that the rate of states is chosen, see [`throttle`]. The rate in bytes a
    /// second, 0 for no limit.
    pub fn note_writes(&self, window: WriteWindow) -> u64 {
        let is_given = self.shared.receivers.is_fetched_from();
        let now_us = self.shared.clock.now_us();
        let rate = shared::lock(&self.shared.throttle).handle(now_us, is_given, window);
        self.shared.pace.set(rate);
        rate
    }

    /// True while a peer is connected in both directions on a lane.
    pub fn is_connected(&self, peer: u64, lane: Lane) -> bool {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let out = peers.get(&peer).is_some_and(|peer| peer.queues[lane.index()].is_open());
        out && self.shared.receivers.is_connected(peer, lane)
    }

    /// Closes everything and waits for all threads (only a name lookup that hangs in the system is left to end by itself). The layer above
    /// must not be blocked in [`Inbound::frame`] for good: it closes its queue first. Called again it does nothing.
    pub fn shutdown(&self) {
        // Under the lock, so that no peer is added after the threads were told to end.
        let peers = {
            let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
            self.shared.stopping.store(true, Ordering::SeqCst);
            std::mem::take(&mut *peers)
        };
        self.accept_wake.wake();
        for queue in peers.values().flat_map(|peer| &peer.queues) {
            queue.order_stop();
        }
        if let Some(thread) = lock(&self.accept_thread).take() {
            let _ = thread.join();
        }
        self.shared.receivers.end_all();
        let retired = std::mem::take(&mut *lock(&self.retired));
        for thread in peers.into_values().flat_map(|peer| peer.threads).chain(retired) {
            // A panic in the layer above was reported by its hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shutdown();
    }
}
