//! The other members: the transport between us and a group's replicator.
//!
//! **Contract.** [`Peers`] listens for the other members and connects to those of the member table, which [`Peers::follow`] keeps up with; frames of the
//! replicator go out by it, and what comes in is given to the replicator. Who may connect is who is in the member table. Somebody whose
//! entries no log holds any more is told to fetch the state.
//!
//! **A member that is alone listens for nobody**: with the second member of the table the listener comes, and the error, if the address is
//! taken.
//!
//! **Does not know** what a frame of the replicator says.
use crate::apply::{Promises, records};
use crate::config::Config;
use crate::identity;
use crate::membership::Membership;
use crate::metrics::export::{PeerSample, resample};
use crate::tls::Tls;
use crate::wire::etcdserverpb::Member;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;
use sternpost_engine::mvcc::Store;
use sternpost_engine::transfer::Place;
use sternpost_engine::wal::StageLatency;
use sternpost_replication::Replicator;
use sternpost_replication::entry_format::{FEATURE_LEVEL, GENESIS_INDEX};
use sternpost_replication::raft::{self, Carrier, CoreStatus, Inbox, Quarantine, Raft};
use sternpost_replication::transport::state::STATE_LANE;
use sternpost_replication::transport::{
    Address, Direction, Frame, Inbound, Lane, Limits, MemberHello, Notice, Position, Promised,
    ROUND_TRIP_BOUNDS, Received, RefusalCode, StateSource, Transport, TransportConfig, WriteWindow,
    round_trip_bound_us,
};
use tokio::sync::watch;

/// Kind of the frames that hold one of the replicator's.
const RAFT_FRAME: u8 = 1;
/// Kind of the frames, without a body, that tell a follower to fetch our state.
const FETCH_FRAME: u8 = 2;
/// At most so many members that no table knows: more than a cluster is ever replaced by.
const STRANGERS_MAX: usize = 16;
/// The log's thread takes an order within a round; a disk that hangs may hold it up.
const QUARANTINE_TIME: Duration = Duration::from_secs(30);
/// How often the leader looks for followers that need it, and a listener that could not be opened is tried again.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A running transport, as soon as there is somebody to speak to. Dropping it ends it.
pub struct Peers {
    config: TransportConfig,
    raft: Arc<Raft>,
    store: Store,
    membership: Arc<Membership>,
    fetch_from: watch::Sender<u64>,
    transport: Arc<OnceLock<Transport>>,
    memory: Arc<Memory>,
    promises: Arc<Promises>,
    strangers: Arc<Strangers>,
    /// Those that the transport knows, with their addresses.
    known: Mutex<BTreeMap<u64, Vec<Address>>>,
    is_fetching: AtomicBool,
}

/// What the transport calls.
struct Members {
    raft: Arc<Raft>,
    inbox: Arc<Inbox>,
    store: Store,
    membership: Arc<Membership>,
    /// The member whose state we are told to fetch, 0 for none.
    fetch_from: watch::Sender<u64>,
    memory: Arc<Memory>,
    promises: Arc<Promises>,
    /// Not a share of it: the transport holds this.
    transport: Weak<OnceLock<Transport>>,
    strangers: Arc<Strangers>,
}

/// Members that are in no table here, because this member was away while they were added: known by what they say of themselves, until the table says it.
#[derive(Default)]
struct Strangers(Mutex<BTreeMap<u64, Vec<String>>>);

impl Strangers {
    /// Where one is to be answered. False if there are too many.
    fn add(&self, id: u64, peer_urls: &[String]) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = known.contains_key(&id) || known.len() < STRANGERS_MAX;
        if has_room {
            known.insert(id, peer_urls.to_vec());
        }
        has_room
    }

    fn get(&self, id: u64) -> Option<Member> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).map(|urls| Member { id, peer_ur_ls: urls.clone(), ..Member::default() })
    }

    fn remove(&self, id: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

/// What others have promised this member, as far as it has led since its start (R22). One that stands lower has lost data, and must not vote.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<u64, Promised>>);

impl Memory {
    /// What the leader knows: whoever has acknowledged something in its term, has that term.
    fn note_peers(&self, status: &CoreStatus) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for peer in status.peers.iter().filter(|peer| peer.matched > 0) {
            // Of members alone, so it is as small as the cluster.
            let promised = known.entry(peer.id).or_default();
            promised.term = promised.term.max(status.role.term);
            // What is not committed may be overwritten, and is gone then by right.
            promised.index = promised.index.max(peer.matched.min(status.committed));
        }
    }

    fn of(&self, member: u64) -> Promised {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&member).copied().unwrap_or_default()
    }
}

