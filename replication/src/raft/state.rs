//! State transfers: what a member gives another one, what it fetches, and what its next start makes of that.
//!
//! **Contract.** What travels is one checkpoint of the source, made when it is asked for, and the genesis. It is fetched in rounds: while the
//! bulk travels the source goes on, so the next round asks for a newer checkpoint and fetches only the segments that are new, until little is
//! missing; what is left then the log has. Nothing of the receiver's own is touched. The start that follows ([`install`]) puts the state in place, and the
//! log begins anew behind it.
//!
//! **Invariants.** T1: a state is installed only where our log does not hold its last entry: everything that we have acknowledged is then in the
//! state, or was overwritten by what is (an entry that is committed and ours is the leader's too). T2: term and vote survive: those of the old log, or
//! the state's term without a vote, if that is higher; nobody has voted in a term that he never had. T3: mark and hard state are
//! durable before the decision is forgotten. T4: a member that is quarantined because its state differs (R3) takes any state that reaches to the end of
//! what it has acknowledged, though its log holds that entry, and no other one.
//!
//! **Layout**, little-endian. A manifest on the wire: format version u8 (1) · genesis (length u32 · bytes) · the engine's manifest (length u32 ·
//! bytes). The note of a staged state: the genesis, of the receiver. The note of a decision: format version u8 (1) · index u64 · term u64 · term of
//! the hard state u64 · vote u64 · genesis (length u32 · bytes).
//!
//! **Failure.** A fetch that is cut short is gone on with: segments that are whole stay. A damaged one is fetched once more, and then the source is
//! given up.
//!
//! **Does not know** who should fetch from whom, or when.
use super::apply::ApplyQueue;
use super::replay::Replay;
use crate::entry_format::{decode_genesis, decode_hard_state, encode_genesis};
use crate::replicator::Genesis;
use crate::transport::{Address, StateClient, StateSource, TransportConfig};
use bytes::Bytes;
use raft::eraftpb::ConfState;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use sternpost_engine::base::codec::{Reader, put_bytes};
use sternpost_engine::log::{LogIdentity, PreparedLog};
use sternpost_engine::options::LogOptions;
use sternpost_engine::transfer::{self, HeldState, Manifest, Place, Staging, StateHolder};
use sternpost_engine::wal::{Record, RecordKind, RecordMeta};
use sternpost_engine::{Error, Result};

const FORMAT_VERSION: u8 = 1;
/// A round that has less than this to fetch is the last one: the log reaches back so far.
const LAST_ROUND_BYTES: u64 = 32 << 20;
/// After so many rounds the receiver takes what it has: it is as near as it comes.
const ROUNDS_MAX: u32 = 16;
/// Asked for at once. Both sides read, send and write that much in one go, beside the writes of clients: of 1 MiB those notice each.
const ASKED_BYTES: u32 = 128 << 10;
/// Questions under way: enough to keep a connection busy.
const ASKED_MAX: usize = 16;
/// Looks, 10 ms apart, for a checkpoint that was asked for: five minutes.
const LOOKS_MAX: u32 = 30_000;

// ---- the source

/// What is given to one member that fetches.
pub(super) struct Source {
    holder: StateHolder,
    apply: Arc<ApplyQueue>,
    genesis: Vec<u8>,
    held: Option<HeldState>,
    /// The index that the next manifest holds at least, and how often it was looked for.
    wanted: Option<(u64, u32)>,
}

impl Source {
    pub(super) fn new(holder: StateHolder, apply: Arc<ApplyQueue>, genesis: &Genesis) -> Self {
        Self { holder, apply, genesis: encode_genesis(genesis), held: None, wanted: None }
    }
}

impl StateSource for Source {
    fn manifest(&mut self) -> std::result::Result<Option<Vec<u8>>, String> {
        let Some((index, looks)) = &mut self.wanted else {
            self.wanted = Some((self.apply.applied.load(Ordering::Acquire), 0));
            self.apply.ask_for_checkpoint();
            return Ok(None);
        };
        *looks += 1;
        if *looks > LOOKS_MAX {
            return Err("no checkpoint could be made in time".into());
        }
        if self.holder.applied().0 < *index {
            return Ok(None);
        }
        // The old one is let go of when the new one is held: what is in both keeps its name.
        let Some(held) = self.holder.hold().map_err(|error| error.to_string())? else { return Ok(None) };
        let mut out = vec![FORMAT_VERSION];
        put_bytes(&mut out, &self.genesis);
        put_bytes(&mut out, &held.manifest().encode().map_err(|error| error.to_string())?);
        self.held = Some(held);
        self.wanted = None;
        Ok(Some(out))
    }

