//! Bytes of what replication writes to the log: entry bodies, the hard state, the genesis checkpoint.
//!
//! The same for a single node and for a member of a Raft group, so that one grows into the other without migration.
//! Little-endian.
//!
//! | record of the log | its index | its term | body |
//! |---|---|---|---|
//! | `RaftEntry`, entry type 0 | log index | term | format version u8 (1) · for each command: length u32 · bytes |
//! | `RaftEntry`, entry type 0, of a new leader | log index | term | nothing |
//! | `RaftEntry`, entry type 2 | log index | term | format version u8 (1) · change (length u32 · protobuf of raft's `ConfChangeV2`) · context (the rest) |
//! | `HardState` | commit index | term | format version u8 (1) · vote u64 (member id, 0 for none) |
//! | `SnapshotMark` | index of the checkpoint | its term | format version u8 (1) · cluster id u64 · member id u64 · feature level u32 · voters u32 · for each: member id u64 · state (length u32 · bytes) |
//!
//! **Failure.** Every decoder checks every length; bytes that do not fit are refused, never guessed.
use crate::replicator::Genesis;
use sternpost_engine::base::codec::{Reader, Truncated, put_bytes};

/// Format version of all three bodies.
pub const FORMAT_VERSION: u8 = 1;
/// What this build can do and a group may rely on; raised by the leader when every member has it.
pub const FEATURE_LEVEL: u32 = 1;
/// Index and term of the genesis checkpoint; the log of a new group starts behind it.
pub const GENESIS_INDEX: u64 = 1;
/// See [`GENESIS_INDEX`].
pub const GENESIS_TERM: u64 = 1;

/// Why a body was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FormatError {
    /// A length in it does not fit.
    Length,
    /// A format version this build does not know.
    Version(u8),
}

impl From<Truncated> for FormatError {
    fn from(_: Truncated) -> Self {
        Self::Length
    }
}

impl std::fmt::Display for FormatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length => f.write_str("its lengths do not fit"),
            Self::Version(found) => {
                write!(f, "format version {found}; this build knows {FORMAT_VERSION}")
            }
        }
    }
}

impl std::error::Error for FormatError {}

fn versioned(body: &[u8]) -> Result<Reader<'_>, FormatError> {
    let mut reader = Reader::new(body);
    match reader.u8()? {
        FORMAT_VERSION => Ok(reader),
        version => Err(FormatError::Version(version)),
    }
}

/// Starts the body of an entry.
pub fn start_entry(out: &mut Vec<u8>) {
    out.push(FORMAT_VERSION);
}

/// Appends one command to the body of an entry.
pub fn add_command(out: &mut Vec<u8>, command: &[u8]) {
    put_bytes(out, command);
}

/// The commands of an entry, in order.
pub fn decode_entry(body: &[u8]) -> Result<Vec<&[u8]>, FormatError> {
    let mut reader = versioned(body)?;
    let mut commands = Vec::new();
    while !reader.is_empty() {
        commands.push(reader.bytes()?);
    }
    Ok(commands)
}

/// Body of an entry that changes the configuration.
pub fn encode_change(change: &[u8], context: &[u8]) -> Vec<u8> {
    let mut out = vec![FORMAT_VERSION];
    put_bytes(&mut out, change);
    out.extend_from_slice(context);
    out
}

/// Change and context of such an entry.
pub fn decode_change(body: &[u8]) -> Result<(&[u8], &[u8]), FormatError> {
    let mut reader = versioned(body)?;
    let change = reader.bytes()?;
    Ok((change, reader.rest()))
}

/// Body of a `HardState` record.
pub fn encode_hard_state(vote: u64) -> Vec<u8> {
    let mut out = vec![FORMAT_VERSION];
    out.extend_from_slice(&vote.to_le_bytes());
    out
}

/// The vote of a `HardState` record.
pub fn decode_hard_state(body: &[u8]) -> Result<u64, FormatError> {
    let mut reader = versioned(body)?;
    let vote = reader.u64()?;
    if reader.is_empty() { Ok(vote) } else { Err(FormatError::Length) }
}

/// Body of the genesis' `SnapshotMark`.
pub fn encode_genesis(genesis: &Genesis) -> Vec<u8> {
    let mut out = vec![FORMAT_VERSION];
    out.extend_from_slice(&genesis.cluster_id.to_le_bytes());
    out.extend_from_slice(&genesis.member_id.to_le_bytes());
    out.extend_from_slice(&FEATURE_LEVEL.to_le_bytes());
    out.extend_from_slice(&u32::try_from(genesis.voters.len()).expect("few voters").to_le_bytes());
    for voter in &genesis.voters {
        out.extend_from_slice(&voter.to_le_bytes());
    }
    put_bytes(&mut out, &genesis.state);
    out
}

/// The genesis in a `SnapshotMark`, and the feature level it asks for.
pub fn decode_genesis(body: &[u8]) -> Result<(Genesis, u32), FormatError> {
    let mut reader = versioned(body)?;
    let cluster_id = reader.u64()?;
    let member_id = reader.u64()?;
    let feature_level = reader.u32()?;
    let mut voters = Vec::new();
    for _ in 0..reader.u32()? {
        voters.push(reader.u64()?);
    }
    let state = reader.bytes()?.to_vec();
    if !reader.is_empty() {
        return Err(FormatError::Length);
    }
    Ok((Genesis { cluster_id, member_id, voters, state }, feature_level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_back_in_order_and_every_cut_inside_one_is_refused() {
        let mut body = Vec::new();
        start_entry(&mut body);
        for command in [&b"one"[..], b"", b"three"] {
            add_command(&mut body, command);
        }
        assert_eq!(decode_entry(&body).unwrap(), [&b"one"[..], b"", b"three"]);
        // Cuts between commands give a shorter entry; the checksum of the record guards those.
        let boundaries = [1, 8, 12, 21];
        for cut in 0..body.len() {
            assert_eq!(decode_entry(&body[..cut]).is_ok(), boundaries.contains(&cut), "cut {cut}");
        }
        assert_eq!(decode_entry(&[9]), Err(FormatError::Version(9)));
    }

    #[test]
    fn genesis_and_hard_state_survive_and_cuts_are_refused() {
        let genesis = Genesis { cluster_id: 1, member_id: 2, voters: vec![2, 3], state: b"members".to_vec() };
        let body = encode_genesis(&genesis);
        assert_eq!(decode_genesis(&body), Ok((genesis, FEATURE_LEVEL)));
        for cut in 0..body.len() {
            assert!(decode_genesis(&body[..cut]).is_err(), "cut {cut}");
        }
        let body = encode_hard_state(7);
        assert_eq!(decode_hard_state(&body), Ok(7));
        assert!((0..body.len()).all(|cut| decode_hard_state(&body[..cut]).is_err()));
        let body = encode_change(b"change", b"context");
        assert_eq!(decode_change(&body), Ok((&b"change"[..], &b"context"[..])));
        assert!((0..11).all(|cut| decode_change(&body[..cut]).is_err()));
    }
}