/// What the log's writes took, from look to look.
#[derive(Default)]
pub struct Writes(Option<StageLatency>);

impl Writes {
    /// Those between the last look and this one.
    pub fn since_last(&mut self, now: StageLatency) -> WriteWindow {
        let mut window = now.histogram.clone();
        let last = self.0.replace(now);
        // All counts have grown, so nothing is left over.
        if last.is_some_and(|last| window.subtract(&last.histogram).is_err()) {
            return WriteWindow::default();
        }
        WriteWindow { count: window.len(), p99_us: window.value_at_quantile(0.99) }
    }
}

struct ByTransport(Arc<OnceLock<Transport>>);

impl Carrier for ByTransport {
    fn send(&self, to: u64, lane: raft::Lane, frame: Bytes) -> bool {
        let lane = match lane {
            raft::Lane::Control => Lane::Control,
            raft::Lane::Log => Lane::Log,
        };
        let Some(transport) = self.0.get() else { return false };
        transport.send(to, lane, Frame::new(RAFT_FRAME, 0, 0, vec![frame])).is_ok()
    }
}

impl Members {
    /// What this member knows that `member` has promised.
    fn promised_by(&self, member: &Member) -> Promised {
        self.memory.note_peers(&self.raft.core_status());
        let known = self.memory.of(member.id);
        // A member says its client URLs when it has started, by its log: that entry it has.
        let least = if member.client_ur_ls.is_empty() { 0 } else { GENESIS_INDEX + 1 };
        // Kept in the state, whoever has led meanwhile and however often all have been started.
        let (term, index) = records::promised(&self.store, member.id);
        let (read_term, read_index) = self.promises.of(member.id);
        Promised {
            term: known.term.max(term).max(read_term),
            index: known.index.max(index).max(read_index).max(least),
        }
    }

    /// A member that is in no table here is answered at the URLs that it says.
    fn answer_stranger(&self, hello: &MemberHello) {
        if records::member(&self.store, hello.from).is_some() {
            return;
        }
        let Some(member) = self.strangers.get(hello.from) else { return };
        let Some(transport) = self.transport.upgrade() else { return };
        if let (Some(transport), Ok(addresses)) = (transport.get(), identity::dial_addresses(&member)) {
            let member = format!("{:x}", hello.from);
            tracing::info!(member, urls = ?hello.peer_urls, "a member speaks that was added while this one was away");
            let _ = transport.set_peer(hello.from, addresses);
        }
    }
}

impl Inbound for Members {
    fn frame(&self, from: u64, _: Lane, frame: Received) {
        match frame.kind {
            RAFT_FRAME => {
                if let Err(error) = self.inbox.frame(from, frame.body) {
                    tracing::warn!(from = format!("{from:x}"), %error, "dropped a frame of a member");
                }
            }
            FETCH_FRAME => {
                self.fetch_from.send_replace(from);
            }
            // Of a later build.
            _ => {}
        }
    }

    fn connected(&self, peer: u64, lane: Lane, direction: Direction, hello: &MemberHello) {
        match direction {
            Direction::In => self.answer_stranger(hello),
            Direction::Out => {
                tracing::info!(peer = format!("{peer:x}"), lane = lane.name(), "connected to a member");
                self.inbox.connected(peer);
            }
        }
    }

    fn lost(&self, peer: u64, lane: Lane, direction: Direction) {
        if direction == Direction::Out {
            tracing::info!(peer = format!("{peer:x}"), lane = lane.name(), "lost the connection to a member");
            self.inbox.unreachable(peer);
        }
    }

    fn absent(&self, peer: u64) {
        self.inbox.absent(peer);
    }

    fn position(&self) -> Position {
        let status = self.raft.core_status();
        Position { term: status.role.term, last_index: status.last, last_term: status.last_term }
    }

