//! A member's directory that begins with a state from elsewhere instead of nothing.
//!
//! **Contract.** The state stands at [`SEED_INDEX`], behind the index of a genesis: a log that begins there does not reach back to the beginning, so a member that
//! comes with an empty directory fetches the state, as it does from any log that has been cut. Every member of a new group is seeded with the
//! same state; what `genesis.state` says of it is in the hash that members compare when they connect.
//!
//! **Failure.** See [`Seed`]: a directory that is not finished is opened by nobody.
use crate::entry_format::{GENESIS_INDEX, GENESIS_TERM, encode_genesis, encode_hard_state};
use crate::replicator::Genesis;
use crate::solo::{GROUP, identity};
use std::path::Path;
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::mvcc::{CutPosition, StoreOptions};
use sternpost_engine::options::LogOptions;
use sternpost_engine::seed::Seed;
use sternpost_engine::wal::{RecordKind, RecordMeta, Reserve};
use sternpost_engine::{Error, Result};

/// Log index that a seeded state is at.
pub const SEED_INDEX: u64 = GENESIS_INDEX + 1;

/// Memory and device of a seeding.
#[derive(Clone, Debug, Default)]
pub struct SeedOptions {
    /// The log and its device.
    pub log: LogOptions,
    /// What is on disk beside the log, and its cache.
    pub checkpoint: CheckpointOptions,
    /// The memtables.
    pub store: StoreOptions,
}

/// Puts a state in; says its head and its compact revision, if it has one.
pub type Fill<'a, E> = dyn FnMut(&mut Seed) -> std::result::Result<(i64, Option<i64>), E> + 'a;

/// Makes `directory`, missing or empty, that of the member that `genesis` names.
///
/// # Errors
/// Those of `fill`; a directory that is not empty; what the device reports.
pub fn seed<E: From<Error>>(
    directory: &Path,
    options: &SeedOptions,
    genesis: &Genesis,
    fill: &mut Fill<'_, E>,
) -> std::result::Result<(), E> {
    let SeedOptions { log, checkpoint, store } = options;
    let mut seed = Seed::begin(directory, log, checkpoint, store, &identity(genesis))?;
    let position = write_begin(&mut seed, genesis)?;
    seed.stand_behind(position);
    let (head, compacted) = fill(&mut seed)?;
    if genesis.voters.len() > 1 {
        mark_as_group(directory)?;
    }
    Ok(seed.finish(head, compacted)?)
}

/// What a log begins with: the state that it follows, and term and vote. One alone has voted for itself.
fn write_begin(seed: &mut Seed, genesis: &Genesis) -> Result<CutPosition> {
    let log = seed.log();
    let (index, term) = (SEED_INDEX, GENESIS_TERM);
    let mark = RecordMeta { kind: RecordKind::SnapshotMark, entry_type: 0, group: GROUP, term, index };
    log.append(mark, &encode_genesis(genesis), Reserve::Privileged)?;
    let vote = if genesis.voters.len() == 1 { genesis.member_id } else { 0 };
    let hard_state = RecordMeta { kind: RecordKind::HardState, ..mark };
    let lsn = log.append(hard_state, &encode_hard_state(vote), Reserve::Privileged)?;
    while log.durable_lsn() <= lsn {
        log.submit();
        log.wait(1_000_000);
        if let Some(reason) = log.poisoned() {
            return Err(Error::LogPoisoned(reason.to_owned()));
        }
    }
    Ok(CutPosition { index, term, lsn })
}

#[cfg(feature = "raft")]
fn mark_as_group(directory: &Path) -> Result<()> {
    crate::raft::mark_as_group(directory)
}

#[cfg(not(feature = "raft"))]
fn mark_as_group(_: &Path) -> Result<()> {
    Err(Error::Refused("a member of a group is made by the build with Raft".into()))
}