    fn read(&mut self, file: u32, offset: u64, bytes_max: u32) -> std::result::Result<Vec<u8>, String> {
        let held = self.held.as_ref().ok_or("no manifest was asked for")?;
        held.read(file as usize, offset, bytes_max as usize).map_err(|error| error.to_string())
    }
}

// ---- the receiver

/// How far a fetch is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FetchProgress {
    /// From 1.
    pub round: u32,
    /// Bytes of this round that have arrived.
    pub bytes_done: u64,
    /// Bytes of this round.
    pub bytes_total: u64,
}

/// What was fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// Last entry in it.
    pub index: u64,
    /// Its revision.
    pub revision: i64,
    /// Bytes that came over the network.
    pub bytes: u64,
    /// Rounds.
    pub rounds: u32,
}

/// True for a directory without data of its own, whatever was staged in it.
pub fn has_staged_only(directory: &Path) -> bool {
    !directory.join("super").exists() && !directory.join("install").exists()
}

/// Who receives a state, and of which cluster it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Receiving {
    pub(super) cluster_id: u64,
    pub(super) member_id: u64,
    pub(super) genesis_hash: u64,
}

/// The way to a source; answers come in the order of the questions.
pub(super) trait StateAsker {
    /// A manifest of now, when it is made.
    fn manifest(&mut self) -> std::result::Result<Bytes, String>;

    /// Asks for a part of a file.
    fn ask(&mut self, file: u32, offset: u64, bytes: u32) -> std::result::Result<(), String>;

    /// The next answer: file, offset, what is there.
    fn bytes(&mut self) -> std::result::Result<(u32, u64, Bytes), String>;
}

impl StateAsker for StateClient {
    fn manifest(&mut self) -> std::result::Result<Bytes, String> {
        Self::manifest(self).map_err(|error| error.to_string())
    }

    fn ask(&mut self, file: u32, offset: u64, bytes: u32) -> std::result::Result<(), String> {
        Self::ask(self, file, offset, bytes).map_err(|error| error.to_string())
    }

    fn bytes(&mut self) -> std::result::Result<(u32, u64, Bytes), String> {
        Self::bytes(self).map_err(|error| error.to_string())
    }
}

/// Fetches the state of the member `from` at `address` into `place`, as the member of `config`, and stages it for the next start.
///
/// # Errors
/// A sentence. What has arrived whole is kept for the next attempt.
pub fn fetch(
    place: &Place,
    config: &TransportConfig,
    from: u64,
    address: &Address,
    progress: &mut dyn FnMut(FetchProgress),
) -> std::result::Result<Fetched, String> {
    let mut client = StateClient::connect(config, from, address).map_err(|error| error.to_string())?;
    let &TransportConfig { cluster_id, member_id, genesis_hash, .. } = config;
    fetch_from(place, Receiving { cluster_id, member_id, genesis_hash }, &mut client, progress)
}

/// The same, by any way to the source.
pub(super) fn fetch_from(
    place: &Place,
    receiving: Receiving,
    client: &mut dyn StateAsker,
    progress: &mut dyn FnMut(FetchProgress),
) -> std::result::Result<Fetched, String> {
    let text = |error: Error| error.to_string();
    let mut bytes = 0;
    for round in 1.. {
        let (genesis, manifest) = decode_manifest(&client.manifest()?)
            .ok_or("its manifest is of a format that this build does not know")?;
        if manifest.cluster_id != receiving.cluster_id || genesis.hash() != receiving.genesis_hash {
            return Err("it gives the state of another cluster".into());
        }
        let mut staging = Staging::begin(place, manifest).map_err(text)?;
        let missing_bytes = staging.bytes_missing();
        let (index, revision) = (staging.manifest().applied.0, staging.manifest().revision);
        let mut done = 0;
        let mut arrived = |count: u64| {
            done += count;
            progress(FetchProgress { round, bytes_done: done, bytes_total: missing_bytes });
        };
        bytes += fetch_missing(client, &mut staging, &mut arrived)?;
        if missing_bytes > LAST_ROUND_BYTES && round < ROUNDS_MAX {
            continue;
        }
        let note = encode_genesis(&Genesis { member_id: receiving.member_id, ..genesis });
        if let Err(error) = staging.complete(receiving.member_id, &note) {
            // A damaged page: its segment is missing again, and fetched once more.
            if staging.missing().is_empty() {
                return Err(text(error));
            }
            bytes += fetch_missing(client, &mut staging, &mut arrived)?;
            staging.complete(receiving.member_id, &note).map_err(text)?;
        }
        return Ok(Fetched { index, revision, bytes, rounds: round });
    }
    unreachable!("a round is the last one")
}

