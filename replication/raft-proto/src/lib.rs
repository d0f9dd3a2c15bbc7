//! Messages of the crate `raft` 0.7, as plain prost structs.
//!
//! Takes the place of `raft-proto` on crates.io (`[patch.crates-io]` in the root's manifest), which needs `protoc` and a
//! second prost. The same names, field numbers and helpers, so `raft` itself is used unmodified; payloads are
//! [`bytes::Bytes`]. The reasons are in `replication/docs/decisions/0001-raft.md`.
//!
//! **Does not know** anything about consensus.
//!
//! **Source**: field numbers and types from `eraftpb.proto` of raft-proto 0.7.0 (Apache-2.0), the surface from what `raft`
//! 0.7.0 calls.
mod conf_change;
mod conf_state;
pub mod eraftpb;
mod message;

pub use conf_change::{
    ConfChangeI, decode_conf_change, encode_conf_change, new_conf_change_single, parse_conf_change,
    stringify_conf_change,
};
pub use conf_state::conf_state_eq;

/// What `raft` imports by one line.
pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry,
        EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}

/// Conversions that `raft` uses.
pub mod util {
    use crate::eraftpb::ConfState;

    impl<Voters, Learners> From<(Voters, Learners)> for ConfState
    where
        Voters: IntoIterator<Item = u64>,
        Learners: IntoIterator<Item = u64>,
    {
        fn from((voters, learners): (Voters, Learners)) -> Self {
            Self {
                voters: voters.into_iter().collect(),
                learners: learners.into_iter().collect(),
                ..Self::default()
            }
        }
    }
}
