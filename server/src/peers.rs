//! The other members: the transport between us and a group's replicator.
//!
//! **Contract.** [`Peers::start`] listens for the other members and connects to them; frames of the replicator go out by it, and what comes in is
//! given to the replicator. Who may connect is who is in the member table.
//!
//! **Does not know** what a frame says.
use crate::apply::records;
use crate::config::Config;
use crate::identity;
use bytes::Bytes;
use std::sync::Arc;
use sternpost_engine::mvcc::Store;
use sternpost_replication::entry_format::FEATURE_LEVEL;
use sternpost_replication::raft::{self, Carrier, Inbox, Raft};
use sternpost_replication::transport::{
    Direction, Frame, Inbound, Lane, Limits, MemberHello, Notice, Position, Received, RefusalCode, Transport,
    TransportConfig,
};

/// Kind of the frames that hold one of the replicator's.
const RAFT_FRAME: u8 = 1;

/// A running transport. Dropping it ends it.
pub struct Peers {
    transport: Arc<Transport>,
}

struct Members {
    raft: Arc<Raft>,
    inbox: Arc<Inbox>,
    store: Store,
}

struct ByTransport(Arc<Transport>);

impl Carrier for ByTransport {
    fn send(&self, to: u64, lane: raft::Lane, frame: Bytes) -> bool {
        let lane = match lane {
            raft::Lane::Control => Lane::Control,
            raft::Lane::Log => Lane::Log,
        };
        self.0.send(to, lane, Frame::new(RAFT_FRAME, 0, 0, vec![frame])).is_ok()
    }
}

impl Inbound for Members {
    fn frame(&self, from: u64, _: Lane, frame: Received) {
        if frame.kind != RAFT_FRAME {
            return;
        }
        if let Err(error) = self.inbox.frame(from, frame.body) {
            tracing::warn!(from = format!("{from:x}"), %error, "dropped a frame of a member");
        }
    }

    fn connected(&self, peer: u64, lane: Lane, direction: Direction, _: &MemberHello) {
        if direction == Direction::Out {
            tracing::info!(peer = format!("{peer:x}"), lane = lane.name(), "connected to a member");
            self.inbox.connected(peer);
        }
    }

    fn lost(&self, peer: u64, lane: Lane, direction: Direction) {
        if direction == Direction::Out {
            tracing::info!(peer = format!("{peer:x}"), lane = lane.name(), "lost the connection to a member");
            self.inbox.unreachable(peer);
        }
    }

    fn position(&self) -> Position {
        let status = self.raft.core_status();
        Position { term: status.role.term, last_index: status.last, last_term: status.last_term }
    }

    fn admit(&self, hello: &MemberHello) -> Result<(), RefusalCode> {
        // The genesis is in the checkpoint or was restored before anybody listens.
        let is_member = records::members(&self.store).iter().any(|member| member.id == hello.from);
        if is_member { Ok(()) } else { Err(RefusalCode::Unknown) }
    }

    fn member_table(&self) -> Bytes {
        identity::member_table(&self.store)
    }

    fn notice(&self, notice: &Notice) {
        tracing::warn!("{notice}");
    }
}

impl Peers {
    /// Listens and connects. `store` holds the member table.
    ///
    /// # Errors
    /// In one line: an address that cannot be listened on or connected to.
    pub fn start(config: &Config, raft: Arc<Raft>, store: Store) -> Result<Self, String> {
        let (heartbeat_ms, election_ms) = config.raft_timers_ms();
        let opened = raft.opened();
        let (cluster_id, member_id) = (opened.cluster_id, opened.member_id);
        let transport_config = TransportConfig {
            listen: config.peer_listen_addresses()?,
            cluster_id,
            member_id,
            boot_count: 0,
            boot_nonce: raft.boot(),
            genesis_hash: raft.genesis().hash(),
            feature_level: FEATURE_LEVEL,
            heartbeat_ms,
            election_ms,
            peer_urls: config.initial_advertise_peer_urls.iter().map(ToString::to_string).collect(),
            limits: Limits::default(),
        };
        let members = records::members(&store);
        let inbound = Members { inbox: raft.inbox(), raft: Arc::clone(&raft), store };
        let transport =
            Transport::start(transport_config, Arc::new(inbound)).map_err(|error| error.to_string())?;
        let transport = Arc::new(transport);
        for member in members.iter().filter(|member| member.id != member_id) {
            let addresses = identity::dial_addresses(member)?;
            transport.set_peer(member.id, addresses).map_err(|error| error.to_string())?;
        }
        raft.connect(Box::new(ByTransport(Arc::clone(&transport))));
        Ok(Self { transport })
    }

    /// Closes all connections.
    pub fn stop(&self) {
        self.transport.shutdown();
    }
}