/// Fetches what is missing, one segment after the other, with several questions under way.
fn fetch_missing(
    client: &mut dyn StateAsker,
    staging: &mut Staging,
    arrived: &mut dyn FnMut(u64),
) -> std::result::Result<u64, String> {
    let text = |error: Error| error.to_string();
    let mut fetched = 0;
    for index in staging.missing() {
        let file = u32::try_from(index).map_err(|_| "too many segments")?;
        let bytes = staging.manifest().files[index].bytes;
        staging.start(index).map_err(text)?;
        let mut asked: VecDeque<(u64, u32)> = VecDeque::new();
        let mut next = 0;
        let mut written = 0;
        while written < bytes {
            while asked.len() < ASKED_MAX && next < bytes {
                let count = u32::try_from(bytes - next).unwrap_or(u32::MAX).min(ASKED_BYTES);
                client.ask(file, next, count)?;
                asked.push_back((next, count));
                next += u64::from(count);
            }
            let (answered, offset, chunk) = client.bytes()?;
            let expected = asked.pop_front();
            if answered != file || expected != Some((offset, chunk.len() as u32)) {
                return Err(format!(
                    "it answers with {} bytes of segment {answered} at {offset}, {expected:?} of {file} was asked for",
                    chunk.len()
                ));
            }
            staging.write(&chunk).map_err(text)?;
            written += chunk.len() as u64;
            arrived(chunk.len() as u64);
        }
        staging.finish().map_err(text)?;
        fetched += bytes;
    }
    Ok(fetched)
}

fn decode_manifest(bytes: &[u8]) -> Option<(Genesis, Manifest)> {
    let mut reader = Reader::new(bytes);
    if reader.u8() != Ok(FORMAT_VERSION) {
        return None;
    }
    let (genesis, _) = decode_genesis(reader.bytes().ok()?).ok()?;
    let manifest = Manifest::decode(reader.bytes().ok()?).ok()?;
    reader.is_empty().then_some((genesis, manifest))
}

// ---- the start

/// What a new log begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Decision {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) hard_term: u64,
    pub(super) vote: u64,
    pub(super) genesis: Genesis,
}

impl Decision {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT_VERSION];
        for number in [self.index, self.term, self.hard_term, self.vote] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_bytes(&mut out, &encode_genesis(&self.genesis));
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u8() != Ok(FORMAT_VERSION) {
            return None;
        }
        let mut number = || reader.u64().ok();
        let (index, term, hard_term, vote) = (number()?, number()?, number()?, number()?);
        let (genesis, _) = decode_genesis(reader.bytes().ok()?).ok()?;
        reader.is_empty().then_some(Self { index, term, hard_term, vote, genesis })
    }
}

/// Where a member's own log ends, and how it voted.
struct Own {
    /// It is quarantined for its state: the index that a state must have at least to put an end to that.
    quarantined_at: Option<u64>,
    term: u64,
    vote: u64,
    applied: u64,
    last: u64,
    base: (u64, u64),
    runs: Vec<(u64, u64)>,
}

impl Own {
    /// T1, T4.
    fn wants(&self, applied: (u64, u64)) -> bool {
        self.quarantined_at.map_or_else(|| !self.holds(applied), |last| applied.0 >= last)
    }

    /// T1: the entry is in our log, or so far behind that the log begins later.
    fn holds(&self, (index, term): (u64, u64)) -> bool {
        if index <= self.applied || index <= self.base.0 {
            return true;
        }
        let run = self.runs.iter().rev().find(|(first, _)| *first <= index);
        index <= self.last && run.map_or(self.base.1, |(_, term)| *term) == term
    }

    /// T2.
    fn hard_state_behind(&self, term: u64) -> (u64, u64) {
        if self.term >= term { (self.term, self.vote) } else { (term, 0) }
    }
}

/// Puts a staged state in place, if there is one that this member needs, and says what the new log begins with. Called before the directory is
/// opened; [`finish`] is to follow when that is durable. `has_own`: the directory has a superblock.
///
/// # Errors
/// Those of the engine, and a note that makes no sense.
pub(super) fn install(
    place: &Place,
    has_own: bool,
    log: &LogOptions,
    identity: &LogIdentity,
) -> Result<Option<Decision>> {
    let unknown = || {
        Error::Refused(
            "what was noted of a received state is of a format that this build does not know".into(),
        )
    };
    if let Some(note) = transfer::continue_install(place)? {
        return Decision::decode(&note).ok_or_else(unknown).map(Some);
    }
    let Some(ready) = transfer::staged(place)? else { return Ok(None) };
    let (index, term) = ready.applied;
    let (genesis, _) = decode_genesis(&ready.note).map_err(|_| unknown())?;
    let (mut hard_term, mut vote) = (term, 0);
    if has_own && let Some(own) = own_log(place, log, identity)? {
        if !own.wants((index, term)) {
            transfer::discard(place)?;
            return Ok(None);
        }
        (hard_term, vote) = own.hard_state_behind(term);
    }
    let decision = Decision { index, term, hard_term, vote, genesis };
    transfer::begin_install(place, &decision.encode())?;
    if transfer::continue_install(place)?.is_none() {
        return Err(Error::Refused("a decision to install a state was made and is not there".into()));
    }
    Ok(Some(decision))
}