    fn admit(&self, hello: &MemberHello) -> Result<(), RefusalCode> {
        // The genesis is in the checkpoint or was restored before anybody listens.
        if records::is_removed(&self.store, hello.from) {
            return Err(RefusalCode::Removed);
        }
        let Some(member) = records::member(&self.store, hello.from) else {
            // Somebody who was added while this member was away: its leader, perhaps, whom nothing else would make known here. The ids and the
            // genesis are right; the core judges what it says. Our state is for members.
            let is_heard = hello.lane != STATE_LANE
                && !hello.peer_urls.is_empty()
                && self.strangers.add(hello.from, &hello.peer_urls);
            return if is_heard { Ok(()) } else { Err(RefusalCode::Unknown) };
        };
        // Who fetches state says nothing of his log, and gets no vote by it.
        if hello.lane != STATE_LANE && !self.promised_by(&member).fits(hello.position) {
            return Err(RefusalCode::Regressed);
        }
        // What it says of itself is not kept: its term may not be durable yet, and a crash take it back by right.
        Ok(())
    }

    fn promised(&self, peer: u64) -> Promised {
        records::member(&self.store, peer).map_or_else(Promised::default, |member| self.promised_by(&member))
    }

    fn refused(&self, peer: u64, code: RefusalCode, promised: Promised) {
        match code {
            // Ids are never given again, so whoever says it is right for ever.
            RefusalCode::Removed => self.membership.note_removed(),
            RefusalCode::Regressed => self.inbox.promised(peer, promised.term, promised.index),
            _ => {}
        }
    }

    fn member_table(&self) -> Bytes {
        identity::member_table(&self.store)
    }

    fn state(&self, peer: u64) -> Option<Box<dyn StateSource>> {
        tracing::info!(peer = format!("{peer:x}"), "a member fetches the state");
        Some(self.raft.state_source())
    }

    fn notice(&self, notice: &Notice) {
        match notice {
            // In etcd's words, which people look for.
            Notice::Stranger { address, what } => {
                tracing::warn!(remote_addr = %address, error = what, "rejected connection on peer endpoint");
            }
            _ => tracing::warn!("{notice}"),
        }
    }
}

/// Who this member is to the transport.
pub fn transport_config(
    config: &Config,
    cluster_id: u64,
    member_id: u64,
    genesis_hash: u64,
    boot: u64,
    tls: &Tls,
) -> Result<TransportConfig, String> {
    let (heartbeat_ms, election_ms) = config.raft_timers_ms();
    Ok(TransportConfig {
        listen: config.peer_listen_addresses(false)?,
        listen_secure: config.peer_listen_addresses(true)?,
        secure: tls.secure(),
        cluster_id,
        member_id,
        boot_count: 0,
        boot_nonce: boot,
        genesis_hash,
        feature_level: FEATURE_LEVEL,
        heartbeat_ms,
        election_ms,
        peer_urls: config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect(),
        limits: Limits {
            state_bytes_per_second: config.state_bytes_per_second,
            state_bytes_per_second_min: config.state_bytes_per_second_min,
            ..Limits::default()
        },
    })
}

impl Peers {
    /// Listens and connects, if there are others or were. `store` holds the member table.
    ///
    /// # Errors
    /// In one line: an address that cannot be listened on or connected to.
    pub fn start(
        config: &Config,
        tls: &Tls,
        raft: Arc<Raft>,
        store: Store,
        membership: Arc<Membership>,
        promises: Arc<Promises>,
    ) -> Result<Self, String> {
        let peers = Self::new(config, tls, raft, store, membership, promises)?;
        peers.sync()?;
        Ok(peers)
    }

    /// The same, which neither listens nor connects before [`Self::follow`] runs.
    ///
    /// # Errors
    /// An address to listen on that is none.
    pub fn new(
        config: &Config,
        tls: &Tls,
        raft: Arc<Raft>,
        store: Store,
        membership: Arc<Membership>,
        promises: Arc<Promises>,
    ) -> Result<Self, String> {
        let opened = raft.opened();
        let genesis_hash = raft.genesis().hash();
        let config =
            transport_config(config, opened.cluster_id, opened.member_id, genesis_hash, raft.boot(), tls)?;
        let transport = Arc::new(OnceLock::new());
        raft.connect(Box::new(ByTransport(Arc::clone(&transport))));
        let fetch_from = watch::Sender::new(0);
        let (memory, strangers, known) = Default::default();
        Ok(Self {
            config,
            raft,
            store,
            membership,
            fetch_from,
            transport,
            memory,
            promises,
            strangers,
            known,
            is_fetching: AtomicBool::new(false),
        })
    }