/// Reads a member's own log without applying anything.
fn own_log(place: &Place, options: &LogOptions, identity: &LogIdentity) -> Result<Option<Own>> {
    let prepared = PreparedLog::in_place(place.directory(), options, identity)?;
    let (applied, _) = prepared.applied();
    let quarantined_at = prepared.quarantine().map(|quarantine| quarantine.last_index);
    let mut replay = Replay::new(applied);
    let nonsense =
        |error: super::replay::ReplayError| Error::Refused(format!("the log makes no sense: {error}"));
    let mut visit = |record: &Record<'_>| {
        let RecordMeta { kind, entry_type, term, index, .. } = record.meta;
        match kind {
            RecordKind::SnapshotMark => {
                replay.mark(index, term);
                Ok(())
            }
            RecordKind::HardState => {
                let vote = decode_hard_state(record.body)
                    .map_err(|error| Error::Refused(format!("the log makes no sense: {error}")))?;
                replay.hard_state(term, vote, index).map_err(nonsense)
            }
            RecordKind::RaftEntry => {
                let entry = super::open::decode_record(entry_type, term, index, record.body)
                    .ok_or_else(|| Error::Refused(format!("entry {index} is none of this build")))?;
                replay.entry(entry).map_err(nonsense)?;
                while replay.take_committed().is_some() {}
                Ok(())
            }
            _ => Ok(()),
        }
    };
    let (log, _, _) = prepared.recover(&mut visit, &mut |_| {})?;
    log.close()?;
    let last = replay.last_index();
    if last == 0 && applied == 0 {
        // Its first start did not come to a genesis: it has promised nothing.
        return Ok(None);
    }
    let start = replay.finish(ConfState::default()).map_err(nonsense)?;
    Ok(Some(Own {
        quarantined_at,
        term: start.hard_state.term,
        vote: start.hard_state.vote,
        applied: start.applied,
        last,
        base: start.base,
        runs: start.terms,
    }))
}

/// T3: the log begins with what the decision says, durably.
pub(super) fn finish(place: &Place) -> Result<()> {
    transfer::finish_install(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        // Entries 5 to 20: 5 to 9 of term 2, 10 to 20 of term 4; 12 is applied.
        Own {
            quarantined_at: None,
            term: 6,
            vote: 3,
            applied: 12,
            last: 20,
            base: (4, 2),
            runs: vec![(10, 4), (20, 4)],
        }
    }

    #[test]
    fn t1_a_state_that_our_log_holds_is_not_taken() {
        assert!(own().holds((3, 1)), "before the log");
        assert!(own().holds((12, 9)), "applied");
        assert!(own().holds((15, 4)));
        assert!(own().holds((20, 4)));
        assert!(!own().holds((15, 5)), "ours is another one, and not committed");
        assert!(!own().holds((21, 4)), "behind the end");
    }

    #[test]
    fn t4_a_quarantined_member_takes_a_state_that_has_all_it_has_acknowledged() {
        let own = Own { quarantined_at: Some(20), ..own() };
        assert!(own.wants((20, 4)) && own.wants((21, 5)));
        assert!(!own.wants((19, 4)) && !own.wants((15, 5)));
    }

    #[test]
    fn t2_a_vote_is_kept_and_a_new_term_begins_without_one() {
        assert_eq!(own().hard_state_behind(5), (6, 3));
        assert_eq!(own().hard_state_behind(6), (6, 3));
        assert_eq!(own().hard_state_behind(7), (7, 0));
    }

    #[test]
    fn decisions_come_back_and_cuts_are_refused() {
        let genesis = Genesis { cluster_id: 1, member_id: 2, voters: vec![2, 3], state: b"state".to_vec() };
        let decision = Decision { index: 7, term: 3, hard_term: 4, vote: 2, genesis };
        let bytes = decision.encode();
        assert_eq!(Decision::decode(&bytes), Some(decision));
        assert!((0..bytes.len()).all(|cut| Decision::decode(&bytes[..cut]).is_none()));
    }
}