    /// The transport, which begins to listen with the first other member.
    fn transport(&self) -> Result<&Transport, String> {
        if let Some(transport) = self.transport.get() {
            return Ok(transport);
        }
        let inbound = Members {
            inbox: self.raft.inbox(),
            raft: Arc::clone(&self.raft),
            store: self.store.clone(),
            membership: Arc::clone(&self.membership),
            fetch_from: self.fetch_from.clone(),
            memory: Arc::clone(&self.memory),
            promises: Arc::clone(&self.promises),
            transport: Arc::downgrade(&self.transport),
            strangers: Arc::clone(&self.strangers),
        };
        let started = Transport::start(self.config.clone(), Arc::new(inbound));
        let started = started.map_err(|error| error.to_string())?;
        for address in started.listening() {
            tracing::info!(address = %address, "listening for members");
        }
        Ok(self.transport.get_or_init(|| started))
    }

    /// The transport knows whom the table knows.
    fn sync(&self) -> Result<(), String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let members = records::members(&self.store);
        let others: Vec<_> = members.iter().filter(|member| member.id != self.config.member_id).collect();
        // One alone listens too if there were others: they may come back, and hear only here that they were removed.
        if others.is_empty() && known.is_empty() && !records::has_removed(&self.store) {
            return Ok(());
        }
        let transport = self.transport()?;
        let gone: Vec<u64> =
            known.keys().copied().filter(|id| !others.iter().any(|member| member.id == *id)).collect();
        for id in gone {
            known.remove(&id);
            transport.remove_peer(id);
            tracing::info!(peer = format!("{id:x}"), "a member was removed; its connections are ended");
        }
        for member in others {
            let addresses = identity::dial_addresses(member)?;
            if known.get(&member.id) != Some(&addresses) {
                transport.set_peer(member.id, addresses.clone()).map_err(|error| error.to_string())?;
                known.insert(member.id, addresses);
                self.strangers.remove(member.id);
            }
        }
        Ok(())
    }

    /// Keeps up with the member table, tells followers that need the state to fetch it, and says how fast they may, in `state_rate` too. Ends with the task.
    pub async fn follow(self: Arc<Self>, state_rate: prometheus::Gauge) {
        let mut changes = self.membership.changes();
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        let mut last_error = String::new();
        let mut writes = Writes::default();
        let mut round_trips = BTreeMap::new();
        loop {
            tokio::select! {
                _ = changes.changed() => {}
                _ = ticks.tick() => {
                    self.memory.note_peers(&self.raft.core_status());
                    self.tell_who_needs_state();
                    self.tell_round_trips(&mut round_trips);
                    if let (Some(transport), Some((wal, _))) = (self.transport.get(), self.raft.stats()) {
                        state_rate.set(transport.note_writes(writes.since_last(wal.ack)) as f64);
                    }
                }
            }
            let peers = Arc::clone(&self);
            let synced = tokio::task::spawn_blocking(move || peers.sync()).await;
            let error = synced.unwrap_or_else(|error| Err(error.to_string())).err().unwrap_or_default();
            if error != last_error && !error.is_empty() {
                tracing::error!(error, "cannot speak to all members; it is tried again");
            }
            last_error = error;
        }
    }

    fn tell_who_needs_state(&self) {
        let Some(transport) = self.transport.get() else { return };
        for peer in self.raft.peers().iter().filter(|peer| peer.needs_snapshot && peer.is_active) {
            let _ = transport.send(peer.id, Lane::Control, Frame::new(FETCH_FRAME, 0, 0, Vec::new()));
        }
    }

    /// What the pings since the last look took; `known` is how many were answered by then, of each member.
    fn tell_round_trips(&self, known: &mut BTreeMap<u64, u64>) {
        let Some(transport) = self.transport.get() else { return };
        let others = self.others();
        for (id, _, stats) in transport.lane_stats().into_iter().filter(|(_, lane, _)| *lane == Lane::Control)
        {
            // Ids of strangers come from outside.
            if others.contains(&id) && known.insert(id, stats.round_trips) != Some(stats.round_trips) {
                self.raft.inbox().round_trip(stats.round_trip_us);
            }
        }
        known.retain(|id, _| others.contains(id));
    }

    /// Hears whose state this member is told to fetch; 0 at first.
    pub fn fetch_orders(&self) -> watch::Receiver<u64> {
        self.fetch_from.subscribe()
    }

    /// True if this member is led by `member`.
    pub fn is_led_by(&self, member: u64) -> bool {
        self.raft.core_status().role.leader == member
    }

    /// As whom, and where, the state of `from` is fetched.
    ///
    /// # Errors
    /// If it is no member, or at no address that can be connected to.
    pub fn source(&self, from: u64) -> Result<(TransportConfig, Vec<Address>), String> {
        let known = records::member(&self.store, from).or_else(|| self.strangers.get(from));
        let member = known.ok_or("it is no member any more")?;
        Ok((self.config.clone(), identity::dial_addresses(&member)?))
    }

    /// Ends this member's part in its cluster, because its data differs from that of most others; durable when it returns. Who leads hands over
    /// first. Returns the least index of a state that puts an end to that. Blocks for an election timeout or two.
    ///
    /// # Errors
    /// If that could not be kept.
    pub fn quarantine(&self) -> Result<u64, String> {
        if !self.is_quarantined_for_state() {
            self.raft.hand_over();
            self.raft.begin_quarantine();
            if !self.raft.wait_for(QUARANTINE_TIME, |status| status.quarantine.is_some()) {
                return Err("the thread of the log does not answer".into());
            }
        }
        self.raft.keep_quarantine().map_err(|error| error.to_string())
    }

    /// True if this member takes no part because its data differs.
    pub fn is_quarantined_for_state(&self) -> bool {
        self.raft.core_status().quarantine == Some(Quarantine::StateDiffers)
    }

    /// Says whether the state of another member is being fetched.
    pub fn set_fetching(&self, is_fetching: bool) {
        self.is_fetching.store(is_fetching, Ordering::Relaxed);
    }

    /// See [`Self::set_fetching`].
    pub fn is_fetching(&self) -> bool {
        self.is_fetching.load(Ordering::Relaxed)
    }

    /// What was sent to and received from the other members, by id.
    pub fn samples(&self) -> Vec<PeerSample> {
        let Some(transport) = self.transport.get() else { return Vec::new() };
        let mut samples: Vec<PeerSample> = Vec::new();
        let others = self.others();
        for (id, lane, stats) in transport.lane_stats() {
            if !others.contains(&id) {
                continue;
            }
            if samples.last().is_none_or(|sample| sample.id != id) {
                samples.push(PeerSample { id, is_connected: true, ..PeerSample::default() });
            }
            let Some(sample) = samples.last_mut() else { continue };
            sample.is_connected &= stats.connected;
            sample.sent_bytes += stats.bytes_sent;
            sample.received_bytes += stats.bytes_received;
            sample.send_failures += stats.frames_dropped + stats.connect_failures;
            sample.losses += stats.losses;
            if lane == Lane::Control {
                sample.control_failures = stats.frames_dropped;
                let counts = stats.round_trip_counts.iter().enumerate();
                let counts = counts.map(|(slot, count)| match slot {
                    slot if slot < ROUND_TRIP_BOUNDS => (round_trip_bound_us(slot), *count),
                    _ => (u64::MAX, *count),
                });
                let name = "etcd_network_peer_round_trip_time_seconds";
                sample.round_trips = resample(name, counts, stats.round_trip_us_sum);
            }
        }
        samples
    }

    /// The other members, by id.
    pub fn others(&self) -> Vec<u64> {
        let members = records::members(&self.store);
        members.iter().map(|member| member.id).filter(|id| *id != self.config.member_id).collect()
    }

    /// Where a fetched state is staged.
    pub fn staging_place(&self) -> Place {
        self.raft.staging_place()
    }

    /// Closes all connections.
    pub fn stop(&self) {
        if let Some(transport) = self.transport.get() {
            transport.shutdown();
        }
    }
}
